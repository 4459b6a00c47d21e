"""Batches a second from one token file: jaxlm's `batch_at` against the usual PyTorch ways.

    python -m benchmarks.data

5 million uint16 ids, context 256, batch 32, everything in the page cache; what is timed is making
batches in the order of training, without sending them to a device. The peers: `get_batch` as in
nanoGPT (windows at random offsets of a memory map that is opened for each batch, stacked, no
workers), and a DataLoader that shuffles the windows of a map-style dataset, with 2 worker
processes. jaxlm makes its batches in the one process that asks. Needs the `parity` extra.
"""

import argparse
import contextlib
import itertools
import pathlib
import tempfile

from benchmarks.alternate import alternate, open_worker, serve
from jaxlm.reports.tables import print_table

SIDES = ("jaxlm", "get_batch", "DataLoader")
BATCH, CONTEXT = 32, 256


def open_tokens(folder: pathlib.Path, num_tokens: int):
    """A token file of random letters as bytes, open; made if it is not there yet."""
    import numpy as np

    from jaxlm.data.config import DataConfig
    from jaxlm.data.corpus import open_corpus
    from jaxlm.data.token_file import cached_token_file, open_token_file
    from jaxlm.tokenizers import TokenizerConfig, train_tokenizer

    text = folder / "letters.txt"
    if not text.exists():
        text.write_bytes(np.random.default_rng(0).integers(97, 123, num_tokens, np.uint8).tobytes())
    tokenizer = train_tokenizer(TokenizerConfig(kind="bytes"), [])
    path = cached_token_file(open_corpus(DataConfig(path=str(text))), tokenizer, folder)
    return open_token_file(path, tokenizer.fingerprint)


def serve_jaxlm(folder: pathlib.Path, num_tokens: int, num_batches: int) -> None:
    from jaxlm.data.batches import batch_at, open_splits
    from jaxlm.data.config import DataConfig

    train, _ = open_splits(open_tokens(folder, num_tokens), DataConfig())
    steps = itertools.count()

    def block():
        for step in itertools.islice(steps, num_batches):
            batch_at(train, 0, step, batch_size=BATCH, context_length=CONTEXT)

    batch = batch_at(train, 0, 0, batch_size=BATCH, context_length=CONTEXT)
    serve({"shape": batch.tokens.shape, "dtype": str(batch.tokens.dtype)}, block)


def serve_torch(side: str, folder: pathlib.Path, num_tokens: int, num_batches: int) -> None:
    import numpy as np
    import torch

    from jaxlm.data.batches import open_splits
    from jaxlm.data.config import DataConfig
    from jaxlm.data.token_file import HEADER_BYTES

    tokens = open_tokens(folder, num_tokens)
    num_train = open_splits(tokens, DataConfig())[0].num_tokens

    def open_map():
        return np.memmap(tokens.path, np.uint16, "r", HEADER_BYTES, (num_train,))

    def window(ids, start):
        return torch.from_numpy(ids[start : start + CONTEXT].astype(np.int64))

    def get_batch():
        ids = open_map()  # anew each time: one that stays keeps every page that it has touched
        starts = torch.randint(num_train - CONTEXT, (BATCH,))
        x = torch.stack([window(ids, i) for i in starts])
        return x, torch.stack([window(ids, i + 1) for i in starts])

    class Windows(torch.utils.data.Dataset):
        def __init__(self):
            self.ids = open_map()

        def __len__(self):
            return (num_train - 1) // CONTEXT

        def __getitem__(self, place):
            start = place * CONTEXT
            return window(self.ids, start), window(self.ids, start + 1)

    def endless():
        options = {"shuffle": True, "drop_last": True}
        workers = {"num_workers": 2, "persistent_workers": True}
        loader = torch.utils.data.DataLoader(Windows(), BATCH, **options, **workers)
        while True:
            yield from loader

    batches = endless() if side == "DataLoader" else iter(get_batch, None)

    def block():
        for _ in itertools.islice(batches, num_batches):
            pass

    x, _ = next(batches)
    serve({"shape": tuple(x.shape), "dtype": str(x.dtype)}, block)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", default=",".join(SIDES), help="joined by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=1000, help="in a block")
    parser.add_argument("--tokens", type=int, default=5_000_000)
    parser.add_argument("--worker", choices=SIDES, help="one side, asked by this command")
    parser.add_argument("--folder", type=pathlib.Path, help="of the worker's token file")
    args = parser.parse_args()
    if args.worker == "jaxlm":
        return serve_jaxlm(args.folder, args.tokens, args.batches)
    if args.worker:
        return serve_torch(args.worker, args.folder, args.tokens, args.batches)
    sides = args.sides.split(",")
    if sides[0] != "jaxlm" or not set(sides) <= set(SIDES):
        parser.error(f"--sides={args.sides}: expected jaxlm, then some of {', '.join(SIDES[1:])}")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workers = {}
        for side in sides:
            command = [f"--worker={side}", f"--folder={folder}"]
            command += [f"--tokens={args.tokens}", f"--batches={args.batches}"]
            workers[side] = stack.enter_context(open_worker("benchmarks.data", command))
            print(f"{side:12} {workers[side].ready}", flush=True)
        medians = alternate({side: w.block for side, w in workers.items()}, args.rounds)
    rows = [("side", "ms/batch", "batches/s", "tokens/s", "time / jaxlm's")]
    for side, seconds in medians.items():
        speed = args.batches / seconds
        numbers = (f"{1e3 / speed:.3f}", f"{speed:,.0f}", f"{speed * BATCH * CONTEXT:,.0f}")
        rows.append((side, *numbers, f"{seconds / medians['jaxlm']:.2f}"))
    print_table(rows)
    return None


if __name__ == "__main__":
    main()
