"""Labelled examples, and which of them a step reads."""

from typing import Any

import numpy as np
from flax import struct

from jaxlm.data.order import epoch_key, permute


@struct.dataclass
class Examples:
    """Examples of a classifier, each leaf of leading B.

    inputs: what the model reads. labels: i32[B]. teacher_logits: f32[B, C] of the model to be
    learned from, or None.
    """

    inputs: Any
    labels: Any
    teacher_logits: Any = None


def examples_at(num: int, seed: int, step: int, batch_size: int) -> np.ndarray:
    """i64[batch_size], which of `num` examples a step reads: a pure function of its arguments.

    Each epoch visits every example once, in an order of its own; a batch may straddle two epochs.
    """
    epoch, place = np.divmod(step * batch_size + np.arange(batch_size), num)
    return permute(place, num, epoch_key(seed, epoch))
