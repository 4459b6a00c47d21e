import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    """Halves the time that these small programs take to compile."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)
