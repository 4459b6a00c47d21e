"""Shared by every test: small models, and compiled functions that are compiled once.

The library adds biases and position tables of lower rank on purpose, so
`jax_numpy_rank_promotion` stays at "allow".
"""

import functools
import gc
import importlib.metadata
import os
import signal

# A shell starts what is put into its background with Ctrl-C ignored, and processes that tests start
# and interrupt would take that over.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The programs of tests run for moments and compile for seconds: XLA and LLVM do little for them.
# It changes the machine code, not what is computed. Set before JAX is imported.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",  # a third of the time of small programs
        # Later versions do not know the flag and would not start.
        *["--xla_cpu_use_fusion_emitters=false"][: importlib.metadata.version("jaxlib") < "0.11"],
    ]
)

import hypothesis
import jax
import numpy as np
import pytest
from compiling import quick_jit
from drawn import draw_params
from hypothesis.internal.conjecture import providers

from jaxlm.data.batches import Batch
from jaxlm.models import transformer
from jaxlm.models.transformer import TransformerConfig

# The same examples every time, and none that a busy machine could be too slow for; others are
# drawn with --hypothesis-profile=default.
hypothesis.settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")


def _no_constants_of_ours(of_all_modules=providers._get_local_constants):
    """Else examples would depend on which of our modules the tests before have imported."""
    if hypothesis.settings.default.derandomize:
        return providers.Constants()
    return of_all_modules()


providers._get_local_constants = _no_constants_of_ours

# Tracing makes millions of objects that stay: searched for garbage as often as Python would by
# itself, they take a tenth of the time of the tests.
gc.freeze()
gc.set_threshold(50_000, 20, 20)

MOST_PROGRAMS = 600  # of some MiB each, until a process forgets them
SMALL = TransformerConfig(vocab_size=13, context_length=12, num_layers=2, d_model=16, num_heads=4)

_compiled = 0  # programs, since they were forgotten


def _count(event, duration, **about):
    global _compiled
    _compiled += event.endswith("backend_compile_duration")


jax.monitoring.register_event_duration_secs_listener(_count)


@pytest.fixture(scope="module", autouse=True)
def _programs_are_not_kept_for_ever():
    """JAX keeps them until its process ends: gigabytes, of all files together."""
    yield
    global _compiled
    if _compiled > MOST_PROGRAMS:
        jax.clear_caches()
        _compiled = 0


@functools.cache
def _forward(cfg):
    return quick_jit(functools.partial(transformer.forward, cfg=cfg))


@functools.cache
def _extend(cfg):
    return quick_jit(functools.partial(transformer.extend, cfg=cfg))


@functools.cache
def _params(cfg, seed):
    return draw_params(transformer.param_specs(cfg), seed)


@pytest.fixture(scope="session")
def small_cfg():
    """A decoder that compiles in a second: 2 layers of width 16, 13 tokens."""
    return SMALL


@pytest.fixture(scope="session")
def forward_of():
    """`forward_of(cfg)`: that config's jitted `(params, tokens, **options) -> logits`."""
    return _forward


@pytest.fixture(scope="session")
def extend_of():
    """`extend_of(cfg)`: that config's jitted `(params, tokens, cache) -> (logits, cache)`."""
    return _extend


@pytest.fixture(scope="session")
def params_of():
    """`params_of(cfg, seed=0)`: parameters of that config in which no gain or bias is idle."""
    return lambda cfg, seed=0: _params(cfg, seed)


@pytest.fixture(scope="session")
def make_batch():
    """`make_batch(seed, weights, vocab_size)`: random tokens with the given weights [B, S]."""

    def make(seed, weights, vocab_size=SMALL.vocab_size):
        weights = np.asarray(weights, np.float32)
        rng = np.random.default_rng(seed)
        tokens, targets = rng.integers(vocab_size, size=(2, *weights.shape))
        return Batch(
            tokens=tokens.astype(np.int32),
            targets=targets.astype(np.int32),
            weights=weights,
            segment_ids=None,
        )

    return make
