"""Hugging Face folders in and out, against transformers on tiny random models."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_models
from safetensors.numpy import load_file, save_file
from tiny_models import MODELS, TOKENS

from jaxlm.core import trees
from jaxlm.core.config import ConfigError
from jaxlm.interop.architectures import config_from_json, config_to_json
from jaxlm.interop.pretrained import is_pretrained, load_config, load_weights, save_weights
from jaxlm.models.recurrent import RecurrentConfig
from jaxlm.models.transformer import TransformerConfig

every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`folders(name)`: that model and the folder that transformers saved it in."""
    made = {}

    def get(name):
        if name not in made:
            model, folder = tiny_models.make(name), tmp_path_factory.mktemp("hf")
            model.save_pretrained(folder)
            made[name] = model, folder
        return made[name]

    return get


def saved(folder, weights, **options):
    folder.mkdir()
    save_weights(folder, *weights, **options)
    return folder


def edited(folder, target, **changes):
    """A copy of a folder with other values in its config.json; None removes a key."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    values = json.loads((folder / "config.json").read_text())
    values = {key: value for key, value in (values | changes).items() if value != "removed"}
    (target / "config.json").write_text(json.dumps(values))
    return target


@every_model
def test_logits_are_those_of_transformers(name, folders, forward_of):
    model, folder = folders(name)
    cfg, params = load_weights(folder)
    theirs = tiny_models.logits_of(model)
    np.testing.assert_allclose(forward_of(cfg)(params, TOKENS), theirs, atol=1e-5)
    assert np.abs(theirs).max() > 0.5


@every_model
def test_out_again_it_is_the_same_file_and_transformers_reads_it(name, folders, tmp_path):
    model, folder = folders(name)
    weights = load_weights(folder)
    out = saved(tmp_path / "out", weights)
    before, after = (load_file(f / "model.safetensors") for f in (folder, out))
    assert before.keys() == after.keys()
    for tensor in before:
        np.testing.assert_array_equal(before[tensor], after[tensor], strict=True)
    reread = tiny_models.load(type(model), out)
    ends = reread.config
    assert (ends.bos_token_id, ends.eos_token_id, ends.pad_token_id) == (None, None, None)
    np.testing.assert_array_equal(tiny_models.logits_of(reread), tiny_models.logits_of(model))
    again = load_weights(out)
    assert again.cfg == weights.cfg
    for path, array in trees.flatten(weights.params).items():
        np.testing.assert_array_equal(trees.flatten(again.params)[path], array)


def test_a_model_trained_here_leaves_as_llama_whatever_its_rope_layout(
    small_cfg, params_of, forward_of, tmp_path
):
    _, transformers = tiny_models.peers()
    cfg = dataclasses.replace(small_cfg, num_kv_heads=2, bias=True)
    assert cfg.rope_layout == "interleaved"
    out = saved(tmp_path / "out", (cfg, params_of(cfg)))
    tokens = TOKENS % cfg.vocab_size
    ours = forward_of(cfg)(params_of(cfg), tokens)
    theirs = tiny_models.logits_of(tiny_models.load(transformers.LlamaForCausalLM, out), tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    back = load_weights(out)
    assert back.cfg.rope_layout == "half"
    np.testing.assert_allclose(forward_of(back.cfg)(back.params, tokens), theirs, atol=1e-5)


def test_qk_norms_turn_with_their_heads(small_cfg, params_of, forward_of, tmp_path):
    _, transformers = tiny_models.peers()
    cfg = dataclasses.replace(small_cfg, qk_norm=True, window=3)
    out = saved(tmp_path / "out", (cfg, params_of(cfg)))
    tokens = TOKENS % cfg.vocab_size
    theirs = tiny_models.logits_of(tiny_models.load(transformers.Qwen3ForCausalLM, out), tokens)
    np.testing.assert_allclose(forward_of(cfg)(params_of(cfg), tokens), theirs, atol=1e-5)


def test_shards_are_written_and_read(folders, tmp_path):
    model, folder = folders("qwen2")
    weights = load_weights(folder)
    out = saved(tmp_path / "out", weights, shard_bytes=4000)
    files = sorted(p.name for p in out.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    again = load_weights(out)
    for path, array in trees.flatten(weights.params).items():
        np.testing.assert_array_equal(trees.flatten(again.params)[path], array)
    np.testing.assert_array_equal(
        tiny_models.logits_of(tiny_models.load(type(model), out)), tiny_models.logits_of(model)
    )
    theirs = tmp_path / "theirs"
    model.save_pretrained(theirs, max_shard_size="4KB")
    assert len(list(theirs.glob("*.safetensors"))) > 2
    for path, array in trees.flatten(load_weights(theirs).params).items():
        np.testing.assert_array_equal(trees.flatten(weights.params)[path], array)


def test_half_precision_is_widened_exactly(folders, tmp_path):
    torch, _ = tiny_models.peers()
    for dtype in (torch.bfloat16, torch.float16):
        model, folder = tiny_models.make("smollm2").to(dtype), tmp_path / str(dtype)
        model.save_pretrained(folder)
        params = load_weights(folder).params
        wo = model.model.layers[1].self_attn.o_proj.weight.detach().float().numpy()
        np.testing.assert_array_equal(params["blocks"]["wo"][1].reshape(16, 16), wo.T)
        assert all(x.dtype == np.float32 for x in trees.flatten(params).values())


def test_the_bare_model_of_gpt2_and_its_old_buffers_are_read(folders, tmp_path):
    model, _ = folders("gpt2")
    model.transformer.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    assert "wte.weight" in tensors  # without the prefix, as the file that OpenAI's release became
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.uint8))
    tensors["h.1.attn.masked_bias"] = np.array(-1e4, np.float32)
    save_file(tensors, file)
    expected = trees.flatten(load_weights(folders("gpt2")[1]).params)
    for path, array in trees.flatten(load_weights(tmp_path).params).items():
        np.testing.assert_array_equal(expected[path], array)


def test_an_old_config_means_what_it_meant(folders, tmp_path):
    _, folder = folders("llama")
    rope = {"rope_parameters": "removed", "rope_theta": 500.0, "rope_scaling": None}
    old = edited(folder, tmp_path / "old", torch_dtype="float32", **rope)
    assert load_weights(old).cfg == load_weights(folder).cfg
    values = json.loads((old / "config.json").read_text())
    del values["rms_norm_eps"], values["rope_theta"]
    cfg = config_from_json(values, "config.json")
    assert (cfg.norm_eps, cfg.rope_theta) == (1e-6, 10_000.0)


def test_llama_3_s_scaling_is_read_from_the_old_key_too(folders, tmp_path):
    cfg = load_weights(folders("llama 3")[1]).cfg
    assert cfg.rope_scaling == (4.0, 1.0, 3.0, 40.0)
    old = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0}
    changes = {"rope_parameters": "removed", "rope_theta": 300.0, "rope_scaling": old}
    folder = edited(folders("llama 3")[1], tmp_path / "old", **changes)
    # Without a length of its own it is that of the config.
    assert load_weights(folder).cfg.rope_scaling == (4.0, 1.0, 3.0, 32.0)


def test_a_window_that_is_not_used_is_none(folders, tmp_path):
    """As in the config.json of Qwen2.5, which is older than layer_types."""
    changes = {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 1}
    old = edited(folders("qwen2")[1], tmp_path / "old", **changes, layer_types="removed")
    assert load_weights(old).cfg == load_weights(folders("qwen2")[1]).cfg
    used = edited(old, tmp_path / "used", use_sliding_window=True, max_window_layers=2)
    assert load_weights(used).cfg.window is None  # from the third layer on, of two
    used = edited(old, tmp_path / "all", use_sliding_window=True, max_window_layers=0)
    assert load_weights(used).cfg.window == 5


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "low_freq_factor, high",
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "beta": 1.0}},
            "scaled as Llama 3's or not",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}},
            "scaled as Llama 3's or not",
        ),
        (
            "llama 3",
            {
                "rope_parameters": {"rope_type": "llama3", "factor": 2, "low_freq_factor": 3}
                | {"high_freq_factor": 3, "rope_theta": 5.0}
            },
            "low below high",
        ),
        ("llama", {"mlp_bias": True}, "mlp_bias=True is a feature"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu' is a feature"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is a feature"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
        ("llama", {"attention_multiplier": 0.5}, "attention_multiplier=0.5 is a feature"),
        ("llama", {"hidden_size": "16"}, "hidden_size='16': expected int"),
        ("llama", {"hidden_size": "removed"}, "hidden_size is missing"),
        ("llama", {"num_attention_heads": 3}, "num_heads=3 must be a multiple"),
        ("llama", {"model_type": "gemma"}, "gated by GELU, its gains are 1 + w"),
        (
            "llama",
            {"model_type": "bloom"},
            "model_type 'bloom' cannot be represented (known: llama",
        ),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "one attention for"),
        ("qwen2", {"layer_types": 3}, "malformed"),
        *(
            (
                "qwen2",
                {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
                | {"layer_types": "removed", **layers},
                "full_attention, sliding_attention",
            )
            for layers in ({}, {"num_hidden_layers": 2**62})  # not a list of them all
        ),
        ("gpt2", {"activation_function": "relu"}, "activation_function='relu' is a feature"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "is a feature"),
        # Weights that are not those of the config.
        ("llama", {"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight [16] is no"),
        *(
            ("llama", {"num_hidden_layers": n}, "model.layers.2.input_layernorm.weight is missing")
            for n in (3, 3.0, 2**63)
        ),
        (
            "llama",
            {"intermediate_size": 20},
            "mlp.down_proj.weight has shape [16, 24], expected [16, 20] (and 5 more)",
        ),
        ("llama", {"tie_word_embeddings": True}, "lm_head.weight is not the embedding"),
        ("smollm2", {"tie_word_embeddings": False}, "lm_head.weight is missing"),
    ],
)
def test_what_the_block_cannot_represent_is_refused_by_name(
    name, changes, message, folders, tmp_path
):
    folder = edited(folders(name)[1], tmp_path / "edited", **changes)
    with pytest.raises(ConfigError) as refused:
        load_weights(folder)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_pickle_is_refused_and_not_opened(folders, tmp_path):
    torch, _ = tiny_models.peers()
    _, folder = folders("llama")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model.bin is a pickle.*convert"):
        load_weights(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "relu"}, "this model's activation=relu (nearest: llama)"),
        ({"norm_placement": "post", "residual": 0.5}, "norm_placement=post, residual=0.5"),
        ({"logit_softcap": 3.0}, "logit_softcap=3.0"),
        ({"qkv_bias": True, "qk_norm": True}, "qk_norm=True (nearest: qwen2)"),
    ],
)
def test_a_model_that_transformers_has_not_is_not_written(changes, message, small_cfg):
    with pytest.raises(ConfigError) as refused:
        config_to_json(dataclasses.replace(small_cfg, **changes))
    assert message in str(refused.value)


def test_gpt2_has_no_grouped_heads():
    cfg = TransformerConfig(
        vocab_size=9,
        d_model=16,
        num_heads=4,
        num_kv_heads=2,
        norm="layer",
        activation="gelu",
        positions="learned",
        bias=True,
    )
    with pytest.raises(ConfigError, match="num_kv_heads=2"):
        config_to_json(cfg)


def test_what_is_a_source(folders, tmp_path):
    """Whether it is one is asked of any --config.train.init_from, a run's folder too."""
    (tmp_path / "run").mkdir()
    assert not is_pretrained(tmp_path / "run") and not is_pretrained(tmp_path / "nothing")
    for text, is_one in (('{"model_type": "x"}', True), ('{"config": {}}', False), ("{", False)):
        (tmp_path / "run" / "config.json").write_text(text)
        assert is_pretrained(tmp_path / "run") is is_one
    assert is_pretrained(folders("llama")[1])
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no config\.json; expected a Hugging Face folder"):
        load_config(tmp_path / "run")


def test_a_rope_that_says_it_is_whole_is_read(folders, tmp_path):
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
    folder = edited(folders("llama")[1], tmp_path / "whole", rope_parameters=rope)
    assert load_config(folder).rope_scaling is None


def test_only_a_transformer_has_a_config_json():
    with pytest.raises(ConfigError, match=r"model\.kind=gru: only kind=transformer"):
        config_to_json(RecurrentConfig(kind="gru"))


def test_a_head_that_is_the_embedding_once_more_is_left_out(folders, tmp_path):
    """As older files of tied models hold it."""
    folder = edited(folders("smollm2")[1], tmp_path / "old")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    save_file(weights, folder / "model.safetensors")
    cfg, params = load_weights(folder)
    assert cfg.tied_head and "unembed" not in params
