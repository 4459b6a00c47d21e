"""LoRA adapters in PEFT's layout, against peft on tiny random models."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_models
from safetensors.numpy import load_file, save_file
from tiny_models import TOKENS

from jaxlm.core import trees
from jaxlm.core.config import ConfigError
from jaxlm.interop.peft_files import load_adapters, save_adapters
from jaxlm.interop.pretrained import load_weights, save_weights
from jaxlm.models import lora
from jaxlm.models.lora import LoraConfig
from jaxlm.models.transformer import param_specs

# peft asks transformers by a name that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

ALL = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")


@pytest.fixture(scope="module")
def peft():
    tiny_models.peers()
    return pytest.importorskip("peft")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """`bases(name)`: the folder and the weights of that model."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("base")
            tiny_models.make(name).save_pretrained(folder)
            made[name] = folder, load_weights(folder)
        return made[name]

    return get


def random_adapters(cfg, adapter_cfg):
    rng = np.random.default_rng(3)
    specs = lora.adapter_specs(param_specs(cfg), adapter_cfg)
    return trees.map_with_path(
        lambda _, spec: (0.3 * rng.normal(size=spec.shape)).astype(np.float32), specs
    )


def merged(weights, adapter_cfg, adapters):
    cfg, params = weights
    params = lora.merge(params, adapters, lora.hyper_values(adapter_cfg), adapter_cfg.scaling)
    return cfg, trees.map_with_path(lambda _, x: np.asarray(x), params)


@pytest.mark.parametrize(
    ("name", "targets", "changes"),
    [
        ("llama", ALL, {}),
        ("qwen3", ("wq", "wv"), {"scaling": "alpha_over_sqrt_r", "alpha": 3.5}),
        ("gpt2", ("wo", "w_up", "w_down"), {}),
    ],
)
def test_peft_adds_what_we_merge(name, targets, changes, bases, peft, forward_of, tmp_path):
    folder, weights = bases(name)
    adapter_cfg = LoraConfig(rank=3, targets=targets, **changes)
    adapters = random_adapters(weights.cfg, adapter_cfg)
    save_adapters(tmp_path, weights.cfg, adapter_cfg, adapters, str(folder))
    plain = tiny_models.make(name)
    before = tiny_models.logits_of(plain)
    theirs = tiny_models.logits_of(peft.PeftModel.from_pretrained(plain, tmp_path).eval())
    cfg, params = merged(weights, adapter_cfg, adapters)
    np.testing.assert_allclose(forward_of(cfg)(params, TOKENS), theirs, atol=1e-4)
    assert np.abs(theirs - before).max() > 0.1

    out = tmp_path / "merged"
    out.mkdir()
    save_weights(out, cfg, params)
    whole = tiny_models.logits_of(tiny_models.load(type(tiny_models.make(name)), out))
    np.testing.assert_allclose(whole, theirs, atol=1e-4)

    again_cfg, again = load_adapters(tmp_path, weights.cfg)
    assert set(again_cfg.targets) == set(targets)
    assert dataclasses.replace(again_cfg, targets=targets) == adapter_cfg
    for path, array in trees.flatten(adapters).items():
        np.testing.assert_array_equal(trees.flatten(again)[path], array, strict=True)


def test_adapters_of_a_base_trained_here_turn_with_its_heads(
    small_cfg, params_of, peft, forward_of, tmp_path
):
    """RoPE's pairs lie side by side in the base, and in the adapters' outputs."""
    _, transformers = tiny_models.peers()
    adapter_cfg = LoraConfig(rank=2, targets=("wq", "wk", "wo"))
    adapters = random_adapters(small_cfg, adapter_cfg)
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    save_weights(tmp_path / "base", small_cfg, params_of(small_cfg))
    save_adapters(tmp_path / "adapter", small_cfg, adapter_cfg, adapters, None)
    plain = tiny_models.load(transformers.LlamaForCausalLM, tmp_path / "base")
    tokens = TOKENS % small_cfg.vocab_size
    model = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    cfg, params = merged((small_cfg, params_of(small_cfg)), adapter_cfg, adapters)
    theirs = tiny_models.logits_of(model, tokens)
    np.testing.assert_allclose(forward_of(cfg)(params, tokens), theirs, atol=1e-4)
    _, again = load_adapters(tmp_path / "adapter", small_cfg)
    for path, array in trees.flatten(adapters).items():
        np.testing.assert_array_equal(trees.flatten(again)[path], array, strict=True)


