"""--job=tokenizer: a tokenizer trained on a text and saved, and what it makes of that text."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxlm.core.config import FLAG, ConfigError
from jaxlm.data.corpus import Corpus, open_corpus
from jaxlm.data.token_file import TokenFile, open_token_file
from jaxlm.io import workdir
from jaxlm.jobs import Launch
from jaxlm.jobs.configs import launch_config
from jaxlm.jobs.setup import TOKENIZER_FILE, token_file_of, tokenizer_of
from jaxlm.reports.progress import make_progress
from jaxlm.reports.tables import print_table
from jaxlm.tokenizers import (
    Tokenizer,
    TokenizerConfig,
    hugging_face,
    save_tokenizer,
    write_gpt2_files,
    write_tiktoken_ranks,
)

GROUPS = ("data", "tokenizer")
NUM_SHOWN = 10
_BLOCK = 1 << 22  # ids counted at once


def main(launch: Launch) -> int:
    cfg = _config(launch)
    corpus = open_corpus(cfg.data)
    print(
        f"text      {corpus.name}: {corpus.num_bytes:,} bytes, documents: {corpus.num_documents:,}"
    )
    with _folder(launch.workdir) as folder:
        tokenizer = _trained(corpus, cfg.tokenizer)
        tokens = open_token_file(token_file_of(corpus, tokenizer), tokenizer.fingerprint)
        save(tokenizer, folder)
        show(tokenizer, tokens, corpus.num_bytes)
    return 0


def _config(launch: Launch) -> Any:
    """The config, of bytes merged in pairs unless it says otherwise."""
    for path in launch.overrides:
        if path.partition(".")[0] not in GROUPS:
            raise ConfigError(f"{FLAG}{path}: --job=tokenizer reads only {' and '.join(GROUPS)}")
    for name in (workdir.CONFIG_FILE, TOKENIZER_FILE):
        if launch.workdir and (pathlib.Path(launch.workdir) / name).exists():
            raise ConfigError(f"--workdir={launch.workdir}: holds a {name} already; choose another")
    if launch.config is None:
        launch = launch._replace(overrides={"tokenizer.kind": "bpe"} | launch.overrides)
    return launch_config(launch)[0]


@contextlib.contextmanager
def _folder(given: str | None) -> Iterator[pathlib.Path]:
    """--workdir, or a new folder; made before the work, and taken away if the work fails."""
    folder = None if given is None else pathlib.Path(given)
    is_new = folder is None or not folder.exists()
    try:  # from here on, since it may be interrupted as soon as the folder is there
        if folder is None:
            folder = workdir.new_run_dir("runs", "tokenizer")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--workdir={folder}: {error.strerror}") from None
        yield folder
    finally:
        if is_new and folder is not None:
            with contextlib.suppress(OSError):  # it is kept where something is in it
                folder.rmdir()


def _trained(corpus: Corpus, cfg: TokenizerConfig) -> Tokenizer:
    if cfg.kind != "bpe" or cfg.path is not None:
        return tokenizer_of(corpus, cfg)
    num_merges = (cfg.vocab_size or 0) - 256 - len(cfg.special_tokens)
    with make_progress(num_merges, unit="merge", first="counting pre-tokens") as progress:
        return tokenizer_of(corpus, cfg, on_merge=progress.update)


def show(tokenizer: Tokenizer, tokens: TokenFile, num_bytes: int) -> None:
    """Prints what the tokenizer makes of the text: how short it is, and which tokens are in it.

    The single bytes of a byte-pair encoding are in neither list: many occur in no text.
    """
    times = np.zeros(tokenizer.vocab_size, np.int64)
    for start in range(0, len(tokens), _BLOCK):
        times += np.bincount(tokens[start : start + _BLOCK], minlength=tokenizer.vocab_size)
    print(
        f"tokenizer {tokenizer.kind}, {tokenizer.vocab_size:,} ids, of which "
        f"{int((times > 0).sum()):,} are in the text"
    )
    print(f"tokens    {len(tokens):,}, {num_bytes / len(tokens):.4f} bytes a token")
    special = set(tokenizer.special_ids.values())
    shortest, rare = (2, "rarest merged") if tokenizer.kind == "bpe" else (1, "rarest")
    listed = [
        id
        for id, piece in enumerate(tokenizer.pieces)
        if id not in special and len(piece) >= shortest
    ]
    orders = {
        "longest": lambda id: (-len(tokenizer.pieces[id]), -times[id], id),
        rare: lambda id: (times[id], id),
    }
    for title, order in orders.items():
        rows = [(f"{title} tokens", "id", "bytes", "times")]
        for id in sorted(listed, key=order)[:NUM_SHOWN]:
            text = f'"{tokenizer.token_text(id)}"'
            rows.append((text, f"{id}", f"{len(tokenizer.pieces[id])}", f"{times[id]:,}"))
        print()
        print_table(rows)


def save(tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """Writes tokenizer.json, and a byte-pair encoding also as tiktoken, GPT-2 and transformers."""
    save_tokenizer(tokenizer, folder / TOKENIZER_FILE)
    print(f"saved     {folder / TOKENIZER_FILE}")
    if tokenizer.kind != "bpe":
        return
    for write, names in (
        (write_tiktoken_ranks, ("ranks.tiktoken",)),
        (write_gpt2_files, ("vocab.json", "merges.txt")),
    ):
        paths = [folder / name for name in names]
        try:
            write(tokenizer, *paths)
            print(f"          {', '.join(map(str, paths))}")
        except ConfigError as error:
            print(f"left out  {error}")
    theirs = folder / "transformers"  # of its own, since there the file's name is the same
    try:
        hugging_face.write_tokenizer(theirs, tokenizer, {})
        print(f"          {theirs}")
    except ConfigError as error:
        print(f"left out  {error}")
