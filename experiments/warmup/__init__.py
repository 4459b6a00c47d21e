"""Learning-rate schedules by peak rate, length of the warmup and placement of the norm.

A deep and narrow model on the characters of the bundled plays, AdamW, no gradient clip. The
original form of the inverse square root is scaled so that its peak is the peak rate of the others.
Post-norm and warmup: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture".
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from experiments.checks import check_multiple, check_not_empty, check_positive, check_rising
from experiments.comparing import LEARNED, band_by, by_seed, difference, lowest_mean
from jaxlm.analysis.claims import NOT_SUPPORTED, SUPPORTED, Claim, all_of, evidence, judge
from jaxlm.analysis.statistics import Interval, brief, mean_interval, paired_interval
from jaxlm.core.results import Results
from jaxlm.reports.figures import Band, Figure, grid, heat_maps
from jaxlm.reports.study_report import Table

QUESTION = "Which learning-rate schedule needs how much warmup, and does pre-norm need any?"

CONSTANT = "constant"
PEAK_FORM, ORIGINAL_FORM = "warmup_inverse_sqrt", "warmup_inverse_sqrt_original"
# In these the rate after the warmup hardly depends on how long that was; in the inverse square
# root it does, so that a short warmup is also a fast decay.
FREE_OF_WARMUP = ("warmup_cosine", "warmup_stable_decay")
NAMES = {
    "warmup_cosine": "cosine",
    "warmup_stable_decay": "stable-decay",
    PEAK_FORM: "inverse square root",
    ORIGINAL_FORM: "inverse square root, original form",
    CONSTANT: "constant",
}

SMALL_GAIN = 0.05  # nats/token: a gain below it does not count as a need
SAME_RATE = 1e-5  # of the peak, between the two forms: float32, by two formulas
SAME_LOSS = 1e-3  # nats/token: what that may grow to where training is stable

Schedule = Literal[
    "warmup_cosine",
    "warmup_stable_decay",
    "warmup_inverse_sqrt",
    "warmup_inverse_sqrt_original",
    "constant",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The grid and the model.

    peak_lrs, warmup_steps: rising. Two schedules have one length only: `constant` none, and the
      original inverse square root, which is here to be checked, the middle one.
    clip_norm: None: no clip, which would hide that a run diverges.
    eval_tokens: of the validation text, at every evaluation.
    """

    scale: Literal["small", "default", "full"] = "default"
    schedules: tuple[Schedule, ...] = tuple(NAMES)
    norm_placements: tuple[Literal["pre", "post"], ...] = ("pre", "post")
    peak_lrs: tuple[float, ...] = (4e-3, 1e-2, 2.5e-2, 6e-2)
    warmup_steps: tuple[int, ...] = (1, 15, 50)
    num_seeds: int = 5
    num_layers: int = 6
    d_model: int = 16
    num_heads: int = 2
    context_length: int = 16
    batch_size: int = 8
    num_steps: int = 150
    eval_every: int = 25
    eval_tokens: int = 2048
    clip_norm: float | None = None

    def __post_init__(self):
        check_not_empty(self)
        check_positive(self)
        for name in ("peak_lrs", "warmup_steps"):
            check_rising(self, name)
        check_multiple(self, "num_steps", "eval_every")


SCALES: dict[str, dict[str, Any]] = {
    "small": {
        "schedules": ("warmup_cosine", CONSTANT),
        "peak_lrs": (1e-2, 2.5e-2),
        "warmup_steps": (1, 50),
        "num_seeds": 3,
    },
    "full": {
        "peak_lrs": (3e-4, 1e-3, 3e-3, 1e-2),
        "warmup_steps": (1, 100, 500),
        "num_layers": 12,
        "d_model": 128,
        "num_heads": 4,
        "context_length": 128,
        "batch_size": 32,
        "num_steps": 2000,
        "eval_every": 250,
        "eval_tokens": 65536,
    },
}

