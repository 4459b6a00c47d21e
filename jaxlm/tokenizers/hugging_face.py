"""Byte-level BPE tokenizers of tokenizer.json and of GGUF files, in and out.

A tokenizer that ours would not encode exactly alike is refused by name. The token that it puts
before every text is no part of the encoding: `usage_from_folder` tells of it, and callers add it.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers.bpe import BYTE_TO_CHAR, bpe_tokenizer, bytes_to_readable, readable_pair
from jaxlm.tokenizers.pretokens import PATTERNS
from jaxlm.tokenizers.saved import read_json, read_text
from jaxlm.tokenizers.tokenizer import Tokenizer

TOKENIZER_FILE, USAGE_FILE = "tokenizer.json", "tokenizer_config.json"
USAGE = ("chat_template", "bos_token", "eos_token", "pad_token", "unk_token")
MOST_PADDING = 1024  # rows of an embedding beyond its ids: models round up to 64, 128 or 512

_GGUF_PATTERNS = {"gpt-2": "gpt2", "smollm": "smollm", "qwen2": "qwen2", "llama-bpe": "llama3"}
_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type


def is_tokenizer_json(path: Path) -> bool:
    """Whether a file is of this form, or a folder holds one; what is in it is not checked."""
    path = path / TOKENIZER_FILE if path.is_dir() else path
    if not path.is_file():
        return False
    try:
        document = read_json(path)
    except ConfigError:
        return False
    return isinstance(document, dict) and "model" in document


def read_tokenizer_json(source: Path, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json, or of the one in a folder, for `vocab_size` rows.

    Args:
      vocab_size: None: as many as it has ids.
    Raises:
      ConfigError: no such file, not BPE over bytes, a pre-tokenizer, normaliser or added token that
        we do not have, a vocabulary that its merges do not make, or more ids than rows.
    """
    path = source / TOKENIZER_FILE if source.is_dir() else source
    if not path.is_file():
        raise ConfigError(
            f"{source}: holds no {TOKENIZER_FILE}; write one with AutoTokenizer and "
            "save_pretrained of transformers"
        )
    document = read_json(path)
    try:
        return _from_document(document, vocab_size, str(path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: malformed ({error!r})") from None


def tokenizer_from_gguf(fields: Mapping[str, Any], vocab_size: int, where: str) -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file; errors as `read_tokenizer_json`."""
    kind, pre = (fields.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind != "gpt2":
        raise ConfigError(f"{where}: tokenizer.ggml.model={kind!r}: only gpt2, BPE over bytes")
    if not isinstance(pre, str) or pre not in _GGUF_PATTERNS:
        raise ConfigError(
            f"{where}: tokenizer.ggml.pre={pre!r}: expected one of {', '.join(_GGUF_PATTERNS)}"
        )
    parts: list[Any] = [
        fields.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges")
    ]
    tokens, kinds, lines = parts
    if not all(isinstance(part, list) for part in parts) or len(tokens) != len(kinds):
        raise ConfigError(f"{where}: its tokens, token_type and merges do not belong together")
    numbered = list(enumerate(zip(tokens, kinds, strict=True)))
    specials = {t: id for id, (t, kind) in numbered if kind in (_CONTROL, _USER_DEFINED)}
    vocab = {t: id for id, (t, kind) in numbered if t not in specials}
    try:
        return _make(
            vocab,
            [tuple(line.split(" ")) for line in lines],
            specials,
            pattern=_GGUF_PATTERNS[pre],
            nfc=pre == "qwen2",
            whole_first=pre == "llama-bpe",
            vocab_size=vocab_size,
            where=where,
        )
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: malformed tokenizer ({error!r})") from None


def usage_from_folder(folder: Path) -> dict[str, Any]:
    """The chat template and the names of special tokens in a folder, as far as it states them.

    And "add_bos_token", true where transformers puts the bos_token before every text.
    """
    path, template = folder / USAGE_FILE, folder / "chat_template.jinja"
    found = read_json(path) if path.is_file() else {}
    if template.is_file():
        found["chat_template"] = read_text(template)
    # A token is its text, or in older files a dict that holds it.
    texts = {key: v.get("content") if isinstance(v, dict) else v for key, v in found.items()}
    usage: dict[str, Any] = {key: text for key in USAGE if isinstance(text := texts.get(key), str)}
    document = folder / TOKENIZER_FILE
    first = _put_first(read_json(document).get("post_processor")) if document.is_file() else None
    if first is not None:
        usage |= {"bos_token": first, "add_bos_token": True}
    return usage


def _put_first(processor: Any) -> str | None:
    """The special token with which a post_processor begins every text."""
    try:
        parts = processor["processors"] if processor["type"] == "Sequence" else [processor]
        templates = [part for part in parts if part["type"] == "TemplateProcessing"]
        first = templates[0]["single"][0]["SpecialToken"]["id"]
    except (KeyError, IndexError, TypeError):  # it puts none there
        return None
    return first if isinstance(first, str) else None


def usage_from_gguf(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same from the metadata of a GGUF file."""
    tokens, usage = fields.get("tokenizer.ggml.tokens"), {}
    texts = dict(enumerate(tokens)) if isinstance(tokens, list) else {}
    for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        id = fields.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(id, int) and isinstance(texts.get(id), str):
            usage[f"{key}_token"] = texts[id]
    if isinstance(template := fields.get("tokenizer.chat_template"), str):
        usage["chat_template"] = template
    if fields.get("tokenizer.ggml.add_bos_token") is True and "bos_token" in usage:
        usage["add_bos_token"] = True
    return usage


def write_tokenizer(folder: Path, tokenizer: Tokenizer, usage: Mapping[str, Any]) -> None:
    """Writes what transformers needs to make the tokenizer; errors as `tokenizer_json`.

    The folder is made if need be.
    """
    document = tokenizer_json(tokenizer)
    bos = usage.get("bos_token") if usage.get("add_bos_token") else None
    if bos in tokenizer.special_ids:
        document["post_processor"] = _putting_first(bos, tokenizer.special_ids[bos])
    folder.mkdir(exist_ok=True)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, content in ((TOKENIZER_FILE, document), (USAGE_FILE, settings | dict(usage))):
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def _putting_first(token: str, id: int) -> dict[str, Any]:
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            *(special, {"Sequence": {"id": "A", "type_id": 0}}),
            *(special, {"Sequence": {"id": "B", "type_id": 1}}),
        ],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    }


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The document of a tokenizer.json that encodes and decodes as `tokenizer` does.

    Raises:
      ConfigError: a tokenizer of characters, which BPE over bytes cannot be, or a special token
        that is an ordinary one as well.
    """
    content = tokenizer.content
    if content["kind"] == "characters":
        raise ConfigError(
            "a tokenizer of characters has no tokenizer.json; train one of bytes or bpe"
        )
    vocab = _vocabulary(tokenizer)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id, "content": text, "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": True}
            for text, id in sorted(tokenizer.special_ids.items(), key=lambda item: item[1])
        ],
        "normalizer": {"type": "NFC"} if content.get("nfc") else None,
        "pre_tokenizer": _pre_tokenizer(content.get("pattern", "none")),
        "post_processor": None,
        "decoder": {"type": "ByteLevel"} | _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a pre-token that is a token is taken whole, by tiktoken too
            "vocab": vocab,
            "merges": [line.split(" ") for line in content.get("merges", [])],
        },
    }


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    """{readable token: id}, special tokens as their own text: there too they must have their id."""
    vocab: dict[str, int] = {}
    texts = {id: text for text, id in tokenizer.special_ids.items()}
    for id, piece in enumerate(tokenizer.pieces):
        token = texts.get(id, bytes_to_readable(piece))
        if token in vocab:
            raise ConfigError(
                f"the special token {token!r} is an ordinary one too, of id {vocab[token]}; "
                "tokenizer.json has one id for a text"
            )
        vocab[token] = id
    return vocab


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    """What stands in tokenizer.json for one of `PATTERNS`."""
    own = {"type": "ByteLevel"} | _byte_level(use_regex=True)
    if pattern in ("gpt2", "none"):
        return own | {"use_regex": pattern == "gpt2"}
    if pattern == "smollm":
        first = {"type": "Digits", "individual_digits": True}
    else:
        regex = {"Regex": PATTERNS[pattern]}
        first = {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}
        own["use_regex"] = False
    return {"type": "Sequence", "pretokenizers": [first, own]}


def _pattern_of(pre_tokenizer: Any, where: str) -> str:
    """The name in `PATTERNS` of a pre_tokenizer; what only moves offsets is not looked at."""

    def plain(part: dict[str, Any]) -> dict[str, Any]:
        part = {"use_regex": True} | part if part["type"] == "ByteLevel" else dict(part)
        part.pop("trim_offsets", None)
        if part["type"] == "Sequence":
            part["pretokenizers"] = [plain(inner) for inner in part["pretokenizers"]]
        return part

    for pattern in PATTERNS:
        if pre_tokenizer and plain(pre_tokenizer) == plain(_pre_tokenizer(pattern)):
            return pattern
    raise ConfigError(
        f"{where}: a pre_tokenizer that jaxlm does not have: {str(pre_tokenizer):.200} (known: "
        f"{', '.join(PATTERNS)})"
    )


def _from_document(document: dict[str, Any], vocab_size: int | None, where: str) -> Tokenizer:
    model = document["model"]
    normalizer, decoder = document.get("normalizer"), document.get("decoder") or {}
    for name, value, plain in (
        ("model.type", model.get("type", "BPE"), ("BPE",)),
        ("model.byte_fallback", model.get("byte_fallback"), (None, False)),
        ("model.dropout", model.get("dropout"), (None, 0)),
        ("continuing_subword_prefix", model.get("continuing_subword_prefix"), (None, "")),
        ("end_of_word_suffix", model.get("end_of_word_suffix"), (None, "")),
        ("normalizer", normalizer, (None, {"type": "NFC"})),
        ("decoder", decoder.get("type"), ("ByteLevel",)),
    ):
        if value not in plain:
            raise ConfigError(
                f"{where}: {name}={str(value):.100}: jaxlm has only {plain[-1]!r}, BPE over bytes"
            )
    specials = {}
    for token in document.get("added_tokens", []):
        for flag in ("lstrip", "rstrip", "single_word"):
            if token.get(flag):
                raise ConfigError(
                    f"{where}: added token {token['content']!r} has {flag}, which jaxlm does not do"
                )
        specials[token["content"]] = token["id"]
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    return _make(
        {token: id for token, id in model["vocab"].items() if token not in specials},
        [tuple(merge) for merge in merges],
        specials,
        pattern=_pattern_of(document.get("pre_tokenizer"), where),
        nfc=normalizer is not None,
        whole_first=bool(model.get("ignore_merges")),
        vocab_size=vocab_size,
        where=where,
    )


def _make(
    vocab: dict[str, int],
    lines: Sequence[tuple[str, ...]],
    specials: dict[str, int],
    *,
    pattern: str,
    nfc: bool,
    whole_first: bool,
    vocab_size: int | None,
    where: str,
) -> Tokenizer:
    """A tokenizer of readable tokens.

    Args:
      lines: merges in order.
      whole_first: whether a pre-token that is a token is taken as it is, as tiktoken does; such a
        file may list all pairs that make a token. Else its merges alone must build every token.
      vocab_size: rows of the weights, None: as many as there are ids; those beyond the ids become
        special tokens without a use.
    """
    pairs = [readable_pair(line, f"{where}: merge {n}", line) for n, line in enumerate(lines, 1)]
    merges = _one_for_each_token(pairs) if whole_first else pairs
    names = [BYTE_TO_CHAR[b] for b in range(256)]
    # A vocabulary may lack bytes that UTF-8 never has.
    ids = [vocab.get(name, -1) for name in names]
    for left, right in merges:
        names.append(bytes_to_readable(left + right))
        if names[-1] not in vocab:
            raise ConfigError(f"{where}: its merges make {names[-1]!r}, which has no id")
        ids.append(vocab[names[-1]])
    if extra := vocab.keys() - set(names):
        raise ConfigError(
            f"{where}: no merge makes {min(extra)!r} (id {vocab[min(extra)]}, and {len(extra) - 1} "
            "more), so tiktoken cannot represent this tokenizer"
        )
    if not whole_first:
        _check_built(merges, where)
    used = len(vocab) + len(specials)
    vocab_size = used if vocab_size is None else vocab_size
    if not used <= vocab_size <= used + MOST_PADDING:
        raise ConfigError(
            f"{where}: this tokenizer has {used} ids and the weights {vocab_size} rows; they do "
            "not belong together"
        )
    specials = specials | {f"<|unused_{id}|>": id for id in range(used, vocab_size)}
    try:
        return bpe_tokenizer(merges, pattern=pattern, special_tokens=specials, ids=ids, nfc=nfc)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _one_for_each_token(pairs: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Of pairs in a row that make the same token, the one that the merges before them lead to."""
    ranks: dict[tuple[bytes, bytes], int] = {}
    for token, group in itertools.groupby(pairs, key=lambda pair: pair[0] + pair[1]):
        first, *others = group
        parts = tuple(_merged(token, ranks))
        ranks[next((pair for pair in others if pair == parts), first)] = len(ranks)
    return list(ranks)


def _check_built(merges: Sequence[tuple[bytes, bytes]], where: str) -> None:
    """Raises ConfigError naming a token that its own merges, applied in order, do not build."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for left, right in merges:
        if (parts := _merged(left + right, ranks)) != [left + right]:
            raise ConfigError(
                f"{where}: the merges make {' '.join(map(bytes_to_readable, parts))!r} of the "
                f"token {bytes_to_readable(left + right)!r}, which tiktoken would take whole; it "
                "cannot represent this tokenizer"
            )


def _merged(word: bytes, ranks: Mapping[tuple[bytes, bytes], int]) -> list[bytes]:
    """The parts of a word when the pair of lowest rank is joined first, the leftmost of equals."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 1:
        found = [ranks.get(pair, len(ranks)) for pair in itertools.pairwise(parts)]
        if (lowest := min(found)) == len(ranks):
            return parts
        i = found.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
