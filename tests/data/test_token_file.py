"""Token files: round trips in bounded memory, and refusal of whatever is not the file asked for."""

import functools
import hashlib
import json
import os
import pathlib
import stat
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.core.config import ConfigError
from jaxlm.data import token_file
from jaxlm.data.config import DataConfig
from jaxlm.data.corpus import open_corpus
from jaxlm.data.token_file import build_token_file, cached_token_file, open_token_file

PRINT = "f" * 64


class CodePoints:
    """A tokenizer whose ids are code points: one part a piece, no state."""

    fingerprint = PRINT

    def __init__(self, vocab_size=0x110000):
        self.vocab_size = vocab_size
        self.calls = 0

    def encode_iterable(self, texts):
        self.calls += 1
        for text in texts:
            yield np.frombuffer(text.encode("utf-32-le"), np.uint32)


def write_corpus(folder: pathlib.Path, documents, separator="#"):
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_bytes(separator.join(documents).encode())
    return open_corpus(DataConfig(path=str(folder / "text.txt"), document_separator=separator))


def build(folder, documents=("one 🦜", "two", "three"), vocab_size=0x110000):
    path = folder / "x.tokens"
    corpus = write_corpus(folder, documents)
    encode = functools.partial(map, CodePoints(vocab_size).encode_iterable)
    build_token_file(path, corpus, encode, vocab_size=vocab_size, tokenizer_fingerprint=PRINT)
    return path


@pytest.mark.parametrize("vocab_size, dtype", [(2**16, "uint16"), (2**16 + 1, "uint32")])
@settings(deadline=None, max_examples=30)
@given(documents=st.lists(st.text("ab \nξ\uffff", min_size=1), min_size=1, max_size=6))
def test_round_trip(tmp_path_factory, vocab_size, dtype, documents):
    folder = tmp_path_factory.mktemp("round")
    tokens = open_token_file(build(folder, documents, vocab_size), PRINT)
    assert tokens.header.dtype == dtype
    assert "".join(map(chr, tokens[:])) == "".join(documents)
    assert len(tokens) == sum(map(len, documents)) == tokens.header.num_tokens
    assert tokens.document_stops.tolist() == np.cumsum([len(d) for d in documents]).tolist()
    keys = [int.from_bytes(hashlib.sha256(d.encode()).digest()[:8], "little") for d in documents]
    assert tokens.document_keys.tolist() == keys
    positions = np.random.default_rng(0).integers(len(tokens), size=(3, 4))
    assert np.array_equal(tokens[positions], tokens[:][positions])


def test_layout_is_the_documented_one(tmp_path):
    data = build(tmp_path, ["ab", "c"], vocab_size=128).read_bytes()
    assert data[:13] == b"jaxlm tokens\n" and data[4095:4096] == b"\n"
    header = json.loads(data[13:4096])
    assert (header["format"], header["num_tokens"], header["num_documents"]) == (1, 3, 2)
    assert np.frombuffer(data, "<u2", 3, 4096).tolist() == [97, 98, 99]
    assert data[4102:4104] == b"\0\0" and len(data) == 4104 + 2 * 16
    assert np.frombuffer(data, "<i8", 4, 4104)[::2].tolist() == [2, 3]


def test_every_truncation_is_refused(tmp_path):
    path = build(tmp_path)
    data = path.read_bytes()
    for size in [0, 5, 13, 200, 4095, 4096, *range(4097, len(data))]:
        path.write_bytes(data[:size])
        with pytest.raises(ConfigError, match="x.tokens"):
            open_token_file(path, PRINT)
    path.write_bytes(data + b"\0")
    with pytest.raises(ConfigError, match="bytes, its header says"):
        open_token_file(path, PRINT)
    path.write_bytes(data)
    assert len(open_token_file(path, PRINT)) == 13


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_every_flipped_bit_is_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "flip"
    path = folder / "x.tokens" if folder.exists() else build(folder)
    good = bytearray(path.read_bytes())
    end_of_json = good.index(b"}")
    payload = range(4096, len(good))
    at = data.draw(st.sampled_from([*range(end_of_json + 1), *payload]))
    flipped = bytearray(good)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    broken = folder / "broken"
    broken.write_bytes(flipped)
    with pytest.raises(ConfigError, match="broken"):
        open_token_file(broken, PRINT)


