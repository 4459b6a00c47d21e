"""How noisy the gradient of one example is, by gradients of single examples and of a batch."""

import math
from typing import NamedTuple


class NoiseScale(NamedTuple):
    """The simple gradient noise scale and the two unbiased estimates it is the ratio of."""

    trace: float  # tr(Sigma): total variance of one example's gradient
    square_norm: float  # |G|^2 of the true gradient; an estimate of it can be negative
    scale: float  # trace / square_norm, in examples


def noise_scale(
    mean_square_norm_of_examples: float, square_norm_of_mean: float, batch_size: int
) -> NoiseScale:
    """The simple gradient noise scale tr(Sigma) / |G|^2, from the gradients g_i of B examples.

        |G|^2     = (B * |g_B|^2 - mean |g_i|^2) / (B - 1)
        tr(Sigma) = (mean |g_i|^2 - |g_B|^2) * B / (B - 1)

    Both are unbiased and linear in the norms, so give the means over several batches of one size
    where you have them. Their ratio is not unbiased; that is why not to average scales.

    Where the estimate of |G|^2 is zero or below, the noise is too large for this batch to measure
    and the scale is inf; it is nan if all gradients are zero, or if a norm is not finite.

    Args:
      mean_square_norm_of_examples: mean over i of |g_i|^2.
      square_norm_of_mean: |g_B|^2 of the mean gradient g_B.
      batch_size: B >= 2.
    Raises:
      ValueError: batch_size < 2, or a |g_B|^2 above the mean |g_i|^2 by more than rounding,
        which no gradients have.
    Source: McCandlish et al. 2018, "An empirical model of large-batch training", appendix A.1,
    with a small batch of 1 and a large one of B.
    """
    examples, mean = float(mean_square_norm_of_examples), float(square_norm_of_mean)
    if batch_size < 2:
        raise ValueError(f"batch_size={batch_size}: a noise scale needs at least 2 examples")
    if not (math.isfinite(examples) and math.isfinite(mean)):
        return NoiseScale(math.nan, math.nan, math.nan)
    if mean > examples * (1 + 1e-3):  # norms summed in float32 are off by far less
        raise ValueError(
            f"square_norm_of_mean={mean}: expected at most the mean of the square norms,"
            f" {examples}; are the two swapped?"
        )
    square_norm = (batch_size * mean - examples) / (batch_size - 1)
    trace = max(examples - mean, 0.0) * batch_size / (batch_size - 1)
    if square_norm > 0:
        scale = trace / square_norm
    else:
        scale = math.inf if trace > 0 else math.nan
    return NoiseScale(trace, square_norm, scale)
