"""Saved tokenizers: readable, exact, whole or absent, and never silently changed."""

import errno
import hashlib
import json
import os

import pytest

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers import (
    bpe_tokenizer,
    byte_tokenizer,
    character_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_from_json,
)

TEXT = "naïve cafés,\n\t'quoted' 12 🙂 \u2028<s>"
MERGES = [(b" ", b"c"), (b"\xc3", b"\xa9"), (b"\n", b"\t")]
SAVED = {
    "characters": lambda: character_tokenizer(TEXT, special_tokens=["<s>", '"\\']),
    "characters-unk": lambda: character_tokenizer("abc\u2028", unknown="unk"),
    "bytes": lambda: byte_tokenizer(special_tokens=["<s>"]),
    "bpe": lambda: bpe_tokenizer(MERGES, special_tokens=["<s>"], pattern="llama3"),
    "bpe-ids": lambda: bpe_tokenizer(
        MERGES, special_tokens={"<s>": 0}, ids=[*range(259, 0, -1)], pattern="none"
    ),
    "bpe-nfc": lambda: bpe_tokenizer(MERGES, special_tokens=["<s>"], pattern="qwen2", nfc=True),
    "bpe-bytes-missing": lambda: bpe_tokenizer(
        MERGES, special_tokens={"<s>": 257}, ids=[*range(192), -1, -1, *range(192, 257)]
    ),
}
kinds = pytest.mark.parametrize("make", SAVED.values(), ids=SAVED)


@kinds
def test_saved_and_loaded_are_equal(make, tmp_path):
    before, path = make(), tmp_path / "new folder" / "tokenizer.json"
    save_tokenizer(before, path)
    after = load_tokenizer(path)
    assert after.fingerprint == before.fingerprint
    assert (after.kind, after.pieces) == (before.kind, before.pieces)
    assert (after.special_ids, after.unk_id) == (before.special_ids, before.unk_id)
    known = TEXT if before.kind != "characters" or before.unk_id is None else "cab"
    ids = before.encode(known, allow_special=True)
    assert after.encode(known, allow_special=True).tolist() == ids.tolist()
    assert after.to_json() == before.to_json() == path.read_text(encoding="utf-8")
    assert os.listdir(path.parent) == ["tokenizer.json"]


def test_the_file_is_readable_and_the_hash_is_of_its_content():
    document = json.loads(SAVED["bpe"]().to_json())
    assert document["merges"] == ["Ġ c", "Ã ©", "Ċ ĉ"]
    assert document["special_tokens"] == {"<s>": 259}
    recorded = document.pop("sha256")
    del document["format"]
    canonical = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert recorded == hashlib.sha256(canonical.encode()).hexdigest()


def test_what_changes_ids_changes_the_fingerprint():
    made = [make() for make in SAVED.values()]
    made += [
        bpe_tokenizer(MERGES[::-1], special_tokens=["<s>"], pattern="llama3"),
        bpe_tokenizer(MERGES, special_tokens=["<s>"], pattern="gpt2"),
        bpe_tokenizer(MERGES, special_tokens=["<t>"], pattern="llama3"),
        byte_tokenizer(),
    ]
    assert len({tokenizer.fingerprint for tokenizer in made}) == len(made)


def edited(saved, /, **changes):
    document = json.loads(SAVED[saved]().to_json()) | changes
    return json.dumps({key: value for key, value in document.items() if value is not ...})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (edited("characters", characters="abc"), "changed since it was saved"),
        (edited("bytes", special_tokens=["<t>"]), "changed since it was saved"),
        (edited("bpe", merges=["a b", "b c", "c d"]), "changed since it was saved"),
        (edited("bpe", pattern="gpt2"), "changed since it was saved"),
        (edited("bpe", sha256="0" * 64), "the file records 000000000000"),
        (edited("bpe", sha256=...), "changed since it was saved"),
        (edited("bpe", format=2), "format 2 is newer than 1"),
        (edited("bpe", format=...), "no format number"),
        (edited("bpe", format=True), "no format number"),
        (edited("bpe", kind="wordpiece"), "unknown kind 'wordpiece'"),
        (edited("bpe", kind=...), "malformed .*'kind'"),
        (edited("bpe", merges=7), "malformed"),
        (edited("bpe", merges=[7]), "malformed"),
        (edited("bpe", merges=["ab"]), "merge 1: expected two byte-level tokens, got 'ab'"),
        (edited("bpe", merges=["a b c"]), "merge 1: expected two byte-level tokens"),
        (edited("bpe", merges=["a \u0489"]), "merge 1: expected two byte-level tokens"),
        (edited("bpe", merges=["ab c"]), "'ab' is no byte and no earlier merge"),
        (edited("bpe", merges=["a b", "a b"]), "cannot represent"),
        (edited("bpe", pattern=["gpt2"]), "malformed"),
        (edited("bpe", note="hello"), "fields out of form"),
        (edited("bpe", special_tokens={"<s>": 300}), "id 259 is missing"),
        (edited("bpe", special_tokens={"<s>": 1}), "id 1 is given twice"),
        (edited("bpe", special_tokens={"<s>": "1"}), "integer id"),
        (edited("bpe-ids", ids=[0] * 259), "given twice"),
        (edited("bpe-ids", ids=[1]), "expected 259 ids"),
        (edited("characters", characters="ba"), "fields out of form"),
        (edited("characters", characters=5), "malformed"),
        (edited("bytes", special_tokens=None), "malformed"),
        (edited("bytes", special_tokens=[5]), "malformed"),
        ('{"format": 1, "format": 1}', "'format' is given twice"),
        ("[1]", "expected a JSON object, got list"),
        ("{", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_a_bad_file_is_one_clear_line(text, message, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as error:
        load_tokenizer(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="missing.json: No such file"):
        load_tokenizer(tmp_path / "missing.json")
    (tmp_path / "latin1.json").write_bytes(b'{"kind": "\xe9"}')
    with pytest.raises(ConfigError, match="not UTF-8 at byte 10"):
        load_tokenizer(tmp_path / "latin1.json")


def test_a_full_disk_leaves_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    save_tokenizer(byte_tokenizer(), path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="tokenizer.json: cannot save .*No space left"):
        save_tokenizer(SAVED["bpe"](), path)
    assert load_tokenizer(path).kind == "bytes"
    assert os.listdir(tmp_path) == ["tokenizer.json"]


def test_a_tokenizer_made_from_its_json_is_the_same():
    tokenizer = SAVED["bpe-ids"]()
    assert tokenizer_from_json(tokenizer.to_json()).pieces == tokenizer.pieces
