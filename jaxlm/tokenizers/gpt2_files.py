"""A BPE tokenizer from and to GPT-2's two files, vocab.json and merges.txt."""

import json
from collections.abc import Iterable
from pathlib import Path

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers.bpe import BYTE_TO_CHAR, bpe_tokenizer, bytes_to_readable, readable_pair
from jaxlm.tokenizers.saved import read_json, read_text, write_text
from jaxlm.tokenizers.tokenizer import Tokenizer


def read_gpt2_files(
    vocab_path: str | Path,
    merges_path: str | Path,
    *,
    special_tokens: Iterable[str] = ("<|endoftext|>",),
    pattern: str = "gpt2",
) -> Tokenizer:
    """The tokenizer of the two files, with the ids of the vocabulary.

    Args:
      vocab_path: JSON of readable token -> id, as `encoder.json` of GPT-2.
      merges_path: one "left right" a line in order of rank, with or without a "#version" line.
      special_tokens: the tokens of the vocabulary that no merge makes.
    Raises:
      ConfigError: a missing or malformed file, or files that do not belong together; names the
        file and the token or line.
    """
    vocab = read_json(vocab_path)
    merges = []
    for number, line in enumerate(read_text(merges_path).split("\n"), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.rstrip("\r").split(" ")
        merges.append(readable_pair(parts, f"{merges_path} line {number}", line))

    names = [BYTE_TO_CHAR[b] for b in range(256)]
    names += [bytes_to_readable(left + right) for left, right in merges]
    specials = list(special_tokens)
    for name in (*names, *specials):
        if name not in vocab:
            raise ConfigError(f"{vocab_path}: token {name!r} has no id")
    if extra := vocab.keys() - set(names) - set(specials):
        raise ConfigError(
            f"{vocab_path}: no merge makes {min(extra)!r} (id {vocab[min(extra)]}) and "
            f"{len(extra) - 1} others; name them in special_tokens if they are"
        )
    try:
        return bpe_tokenizer(
            merges,
            pattern=pattern,
            special_tokens={special: vocab[special] for special in specials},
            ids=[vocab[name] for name in names],
        )
    except ConfigError as error:
        raise ConfigError(f"{vocab_path} and {merges_path}: {error}") from None


def write_gpt2_files(tokenizer: Tokenizer, vocab_path: str | Path, merges_path: str | Path) -> None:
    """Writes the two files, special tokens among the vocabulary; `read_gpt2_files` reads them.

    They do not say by which pattern text is cut.

    Raises:
      ConfigError: not a BPE tokenizer, a special token that is written as another token is, or a
        file that cannot be written.
    """
    if tokenizer.kind != "bpe":
        raise ConfigError(f"{vocab_path}: GPT-2's files hold no tokenizer of kind={tokenizer.kind}")
    names = {id: special for special, id in tokenizer.special_ids.items()}
    vocab: dict[str, int] = {}
    for id, piece in enumerate(tokenizer.pieces):
        name = names.get(id, bytes_to_readable(piece))
        if name in vocab:
            raise ConfigError(f"{vocab_path}: ids {vocab[name]} and {id} are both written {name!r}")
        vocab[name] = id
    merges = "".join(f"{line}\n" for line in tokenizer.content["merges"])
    write_text(vocab_path, json.dumps(vocab, ensure_ascii=False) + "\n")
    write_text(merges_path, "#version: 0.2\n" + merges)
