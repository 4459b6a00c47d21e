"""Shared by the tests of studies."""

import jax
import pytest


@pytest.fixture
def quick_compile():
    """Compiles faster and runs slower: for cells that train a tiny model for a few steps."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)
