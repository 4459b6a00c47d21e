"""The encoder against transformers' BERT on the same weights, its laws of padding, its counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.core import trees
from jaxlm.core.params import count_params
from jaxlm.models import encoder
from jaxlm.models.encoder import BERT_BASE, BERT_TINY, DISTILBERT, EncoderConfig, TextInput

CFG = EncoderConfig(
    vocab_size=13, context_length=12, num_layers=2, d_model=16, num_heads=4, d_ff=24, dropout=0.3
)
CLASSES, S = 3, 9
TOKENS = np.random.default_rng(0).integers(13, size=(2, S)).astype(np.int32)
SEGMENTS = np.array([[1] * 9, [1] * 6 + [0] * 3], np.int32)
TYPES = np.array([[0] * 4 + [1] * 5, [0] * 9], np.int32)
TEXT = TextInput(TOKENS, SEGMENTS, TYPES)
MODEL = encoder.build_classifier(CFG, CLASSES)
FORWARD = quick_jit(MODEL.forward)


def draw(specs, seed=0):
    """Gains off one and biases off zero, so that no weight is idle."""
    rng = np.random.default_rng(seed)

    def leaf(path, spec):
        x = rng.normal(size=spec.shape)
        if spec.kind == "vector":
            return np.float32(0.3 * x + path.endswith("norm"))
        return np.float32(x / np.sqrt(1 if spec.kind == "lookup" else spec.fans[0]))

    return trees.map_with_path(leaf, specs)


PARAMS = draw(MODEL.specs)


# ---- against transformers


@pytest.fixture(scope="module")
def peers():
    return pytest.importorskip("torch"), pytest.importorskip("transformers")


def their_config(transformers, cfg, **more):
    return transformers.BertConfig(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.d_model,
        num_hidden_layers=cfg.num_layers,
        num_attention_heads=cfg.num_heads,
        intermediate_size=cfg.layers.sizes.F,
        max_position_embeddings=cfg.context_length,
        type_vocab_size=cfg.num_types or 2,
        hidden_act="gelu_new",
        attn_implementation="eager",
        **more,
    )


def their_weights(params):
    """{their name: array}, with their matrices [out, in]."""
    names = {
        "bert.embeddings.word_embeddings.weight": params["embed"],
        "bert.embeddings.position_embeddings.weight": params["positions"],
        "bert.embeddings.token_type_embeddings.weight": params["types"],
        "bert.embeddings.LayerNorm.weight": params["embed_norm"],
        "bert.embeddings.LayerNorm.bias": params["embed_norm_bias"],
    }
    for n in range(CFG.num_layers):
        w = {name: stack[n] for name, stack in params["blocks"].items()}
        layer = f"bert.encoder.layer.{n}"
        for name, letter in (("query", "q"), ("key", "k"), ("value", "v")):
            names[f"{layer}.attention.self.{name}.weight"] = w[f"w{letter}"].reshape(16, 16).T
            names[f"{layer}.attention.self.{name}.bias"] = w[f"b{letter}"].reshape(16)
        names |= {
            f"{layer}.attention.output.dense.weight": w["wo"].reshape(16, 16).T,
            f"{layer}.attention.output.dense.bias": w["bo"],
            f"{layer}.attention.output.LayerNorm.weight": w["attn_norm"],
            f"{layer}.attention.output.LayerNorm.bias": w["attn_norm_bias"],
            f"{layer}.intermediate.dense.weight": w["w_up"].T,
            f"{layer}.intermediate.dense.bias": w["b_up"],
            f"{layer}.output.dense.weight": w["w_down"].T,
            f"{layer}.output.dense.bias": w["b_down"],
            f"{layer}.output.LayerNorm.weight": w["mlp_norm"],
            f"{layer}.output.LayerNorm.bias": w["mlp_norm_bias"],
        }
    return names


def load(torch, model, weights):
    state = {name: torch.tensor(np.ascontiguousarray(w)) for name, w in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing)
    return model.eval()


def their_inputs(torch):
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: torch.tensor(x, dtype=torch.long) for name, x in zip(names, TEXT, strict=True)}


def test_a_classifier_is_berts(peers):
    torch, transformers = peers
    config = their_config(transformers, CFG, num_labels=CLASSES)
    weights = their_weights(PARAMS)
    weights |= {
        "bert.pooler.dense.weight": PARAMS["pooler"]["w"].T,
        "bert.pooler.dense.bias": PARAMS["pooler"]["bias"],
        "classifier.weight": PARAMS["classifier"]["w"].T,
        "classifier.bias": PARAMS["classifier"]["bias"],
    }
    model = load(torch, transformers.BertForSequenceClassification(config), weights)
    with torch.no_grad():
        theirs = model(**their_inputs(torch), output_hidden_states=True, output_attentions=True)
    ours = FORWARD(PARAMS, TEXT)
    assert ours.shape == (2, CLASSES) and ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs.logits.numpy(), atol=2e-5)
    seen = quick_jit(lambda p, t: encoder.trace(p, t, CFG))(PARAMS, TEXT)
    real = SEGMENTS == 1
    for n in range(CFG.num_layers):
        stream = theirs.hidden_states[n + 1].numpy()
        np.testing.assert_allclose(seen.residual[n][real], stream[real], atol=2e-5)
        maps = np.swapaxes(theirs.attentions[n].numpy(), 1, 2)[real]  # rows of padding are theirs
        ours = np.swapaxes(np.asarray(seen.attention[n]), 1, 2)[real]
        np.testing.assert_allclose(ours, maps, atol=1e-5)


def test_masked_word_predictions_are_berts(peers):
    torch, transformers = peers
    model = encoder.build_masked_lm(CFG)
    params = {**draw(model.specs, 1), **{k: PARAMS[k] for k in encoder.param_specs(CFG)}}
    head = params["predictions"]
    weights = their_weights(params)
    weights |= {
        "cls.predictions.bias": params["unembed_bias"],
        "cls.predictions.decoder.bias": params["unembed_bias"],
        "cls.predictions.decoder.weight": params["embed"],
        "cls.predictions.transform.dense.weight": head["w"].T,
        "cls.predictions.transform.dense.bias": head["bias"],
        "cls.predictions.transform.LayerNorm.weight": head["norm"],
        "cls.predictions.transform.LayerNorm.bias": head["norm_bias"],
    }
    theirs = load(torch, transformers.BertForMaskedLM(their_config(transformers, CFG)), weights)
    inputs = their_inputs(torch) | {"token_type_ids": torch.zeros(2, S, dtype=torch.long)}
    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()
    ours = quick_jit(model.forward)(params, TOKENS, segment_ids=SEGMENTS)
    real = SEGMENTS == 1
    np.testing.assert_allclose(ours[real], expected[real], atol=2e-5 * np.abs(expected).max())


# ---- laws


def padded(text, length):
    """The rows with more padding behind them, of ids that would show."""
    extra = length - text.tokens.shape[1]
    return TextInput(
        np.pad(text.tokens, ((0, 0), (0, extra)), constant_values=7),
        np.pad(text.segment_ids, ((0, 0), (0, extra))),
        np.pad(text.type_ids, ((0, 0), (0, extra)), constant_values=1),
    )


def test_padding_changes_no_output():
    logits = FORWARD(PARAMS, TEXT)
    np.testing.assert_allclose(FORWARD(PARAMS, padded(TEXT, 12)), logits, atol=1e-6)
    short = TextInput(*(x[1:, :6] for x in TEXT))
    np.testing.assert_allclose(FORWARD(PARAMS, short), logits[1:], atol=1e-6)
    without = TextInput(short.tokens, None, short.type_ids)  # None: no padding
    np.testing.assert_allclose(FORWARD(PARAMS, without), logits[1:], atol=1e-6)


def test_what_stands_in_the_padding_changes_nothing_at_all():
    other = TOKENS.copy()
    other[1, 6:] = (other[1, 6:] + 1) % 13
    np.testing.assert_array_equal(
        FORWARD(PARAMS, TEXT._replace(tokens=other)), FORWARD(PARAMS, TEXT)
    )


def test_a_type_of_zero_is_the_default_and_another_shows():
    zeros = TEXT._replace(type_ids=np.zeros_like(TYPES))
    logits = FORWARD(PARAMS, zeros)
    np.testing.assert_allclose(FORWARD(PARAMS, TEXT._replace(type_ids=None)), logits, atol=1e-6)
    assert np.abs(FORWARD(PARAMS, TEXT)[0] - logits[0]).max() > 1e-3


def test_an_encoder_without_types_refuses_them():
    cfg = dataclasses.replace(CFG, num_types=0)
    model = encoder.build_classifier(cfg, CLASSES)
    assert "types" not in model.specs
    with pytest.raises(ValueError, match="num_types=0"):
        jax.eval_shape(lambda p: model.forward(p, TEXT), draw(model.specs))
    with pytest.raises(ValueError, match="num_types=-1"):
        dataclasses.replace(CFG, num_types=-1)


def test_dropout_needs_a_key_and_reaches_the_classifier():
    drawn = [FORWARD(PARAMS, TEXT, key=jax.random.key(k)) for k in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    none = FORWARD(PARAMS, TEXT, key=jax.random.key(0), dropout=jnp.float32(0))
    np.testing.assert_allclose(none, FORWARD(PARAMS, TEXT), atol=1e-6)


def test_half_the_depth_is_every_second_layer_of_the_same_model():
    deep = dataclasses.replace(CFG, num_layers=5)
    params = draw(encoder.param_specs(deep))
    half = encoder.every_second_layer(params)
    shallow = dataclasses.replace(CFG, num_layers=3)
    assert {k: w.shape for k, w in trees.flatten(half).items()} == {
        k: spec.shape for k, spec in trees.flatten(encoder.param_specs(shallow)).items()
    }
    for n, source in enumerate((0, 2, 4)):
        np.testing.assert_array_equal(half["blocks"]["wq"][n], params["blocks"]["wq"][source])
    np.testing.assert_array_equal(half["embed"], params["embed"])


def test_a_masked_lm_is_a_language_model_without_a_cache():
    model = encoder.build_masked_lm(CFG)
    assert set(model.head) == {"embed", "unembed_bias"}
    with pytest.raises(ValueError, match="encoder reads ahead"):
        model.extend(draw(model.specs), TOKENS, model.init_cache(2, 12))


# ---- counts, without a weight in memory


def published(cfg, *, pooler):
    """The count by hand: tables, then layers of 4 D^2 + 2 D F with their biases and gains."""
    V, S, N, D, F, T = (
        *(cfg.vocab_size, cfg.context_length, cfg.num_layers, cfg.d_model),
        *(4 * cfg.d_model, cfg.num_types),
    )
    layer = 4 * (D * D + D) + (D * F + F) + (F * D + D) + 4 * D
    return (V + S + T) * D + 2 * D + N * layer + pooler * (D * D + D)


@pytest.mark.parametrize(
    ("cfg", "pooler", "count"),
    [
        (BERT_BASE, True, 109_482_240),
        (DISTILBERT, False, 66_362_880),
        (BERT_TINY, True, 4_385_920),
    ],
    ids=["BERT-base", "DistilBERT", "BERT-tiny"],
)
def test_published_sizes(cfg, pooler, count):
    specs = encoder.param_specs(cfg) | (encoder.pooler_specs(cfg) if pooler else {})
    assert count_params(specs) == count == published(cfg, pooler=pooler)


def test_published_sizes_are_those_of_transformers(peers):
    torch, transformers = peers
    distil = transformers.DistilBertConfig()
    with torch.device("meta"):  # shapes without memory
        theirs = [
            transformers.BertModel(their_config(transformers, BERT_BASE)),
            transformers.DistilBertModel(distil),
            transformers.BertModel(their_config(transformers, BERT_TINY)),
            transformers.BertForMaskedLM(their_config(transformers, BERT_TINY)),
        ]
    ours = [
        encoder.param_specs(BERT_BASE) | encoder.pooler_specs(BERT_BASE),
        encoder.param_specs(DISTILBERT),
        encoder.param_specs(BERT_TINY) | encoder.pooler_specs(BERT_TINY),
        encoder.masked_lm_specs(BERT_TINY),
    ]
    for model, specs in zip(theirs, ours, strict=True):
        assert sum(w.numel() for w in model.parameters()) == count_params(specs)
