"""Our count of a step's memory against the compiler's account of the real program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.analysis.hlo import compiled_bytes
from jaxlm.core.config import apply_overrides
from jaxlm.data.batches import Batch
from jaxlm.jobs.plan import held_by
from jaxlm.jobs.setup import backends_of, layout_of
from jaxlm.models import kinds
from jaxlm.train.config import RunConfig
from jaxlm.train.program import hyper_values, place_program

BASE = {
    "model.num_layers": 4, "model.d_model": 128, "model.context_length": 128,
    "model.vocab_size": 512, "data.batch_size": 16, "train.steps_per_call": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        pytest.param({"model.remat": "full", "train.num_microbatches": 4}, marks=pytest.mark.slow),
        {"model.remat": "dots", "train.attention": "plain", "data.mask_documents": True},
        pytest.param(
            {"model.vocab_size": 16384, "model.remat": "full", "data.batch_size": 8},
            marks=pytest.mark.slow,
        ),
        {"model.vocab_size": 16384, "model.remat": "full", "train.vocab_chunk": 1024},
        {"model.activation": "gelu", "model.norm": "layer", "model.num_kv_heads": 2,
         "model.dtype": "bfloat16", "optim.name": "sgd"},
        {"model.kind": "gru"},
    ],
)  # fmt: skip
def test_a_steps_memory_is_counted_within_15_percent(overrides):
    """A layer's activations once too often, or once too few, would be 20 % and more here."""
    cfg = apply_overrides(RunConfig(), BASE | overrides)
    layout = layout_of(cfg, kinds.param_specs(cfg.model))
    backends = backends_of(cfg, layout)
    token_bytes = np.ones(cfg.model.vocab_size, np.int32)
    program = place_program(cfg, token_bytes, layout, hyper_values(cfg), **backends.options)
    ids = jax.ShapeDtypeStruct((1, cfg.data.batch_size, 128), jnp.int32)
    weights = jax.ShapeDtypeStruct(ids.shape, jnp.float32)
    segments = ids if cfg.data.mask_documents else None
    batch = Batch(tokens=ids, targets=ids, weights=weights, segment_ids=segments)
    sizes = program.lower(batch).compile().memory_analysis()
    held = held_by(cfg, layout, program.state, backends.attention)
    assert held.state == pytest.approx(sizes.argument_size_in_bytes, rel=0.01)
    assert held.total == pytest.approx(compiled_bytes(sizes), rel=0.15)