def lie(path, **fields):
    """Rewrites header fields, with a checksum that agrees with the lie."""
    data = path.read_bytes()
    values = json.loads(data[13:4096]) | fields
    digest = hashlib.sha256(data[4096:])
    digest.update(json.dumps(values | {"sha256": ""}, sort_keys=True).encode())
    values["sha256"] = digest.hexdigest()
    path.write_bytes(data[:13] + json.dumps(values).encode().ljust(4082) + b"\n" + data[4096:])


def test_the_helper_that_lies_can_also_tell_the_truth(tmp_path):
    path = build(tmp_path)
    lie(path)
    assert len(open_token_file(path, PRINT)) == 13


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_tokens": 12}, "bytes, its header says"),
        ({"num_tokens": 10**15}, "bytes, its header says"),
        ({"num_tokens": 0}, "does not fit"),
        ({"num_tokens": -13}, "does not fit"),
        ({"num_documents": 2}, "bytes, its header says"),
        ({"num_documents": 0, "num_tokens": 25}, "does not fit"),
        ({"num_tokens": 25, "dtype": "uint16"}, "documents do not fit|not below"),
        ({"num_tokens": 9, "num_documents": 4}, "documents do not fit"),
        ({"dtype": "float32"}, "does not fit.*dtype"),
        ({"num_tokens": "13"}, "does not match its checksum"),
        ({"num_tokens": 13.5}, "does not fit.*num_tokens"),
        ({"vocab_size": 0x1F99C}, "an id is not below vocab_size 129436"),
        ({"surprise": 1}, "does not fit.*surprise"),
        ({"format": 2}, "format 2, this jaxlm reads 1; update jaxlm"),
        ({"format": 0}, "does not fit"),
    ],
)
def test_a_lying_header_is_refused(tmp_path, fields, message):
    path = build(tmp_path)
    lie(path, **fields)
    with pytest.raises(ConfigError, match=message):
        open_token_file(path, PRINT)


def test_another_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="made by the tokenizer ffffffffffff, not by this one"):
        open_token_file(build(tmp_path), "0" * 64)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        open_token_file(tmp_path / "absent", PRINT)
    with pytest.raises(ConfigError, match="Is a directory"):
        open_token_file(tmp_path, PRINT)
    (tmp_path / "x").write_bytes(b"jaxlm tokens\n" + b"[1, 2]".ljust(5000))
    with pytest.raises(ConfigError, match="damaged"):
        open_token_file(tmp_path / "x", PRINT)


def test_an_id_outside_the_vocabulary_leaves_no_file(tmp_path):
    with pytest.raises(ConfigError, match="the tokenizer gave id 129436, its vocab_size is 1000"):
        build(tmp_path, vocab_size=1000)
    assert os.listdir(tmp_path) == ["text.txt"]


def test_an_error_in_the_middle_keeps_the_old_file(tmp_path):
    path = build(tmp_path)
    before = path.read_bytes()

    def encode(texts):
        yield from CodePoints().encode_iterable(texts)
        raise ConfigError("unknown character")

    with pytest.raises(ConfigError, match="unknown character"):
        build_token_file(
            path,
            write_corpus(tmp_path, ["a"]),
            functools.partial(map, encode),
            vocab_size=9999,
            tokenizer_fingerprint="",
        )
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["text.txt", "x.tokens"]


@pytest.mark.parametrize("ahead", [1, 3, 99])
def test_documents_may_be_read_ahead(tmp_path, ahead):
    """As by an encoder that has several documents at work at once."""
    documents = ["one 🦜", "two", "three", "4", "five"]

    def encode(texts):
        waiting = []
        for text in texts:
            waiting.append(list(CodePoints().encode_iterable(text)))
            if len(waiting) > ahead:
                yield waiting.pop(0)
        yield from waiting

    build_token_file(
        tmp_path / "ahead",
        write_corpus(tmp_path, documents),
        encode,
        vocab_size=0x110000,
        tokenizer_fingerprint=PRINT,
    )
    assert (tmp_path / "ahead").read_bytes() == build(tmp_path, documents).read_bytes()