@pytest.mark.parametrize("rslora", [False, True])
def test_adapters_that_peft_saved_are_read(rslora, bases, peft, forward_of, tmp_path):
    torch, _ = tiny_models.peers()
    _, weights = bases("llama")
    settings = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=rslora, target_modules=["q_proj", "k_proj", "down_proj"]
    )
    model = peft.get_peft_model(tiny_models.make("llama"), settings).eval()
    with torch.no_grad():
        for name, w in model.named_parameters():
            if "lora_B" in name:
                w.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    adapter_cfg, adapters = load_adapters(tmp_path, weights.cfg)
    assert (adapter_cfg.rank, adapter_cfg.alpha) == (4, 6.0)
    assert adapter_cfg.scaling == ("alpha_over_sqrt_r" if rslora else "alpha_over_r")
    assert set(adapter_cfg.targets) == {"wq", "wk", "w_down"}
    cfg, params = merged(weights, adapter_cfg, adapters)
    theirs = tiny_models.logits_of(model)
    np.testing.assert_allclose(forward_of(cfg)(params, TOKENS), theirs, atol=1e-4)


@pytest.fixture
def saved(bases, tmp_path):
    """A folder with adapters for llama's wq and wv, and the model."""
    _, weights = bases("llama")
    adapter_cfg = LoraConfig(rank=2)
    adapters = random_adapters(weights.cfg, adapter_cfg)
    save_adapters(tmp_path, weights.cfg, adapter_cfg, adapters, "base")
    return tmp_path, weights.cfg


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3': only LORA is read"),
        ({"use_dora": True}, "use_dora=True is a feature"),
        ({"bias": "all"}, "bias='all' is a feature"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head'] is a feature"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"something_new": 1}, "something_new=1 is a feature"),
        ({"r": "2"}, "r='2'"),
        ({"r": 0}, "rank=0 must be at least 1"),
        ({"r": 3}, "q_proj.lora_A.weight has shape [2, 16], expected [3, 16] (and 7 more)"),
    ],
)
def test_a_config_that_means_something_else_is_refused(changes, message, saved):
    folder, cfg = saved
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(values | changes))
    with pytest.raises(ConfigError) as refused:
        load_adapters(folder, cfg)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_tensors_that_do_not_fit_are_named(saved):
    folder, cfg = saved
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.{}.self_attn.{}.lora_{}.weight"
    some = {n: x for n, x in tensors.items() if n != name.format(1, "v_proj", "B")}
    for content, message in (
        (some, "layers.1.self_attn.v_proj.lora_B.weight is missing"),
        (
            tensors | {name.format(7, "q_proj", "A"): np.zeros((2, 16), np.float32)},
            "is no weight of",
        ),
        ({"x": np.zeros(1, np.float32)}, "adapts no matrix of a llama"),
    ):
        save_file(content, file)
        with pytest.raises(ConfigError, match=message):
            load_adapters(folder, cfg)
    file.unlink()
    with pytest.raises(ConfigError, match="holds no adapter_model.safetensors"):
        load_adapters(folder, cfg)


def test_a_part_of_a_fused_matrix_is_refused(bases, tmp_path):
    cfg = bases("gpt2")[1].cfg
    adapters = random_adapters(cfg, LoraConfig(rank=2))
    with pytest.raises(ConfigError, match=r"blocks/wq is only a part of .*c_attn.weight in gpt2"):
        save_adapters(tmp_path, cfg, LoraConfig(rank=2), adapters, None)
    assert not list(tmp_path.iterdir())
