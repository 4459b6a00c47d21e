"""Handwritten digits: a small convolutional network against a transformer over patches.

Both have about 7,000 weights and see the same images of 8 x 8 of `jaxlm.data.digits`, few or many
of them, and once more with the pixels in a fixed random order, in which neighbours say nothing.
Each is trained at several rates, of which it has its best.
"""

import dataclasses
from typing import Any, Literal

from experiments.checks import check_not_empty, check_positive, check_rising
from experiments.comparing import band, difference, lowest_mean, over_seeds
from jaxlm.analysis.claims import Claim, weigh
from jaxlm.analysis.statistics import brief, mean_interval, paired_interval
from jaxlm.core.config import to_dict
from jaxlm.core.results import Results
from jaxlm.reports.figures import Figure, grid
from jaxlm.reports.study_report import Table

QUESTION = "How many images does a transformer over patches need, to do as a convolution does?"

CONV, VISION = "convolution", "patches"
IN_PLACE, SHUFFLED = "in place", "shuffled"
MODELS, ORDERS = (CONV, VISION), (IN_PLACE, SHUFFLED)
NUM_IMAGES, NUM_TRAINED_ON = 1797, 1000  # the rest is tested on
CLOSE = 0.02  # of accuracy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """num_images: rising, to train on. peak_lrs: rising; of them each model and number of images
    has its best. widths: channels of the convolutions. The rest is of the transformer."""

    scale: Literal["small", "default", "full"] = "default"
    num_images: tuple[int, ...] = (50, 100, 200, 500, 1000)
    num_seeds: int = 8
    peak_lrs: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    num_steps: int = 400
    batch_size: int = 32
    widths: tuple[int, ...] = (18, 34)
    patch: int = 2
    num_layers: int = 2
    d_model: int = 16
    num_heads: int = 4

    def __post_init__(self):
        check_not_empty(self)
        check_positive(self)
        for name in ("num_images", "peak_lrs"):
            check_rising(self, name)
        if len(self.num_images) < 2 or self.num_images[-1] > NUM_TRAINED_ON:
            raise ValueError(
                f"num_images={self.num_images}: expected two or more, up to {NUM_TRAINED_ON}"
            )


SCALES: dict[str, dict[str, Any]] = {
    "small": {
        "num_images": (100, 300, 1000),
        "num_seeds": 5,
        "peak_lrs": (1e-2,),
        "num_steps": 300,
    },
    "full": {"num_seeds": 16, "peak_lrs": (1e-3, 3e-3, 1e-2, 3e-2), "num_steps": 2000},
}

NOTES = [
    f"Each seed has its own {NUM_TRAINED_ON} images to train on and its own rest to be tested on, "
    "its own first weights and its own order. With fewer images those are the first of the same, "
    "and the number of updates stays.",
    "The images of two seeds are in part the same, of training and of test. So the intervals say "
    "how much hangs on which of these 1,797 images are drawn, and too little of other digits "
    '(Nadeau and Bengio 2003, "Inference for the Generalization Error").',
    "One writer's digits are in both parts, so the numbers are higher than for writers not seen.",
    "The best rate is chosen by the mean of the very seeds that are compared, on the images of the "
    "test. At scale=small there is one rate for all.",
    "The claims were written before the first run.",
]


def cells(cfg: Config) -> list[dict[str, Any]]:
    """One for each model."""
    values = to_dict(cfg)
    shared = ("num_images", "num_seeds", "peak_lrs", "num_steps", "batch_size")
    own = {CONV: ("widths",), VISION: ("patch", "num_layers", "d_model", "num_heads")}
    return [
        {"model": model, **{name: values[name] for name in (*own[model], *shared)}}
        for model in MODELS
    ]


def errors(results: Results, model: str, num_images: int, order: str = IN_PLACE) -> Results:
    """Shares of wrong answers at the rate of lowest mean: a row for each seed."""
    rows = results.select("error", model=model, num_images=num_images, pixels=order)
    [rate] = lowest_mean(rows, "peak_lr")
    return rows.select(peak_lr=rate)


def claims(results: Results) -> list[Claim]:
    few, *_, many = results.config["num_images"]

    def gap(num_images: int, order: str = IN_PLACE) -> list[float]:
        """Of each seed, errors of the transformer less those of the convolution."""
        a, b = (errors(results, model, num_images, order).values() for model in (VISION, CONV))
        return [x - y for x, y in zip(a, b, strict=True)]

    def cost(model: str) -> list[float]:
        """Of each seed, errors that the shuffle adds."""
        a, b = (errors(results, model, many, order).values() for order in (SHUFFLED, IN_PLACE))
        return [x - y for x, y in zip(a, b, strict=True)]

    return [
        weigh(
            f"With {few} images the convolution errs less than the transformer, in share of the "
            "test",
            mean_interval(gap(few)),
            above=0.0,
        ),
        weigh(
            f"The difference between the two is smaller with {many} images",
            paired_interval(gap(few), gap(many), over="seeds"),
            above=0.0,
        ),
        weigh(
            f"With {many} images the transformer errs on less than {CLOSE:g} more of the test",
            mean_interval(gap(many)),
            below=CLOSE,
        ),
        weigh(
            f"Shuffling the pixels adds more errors to the convolution than to the transformer, "
            f"with {many} images",
            paired_interval(cost(CONV), cost(VISION), over="seeds"),
            above=0.0,
        ),
        weigh(
            f"With pixels shuffled and {many} images the transformer errs less than the "
            "convolution",
            difference(*(errors(results, model, many, SHUFFLED) for model in (CONV, VISION))),
            above=0.0,
        ),
    ]


def plot(results: Results) -> list[Figure]:
    numbers = results.config["num_images"]
    panels = [
        (
            f"pixels {order}",
            [
                band(model, ((n, errors(results, model, n, order)) for n in numbers))
                for model in MODELS
            ],
        )
        for order in ORDERS
    ]
    figure = grid(
        panels,
        name="errors",
        title="Errors by number of images",
        caption=f"Share of the {NUM_IMAGES - NUM_TRAINED_ON} images of the test: "
        f"{over_seeds(results)}. To the right the pixels of all images are in one random order.",
        x_label="images to train on",
        y_label="share of errors",
        log_x=True,
        log_y=True,
        x_ticks=numbers,
    )
    return [figure]


def tables(results: Results) -> list[Table]:
    rows = []
    for model in MODELS:
        [size] = results.select("parameters", model=model).values()
        for order in ORDERS:
            cells = [
                brief(mean_interval([1 - e for e in errors(results, model, n, order).values()]))
                for n in results.config["num_images"]
            ]
            rows.append([model, int(size), order, *cells])
    numbers = [f"{n} images" for n in results.config["num_images"]]
    title = f"Accuracy, over {results.config['num_seeds']} seeds"
    return [Table(title, ["model", "parameters", "pixels", *numbers], rows)]