NOTES = [
    "A run has diverged if its final validation loss is not finite, or is not below that of the "
    f"unigram distribution by more than {LEARNED:g} nats/token: it knows nothing of the context. "
    "With AdamW a rate that is too high seldom ends in NaN; the model comes to rest near there. "
    "A run that is too slow to get below it counts too, as with the inverse square root after a "
    "warmup of one update, whose rate falls at once. Gradients are not clipped.",
    "The best rate of a setting is the one of lowest mean final loss over the seeds that are also "
    "compared, which flatters every setting a little, and one with more rates to choose from more.",
    "Where training is close to diverging it is chaotic: a rate that differs in its last bit ends "
    "in another loss. So the two forms of the inverse square root, which differ by that much, are "
    "compared at the lowest peak rate, and their largest difference at any is told beside it.",
    "The verdicts explore, they do not confirm: after a first run at the default scale the lowest "
    "peak rate was raised from 0.002 to 0.004, the margin below the unigram loss and the claim at "
    "one rate were added, and the two forms, which had come out different near divergence, were "
    "compared at the lowest rate only. On the first grid, with the same seeds, the claims on "
    "post-norm at its best rate and on its diverged runs were inconclusive, pre-norm did not need "
    "warmup (supported), and cosine below constant was inconclusive for pre-norm and not supported "
    "for post-norm. Other seeds on a grid fixed beforehand would confirm.",
]


