"""tiktoken's ranks and GPT-2's two files, read and written: against tiktoken and `tokenizers`."""

import base64
import json

import numpy as np
import pytest
import tiktoken
import tiktoken.load

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers import (
    TokenizerConfig,
    bpe_tokenizer,
    byte_tokenizer,
    read_gpt2_files,
    read_tiktoken_ranks,
    train_tokenizer,
    write_gpt2_files,
    write_tiktoken_ranks,
)
from jaxlm.tokenizers.pretokens import PATTERNS

RNG = np.random.default_rng(0)
WORDS = ["".join(RNG.choice(list("aeiou nrst"), size=n)) for n in RNG.integers(1, 9, size=200)]
TEXT = " ".join(RNG.choice(WORDS, size=3000)) + " été 🙂 it's 12"
STRANGE = TEXT[:500] + " \n\t日本 é <s>"


@pytest.fixture(scope="module")
def trained():
    config = TokenizerConfig(kind="bpe", vocab_size=600, pattern="cl100k", special_tokens=("<s>",))
    return train_tokenizer(config, [TEXT])


def write(path, ranks):
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks]
    path.write_text("".join(lines))
    return path


def bytes_in_order():
    return [(bytes([b]), b) for b in range(256)]


def test_tiktoken_reads_the_ranks_and_encodes_alike(trained, tmp_path):
    path = tmp_path / "x.tiktoken"
    write_tiktoken_ranks(trained, path)
    ranks = tiktoken.load.load_tiktoken_bpe(str(path))
    peer = tiktoken.Encoding(
        "peer", pat_str=PATTERNS["cl100k"], mergeable_ranks=ranks, special_tokens={"<s>": 599}
    )
    assert peer.n_vocab == 600
    expected = peer.encode(STRANGE, allowed_special="all")
    assert trained.encode(STRANGE, allow_special=True).tolist() == expected


def test_ranks_come_back_as_the_same_tokenizer(trained, tmp_path):
    path = tmp_path / "x.tiktoken"
    write_tiktoken_ranks(trained, path)
    again = read_tiktoken_ranks(path, pattern="cl100k", special_tokens=["<s>"])
    assert again.content == trained.content


def test_bytes_in_any_order_keep_their_ranks(trained, tmp_path):
    # tiktoken's own files begin with the printable bytes.
    order = RNG.permutation(256).tolist()
    ranks = [(bytes([b]), rank) for rank, b in enumerate(order)]
    ranks += [(piece, id) for id, piece in enumerate(trained.pieces[:599]) if id > 255]
    path = write(tmp_path / "x.tiktoken", ranks)
    tokenizer = read_tiktoken_ranks(path, pattern="cl100k")
    peer = tiktoken.Encoding(
        "peer", pat_str=PATTERNS["cl100k"], mergeable_ranks=dict(ranks), special_tokens={}
    )
    assert tokenizer.encode(STRANGE).tolist() == peer.encode_ordinary(STRANGE)
    assert tokenizer.encode("a").tolist() == [order.index(97)]
    write_tiktoken_ranks(tokenizer, tmp_path / "again")
    assert tiktoken.load.load_tiktoken_bpe(str(tmp_path / "again")) == dict(ranks)


def test_gpt2_files_come_back_as_the_same_tokenizer(trained, tmp_path):
    paths = (tmp_path / "vocab.json", tmp_path / "merges.txt")
    write_gpt2_files(trained, *paths)
    again = read_gpt2_files(*paths, special_tokens=["<s>"], pattern="cl100k")
    assert again.pieces == trained.pieces and again.special_ids == trained.special_ids
    assert again.content["merges"] == trained.content["merges"]
    assert json.loads(paths[0].read_text("utf-8"))["<s>"] == 599


def test_the_tokenizers_package_reads_the_two_files(tmp_path):
    models = pytest.importorskip("tokenizers.models")
    from tokenizers import Tokenizer, pre_tokenizers

    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=600), [TEXT])
    write_gpt2_files(tokenizer, tmp_path / "vocab.json", tmp_path / "merges.txt")
    peer = Tokenizer(
        models.BPE.from_file(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    )
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert tokenizer.encode(STRANGE).tolist() == peer.encode(STRANGE).ids


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([*bytes_in_order(), (b"ab", 257)], "rank 256 is missing, and 257 is there"),
        ([*bytes_in_order(), (b"ab", 256), (b"ab", 257)], "line 258: token 'ab' .* in line 257"),
        ([*bytes_in_order(), (b"ab", 256), (b"cd", 256)], "line 258: rank 256 .* in line 257"),
        (bytes_in_order()[:-1], "no token for the byte 0xff"),
        ([*bytes_in_order(), (b"abcd", 256)], "no two tokens of lower rank make 'abcd'"),
        ([*bytes_in_order(), (b"abc", 256), (b"ab", 257)], "no two tokens of lower rank .* 'abc'"),
        ([*bytes_in_order(), (b"", 256)], "line 257: expected a token in base64"),
        ([*bytes_in_order(), (b"ab", "x")], "line 257: expected a token in base64"),
        ([*bytes_in_order(), (b"ab", -1)], "line 257: expected a token in base64"),
        ([], "no token for the byte 0x00"),
    ],
)
def test_ranks_that_cannot_be_used_are_refused_by_one_line(tmp_path, ranks, message):
    path = write(tmp_path / "x.tiktoken", ranks)
    with pytest.raises(ConfigError, match=message) as error:
        read_tiktoken_ranks(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("line", ["YQ", "YQ== 0 0", "Y? 0", "é 0", "YQ 0"])
def test_lines_out_of_form_are_refused(tmp_path, line):
    (tmp_path / "x.tiktoken").write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match="x.tiktoken line 1: expected a token in base64"):
        read_tiktoken_ranks(tmp_path / "x.tiktoken")


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (byte_tokenizer, "kind=bytes"),
        (
            lambda: bpe_tokenizer([(b"a", b"b")], special_tokens={"<s>": 0}, ids=range(1, 258)),
            "not in the order of its merges",
        ),
        (
            lambda: bpe_tokenizer([(b"a", b"b"), (b"c", b"d")], ids=[*range(256), 257, 256]),
            "not in the order of its merges",
        ),
    ],
)
def test_what_tiktoken_cannot_hold_is_refused(tmp_path, tokenizer, message):
    with pytest.raises(ConfigError, match=message):
        write_tiktoken_ranks(tokenizer(), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (byte_tokenizer, "kind=bytes"),
        (lambda: bpe_tokenizer([(b"a", b"b")], special_tokens=["ab"]), "256 and 257 .* 'ab'"),
    ],
)
def test_what_gpt2_files_cannot_hold_is_refused(tmp_path, tokenizer, message):
    with pytest.raises(ConfigError, match=message):
        write_gpt2_files(tokenizer(), tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert list(tmp_path.iterdir()) == []
