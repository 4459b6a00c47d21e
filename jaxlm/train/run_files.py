"""What the files of a run hold of what is read again: forms, see `jaxlm.core.json_forms`.

Further fields are free. A number that was not finite is null.
"""

from typing import Any

from jaxlm.core.json_forms import count, finite


def float32(value: Any) -> bool:
    """A number of float32's size, as a step gives them; axes cannot be drawn to 1e308."""
    return finite(value) and abs(value) < 3.5e38


_NUMBER = (float32, None)
_COUNT = (count, None)
_TEXT = (str, None)

# A line of metrics.jsonl, of samples.jsonl and of timings.jsonl, and of any of them.
OF_A_STEP = {"step": count}
METRICS = {
    **OF_A_STEP,
    "split": ("train", "validation"),
    "perplexity": (finite, None),
    **dict.fromkeys(("loss", "bits_per_byte", "num_tokens"), _NUMBER),
    **dict.fromkeys(("learning_rate", "grad_norm", "update_norm"), _NUMBER),
}
SAMPLE = {**OF_A_STEP, "temperature": _NUMBER, "prompt": _TEXT, "text": _TEXT}
TIMING = {
    **OF_A_STEP,
    "event": _TEXT,
    **dict.fromkeys(("tokens_per_s", "seconds_per_step", "seconds", "elapsed_s"), _NUMBER),
    **dict.fromkeys(("programs", "from_cache"), _COUNT),
}

CONFIG = {"config": {"train": ({"num_steps": _COUNT}, None)}}
SUMMARY = {
    "step": count,
    "val_perplexity": (finite, None),
    **dict.fromkeys(("val_loss", "val_bits_per_byte"), _NUMBER),
    "val_num_tokens": _COUNT,
    **dict.fromkeys(("num_params", "tokens_seen", "peak_memory_bytes"), _NUMBER),
    **dict.fromkeys(("seconds", "tokens_per_s", "flops_per_s", "mfu", "mfu_causal"), _NUMBER),
}
SCHEDULE = [[count, float32]]  # (step, learning rate)
CHECKPOINT_EXTRA = {
    **dict.fromkeys(("corpus", "tokenizer", "frozen"), _TEXT),
    "passed_over": ([[count, count]], None),
}
PROVENANCE = {
    "command": ([str], None),
    "device_kind": _TEXT,
    "device_count": _COUNT,
    "earlier": ([dict], None),
}
