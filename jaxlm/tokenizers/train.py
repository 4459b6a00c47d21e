"""From a config and text to a tokenizer."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers.bpe import bpe_tokenizer
from jaxlm.tokenizers.bpe_train import train_merges
from jaxlm.tokenizers.bytes import byte_tokenizer
from jaxlm.tokenizers.characters import character_tokenizer
from jaxlm.tokenizers.config import TokenizerConfig
from jaxlm.tokenizers.gpt2_files import read_gpt2_files
from jaxlm.tokenizers.hugging_face import is_tokenizer_json, read_tokenizer_json
from jaxlm.tokenizers.pieces import cut_anywhere, split_stream
from jaxlm.tokenizers.pretokens import count_pretokens, safe_cut
from jaxlm.tokenizers.saved import load_tokenizer
from jaxlm.tokenizers.tiktoken_file import read_tiktoken_ranks
from jaxlm.tokenizers.tokenizer import Tokenizer, require_unicode

FLAG = "--config.tokenizer."


def train_tokenizer(
    config: TokenizerConfig,
    texts: Iterable[str],
    *,
    count: Callable[[str, Iterable[str]], Mapping[str, int]] = count_pretokens,
    on_merge: Callable[[int], None] | None = None,
) -> Tokenizer:
    """The tokenizer that `config` asks for, trained on the joined `texts` or read from its path.

    `texts` are parts of one text, read once; how it is cut into parts changes nothing. Special
    tokens in it separate what lies on their two sides and are otherwise left out. Kind "bytes"
    and a config with a path read none of it.

    Args:
      count: bpe only; counts pre-tokens, as `count_pretokens`.
      on_merge: bpe only; called with the number of merges after each.
    Raises:
      ConfigError: an empty text, a text with too few pairs for the vocabulary size, or a saved
        tokenizer that differs from what the config says.
    """
    if config.path is not None:
        return _load_as_configured(config, Path(config.path))
    if config.kind == "bytes":
        return byte_tokenizer(special_tokens=config.special_tokens)
    if config.kind == "characters":
        seen: set[str] = set()
        for text in _ordinary(split_stream(texts, config.special_tokens, cut_anywhere)):
            seen.update(text)
        return character_tokenizer(
            seen, unknown=config.unknown, special_tokens=config.special_tokens
        )
    return _train_bpe(config, texts, count, on_merge)


def _train_bpe(config: TokenizerConfig, texts: Iterable[str], count, on_merge) -> Tokenizer:
    pieces = split_stream(texts, config.special_tokens, safe_cut(config.pattern))
    counts = count(config.pattern, _ordinary(pieces))
    if not counts:
        raise ConfigError("a bpe tokenizer cannot be trained on an empty text")
    require_unicode("".join(counts))
    num_merges = (config.vocab_size or 0) - 256 - len(config.special_tokens)
    merges = train_merges({word.encode(): n for word, n in counts.items()}, num_merges, on_merge)
    if len(merges) < num_merges:
        most = 256 + len(merges) + len(config.special_tokens)
        raise ConfigError(
            f"{FLAG}vocab_size={config.vocab_size}: this text has pairs for at most {most} tokens "
            "(bytes, merges and special tokens)"
        )
    return bpe_tokenizer(merges, pattern=config.pattern, special_tokens=config.special_tokens)


def _ordinary(pieces: Iterator[tuple[str, bool]]) -> Iterator[str]:
    return (piece for piece, is_special in pieces if not is_special)


def _load_as_configured(config: TokenizerConfig, path: Path) -> Tokenizer:
    # The files of others say neither by which pattern text is cut nor, some, what is special.
    unsaid = {"pattern": config.pattern, "special_tokens": config.special_tokens}
    if path.suffix == ".tiktoken":
        tokenizer = read_tiktoken_ranks(path, **unsaid)
    elif is_tokenizer_json(path):
        tokenizer = read_tokenizer_json(path)
    elif path.is_dir():
        tokenizer = read_gpt2_files(path / "vocab.json", path / "merges.txt", **unsaid)
    else:
        tokenizer = load_tokenizer(path)
    default = TokenizerConfig()  # a field left at its default asks for nothing
    for field, wanted, found in (
        ("kind", config.kind, tokenizer.kind),
        ("vocab_size", config.vocab_size, tokenizer.vocab_size),
        ("unknown", config.unknown, tokenizer.content.get("unknown")),
        ("pattern", config.pattern, tokenizer.content.get("pattern")),
        ("special_tokens", config.special_tokens, tuple(tokenizer.special_ids)),
    ):
        asked = field == "kind" or wanted != getattr(default, field)
        if asked and wanted != found:
            raise ConfigError(
                f"{FLAG}{field}={wanted}: {config.path} holds a tokenizer with {field}={found}"
            )
    return tokenizer
