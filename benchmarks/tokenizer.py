"""Training and encoding with byte-pair encoding against the `tokenizers` package, written in Rust.

    python -m benchmarks.tokenizer
    python -m benchmarks.tokenizer --data=FILE --sizes=8192 --rounds=5

12 MB of text: a file, or by default the bundled plays followed by copies of them in which every
letter is another one, so that there are as many different words as in that much real text. Both
sides read it from the file and use GPT-2's pattern, and take turns, each time in a new process,
whose imports do not count. Seconds are of the wall clock and of all processors together (jaxlm
trains in one process, Rust in a thread a core); memory is the most that a process held, in MB.
Encoding is by one core on both sides, with the merges of jaxlm.

Rust's own reader, the fastest, ends a pre-token at the end of every line. To compare merges it is
trained once more on whole pieces of the text, and jaxlm with the tie rule of Rust, the pair of
lowest ids in place of the greatest pair of byte strings: the two are then equal, or the command
fails. Needs the `parity` extra.
"""

import argparse
import functools
import json
import os
import pathlib
import resource
import statistics
import string
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from jaxlm.reports.tables import print_table

NUM_BYTES = 12_000_000
PIECE_CHARACTERS = 1 << 20
ENCODERS = ("jaxlm", "tiktoken", "tokenizers")


def write_text(path: str, num_bytes: int) -> None:
    """The plays, then the plays with the letters of another alphabet, until it is enough."""
    from jaxlm.data.config import DataConfig
    from jaxlm.data.corpus import open_corpus

    plays = "".join("".join(pieces) for pieces in open_corpus(DataConfig()).documents())
    alphabets = (string.ascii_lowercase, string.ascii_uppercase)
    with open(path, "w", encoding="utf-8", newline="") as file:
        for shift in range(0, 26, 7):
            turned = {ord(a[i]): a[(i + shift) % 26] for a in alphabets for i in range(26)}
            file.write(plays.translate(turned)[: num_bytes - file.tell()])


def pieces_of(path: str) -> Iterator[str]:
    with open(path, encoding="utf-8", newline="") as file:
        yield from iter(lambda: file.read(PIECE_CHARACTERS), "")


def safe_pieces_of(path: str) -> Iterator[str]:
    """Pieces whose borders are borders of pre-tokens."""
    from jaxlm.tokenizers.pieces import split_stream
    from jaxlm.tokenizers.pretokens import safe_cut

    return (piece for piece, _ in split_stream(pieces_of(path), (), safe_cut("gpt2")))


def train_jaxlm(path: str, size: int):
    from jaxlm.tokenizers import TokenizerConfig, train_tokenizer

    return train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=size), pieces_of(path))


def train_rust(source: str | Iterator[str], size: int):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
    if isinstance(source, str):
        tokenizer.train([source], trainer)
    else:
        tokenizer.train_from_iterator(source, trainer)
    return tokenizer


TRAINERS = {"jaxlm": train_jaxlm, "tokenizers": train_rust}


def measured(work: Callable[[], object]) -> tuple[object, dict[str, float]]:
    """What `work` gives; its seconds by both clocks, and MB before it and at most."""
    before = _peak_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return result, seconds | {"before": before, "peak": _peak_mb()}


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def train(side: str, path: str, size: int, tokenizer_path: str) -> dict:
    import tiktoken  # noqa: F401, so that no import is timed
    import tokenizers  # noqa: F401

    from jaxlm.tokenizers import save_tokenizer

    tokenizer, numbers = measured(lambda: TRAINERS[side](path, size))
    if side == "jaxlm":
        save_tokenizer(tokenizer, tokenizer_path)
    return numbers


def compare(path: str, size: int, tokenizer_path: str) -> dict[str, Any]:
    """How far the merges of the two are the same, and whether ties explain the rest."""
    from jaxlm.tokenizers import bpe_tokenizer, bpe_train, load_tokenizer
    from jaxlm.tokenizers.bpe import BYTE_TO_CHAR, readable_to_bytes
    from jaxlm.tokenizers.pretokens import count_pretokens

    saved = json.loads(train_rust(safe_pieces_of(path), size).to_str())["model"]["merges"]
    theirs = [tuple(map(readable_to_bytes, pair)) for pair in saved]
    counts = {word.encode(): n for word, n in count_pretokens("gpt2", safe_pieces_of(path)).items()}

    # Rust numbers the bytes by their readable characters, and merges in order.
    characters = sorted(BYTE_TO_CHAR.values())
    ids = {bytes([b]): characters.index(char) for b, char in BYTE_TO_CHAR.items()}
    with mock.patch.object(bpe_train, "_descending", lambda piece: ids.setdefault(piece, len(ids))):
        by_ids = bpe_train.train_merges(counts, len(theirs))

    num_bytes = sum(len(word) * n for word, n in counts.items())
    ours = load_tokenizer(tokenizer_path)
    bytes_per_token = []
    for tokenizer in (ours, bpe_tokenizer(theirs)):
        num_tokens = sum(len(tokenizer.encode(word.decode())) * n for word, n in counts.items())
        bytes_per_token.append(num_bytes / num_tokens)
    tokens = [ours.pieces[256:], [left + right for left, right in theirs]]
    same = [a == b for a, b in zip(*tokens, strict=True)]
    return {
        "words": len(counts),
        "first": (same + [False]).index(False),
        "common": len(set(tokens[0]) & set(tokens[1])) / len(theirs),
        "ties": by_ids == theirs,
        "bytes_per_token": bytes_per_token,
    }


