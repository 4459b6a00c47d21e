"""The logit lens and attention maps against the model's own logits, evaluation and transformers."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny_models
from compiling import quick_jit

from jaxlm.analysis.logit_lens import explain, lens
from jaxlm.data.batches import evaluation_batches, split_from_array
from jaxlm.evals.perplexity import make_evaluator
from jaxlm.interop import pretrained
from jaxlm.models import transformer

S = 9
KINDS = {
    "pre rms": {},
    "pre layer norm": {"norm": "layer", "bias": True, "activation": "gelu", "head_bias": True},
    "post": {"norm_placement": "post", "logit_softcap": 2.0, "positions": "learned"},
    "none, tied": {"norm_placement": "none", "tied_head": True, "window": 3, "num_kv_heads": 2},
}


@functools.cache
def explained(cfg):
    return quick_jit(functools.partial(explain, cfg=cfg, k=4))


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_says_what_the_model_says(kind, small_cfg, params_of, forward_of):
    cfg = dataclasses.replace(small_cfg, **KINDS[kind])
    params = params_of(cfg)
    tokens = np.random.default_rng(3).integers(cfg.vocab_size, size=S).astype(np.int32)
    seen = jax.tree.map(np.asarray, explained(cfg)(params, tokens))
    logits = np.asarray(forward_of(cfg)(params, tokens[None]))[0].astype(np.float64)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    order = np.argsort(-probs, axis=-1)[:, :4]
    np.testing.assert_array_equal(seen.top_ids[-1], order)
    np.testing.assert_allclose(seen.top_probs[-1], np.take_along_axis(probs, order, -1), rtol=2e-5)
    own = probs[np.arange(S - 1), tokens[1:]]
    np.testing.assert_allclose(seen.nll, -np.log(own), rtol=2e-5)
    np.testing.assert_array_equal(seen.ranks, (probs[:-1] > own[:, None]).sum(-1))
    np.testing.assert_allclose(seen.attention.sum(-1), 1, atol=1e-6)
    assert not seen.attention[:, :, *np.triu_indices(S, 1)].any()
    assert (seen.top_ids[0] != seen.top_ids[-1]).any()


def test_the_loss_is_that_of_an_evaluation(small_cfg, params_of):
    params, ids = params_of(small_cfg), np.arange(S, dtype=np.int32)
    model = transformer.build(small_cfg)
    evaluate = make_evaluator(model, token_bytes=np.ones(small_cfg.vocab_size, np.int32))
    batches = evaluation_batches(
        split_from_array(ids), batch_size=1, context_length=S - 1, mask_documents=False
    )
    seen = explained(small_cfg)(params, ids)
    assert float(np.mean(seen.nll)) == pytest.approx(evaluate(params, batches)["loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "smollm2", "mistral", "qwen3", "gpt2"])
def test_attention_and_every_layer_are_those_of_transformers(name, tmp_path):
    torch, _ = tiny_models.peers()
    peer = tiny_models.make(name)
    peer.save_pretrained(tmp_path)
    cfg, params = pretrained.load_weights(tmp_path)
    tokens = tiny_models.TOKENS[0]
    with torch.no_grad():
        said = peer(
            torch.tensor(tokens[None], dtype=torch.long),
            output_attentions=True,
            output_hidden_states=True,
        )
        body = peer.transformer if name == "gpt2" else peer.model
        norm = body.ln_f if name == "gpt2" else body.norm
        want = [peer.lm_head(norm(x)) for x in said.hidden_states[1:-1]] + [said.logits]
        probs = torch.stack([torch.softmax(x[0], -1) for x in want]).numpy()
    seen = jax.tree.map(np.asarray, explained(cfg)(params, tokens))
    maps = np.stack([x[0].numpy() for x in said.attentions])
    np.testing.assert_allclose(seen.attention, maps, atol=2e-6)
    np.testing.assert_allclose(
        seen.top_probs, np.take_along_axis(probs, seen.top_ids, -1), rtol=1e-3, atol=1e-6
    )
    np.testing.assert_allclose(seen.top_probs[..., 0], probs.max(-1), rtol=1e-3)


def test_the_lens_reads_the_stream_through_norm_and_head(small_cfg, params_of):
    cfg = dataclasses.replace(small_cfg, tied_head=True)
    params = params_of(cfg) | {"final_norm": np.ones(cfg.d_model, np.float32)}
    table = np.asarray(params["embed"])
    logits = np.asarray(lens(params, 5.0 * table, cfg))
    scaled = table / np.sqrt((table**2).mean(-1, keepdims=True) + cfg.norm_eps / 25)
    np.testing.assert_allclose(logits, scaled @ table.T, rtol=1e-4, atol=1e-4)
