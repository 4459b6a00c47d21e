"""Cases that every implementation of attention must agree on with the plain definition."""

import jax
import jax.numpy as jnp
import numpy as np
from compiling import quick_jit

B, H, Dh = 2, 4, 4
SEGMENTS = np.repeat([[1, 2, 2, 0], [5, 5, 3, 3]], [3, 2, 4, 2], axis=1)  # [2, 11]
OTHERS = np.where(SEGMENTS == 2, 9, SEGMENTS)  # so queries of segment 2 find no key
EMPTY = {"q_segments": SEGMENTS, "kv_segments": OTHERS}

# name: (queries, keys, key/value heads, options)
CASES = {
    "causal": (11, 11, 4, {}),
    "a multiple of the block": (8, 8, 2, {}),
    "one block is enough": (3, 3, 4, {}),
    "not causal": (11, 11, 2, {"causal": False}),
    "one key head": (11, 11, 1, {}),
    "window": (11, 11, 2, {"window": 3}),
    "window of one": (11, 11, 4, {"window": 1}),
    "window both ways": (11, 11, 4, {"window": 5, "causal": False}),
    "fewer queries": (5, 11, 2, {"q_positions": np.arange(6, 11)}),
    "more queries than keys": (11, 5, 2, {}),
    "more queries, window": (11, 5, 2, {"window": 2}),
    "softcap": (11, 11, 2, {"softcap": 0.7}),
    "segments": (11, 11, 2, {"q_segments": SEGMENTS, "kv_segments": SEGMENTS}),
    "segments and window": (
        *(11, 11, 2),
        {"q_segments": SEGMENTS, "kv_segments": SEGMENTS, "window": 3},
    ),
    "empty rows": (11, 11, 2, EMPTY | {"causal": False}),
    "positions": (
        11,
        11,
        2,
        {"q_positions": np.arange(11) + 2, "kv_positions": np.arange(11)[::-1]},
    ),
    "all": (
        *(11, 11, 2),
        {
            "window": 4,
            "softcap": 2.0,
            "q_segments": SEGMENTS,
            "kv_segments": SEGMENTS,
            "q_positions": np.stack([np.arange(11) * 2, np.arange(11)]),
            "kv_positions": np.arange(11) * 2,
        },
    ),
}


def inputs(S, T, K, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = (S, H), (T, K), (T, K), (S, H)
    return tuple(jnp.asarray(rng.normal(size=(B, *shape, Dh)), dtype) for shape in shapes)


def value_and_pull(fn, arrays, **options):
    """The result, and the gradients of its product with the last of `arrays`."""

    @quick_jit
    def run(q, k, v, direction):
        out, pull = jax.vjp(lambda *x: fn(*x, **options), q, k, v)
        return out, *pull(direction)

    return run(*arrays)