def encode(side: str, path: str, tokenizer_path: str) -> dict[str, float]:
    """The whole text as ids, by one core; "ids" is a hash of them."""
    import numpy as np
    import tiktoken
    import tokenizers

    from jaxlm.tokenizers import load_tokenizer
    from jaxlm.tokenizers.bpe import bytes_to_readable
    from jaxlm.tokenizers.pretokens import PATTERNS

    ours = load_tokenizer(tokenizer_path)
    if side == "jaxlm":

        def work():
            return np.concatenate(list(ours.encode_iterable(pieces_of(path))))
    elif side == "tiktoken":
        ranks = {piece: id for id, piece in enumerate(ours.pieces)}
        settings = {"pat_str": PATTERNS["gpt2"], "mergeable_ranks": ranks, "special_tokens": {}}
        peer = tiktoken.Encoding("peer", **settings)

        def work():
            return peer.encode_to_numpy(
                pathlib.Path(path).read_bytes().decode(), disallowed_special=()
            )
    else:
        vocab = {bytes_to_readable(piece): id for id, piece in enumerate(ours.pieces)}
        merges = [tuple(line.split(" ")) for line in ours.content["merges"]]
        peer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
        byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        peer.pre_tokenizer = byte_level

        def work():
            return [id for piece in safe_pieces_of(path) for id in peer.encode(piece).ids]

    ids, numbers = measured(work)
    return numbers | {"ids": zlib.crc32(np.asarray(ids, np.int32).tobytes())}


WORKERS = {"text": write_text, "train": train, "compare": compare, "encode": encode}


def ask(worker: str, *arguments: object, **env: str) -> dict:
    """What a worker gives, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.tokenizer", f"--worker={worker}"]
    command += ["--arguments", json.dumps(arguments, default=str)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | env)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: ended with {done.returncode}, see above")
    return json.loads(done.stdout)


def in_turns(sides: dict[str, Callable[[], dict[str, float]]], rounds: int) -> dict[str, dict]:
    """The median of every number of each side, over rounds in which all take turns."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, measure in sides.items():
            found[side].append(measure())
    return {
        side: {name: statistics.median(each[name] for each in all) for name in all[0]}
        for side, all in found.items()
    }


def compare_training(path: pathlib.Path, folder: pathlib.Path, size: int, rounds: int):
    """Trains on both sides; a row for each, and a line on their merges."""
    saved = folder / f"{size}.json"
    medians = in_turns(
        {s: functools.partial(ask, "train", s, path, size, saved) for s in TRAINERS}, rounds
    )
    rows = []
    for side, of in medians.items():
        ratios = [f"{of[clock] / medians['tokenizers'][clock]:.2f}" for clock in ("wall", "cpu")]
        seconds = (f"{of['wall']:.2f}", f"{of['cpu']:.2f}")
        memory = (f"{of['before']:.0f}", f"{of['peak']:.0f}")
        rows.append((f"{size:,}", side, *seconds, *memory, *ratios))
    found = ask("compare", path, size, saved)
    if not found["ties"]:
        sys.exit(f"{size} tokens: the merges of the two differ, and not by the tie rule alone")
    line = (
        f"{size:,} tokens, {found['words']:,} different pre-tokens: the first {found['first']:,} "
        f"tokens are the same, then a tie; {found['common']:.2%} in common; bytes a token "
        "{:.4f} and {:.4f}".format(*found["bytes_per_token"])
    )
    return rows, line


def compare_encoding(path: pathlib.Path, tokenizer_path: pathlib.Path, rounds: int) -> None:
    one_core = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    sides = {
        s: functools.partial(ask, "encode", s, path, tokenizer_path, **one_core) for s in ENCODERS
    }
    medians = in_turns(sides, rounds)
    if len({of["ids"] for of in medians.values()}) > 1:
        sys.exit("the sides encode the text to different ids")
    rows = [("encoding", "MB/s", "MB/s of CPU", "MB before", "MB at most", "CPU / jaxlm's")]
    megabytes = path.stat().st_size / 1e6
    for side, of in medians.items():
        speeds = (f"{megabytes / of['wall']:.1f}", f"{megabytes / of['cpu']:.1f}")
        memory = (f"{of['before']:.0f}", f"{of['peak']:.0f}")
        rows.append((side, *speeds, *memory, f"{of['cpu'] / medians['jaxlm']['cpu']:.2f}"))
    print_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=pathlib.Path, help="a UTF-8 text, in place of the plays")
    parser.add_argument("--sizes", default="1024,8192,32768", help="of vocabularies")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", choices=WORKERS, help="one measurement, asked by this command")
    parser.add_argument("--arguments", type=json.loads, help="of the worker")
    args = parser.parse_args()
    if args.worker:
        return print(json.dumps(WORKERS[args.worker](*args.arguments)))
    sizes = [int(size) for size in args.sizes.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        path = args.data or folder / "text.txt"
        if args.data is None:
            ask("text", path, NUM_BYTES)
        parts = [compare_training(path, folder, size, args.rounds) for size in sizes]
        heading = ("tokens", "side", "s", "CPU s", "MB before", "at most", "s / Rust's", "CPU")
        print_table([heading, *(row for rows, _ in parts for row in rows)])
        print(*(line for _, line in parts), sep="\n", flush=True)
        compare_encoding(path, folder / f"{sizes[-1]}.json", args.rounds)
    return None


if __name__ == "__main__":
    main()
