"""GGUF files against those that the package gguf writes and reads, and against transformers."""

import contextlib
import dataclasses
import os
import struct
import sys

import numpy as np
import pytest
import tiny_models
from tiny_models import TOKENS

from jaxlm.core import trees
from jaxlm.core.config import ConfigError
from jaxlm.interop.gguf_files import config_from_gguf, open_gguf
from jaxlm.interop.pretrained import load_weights

gguf = pytest.importorskip("gguf")

SIZES = {
    "vocab_size": ("llama.vocab_size", 29),
    "context": ("llama.context_length", 32),
    "layers": ("llama.block_count", 2),
    "width": ("llama.embedding_length", 16),
    "feed_forward": ("llama.feed_forward_length", 24),
    "heads": ("llama.attention.head_count", 4),
    "kv_heads": ("llama.attention.head_count_kv", 2),
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def side_by_side(w, num_heads):
    """llama.cpp's order of rows, by a loop: row j of a head and row j + Dh/2 become neighbours."""
    rows, size = [], len(w) // num_heads
    for head in range(num_heads):
        for j in range(size // 2):
            rows += [head * size + j, head * size + size // 2 + j]
    return w[rows]


def write(path, tensors, arch="llama", quant=None, **fields):
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (dict(SIZES.values()) | fields).items():
        if value is not None:
            writer.add_uint32(key, value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    for name, w in tensors.items():
        if quant is not None and w.ndim == 2 and w.shape[-1] % 32 == 0:
            writer.add_tensor(name, gguf.quantize(w, quant), raw_dtype=quant)
        else:
            writer.add_tensor(name, w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model():
    return tiny_models.make("llama", head_dim=4, rope_theta=10_000.0, rms_norm_eps=1e-6)


@pytest.fixture(scope="module")
def tensors(model):
    """The model's weights under llama.cpp's names and in its order."""
    found = {}
    for name, w in model.state_dict().items():
        base = name.removesuffix(".weight")
        number = base.split(".")[2] if base.startswith("model.layers.") else None
        inner = base.split(".", 3)[3] if number else base
        w = w.numpy()
        if inner.endswith(("q_proj", "k_proj")):
            w = side_by_side(w, 4 if inner.endswith("q_proj") else 2)
        found[(f"blk.{number}." if number else "") + NAMES[inner] + ".weight"] = w
    return found


@pytest.fixture
def whole(tensors, tmp_path):
    return write(tmp_path / "model.gguf", tensors)


def test_the_model_computes_what_transformers_does(model, whole, forward_of):
    cfg, params = load_weights(whole)
    ours = forward_of(cfg)(params, TOKENS)
    np.testing.assert_allclose(ours, tiny_models.logits_of(model), atol=1e-5)


def test_rows_of_queries_and_keys_are_put_back(model, whole):
    params = load_weights(whole).params
    w = model.model.layers[1].self_attn.k_proj.weight.detach().numpy()
    np.testing.assert_array_equal(params["blocks"]["wk"][1].reshape(16, 8), w.T)


def test_a_tied_head_is_the_one_that_is_not_there(tensors, tmp_path):
    rest = {name: w for name, w in tensors.items() if name != "output.weight"}
    cfg, params = load_weights(write(tmp_path / "tied.gguf", rest))
    assert cfg.tied_head and "unembed" not in params


@pytest.mark.parametrize("quant", ["Q4_1", "Q8_0", "F16"])
def test_header_and_values_are_those_that_the_package_reads(quant, tmp_path):
    rng = np.random.default_rng(0)
    tensors = {f"t{i}": rng.normal(size=(3, 64)).astype(np.float32) for i in range(2)}
    tensors["v"] = rng.normal(size=5).astype(np.float32)
    kind = gguf.GGMLQuantizationType[quant]
    path = write(tmp_path / "x.gguf", tensors, quant=kind)
    file, peer = open_gguf(path), gguf.GGUFReader(path)
    for key, field in peer.fields.items():
        if not key.startswith("GGUF."):
            assert file.fields[key] == field.contents()
    assert list(file.tensors) == [t.name for t in peer.tensors]
    for t in peer.tensors:
        expected = gguf.dequantize(t.data, t.tensor_type)
        np.testing.assert_array_equal(file.tensors[t.name].read(), expected)


def test_every_kind_of_field_is_read(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    expected = {"a": 3, "b": -4, "c": 1.5, "d": True, "e": "ä", "f": ["x", ""], "g": [1.5, 2.0]}
    writer.add_uint8("a", 3)
    writer.add_int64("b", -4)
    writer.add_float64("c", 1.5)
    writer.add_bool("d", True)
    writer.add_string("e", "ä")
    writer.add_array("f", ["x", ""])
    writer.add_array("g", [1.5, 2.0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fields = open_gguf(tmp_path / "x.gguf").fields
    assert {key: fields[key] for key in expected} == expected


def test_every_truncation_is_refused(whole, tmp_path):
    content = whole.read_bytes()
    for size in [*range(600), *range(600, len(content), 97), len(content) - 1]:
        (tmp_path / "x").write_bytes(content[:size])
        with pytest.raises(ConfigError, match="x: "):
            load_weights(tmp_path / "x")


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"GGML", "not a GGUF file"),
        (4, struct.pack("<I", 1), "GGUF version 1"),
        (8, struct.pack("<Q", 2**60), "its header lies"),
        (16, struct.pack("<Q", 2**60), "its header lies"),
        (24, struct.pack("<Q", 2**60), "its header lies"),  # the length of the first key
    ],
)
def test_a_header_that_lies_is_refused(at, value, message, whole):
    content = bytearray(whole.read_bytes())
    content[at : at + len(value)] = value
    whole.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        open_gguf(whole)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_what_is_no_gguf_file_is_said_to_be_none_without_the_package_too(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "x").write_bytes(b"text, no weights")
    with pytest.raises(ConfigError, match="x: not a GGUF file"):
        open_gguf(tmp_path / "x")


@pytest.mark.parametrize(
    ("offset", "message"), [(32, "tensors"), (2**50, "truncated: tensor token_embd.weight ends")]
)
def test_a_tensor_in_the_wrong_place_is_refused(offset, message, whole):
    name = b"token_embd.weight"
    content = bytearray(whole.read_bytes())
    at = content.index(name) + len(name) + 4 + 16 + 4  # after the dimensions, two sizes, the type
    struct.pack_into("<Q", content, at, offset)
    whole.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        open_gguf(whole)
    assert message in str(refused.value) and ("overlap" in str(refused.value) or offset > 32)


def test_any_flipped_byte_of_the_header_is_refused_or_read(whole):
    """Nothing but a ConfigError, and no endless loop, whatever the counts say."""
    content, rng = bytearray(whole.read_bytes()), np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(content)
        changed[rng.integers(1500)] = rng.integers(256)
        whole.write_bytes(changed)
        with contextlib.suppress(ConfigError):
            load_weights(whole)


def test_an_unknown_type_of_tensor_is_refused(whole):
    name = b"token_embd.weight"
    content = bytearray(whole.read_bytes())
    struct.pack_into("<I", content, content.index(name) + len(name) + 4 + 16, 999)
    whole.write_bytes(content)
    with pytest.raises(ConfigError, match="token_embd.weight has the unknown type 999"):
        open_gguf(whole)


@pytest.mark.parametrize(
    ("arch", "fields", "message"),
    [
        ("qwen2", {}, "the architecture 'qwen2' cannot be read from GGUF, only llama"),
        ("llama", {"llama.expert_count": 8}, "llama.expert_count=8 is a feature"),
        ("llama", {"llama.rope.dimension_count": 2}, "llama.rope.dimension_count=2: jaxlm needs 4"),
        ("llama", {"llama.block_count": None}, "llama.block_count=None: expected int"),
        ("llama", {"llama.attention.head_count_kv": 3}, "multiple of num_kv_heads=3"),
        ("llama", {"llama.block_count": 2**32 - 1}, "blk.2.attn_norm.weight is missing"),
        ("llama", {"llama.block_count": 3}, "blk.2.attn_norm.weight is missing"),
        ("llama", {"llama.feed_forward_length": 8}, "has shape [16, 24], expected [16, 8]"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(arch, fields, message, tensors, tmp_path):
    path = write(tmp_path / "x.gguf", tensors, arch=arch, **fields)
    with pytest.raises(ConfigError) as refused:
        load_weights(path)
    assert message in str(refused.value) and str(path) in str(refused.value)


def test_a_scaled_rope_is_refused(tensors, tmp_path):
    scaled = tensors | {"rope_freqs.weight": np.ones(2, np.float32)}
    with pytest.raises(ConfigError, match="rope_freqs.weight scales RoPE"):
        load_weights(write(tmp_path / "x.gguf", scaled))


def test_numbers_meant_in_decimal_are_read_so(whole):
    cfg = config_from_gguf(open_gguf(whole))
    assert cfg.norm_eps == 1e-6 and cfg.rope_theta == 10_000.0


def test_all_weights_are_float32_and_there(whole):
    params = trees.flatten(load_weights(whole).params)
    assert all(w.dtype == np.float32 and np.isfinite(w).all() for w in params.values())


def test_a_number_beyond_float32_is_as_it_is(tensors, tmp_path):
    path = tmp_path / "x.gguf"
    file = open_gguf(write(path, tensors))
    huge = dataclasses.replace(file, fields={**file.fields, "llama.rope.freq_base": 1e308})
    assert config_from_gguf(huge).rope_theta == 1e308


def test_a_file_without_an_embedding_is_refused(tensors, tmp_path):
    rest = {name: w for name, w in tensors.items() if name != "token_embd.weight"}
    with pytest.raises(ConfigError, match=r"no token_embd\.weight"):
        load_weights(write(tmp_path / "x.gguf", rest))


def test_an_alignment_of_nothing_is_refused(tensors, tmp_path):
    path = write(tmp_path / "x.gguf", tensors, **{"general.alignment": 0})
    with pytest.raises(ConfigError, match=r"general\.alignment=0"):
        open_gguf(path)


def test_a_tensor_that_is_there_twice_is_refused(whole):
    whole.write_bytes(whole.read_bytes().replace(b"blk.1.attn_k.", b"blk.0.attn_k."))
    with pytest.raises(ConfigError, match=r"blk\.0\.attn_k\.weight is there twice"):
        open_gguf(whole)


def test_a_file_that_shrinks_while_it_is_read_is_refused(whole):
    file = open_gguf(whole)
    os.truncate(whole, 100)
    with pytest.raises(ConfigError, match=r"truncated while it was read, in tensor token_embd"):
        file.tensors["token_embd.weight"].read()


def test_what_the_package_does_not_dequantise_is_named(whole, monkeypatch):
    def none_yet(*_):
        raise NotImplementedError

    file = open_gguf(whole)
    monkeypatch.setattr(gguf, "dequantize", none_yet)
    with pytest.raises(ConfigError, match=r"the package gguf cannot dequantise F32"):
        file.tensors["token_embd.weight"].read()


def test_without_the_package_the_line_says_what_to_install(whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxlm\[gguf\]'"):
        open_gguf(whole)
