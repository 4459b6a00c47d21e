"""The neural bigram, trained with plain SGD, becomes the table of counts."""

import jax
import numpy as np
from compiling import quick_jit

from jaxlm.core.config import apply_overrides
from jaxlm.data.batches import Batch
from jaxlm.models.ngram import NgramConfig, fit
from jaxlm.train.config import RunConfig
from jaxlm.train.program import hyper_values, make_program

V = 5


def test_sgd_on_the_table_ends_at_the_frequencies():
    rng = np.random.default_rng(0)
    chain, ids = rng.dirichlet(np.full(V, 8.0), size=V), [0]
    while len(ids) < 601:
        ids.append(int(rng.choice(V, p=chain[ids[-1]])))
    ids = np.array([ids], np.int32)
    cfg = apply_overrides(
        RunConfig(),
        {
            "model.kind": "bigram",
            "model.vocab_size": V,
            "data.batch_size": 1,
            "model.context_length": 600,
            "optim.name": "sgd",
            "optim.momentum": 0.0,
            "optim.weight_decay": 0.0,
            "optim.clip_norm": None,
            "optim.schedule": "constant",
            "optim.warmup_steps": 0,
            "optim.peak_lr": 5.0,
        },
    )
    program = make_program(cfg, np.ones(V, np.int32))
    batch = Batch(ids[:, :-1], ids[:, 1:], np.ones((1, 600), np.float32))

    @quick_jit
    def train():
        state = program.init(0, hyper_values(cfg))
        return jax.lax.scan(lambda s, _: program.step(s, batch), state, None, length=3000)

    state, metrics = train()
    np.testing.assert_allclose(metrics["loss"].compute()[0], np.log(V), rtol=1e-6)
    learned = jax.nn.softmax(state.params["embed"])
    counts = np.zeros((V, V))
    np.add.at(counts, (ids[0, :-1], ids[0, 1:]), 1)
    assert counts.min() > 0
    np.testing.assert_allclose(learned, counts / counts.sum(axis=1, keepdims=True), atol=1e-3)
    # The n-gram model that is counted says the same, up to what is added to each count.
    model, params = fit(NgramConfig(order=2, smoothing="additive", alpha=1e-6), ids[0], V)
    counted = np.exp(quick_jit(model.forward)(params, np.arange(V)[:, None]))[:, 0]
    np.testing.assert_allclose(learned, counted, atol=1e-3)
