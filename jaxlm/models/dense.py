"""A linear map with a bias, declared and applied: what the heads of classifiers are made of."""

from typing import Any

from jaxlm.core.arrays import Array, Params
from jaxlm.core.params import ParamSpec, xavier, zeros
from jaxlm.nn.linear import add_bias, linear


def dense_specs(size_in: int, size_out: int, axes: tuple[str, str]) -> dict[str, Any]:
    """w [in, out], xavier, and bias [out], zero; axes: logical, of w."""
    return {
        "w": ParamSpec(shape=(size_in, size_out), axes=axes, init=xavier()),
        "bias": ParamSpec(shape=(size_out,), axes=axes[1:], init=zeros, num_in=0),
    }


def dense(x: Array, w: Params) -> Array:
    """x [..., in] -> [..., out] in the dtype of x; w: as `dense_specs` declares it."""
    return add_bias(linear(x, w["w"].astype(x.dtype)), w["bias"])