def cells(cfg: Config) -> list[dict[str, Any]]:
    """One for each schedule and norm placement: a program, and a population of all the rest."""
    middle = cfg.warmup_steps[len(cfg.warmup_steps) // 2]
    lengths = {CONSTANT: [0], ORIGINAL_FORM: [middle]}
    names = ("num_seeds", "num_layers", "d_model", "num_heads", "context_length", "batch_size")
    more = ("num_steps", "eval_every", "eval_tokens", "clip_norm")
    return [
        {
            "schedule": schedule,
            "norm_placement": placement,
            "warmup_steps": lengths.get(schedule, list(cfg.warmup_steps)),
            "peak_lrs": list(cfg.peak_lrs),
            **{name: getattr(cfg, name) for name in (*names, *more)},
        }
        for placement in cfg.norm_placements
        for schedule in cfg.schedules
    ]


def claims(results: Results) -> list[Claim]:
    """Those whose schedules and norm placements were run."""
    cfg = results.config
    final = final_losses(results)
    free = [s for s in FREE_OF_WARMUP if s in cfg["schedules"]]
    found = []
    if len(cfg["warmup_steps"]) > 1 and free:
        if "post" in cfg["norm_placements"]:
            found += [
                _post_norm_at_one_rate(final, free),
                _post_norm_gains(final, free),
                _post_norm_diverges(results, free),
            ]
        if "pre" in cfg["norm_placements"]:
            found.append(_pre_norm_gains_little(final, free))
    if {PEAK_FORM, ORIGINAL_FORM} <= set(cfg["schedules"]):
        found.append(_forms_agree(results))
    if {"warmup_cosine", CONSTANT} <= set(cfg["schedules"]):
        found += [_cosine_beats_constant(final, norm) for norm in cfg["norm_placements"]]
    return found


def final_losses(results: Results) -> Results:
    return results.select("validation_loss", step=results.config["num_steps"])


def at_best(final: Results, **fields: Any) -> Results:
    """The rows of the peak rate, and where not given the warmup, of lowest mean; one a seed."""
    final = final.select(**fields)
    peak_lr, warmup_steps = lowest_mean(final, "peak_lr", "warmup_steps")
    return final.select(peak_lr=peak_lr, warmup_steps=warmup_steps)


def _gains(final: Results, schedules: Sequence[str], placement: str, one_rate: bool):
    """Of each schedule (interval of the loss with the shortest warmup minus that with the longest,
    name and rates); one_rate: both at the best of the longest, else each at its best.
    """
    lengths, gains = final.config["warmup_steps"], []
    for schedule in schedules:
        both = {"schedule": schedule, "norm_placement": placement}
        long = at_best(final, warmup_steps=lengths[-1], **both)
        if one_rate:
            both["peak_lr"] = long.rows[0].fields["peak_lr"]
        short = at_best(final, warmup_steps=lengths[0], **both)
        rates = _rate(long) if one_rate else f"{_rate(short)} against {_rate(long)}"
        gains.append((difference(short, long), f"{NAMES[schedule]} ({rates})"))
    return gains


def _loss_claim(text: str, gains: Sequence[tuple[Interval, str]], **threshold: float) -> Claim:
    words = [f"{name}: {evidence(gain, **threshold)}" for gain, name in gains]
    return Claim(
        text,
        all_of(judge(gain, **threshold) for gain, _ in gains),
        "Nats/token, short warmup minus long. " + ". ".join(words),
    )


def _rate(results: Results) -> str:
    return f"{results.rows[0].fields['peak_lr']:g}"


def _updates(count: int) -> str:
    return f"{count} update{'' if count == 1 else 's'}"


def _lengths(final: Results) -> tuple[str, str]:
    lengths = final.config["warmup_steps"]
    return _updates(lengths[0]), _updates(lengths[-1])


def _post_norm_at_one_rate(final: Results, schedules: Sequence[str]) -> Claim:
    short, long = _lengths(final)
    return _loss_claim(
        f"Post-norm needs its warmup: at the peak rate that is best with a warmup of {long}, the "
        f"loss ends higher with one of {short}",
        _gains(final, schedules, "post", one_rate=True),
        above=0.0,
    )


def _post_norm_gains(final: Results, schedules: Sequence[str]) -> Claim:
    short, long = _lengths(final)
    return _loss_claim(
        f"A lower peak rate does not make up for it: each at its best rate, post-norm still ends "
        f"higher with a warmup of {short} than with one of {long}",
        _gains(final, schedules, "post", one_rate=False),
        above=0.0,
    )


def _pre_norm_gains_little(final: Results, schedules: Sequence[str]) -> Claim:
    short, long = _lengths(final)
    return _loss_claim(
        f"Pre-norm does not need warmup: each at its best rate, the loss ends less than "
        f"{SMALL_GAIN:g} nats/token higher with a warmup of {short} than with one of {long}",
        _gains(final, schedules, "pre", one_rate=False),
        below=SMALL_GAIN,
    )


def _post_norm_diverges(results: Results, schedules: Sequence[str]) -> Claim:
    lengths = results.config["warmup_steps"]
    shares = []
    for steps in (lengths[0], lengths[-1]):
        rows = results.select(
            "diverged",
            norm_placement="post",
            schedule=lambda s: s in schedules,
            warmup_steps=steps,
        )
        shares.append([float(np.mean(group.values())) for group in rows.by("seed").values()])
    share = paired_interval(*shares, over="seeds")
    short, long = _lengths(results)
    return Claim(
        f"Post-norm: of all runs with {' and '.join(NAMES[s] for s in schedules)}, more diverge "
        f"with a warmup of {short} than with one of {long}",
        judge(share, above=0.0),
        f"Share of runs, short warmup minus long: {evidence(share, above=0.0)}",
    )


def _forms_agree(results: Results) -> Claim:
    lowest, highest = min(results.config["peak_lrs"]), max(results.config["peak_lrs"])
    final = final_losses(results)
    rates = _largest_gap(results.select("learning_rate"), "step") / highest
    losses = _largest_gap(final.select(peak_lr=lowest), "seed")
    same = rates <= SAME_RATE and losses <= SAME_LOSS
    return Claim(
        "The two forms of the inverse square root are one schedule if their peaks are equal",
        SUPPORTED if same else NOT_SUPPORTED,
        f"Largest difference of a rate: {rates:.1e} of the peak, at most {SAME_RATE:g} claimed; of "
        f"a run's final loss at the lowest peak: {losses:.1e} nats/token, at most {SAME_LOSS:g} "
        f"claimed; at any peak: {_largest_gap(final, 'seed'):.1e}",
    )


def _largest_gap(results: Results, index: str) -> float:
    """Between the values of the two forms; nan and inf are equal to themselves only."""
    names = ("norm_placement", "peak_lr", "warmup_steps", index)
    original = results.select(schedule=ORIGINAL_FORM).by(*names)
    ours = results.select(schedule=PEAK_FORM).by(*names)
    gaps = [0.0]
    for key, group in original.items():
        [a], [b] = group.values(), ours[key].values()
        same = a == b or (math.isnan(a) and math.isnan(b))
        gap = 0.0 if same else abs(a - b)
        gaps.append(math.inf if math.isnan(gap) else gap)
    return max(gaps)


def _cosine_beats_constant(final: Results, placement: str) -> Claim:
    constant = at_best(final, schedule=CONSTANT, norm_placement=placement)
    cosine = at_best(final, schedule="warmup_cosine", norm_placement=placement)
    gap = difference(cosine, constant)
    return Claim(
        f"{placement.capitalize()}-norm: the cosine ends lower than a constant rate, each at its "
        "best",
        judge(gap, below=0.0),
        f"Nats/token, {_setting(cosine)} against {_setting(constant)}: {evidence(gap, below=0.0)}",
    )


def _setting(results: Results) -> str:
    """ "0.02, warmup 50" """
    warmup_steps = results.rows[0].fields["warmup_steps"]
    return f"{_rate(results)}, warmup {warmup_steps}" if warmup_steps else _rate(results)


def plot(results: Results) -> list[Figure]:
    figures = [_loss_figure(results), *_warmup_figure(results), *_heat_figures(results)]
    return [*figures, _schedule_figure(results)]


def _with_warmup(results: Results) -> list[str]:
    """Schedules run at every length of warmup."""
    return [s for s in results.config["schedules"] if s not in (CONSTANT, ORIGINAL_FORM)]


def _unigram(results: Results) -> list[tuple[str, float]]:
    return [("unigram", results.select("unigram_loss").values()[0])]


def _loss_figure(results: Results) -> Figure:
    losses, final, panels, words = results.select("validation_loss"), final_losses(results), [], []
    schedules = [s for s in results.config["schedules"] if s != ORIGINAL_FORM]
    for placement in results.config["norm_placements"]:
        series, settings = [], []
        for schedule in schedules or [ORIGINAL_FORM]:
            best = at_best(final, schedule=schedule, norm_placement=placement)
            curve = losses.select(norm_placement=placement, schedule=schedule, **_point(best))
            series.append(band_by(NAMES[schedule], curve, "step"))
            settings.append(f"{NAMES[schedule]} {_setting(best)}")
        panels.append((f"{placement}-norm", series))
        words.append(f"{placement.capitalize()}-norm: {'; '.join(settings)}.")
    if ORIGINAL_FORM in results.config["schedules"]:
        words.append(
            "The original form of the inverse square root, run at one warmup only, is left out."
        )
    return grid(
        panels,
        name="loss_by_schedule",
        title="Validation loss, each schedule at its best peak rate and warmup",
        caption=f"Means with 95% t intervals over {results.config['num_seeds']} seeds. "
        + " ".join(words),
        x_label="updates",
        y_label="nats a token",
        references=_unigram(results),
    )


def _point(results: Results) -> dict[str, Any]:
    fields = results.rows[0].fields
    return {name: fields[name] for name in ("peak_lr", "warmup_steps")}


def _warmup_figure(results: Results) -> list[Figure]:
    """Losses by warmup at one rate: the best of the last norm placement with the longest."""
    cfg = results.config
    schedules = [s for s in FREE_OF_WARMUP if s in cfg["schedules"]]
    if not schedules:
        return []
    schedule, lengths = schedules[0], cfg["warmup_steps"]
    last = cfg["norm_placements"][-1]
    best = at_best(
        final_losses(results),
        schedule=schedule,
        norm_placement=last,
        warmup_steps=lengths[-1],
    )
    peak_lr = best.rows[0].fields["peak_lr"]
    losses = results.select("validation_loss", schedule=schedule, peak_lr=peak_lr)
    panels = [
        (
            f"{placement}-norm",
            [
                band_by(
                    f"warmup {steps}",
                    losses.select(norm_placement=placement, warmup_steps=steps),
                    "step",
                )
                for steps in lengths
            ],
        )
        for placement in cfg["norm_placements"]
    ]
    return [
        grid(
            panels,
            name="loss_by_warmup",
            title=f"Validation loss by warmup: {NAMES[schedule]}, peak rate {peak_lr:g}",
            caption=f"The peak rate is the best of {last}-norm with the longest warmup. Means "
            f"with 95% t intervals over {cfg['num_seeds']} seeds.",
            x_label="updates",
            y_label="nats a token",
            references=_unigram(results),
        )
    ]


def _heat_figures(results: Results) -> list[Figure]:
    cfg, schedules = results.config, _with_warmup(results)
    if not schedules:
        return []
    final, diverged = final_losses(results), results.select("diverged")
    seeds, unigram = cfg["num_seeds"], _unigram(results)[0][1]
    axes = {
        "row_labels": cfg["warmup_steps"],
        "column_labels": [f"{lr:g}" for lr in cfg["peak_lrs"]],
        "x_label": "peak learning rate",
        "y_label": "warmup in updates",
    }
    figures = [
        heat_maps(
            [
                (NAMES[s], _means(final.select(schedule=s, norm_placement=placement), cfg))
                for s in schedules
            ],
            name=f"final_loss_{placement}_norm",
            title=f"Final validation loss, {placement}-norm",
            caption=f"Mean over {seeds} seeds; the unigram distribution has {unigram:.2f}.",
            value_label="nats a token",
            missing="not finite",
            **axes,
        )
        for placement in cfg["norm_placements"]
    ]
    free = [s for s in FREE_OF_WARMUP if s in schedules]
    if not free:
        return figures
    warm = diverged.select(schedule=lambda s: s in free)
    return [
        *figures,
        heat_maps(
            [
                (f"{placement}-norm", _means(warm.select(norm_placement=placement), cfg))
                for placement in cfg["norm_placements"]
            ],
            name="share_diverged",
            title="Share of runs that diverged",
            caption=f"Of {len(free) * seeds} runs in each field: "
            f"{' and '.join(NAMES[s] for s in free)}, {seeds} seeds each. Diverged: the final loss "
            f"is not finite, or not below the {unigram:.2f} nats a token of the unigram "
            f"distribution by more than {LEARNED:g}.",
            value_label="share diverged",
            limits=(0.0, 1.0),
            **axes,
        ),
    ]


def _means(results: Results, cfg: dict[str, Any]) -> np.ndarray:
    """[warmups, rates], nan where a mean is not finite."""
    groups = results.by("warmup_steps", "peak_lr")
    means = np.array(
        [[np.mean(groups[w, lr].values()) for lr in cfg["peak_lrs"]] for w in cfg["warmup_steps"]]
    )
    return np.where(np.isfinite(means), means, np.nan)


def _schedule_figure(results: Results) -> Figure:
    cfg = results.config
    rates = results.select("learning_rate", norm_placement=cfg["norm_placements"][0])
    panels = []
    for schedule in cfg["schedules"]:
        series = [
            Band(
                f"warmup {steps}" if steps else "none",
                [row.step for row in group.rows],
                group.values(),
            )
            for (steps,), group in rates.select(schedule=schedule).by("warmup_steps").items()
        ]
        panels.append((NAMES[schedule], series))
    return grid(
        panels,
        name="schedules",
        title="The schedules",
        caption=f"The rate of each update, exactly as the runs have it, at the highest peak, "
        f"{max(cfg['peak_lrs']):g}; at another peak it is in proportion.",
        x_label="updates done",
        y_label="learning rate",
    )


def tables(results: Results) -> list[Table]:
    """The best peak rate of every schedule, norm placement and warmup."""
    final, diverged, rows = final_losses(results), results.select("diverged"), []
    for (placement, schedule, steps), group in final.by(
        "norm_placement", "schedule", "warmup_steps"
    ).items():
        best = at_best(group)
        every = diverged.select(norm_placement=placement, schedule=schedule, warmup_steps=steps)
        loss = brief(mean_interval(list(by_seed(best).values())))
        share = f"{sum(every.values()):.0f} of {len(every.rows)}"
        rows.append([f"{placement}-norm", NAMES[schedule], steps, _rate(best), loss, share])
    title = (
        "The best peak rate of each setting: final loss in nats/token, with its 95% t interval "
        f"over {results.config['num_seeds']} seeds"
    )
    header = ["norm", "schedule", "warmup", "best rate", "final loss", "runs that diverged"]
    return [Table(title, header, rows)]
