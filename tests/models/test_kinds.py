"""Laws that hold for every kind of model: what all jobs rely on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from drawn import draw_params
from tiny_kinds import TINY_KINDS

from jaxlm.analysis import information_flow as flow
from jaxlm.core import trees
from jaxlm.core.arrays import Params
from jaxlm.core.config import ConfigError, apply_overrides, from_dict, to_dict
from jaxlm.core.params import ParamSpec
from jaxlm.data.batches import Batch
from jaxlm.jobs import prove_causal
from jaxlm.models import kinds
from jaxlm.models.api import LanguageModel
from jaxlm.models.scoring import score_targets
from jaxlm.train.config import RunConfig
from jaxlm.train.estimates import flops_per_token
from jaxlm.train.program import group_by_structure, hyper_values, make_program

V, S, B = 13, 12, 3
EVERY = pytest.mark.parametrize("kind", TINY_KINDS)


def quick_for(*kinds):
    """Every kind, of which the others, like these in what is asked of them, are slow."""
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        "kind", [k if k in kinds else pytest.param(k, marks=slow) for k in TINY_KINDS]
    )


class Tiny(NamedTuple):
    """A model with settled parameters, and its functions compiled."""

    model: LanguageModel
    params: Params
    forward: Callable
    extend: Callable
    decode_step: Callable


def run_config(kind, **more):
    """A run of this kind: rows of 12 tokens of 13."""
    model = {f"model.{name}": value for name, value in TINY_KINDS[kind].items()}
    sizes = {"model.vocab_size": V, "model.context_length": S, "data.batch_size": B}
    return apply_overrides(RunConfig(), {**model, **sizes, "optim.warmup_steps": 0, **more})


@functools.cache
def tiny(kind):
    model = kinds.build(run_config(kind).model)
    params = model.settle(draw_params(model.specs), model.init_carry(B))
    functions = map(quick_jit, (model.forward, model.extend, model.decode_step))
    return Tiny(model, params, *functions)


def tokens(seed=0, shape=(B, S)):
    return np.random.default_rng(seed).integers(V, size=shape).astype(np.int32)


def same_batch(num_steps=8):
    """[steps, B, S]: one batch again and again, to be learned by heart."""
    ids = np.repeat(tokens(4, (1, B, S + 1)), num_steps, axis=0)
    return Batch(ids[:, :, :-1], ids[:, :, 1:], np.ones((num_steps, B, S), np.float32))


@EVERY
def test_a_saved_config_is_the_same_again(kind):
    cfg = run_config(kind)
    assert from_dict(RunConfig, to_dict(cfg)) == cfg
    assert isinstance(cfg.model.summary, str) and "None" not in cfg.model.summary


@EVERY
def test_a_cache_goes_on_where_rows_of_any_length_ended(kind):
    model, params, forward, extend, step = tiny(kind)
    ids, first = tokens(), np.array([5, 1, 7])
    want = np.asarray(forward(params, ids))
    logits, cache = extend(params, ids[:, :7], model.init_cache(B, 16), lengths=first)
    for b, n in enumerate(first):
        np.testing.assert_allclose(logits[b, :n], want[b, :n], atol=1e-5)
    np.testing.assert_array_equal(cache.length, first)
    for n in range(3):
        logits, cache = step(params, ids[np.arange(B), first + n], cache)
        np.testing.assert_allclose(logits, want[np.arange(B), first + n], atol=1e-5)
    np.testing.assert_array_equal(cache.length, first + 3)


@EVERY
def test_the_rows_of_a_cache_may_be_chosen_anew(kind):
    """As a beam search does."""
    model, params, _, extend, step = tiny(kind)
    ids, order = tokens(6), np.array([2, 0, 0])
    _, cache = extend(params, ids[:, :7], model.init_cache(B, 16), lengths=np.full(B, 7))
    got, _ = step(params, ids[order, 7], jax.tree.map(lambda x: x[order], cache))
    want, _ = step(params, ids[:, 7], cache)
    np.testing.assert_allclose(got, want[order], atol=1e-5)


@EVERY
def test_packed_segments_are_rows_of_their_own(kind):
    params, forward = tiny(kind).params, tiny(kind).forward
    ids = tokens(1)
    segments = np.repeat([[1] * 5 + [2] * 7], B, axis=0)
    packed = forward(params, ids, segment_ids=segments)
    apart = forward(
        params,
        np.concatenate([ids[:, 5:], ids[:, :5]], axis=1),
        segment_ids=np.repeat([[1] * 7 + [2] * 5], B, axis=0),
    )
    np.testing.assert_allclose(packed[:, 5:], apart[:, :7], atol=1e-5)
    np.testing.assert_allclose(packed[:, :5], forward(params, ids)[:, :5], atol=1e-5)


@quick_for("lstm", "mlp_norm", "tcn")  # transformer, gru and mlp: tests/jobs/test_prove_causal.py
def test_no_prediction_reads_ahead_and_each_reads_what_it_says(kind):
    cfg = run_config(kind, **{"data.mask_documents": True})
    queries = flow.queries_of(S)
    found = list(prove_causal.findings(cfg, queries))
    assert [prove_causal.problem_of(f, queries, 1e-4) for f in found] == [None] * len(found)
    whole = found[0].allowed
    if cfg.model.reach is not None:  # else the reach would not be on trial
        assert not whole[np.tril_indices(S)].all()


@EVERY
def test_the_loss_from_some_ids_at_a_time_is_the_loss(kind):
    model, params, forward, *_ = tiny(kind)
    batch = Batch(tokens(2), tokens(3), np.ones((B, S), np.float32))
    logits = np.float64(forward(params, batch.tokens))
    log_z = np.log(np.exp(logits).sum(axis=-1))
    picked = np.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
    parts = quick_jit(functools.partial(score_targets, model, vocab_chunk=5))(params, batch)
    np.testing.assert_allclose(parts.nll, log_z - picked, atol=1e-5)


@quick_for("lstm", "mlp_norm", "tcn")
def test_a_lane_of_a_population_is_the_run_alone(kind):
    """Numbers of the model among them, and the loss falls."""
    one = run_config(kind, **{"optim.peak_lr": 0.02})
    more = {"optim.peak_lr": 0.03, "seed": 1}
    more |= {f"model.{n}": 0.5 for n in one.model.NUMBERS if n in ("init_scale", "output_init")}
    configs = [one, apply_overrides(one, more)]
    [group] = group_by_structure(configs)
    program = make_program(group.cfg, np.ones(V, np.int32), group.traced)
    hypers = [hyper_values(cfg, group.traced) for cfg in configs]
    batches = same_batch()

    def train(seed, hypers):
        state, metrics = jax.lax.scan(program.step, program.init(seed, hypers), batches)
        again = jax.tree.map(lambda x: x[:1], batches)
        return state.params, metrics["loss"].compute(), program.evaluate(state, again)

    stacked = {name: jnp.float32([h[name] for h in hypers]) for name in hypers[0]}
    lanes = quick_jit(jax.vmap(train))(jnp.arange(2), stacked)
    train_alone = quick_jit(train)
    for lane in range(2):
        alone = train_alone(lane, {name: jnp.float32(x) for name, x in hypers[lane].items()})
        jax.tree.map(
            lambda a, b, lane=lane: np.testing.assert_allclose(a[lane], b, atol=2e-5), lanes, alone
        )
        assert alone[1][-1] < alone[1][0]
        assert np.isfinite(alone[2]["loss"].compute())
    assert np.abs(lanes[1][0] - lanes[1][1]).max() > 1e-3


@EVERY
def test_flops_are_six_for_each_number_that_a_token_is_multiplied_with(kind):
    cost = flops_per_token(run_config(kind))
    D, N = 16, 2
    want = {
        "rnn": N * 2 * D * D + D * V,
        "gru": N * 6 * D * D + D * V,
        "gru_before": 6 * D * D + D * V,
        "lstm": N * 8 * D * D + D * V,
        "mlp": 3 * 8 * D + D * V + 3 * 8 * V,
        "mlp_norm": 3 * 8 * D + D * V,
        "tcn": N * 2 * 3 * D * D + D * V,
        "wavenet": N * (3 * D * 2 * D + D * D) + D * V,
        "bigram": 0,
    }
    if kind in want:
        assert cost.full == cost.causal == 6 * want[kind]
    if kind in ("mlp", "mlp_norm", "tcn", "wavenet"):  # XLA counts the body of a scan once
        lowered = jax.jit(tiny(kind).model.forward).lower(tiny(kind).params, tokens(0, (1, S)))
        counted = lowered.cost_analysis()["flops"] / S
        assert counted == pytest.approx(2 * want[kind], rel=0.2)


@pytest.mark.parametrize("kind", ["gru", "lstm", "tcn"])
def test_adapters_train_any_model_with_stacked_matrices(kind):
    cfg = run_config(kind, **{"lora.rank": 2, "lora.targets": "all", "optim.peak_lr": 0.05})
    program = make_program(cfg, np.ones(V, np.int32))
    base = draw_params(kinds.param_specs(cfg.model))
    batches = same_batch()

    @quick_jit
    def train():
        state = program.init(0, hyper_values(cfg)).replace(frozen=base)
        state, metrics = jax.lax.scan(program.step, state, batches)
        return state, metrics["loss"].compute()

    state, loss = train()
    assert loss[-1] < loss[0]
    merged = program.weights(state.params, base, state.hypers)
    moved = {p for p, w in trees.flatten(merged).items() if (w != trees.flatten(base)[p]).any()}
    specs: dict[str, ParamSpec] = trees.flatten(kinds.param_specs(cfg.model))
    assert moved == {p for p, spec in specs.items() if spec.stacked and spec.kind == "matrix"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.kind": "gru", "model.carry_state": True}, "set data.order=contiguous"),
        (
            {"model.kind": "mlp", "model.batch_norm": True, "train.num_microbatches": 2},
            "train.num_microbatches=2: the model hands its batch-norm statistics on",
        ),
        (
            {"model.kind": "mlp", "model.batch_norm": True, "train.parallel": "pmap"},
            "train.parallel=pmap: each device would have its own batch-norm statistics",
        ),
        ({"model.kind": "lstm", "model.reset": "before"}, "only kind=gru has a reset gate"),
        ({"model.kind": "mlp", "model.window": 0}, "window=0 must be at least 1"),
        ({"model.kind": "tcn", "model.dropout": 1.0}, "dropout=1.0 must be in"),
    ],
)
def test_what_cannot_work_is_refused(overrides, message):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(RunConfig(), overrides)
    assert message in str(caught.value)


def test_every_class_of_a_kind_begins_with_it():
    for cls in {type(run_config(kind).model) for kind in TINY_KINDS}:
        assert [f.name for f in dataclasses.fields(cls)][:3] == [
            "kind",
            "vocab_size",
            "context_length",
        ]
