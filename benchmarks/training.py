"""jaxlm's side of the benchmarks that train: shapes, and a block of steps as a run takes them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

RATE = 1e-4


class Shape(NamedTuple):
    num_layers: int
    width: int
    num_heads: int
    context_length: int
    batch_size: int
    vocab_size: int
    dtype: str
    steps: int  # in a block


SHAPES = {
    "small": Shape(4, 128, 4, 64, 12, 65, "float32", 20),
    "large": Shape(6, 384, 6, 256, 8, 65, "float32", 6),
    "gpt2": Shape(12, 768, 12, 1024, 32, 50304, "bfloat16", 10),
}


def random_tokens(shape: Shape):
    """i32[steps, B, S + 1]."""
    import numpy as np

    size = (shape.steps, shape.batch_size, shape.context_length + 1)
    return np.random.default_rng(0).integers(shape.vocab_size, size=size).astype(np.int32)


class Training(NamedTuple):
    """A model in training.

    attention: its Choice. block: trains one block. first: metrics of each step of a first block.
    params: before it. num_bytes: held at the peak, by the compiler's own account. Where that is
    over the limit, first is None and no block can be run.
    """

    cfg: Any
    program: Any
    attention: Any
    params: dict[str, Any]
    first: dict[str, Any] | None
    num_bytes: int
    block: Callable[[], None]


def prepare(
    shape: Shape, overrides: Mapping[str, Any] | None = None, limit_bytes: int | None = None
) -> Training:
    """Compiles the block, and runs it once unless it needs more than `limit_bytes`."""
    import jax
    import numpy as np

    from jaxlm.analysis.hlo import compiled_bytes
    from jaxlm.core import trees
    from jaxlm.core.config import apply_overrides
    from jaxlm.data.batches import Batch
    from jaxlm.jobs.setup import backends_of
    from jaxlm.train.calls import scan_apart
    from jaxlm.train.config import RunConfig
    from jaxlm.train.program import hyper_values, make_program

    settings = {
        "model.num_layers": shape.num_layers,
        "model.d_model": shape.width,
        "model.num_heads": shape.num_heads,
        "model.context_length": shape.context_length,
        "model.vocab_size": shape.vocab_size,
        "model.dtype": shape.dtype,
        "data.batch_size": shape.batch_size,
        "optim.peak_lr": RATE,
        "optim.schedule": "constant",
    }
    if jax.default_backend() == "cpu":
        settings["model.scan_unroll"] = shape.num_layers
    cfg = apply_overrides(RunConfig(), settings | dict(overrides or {}))
    chosen = backends_of(cfg)
    program = make_program(cfg, np.ones(shape.vocab_size, np.int32), **chosen.options)
    state = jax.jit(lambda: program.init(0, hyper_values(cfg)))()
    params = {path: np.asarray(w) for path, w in trees.flatten(state.params).items()}
    ids = random_tokens(shape)
    ones = np.ones(ids[..., 1:].shape, np.float32)
    batches = jax.device_put(Batch(tokens=ids[..., :-1], targets=ids[..., 1:], weights=ones))
    run = jax.jit(scan_apart(program.step), donate_argnums=0)
    compiled = run.lower(state, {}, batches).compile()
    about = (cfg, program, chosen.attention, params)
    num_bytes = compiled_bytes(compiled.memory_analysis())
    if limit_bytes is not None and num_bytes > limit_bytes:
        return Training(*about, None, num_bytes, lambda: None)
    state, first = compiled(state, {}, batches)

    def block():
        nonlocal state
        state, _ = compiled(state, {}, batches)
        jax.block_until_ready(state)

    values = {name: np.asarray(mean.compute()) for name, mean in first.items()}
    return Training(*about, values, num_bytes, block)
