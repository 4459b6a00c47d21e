"""Names of what was varied, and how to read it off the results."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.comparing import lowest_mean
from jaxlm.core.results import Results

BASE, LORA, FULL = "frozen base", "LoRA", "full fine-tuning"  # method
NEW, OLD = "new", "old"  # domain
OVER_R, OVER_SQRT_R = "alpha/r", "alpha/sqrt(r)"  # scaling
SCALINGS = (OVER_R, OVER_SQRT_R)
TARGETS = {  # sets of matrices
    "q+v": ("wq", "wv"),
    "q+k+v": ("wq", "wk", "wv"),
    "q+k+v+o": ("wq", "wk", "wv", "wo"),
    "all linear": ("all",),
}


def names_of(config: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a token is, the new domain and the old one."""
    if config["base"]["source"] is None:
        return "byte", "Python", "the plays"
    return "token", "the plays", "Python"


class Setting(NamedTuple):
    """Of a target set, beside the seed."""

    scaling: str
    peak_lr: float
    rank: int


def settings(config: Mapping[str, Any], targets: str) -> list[Setting]:
    """All that a target set is trained with, the rates beside the usual one last."""
    ranks, usual = config["ranks"], config["lora_lr"]
    if targets not in config["both_scalings"]:
        return [Setting(OVER_R, usual, rank) for rank in ranks]
    return [
        *(Setting(scaling, usual, rank) for scaling in SCALINGS for rank in ranks),
        *(Setting(s, lr, ranks[-1]) for s in SCALINGS for lr in config["other_lrs"]),
    ]


def rates(config: Mapping[str, Any]) -> list[float]:
    """At which the two scalings are compared at the highest rank, rising."""
    return sorted([config["lora_lr"], *config["other_lrs"]])


def adapted(
    results: Results,
    targets: str,
    rank: int,
    scaling: str = OVER_R,
    peak_lr: float | None = None,
) -> Results:
    """The rows of LoRA at one setting; peak_lr: None for the usual rate."""
    lr = results.config["lora_lr"] if peak_lr is None else peak_lr
    return results.select(method=LORA, targets=targets, rank=rank, scaling=scaling, peak_lr=lr)


def best_rate(results: Results, targets: str, scaling: str) -> float:
    """Of those tried at the highest rank, by the mean loss over the seeds."""
    rank = results.config["ranks"][-1]
    tried = results.select(method=LORA, targets=targets, rank=rank, scaling=scaling)
    (rate,) = lowest_mean(at_best(tried), "peak_lr")
    return rate


def at_best(of: Results, metric: str = "loss", domain: str = NEW) -> Results:
    """Of each seed, at the evaluation that early stopping keeps."""
    return of.select(f"best_{metric}", domain=domain)


def of_base(results: Results, metric: str = "loss", domain: str = NEW) -> float:
    [value] = at_best(results.select(method=BASE), metric, domain).values()
    return value


def num_trainable(of: Results) -> int:
    [value] = of.select("trainable").values()
    return int(value)


def share_trainable(results: Results, of: Results) -> float:
    """Of all weights of the base."""
    [size] = results.select("parameters", method=BASE).values()
    return num_trainable(of) / size
