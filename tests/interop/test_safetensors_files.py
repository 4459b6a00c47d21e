"""Files that are not what their header says are refused before the library sees them."""

import contextlib
import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlm.core.config import ConfigError
from jaxlm.interop.safetensors_files import open_file, open_folder, write_folder

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}
A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]}


def file_of(path, header, size=32):
    """A file with this header, JSON or bytes, and `size` bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return path


def test_a_file_of_the_library_is_read(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = open_file(tmp_path / "x.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].shape == tensor.shape
        np.testing.assert_array_equal(found[name].read(), tensor, strict=True)


def test_the_valid_file_of_these_tests_is_accepted(tmp_path):
    assert open_file(file_of(tmp_path / "x", {"a": A, "b": B})).keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        ({"a": A, "b": B}, 31, "truncated: the tensors have 32 bytes by the header, the file 31"),
        ({"a": A, "b": B}, 33, "longer than its tensors"),
        ({"a": A, "b": B | {"data_offsets": [20, 28]}}, 28, "tensors a and b overlap at byte 20"),
        ({"a": A, "b": B | {"data_offsets": [26, 34]}}, 34, "no tensor holds the bytes 24 to 26"),
        ({"a": A, "b": B | {"data_offsets": [24, 30]}}, 30, "tensor b of F16 [4] has 8 bytes"),
        ({"a": A | {"shape": [2, 2]}}, 24, "tensor a of F32 [2, 2] has 16 bytes"),
        ({"a": A | {"dtype": "F31"}}, 24, "unknown dtype 'F31', expected one of F32, F16, BF16"),
        ({"a": A | {"dtype": []}}, 24, "unknown dtype []"),
        ({"a": A | {"dtype": "I32"}}, 24, "tensor a has dtype I32, expected one of F32, F16, BF16"),
        ({"a": A | {"shape": [-2, -3]}}, 24, "malformed"),
        ({"a": A | {"shape": [True, 6]}}, 24, "malformed"),
        ({"a": A | {"shape": 6}}, 24, "malformed"),
        ({"a": A | {"data_offsets": [0, 8, 24]}}, 24, "malformed"),
        ({"a": A | {"data_offsets": [-24, 0]}}, 24, "malformed"),
        ({"a": {}}, 0, "malformed"),
        ({"a": [1]}, 0, "malformed"),
        ([1], 0, "not a JSON object"),
        (b"{", 0, "not JSON"),
        (b"\xff{}", 0, "not JSON"),
        (b"[" * 100_000, 0, "not JSON"),
        (b'{"a": 1, "a": 2}', 0, "twice"),
        ({"a": A | {"shape": [2**62, 2**62]}}, 24, "has 8507059173023461586"),
    ],
)
def test_a_header_that_lies_is_refused(header, size, message, tmp_path):
    with pytest.raises(ConfigError) as refused:
        open_file(file_of(tmp_path / "x", header, size))
    assert message in str(refused.value) and str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"\x01", struct.pack("<Q", 1000) + b"{}", b"\xff" * 20])
def test_a_header_larger_than_the_file_is_refused(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        open_file(tmp_path / "x")


def test_every_truncation_is_refused(tmp_path):
    save_file(TENSORS, tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for size in range(len(content)):
        (tmp_path / "x").write_bytes(content[:size])
        with pytest.raises(ConfigError):
            open_file(tmp_path / "x")


def test_any_flipped_byte_of_the_header_is_refused_or_read(tmp_path):
    save_file(TENSORS, tmp_path / "x")
    content, rng = bytearray((tmp_path / "x").read_bytes()), np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(content)
        changed[rng.integers(len(content) - 32)] = rng.integers(256)
        (tmp_path / "x").write_bytes(changed)
        with contextlib.suppress(ConfigError):
            for tensor in open_file(tmp_path / "x").values():
                assert tensor.read().shape == tensor.shape


def test_a_file_that_changes_after_it_was_checked_is_refused(tmp_path):
    save_file(TENSORS, tmp_path / "x")
    found = open_file(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"other")
    with pytest.raises(ConfigError, match="x: "):
        found["a"].read()


def test_a_folder_is_written_in_shards_that_the_library_reads(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {f"t{i}": rng.normal(size=(i + 1, 2)).astype(np.float32) for i in range(6)}
    write_folder(tmp_path, tensors.items(), shard_bytes=60)
    files = sorted(tmp_path.glob("*.safetensors"))
    whole = {name: array for file in files for name, array in load_file(file).items()}
    assert (
        len(files) == 4 and max(sum(a.nbytes for a in load_file(f).values()) for f in files) <= 60
    )
    assert sorted(p.name for p in tmp_path.iterdir() if p not in files) == [
        "model.safetensors.index.json"
    ]
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(whole[name], tensor)
        np.testing.assert_array_equal(open_folder(tmp_path)[name].read(), tensor)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m | {"t0": "../secret"}, "is not the name of a file beside it"),
        (lambda m: m | {"t0": "gone.safetensors"}, "gone.safetensors: No such file"),
        (lambda m: m | {"t9": m["t0"]}, "tensor t9 is missing"),
        (lambda m: {n: f for n, f in m.items() if n != "t1"}, "holds tensor t1, which"),
        (lambda m: [1], "expected weight_map"),
        (lambda m: {"t0": 1}, "expected weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(edit, message, tmp_path):
    tensors = {f"t{i}": np.zeros((2, 2), np.float32) for i in range(3)}
    write_folder(tmp_path, tensors.items(), shard_bytes=32)
    index = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": edit(weight_map)}))
    with pytest.raises(ConfigError) as refused:
        open_folder(tmp_path)
    assert message in str(refused.value)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no model\.safetensors"):
        open_folder(tmp_path)
