"""Which implementations of attention and of products a model trains with, by device.

All have the signature and the meaning of those in `jaxlm.nn`. An attention with arithmetic of its
own must first agree with the plain one on this device, in values and gradients.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array
from jaxlm.kernels import chunked_attention, cudnn_attention, row_linear
from jaxlm.models.transformer import TransformerConfig
from jaxlm.nn import attention, split_attention
from jaxlm.nn.linear import linear as plain_linear

Name = Literal["auto", "plain", "split", "chunked", "cudnn", "flash"]


def _flash(*arrays: Array, **options: Any) -> Array:
    from jaxlm.kernels import flash_attention  # not above: Pallas takes a while to import

    return flash_attention.attend(*arrays, **options)


BACKENDS: Mapping[str, Callable[..., Array]] = {
    "plain": attention.attend,
    "split": split_attention.attend,
    "chunked": chunked_attention.attend,
    "cudnn": cudnn_attention.attend,
    "flash": _flash,
}
# Context lengths from which on attention is made in parts, see benchmarks/RESULTS.md: on a CPU it
# is then faster; on a GPU it takes up to 1.2 times as long, for memory that does not grow with the
# square of the length; on a TPU it is not yet measured.
SPLIT = 64
LONG = {"cpu": 2048, "gpu": 2048, "tpu": 1024}
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # of the largest value


class Choice(NamedTuple):
    """name: of a backend. why: one line for the reader."""

    name: str
    attend: Callable[..., Array]
    why: str


def choose_linear(platform: str | None = None) -> Callable[..., Array]:
    """The product with a weight that trains fastest; platform as for `choose_attend`."""
    platform = jax.default_backend() if platform is None else platform
    return row_linear.linear if platform == "cpu" else plain_linear


def choose_unroll(cfg: TransformerConfig, platform: str | None = None) -> int:
    """Layers a scan iteration: what the config says, else all of up to 16 on a GPU and 1 elsewhere.

    A scan keeps what the backward pass needs in stacks of all layers, which costs copies; layers
    written out cost compile time. Platform as for `choose_attend`.
    """
    platform = jax.default_backend() if platform is None else platform
    if cfg.scan_unroll is not None:
        return cfg.scan_unroll
    return min(cfg.num_layers, 16) if platform == "gpu" else 1


def choose_attend(
    name: Name, cfg: TransformerConfig, *, segments: bool = False, platform: str | None = None
) -> Choice:
    """The backend called `name`, or with "auto" the first suitable one that passes the probe.

    Args:
      segments: whether rows are packed, so that attention is told which tokens belong together.
      platform: cpu, gpu or tpu; None: of JAX's default device.
    Raises:
      ValueError: the backend does not have what the model needs.
    """
    platform = jax.default_backend() if platform is None else platform
    if name != "auto":
        _check_forced(name, cfg, platform)
        return Choice(name, BACKENDS[name], "as the config says")
    notes = []
    *fast, safe = candidates(cfg, segments, platform)
    for candidate in fast:
        difference = probe(BACKENDS[candidate], cfg)
        if difference <= TOLERANCE[cfg.dtype]:
            where = "on this device" if platform == jax.default_backend() else "as tried on a CPU"
            why = f"within {difference:.0e} of the plain one {where}"
            return Choice(candidate, BACKENDS[candidate], "; ".join([*notes, why]))
        notes.append(f"{candidate} is off by {difference:.0e} here and left out")
    why = f"auto, {platform}, context {cfg.context_length}"
    return Choice(safe, BACKENDS[safe], "; ".join([*notes, why]))


def candidates(cfg: TransformerConfig, segments: bool, platform: str) -> list[str]:
    """Backends by preference. The last is the plain one, or made of it, and needs no probe."""
    found = []
    narrow = cfg.dtype == "bfloat16" and cfg.attention_softcap is None
    if platform == "gpu" and narrow and not segments:
        found.append("cudnn")
    if cfg.context_length >= LONG.get(platform, 1024):
        found += ["flash", "chunked"] if platform == "tpu" else ["chunked"]
    elif platform == "cpu" and cfg.context_length >= SPLIT and (cfg.causal or cfg.window):
        return [*found, "split"]
    return [*found, "plain"]


def probe(attend: Callable[..., Array], cfg: TransformerConfig) -> float:
    """Largest difference from the plain one, as a share of the largest value; inf if it fails.

    On one row of at most 256 random tokens, with the model's heads, window, softcap and dtype.
    Products of float32 are exact here: by default a GPU and a TPU round their operands, and two
    right orders of summation then differ by a thousandth.
    """
    # An odd length stays odd: cuDNN has none.
    sizes, length = cfg.sizes, min(cfg.context_length, 256 - cfg.context_length % 2)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, direction = (
        jax.random.normal(key, (1, length, heads, sizes.Dh), cfg.dtype)
        for key, heads in zip(keys, (sizes.H, sizes.K, sizes.K, sizes.H), strict=True)
    )
    kinds = {"causal": cfg.causal, "window": cfg.window, "softcap": cfg.attention_softcap}

    def value_and_pull(fn: Callable[..., Array], inputs: Any, direction: Array) -> Any:
        out, pull = jax.vjp(lambda *x: fn(*x, **kinds), *inputs)
        return out, *pull(direction)

    @jax.jit
    def largest_difference(*arrays):
        pairs = zip(
            value_and_pull(attend, *arrays), value_and_pull(attention.attend, *arrays), strict=True
        )
        each = [_relative(a.astype(jnp.float32), b.astype(jnp.float32)) for a, b in pairs]
        return jnp.max(jnp.stack(each))

    try:
        with jax.default_matmul_precision("highest"):
            # The arrays are arguments: XLA would compute with constants itself, not on the device.
            return float(largest_difference((q, k, v), direction))
    except (ValueError, NotImplementedError, RuntimeError):  # it cannot run here
        return float("inf")


def _relative(a: Array, b: Array) -> Array:
    # NaN is made infinite: the largest of several numbers may lose it.
    difference = jnp.where(jnp.isfinite(a), jnp.abs(a - b), jnp.inf)
    return jnp.max(difference) / jnp.max(jnp.abs(b))


def _check_forced(name: Name, cfg: TransformerConfig, platform: str) -> None:
    if name == "flash" and platform != "tpu":  # elsewhere it would be interpreted
        raise ValueError(f"attention=flash needs a TPU, and this is a {platform}")
    if name != "cudnn":
        return
    if platform != "gpu":
        raise ValueError(f"attention=cudnn needs an NVIDIA GPU, and this is a {platform}")
    if cfg.dtype != "bfloat16":
        raise ValueError("attention=cudnn needs model.dtype=bfloat16")
    if cfg.attention_softcap is not None:
        raise ValueError("attention=cudnn has no softcap: set model.attention_softcap to none")
    if cfg.context_length % 2:
        raise ValueError(f"attention=cudnn needs an even model.context_length={cfg.context_length}")
    if cfg.window is not None and not cfg.causal:
        raise ValueError("attention=cudnn has no window without model.causal=true")
