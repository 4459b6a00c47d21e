"""Tokenizer settings: what is refused, and what a saved tokenizer must agree with."""

import pytest

from jaxlm.core.config import ConfigError, apply_overrides
from jaxlm.tokenizers import (
    TokenizerConfig,
    save_tokenizer,
    train_tokenizer,
    write_gpt2_files,
    write_tiktoken_ranks,
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "bpe"}, "kind=bpe needs vocab_size .* or path"),
        ({"kind": "bpe", "vocab_size": 255}, "vocab_size=255 is below 256"),
        (
            {"kind": "bpe", "vocab_size": 257, "special_tokens": ("a", "b")},
            "vocab_size=257 is below 258: 256 bytes and 2 special_tokens",
        ),
        ({"vocab_size": 300}, "vocab_size=300 needs kind=bpe; kind=characters"),
        ({"kind": "bytes", "vocab_size": 256}, "vocab_size=256 needs kind=bpe; kind=bytes"),
        ({"kind": "bytes", "unknown": "unk"}, "unknown=unk needs kind=characters"),
        ({"special_tokens": ("x", "y", "x")}, "special_tokens: 'x' is listed more than once"),
        ({"special_tokens": ("x", "")}, "special_tokens: .* cannot be empty"),
        ({"special_tokens": ("<unk>",), "unknown": "unk"}, "special_tokens: unknown=unk already"),
        ({"path": ""}, "path: expected a file name"),
    ],
)
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**fields)


def test_settings_can_be_overridden_by_path():
    config = apply_overrides(
        TokenizerConfig(), {"kind": "bpe", "vocab_size": "300", "special_tokens": "<s>,</s>"}
    )
    assert config.vocab_size == 300 and config.special_tokens == ("<s>", "</s>")
    with pytest.raises(ConfigError, match="kind=bpe needs vocab_size"):
        apply_overrides(TokenizerConfig(), {"kind": "bpe"})


def test_a_path_reads_the_tokenizer_instead_of_training(tmp_path):
    path = str(tmp_path / "tokenizer.json")
    trained = train_tokenizer(
        TokenizerConfig(kind="bpe", vocab_size=259, special_tokens=("<s>",)), ["ab ab abab"]
    )
    save_tokenizer(trained, path)

    def unread():
        raise AssertionError("the corpus was read")
        yield

    for fields in ({}, {"vocab_size": 259, "special_tokens": ("<s>",)}):
        config = TokenizerConfig(kind="bpe", path=path, **fields)
        assert train_tokenizer(config, unread()).fingerprint == trained.fingerprint


def test_a_path_may_be_of_ranks_or_of_a_folder_with_two_files(tmp_path):
    fields = {"kind": "bpe", "pattern": "llama3", "special_tokens": ("<s>",)}
    trained = train_tokenizer(TokenizerConfig(vocab_size=259, **fields), ["ab ab abab"])
    write_tiktoken_ranks(trained, tmp_path / "x.tiktoken")
    write_gpt2_files(trained, tmp_path / "vocab.json", tmp_path / "merges.txt")
    for path in (tmp_path / "x.tiktoken", tmp_path):
        config = TokenizerConfig(path=str(path), **fields)
        assert train_tokenizer(config, []).pieces == trained.pieces
        with pytest.raises(ConfigError, match="vocab_size=300: .* vocab_size=259"):
            train_tokenizer(TokenizerConfig(path=str(path), vocab_size=300, **fields), [])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "tokenizer.kind=characters: .* holds a tokenizer with kind=bpe"),
        ({"kind": "bpe", "vocab_size": 300}, "vocab_size=300: .* vocab_size=258"),
        ({"kind": "bpe", "pattern": "cl100k"}, "pattern=cl100k: .* pattern=gpt2"),
        ({"kind": "bpe", "special_tokens": ("<s>",)}, r"special_tokens=\('<s>',\): .*=\(\)"),
    ],
)
def test_a_saved_tokenizer_that_differs_is_refused(tmp_path, fields, message):
    path = str(tmp_path / "tokenizer.json")
    save_tokenizer(train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=258), ["abc abc"]), path)
    with pytest.raises(ConfigError, match=message):
        train_tokenizer(TokenizerConfig(path=path, **fields), [])


def test_an_empty_text_has_no_characters():
    with pytest.raises(ConfigError, match="the text is empty"):
        train_tokenizer(TokenizerConfig(), ["", ""])
