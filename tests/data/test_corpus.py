"""Corpora: documents, pieces, fingerprints, and one line for what cannot be read."""

import codecs
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.core.config import ConfigError
from jaxlm.data import corpus as corpus_module
from jaxlm.data.config import DataConfig
from jaxlm.data.corpus import open_corpus

TEXT = st.text("ab\n<|end>é🦜\ufeff", min_size=1, max_size=60)


def texts(cfg):
    return ["".join(document) for document in open_corpus(cfg).documents()]


@pytest.fixture
def write(tmp_path):
    """`write({"a/b.txt": b"..."})` -> the folder as text."""

    def write(files):
        for name, data in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return str(tmp_path)

    return write


def test_a_file_is_one_document_kept_as_it_is(write):
    data = "\r\nEins\rzwei\n\n drei – 🦜\x00\n".encode()
    folder = write({"a.txt": data})
    corpus = open_corpus(DataConfig(path=f"{folder}/a.txt"))
    assert "".join(next(corpus.documents())).encode() == data
    assert (corpus.name, corpus.num_bytes, corpus.num_documents) == ("a.txt", len(data), 1)


def test_a_byte_order_mark_is_dropped_at_the_start_only(write):
    mark = codecs.BOM_UTF8
    folder = write({"a.txt": mark + b"a" + mark + b"b", "b.txt": mark + b"c"})
    assert texts(DataConfig(path=folder)) == ["a\ufeffb", "c"]
    assert open_corpus(DataConfig(path=folder)).num_bytes == 6


def test_a_folder_is_read_in_sorted_order_without_hidden_files(write):
    folder = write(
        {
            "b.txt": b"3",
            "a/z.txt": b"2",
            "a/b/c.md": b"1",
            ".hidden": b"x",
            "a/.git/config": b"x",
            "empty": b"",
        }
    )
    assert texts(DataConfig(path=folder)) == ["1", "2", "3"]


@pytest.mark.parametrize("piece_bytes", [4, 5, 7, 1 << 20])
@settings(deadline=None, max_examples=40)
@given(
    documents=st.lists(TEXT, min_size=1, max_size=5),
    separator=st.sampled_from(["\n", "ab", "aab", "<|end|>", "\n\n", "é🦜"]),
)
def test_separators_and_letters_across_pieces(tmp_path_factory, piece_bytes, documents, separator):
    text = separator.join(documents)
    path = tmp_path_factory.mktemp("corpus") / "x.txt"
    path.write_bytes(text.encode())
    expected = [part for part in text.removeprefix("\ufeff").split(separator) if part]
    cfg = DataConfig(path=str(path), document_separator=separator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "PIECE_BYTES", piece_bytes)
        if not expected:
            with pytest.raises(ConfigError):
                texts(cfg)
            return
        assert texts(cfg) == expected
        assert open_corpus(cfg).num_bytes == sum(len(part.encode()) for part in expected)


def test_a_separator_does_not_join_two_files(write):
    folder = write({"a.txt": b"1#", "b.txt": b"#2##3#"})
    assert texts(DataConfig(path=folder, document_separator="##")) == ["1#", "#2", "3#"]


def test_bundled_plays_are_split_further_by_a_separator():
    whole = open_corpus(DataConfig())
    scenes = open_corpus(DataConfig(document_separator="\n\nSCENE "))
    assert scenes.num_documents > 300 and scenes.num_bytes < whole.num_bytes
    assert scenes.fingerprint != whole.fingerprint


def test_the_fingerprint_follows_text_and_documents_only(write):
    folder = write({"a/1.txt": b"one\ntwo", "b/x.md": b"one\ntwo", "c/1": b"one\n", "c/2": b"two"})

    def fingerprint(name, **options):
        return open_corpus(DataConfig(path=f"{folder}/{name}", **options)).fingerprint

    assert fingerprint("a") == fingerprint("b/x.md") == fingerprint("a", document_separator="#")
    split = fingerprint("a", document_separator="\n")
    assert len({fingerprint("a"), fingerprint("c"), split}) == 3
    write({"b/x.md": b"one\ntwo "})
    assert fingerprint("b") != fingerprint("a")


def test_documents_may_be_left_half_read(write):
    folder = write({"a": b"1" * 10, "b": b"2"})
    corpus = open_corpus(DataConfig(path=folder))
    assert [next(iter(document))[0] for document in corpus.documents()] == ["1", "2"]
    assert len(list(corpus.documents())) == 2


@pytest.mark.parametrize("before", [0, 1, 3, 4, 7, 1000])
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\xa6", b"\xed\xa0\x80"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_invalid_utf8_is_reported_with_its_offset(write, monkeypatch, before, bad, mark):
    monkeypatch.setattr(corpus_module, "PIECE_BYTES", 4)
    folder = write({"ok.txt": b"fine", "x.txt": mark + b"a" * before + bad})
    offset = len(mark) + before
    for path in (f"{folder}/x.txt", folder):
        with pytest.raises(ConfigError) as error:
            open_corpus(DataConfig(path=path))
        message = str(error.value)
        assert f"byte 0x{bad[0]:02x} at offset {offset} " in message
        assert message.startswith(f"--config.data.path={path}: ") and "x.txt" in message
        assert "\n" not in message


@pytest.mark.parametrize("piece_bytes", [1, 3, 1000])
@given(data=st.lists(st.sampled_from([b"a", b"\xc3", b"\xe2\x82", b"\xac", b"\xff", b"\xed\xa0"])))
@settings(deadline=None, max_examples=50)
def test_invalid_utf8_is_replaced_by_choice(tmp_path_factory, piece_bytes, data):
    data = b"x" + b"".join(data)
    path = tmp_path_factory.mktemp("replace") / "x.txt"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "PIECE_BYTES", piece_bytes)
        found = texts(DataConfig(path=str(path), invalid_utf8="replace"))
    assert found == [data.decode("utf-8", "replace")]


@pytest.mark.parametrize("files", [{"x.txt": b""}, {"x.txt": codecs.BOM_UTF8}])
def test_an_empty_file_is_refused(write, files):
    folder = write(files)
    with pytest.raises(ConfigError, match=r"--config.data.path=.*x.txt: the file is empty"):
        open_corpus(DataConfig(path=f"{folder}/x.txt"))
    with pytest.raises(ConfigError, match="no text in this folder"):
        open_corpus(DataConfig(path=folder))


def test_a_missing_path_and_a_device_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="absent.txt: no such file or folder"):
        open_corpus(DataConfig(path=str(tmp_path / "absent.txt")))
    with pytest.raises(ConfigError, match="/dev/null: neither a regular file nor a folder"):
        open_corpus(DataConfig(path="/dev/null"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="no text in this folder"):
        open_corpus(DataConfig(path=str(tmp_path / "folder")))


def test_a_file_that_went_away_is_one_line(write):
    folder = write({"a.txt": b"text"})
    corpus = open_corpus(DataConfig(path=folder))
    os.remove(f"{folder}/a.txt")
    with pytest.raises(ConfigError, match="No such file"):
        list(corpus.documents())