def test_a_full_disk_is_one_line_and_leaves_no_file(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_file.os, "fsync", fsync)
    with pytest.raises(ConfigError, match="x.tokens: No space left on device; free some space"):
        build(tmp_path)
    assert os.listdir(tmp_path) == ["text.txt"]


def test_a_corpus_that_changed_is_refused(tmp_path):
    corpus = write_corpus(tmp_path, ["abc"])
    (tmp_path / "text.txt").write_text("abd")
    with pytest.raises(ConfigError, match="text.txt changed while it was read"):
        cached_token_file(corpus, CodePoints(), tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


def test_a_tokenizer_that_makes_nothing_is_refused(tmp_path):
    def encode(texts):
        for _ in texts:
            yield np.zeros(0, np.int32)

    with pytest.raises(ConfigError, match="no tokens"):
        build_token_file(
            tmp_path / "x",
            write_corpus(tmp_path, ["a"]),
            functools.partial(map, encode),
            vocab_size=9,
            tokenizer_fingerprint="",
        )


def test_the_cache_builds_once_for_each_text_and_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokenizer = CodePoints()
    corpus = write_corpus(tmp_path / "a", ["abc", "d"])
    path = cached_token_file(corpus, tokenizer)
    assert path.parent == tmp_path / "cache/jaxlm/tokens"
    assert cached_token_file(write_corpus(tmp_path / "b", ["abc", "d"]), tokenizer) == path
    assert tokenizer.calls == 2  # one for each document, the first time
    assert cached_token_file(write_corpus(tmp_path / "b", ["abcd"]), tokenizer) != path
    tokenizer.fingerprint = "0" * 64
    assert cached_token_file(corpus, tokenizer) != path
    assert len(os.listdir(path.parent)) == 3


def test_the_cache_rebuilds_a_file_that_is_not_whole(tmp_path):
    corpus = write_corpus(tmp_path / "a", ["abc"])
    path = cached_token_file(corpus, CodePoints(), tmp_path)
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    assert cached_token_file(corpus, CodePoints(), tmp_path).read_bytes() == good


def test_a_cache_folder_that_cannot_be_made_is_one_line(tmp_path):
    corpus = write_corpus(tmp_path / "a", ["abc"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write the token file .*XDG_CACHE_HOME"):
        cached_token_file(corpus, CodePoints(), tmp_path / "file/cache")


def test_an_open_file_survives_its_replacement(tmp_path):
    path = build(tmp_path, ["abc"])
    tokens = open_token_file(path, PRINT)
    build(tmp_path, ["zzzzz"])
    assert tokens[:].tolist() == [97, 98, 99]
    assert open_token_file(path, PRINT)[:].tolist() == [122] * 5


def test_building_holds_no_more_than_pieces(tmp_path):
    size = 24 << 20
    (tmp_path / "big.txt").write_bytes(b"0123456789abcde\n" * (size // 16))
    corpus = open_corpus(DataConfig(path=str(tmp_path / "big.txt")))
    tracemalloc.start()
    try:
        path = cached_token_file(corpus, CodePoints(), tmp_path)
        open_token_file(path, PRINT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert os.path.getsize(path) > 4 * size  # ids of 4 bytes
    assert peak < 16 << 20


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_reading_a_whole_file_keeps_no_pages(tmp_path):
    size = 16 << 20
    (tmp_path / "big.txt").write_bytes(b"0123456789abcde\n" * (size // 16))
    corpus = open_corpus(DataConfig(path=str(tmp_path / "big.txt")))
    tokens = open_token_file(cached_token_file(corpus, CodePoints(), tmp_path), PRINT)
    tokens[np.arange(1024)]
    before = resident_bytes()
    for start in range(0, size, 1024 * 16):
        tokens[start + np.arange(16) * 1024]  # touches each page of 64 MB
    assert resident_bytes() - before < 16 << 20


def test_the_file_is_closed_with_its_last_user(tmp_path):
    tokens = open_token_file(build(tmp_path), PRINT)
    descriptor = tokens._descriptor
    assert stat.S_ISREG(os.fstat(descriptor).st_mode)
    del tokens
    with pytest.raises(OSError):
        os.fstat(descriptor)
