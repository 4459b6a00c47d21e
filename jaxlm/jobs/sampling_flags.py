"""The flags that say how a token is drawn, of every job that writes text."""

from typing import Any

from jaxlm.core.config import ConfigError

NUMBERS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def sampling_of(flags: Any) -> dict[str, Any]:
    """How a token is drawn, as `generate` takes it."""
    sampling = {name: getattr(flags, name) for name in NUMBERS}
    if flags.logit_bias:
        sampling["logit_bias"] = dict(map(_id_and_bias, flags.logit_bias))
    return sampling


def _id_and_bias(item: str) -> tuple[int, float]:
    try:
        id, bias = item.split(":")
        return int(id), float(bias)
    except ValueError:
        raise ConfigError(
            f"--logit_bias={item}: expected ID:BIAS, several joined by commas, such as 198:-inf"
        ) from None
