"""Random parameters for tests."""

import jax.numpy as jnp
import numpy as np

from jaxlm.core import trees


def draw_params(specs, seed=0):
    """Drawn by numpy: compiling the library's own initialisation takes seconds.

    Gains are off one and biases off zero, so that no weight is idle.
    """
    rng = np.random.default_rng(seed)

    def draw(path, spec):
        x = rng.normal(size=spec.shape)
        if spec.kind == "vector":
            return jnp.float32(0.3 * x + path.endswith("norm"))
        fan_in = 1 if spec.kind == "lookup" else spec.fans[0]
        return jnp.float32(x / np.sqrt(fan_in))

    return trees.map_with_path(draw, specs)
