"""Trains both models on digits, all numbers of images, rates and seeds of one side by side."""

import itertools
from typing import Any

import numpy as np

from experiments.classifying import Lane, train_classifier
from experiments.digits import (
    CONV,
    IN_PLACE,
    NUM_IMAGES,
    NUM_TRAINED_ON,
    SHUFFLED,
    Config,
)
from jaxlm.core.params import count_params
from jaxlm.core.results import Row
from jaxlm.data.digits import read_digits
from jaxlm.data.examples import Examples
from jaxlm.models import image_classifiers
from jaxlm.models.api import Classifier
from jaxlm.models.image_classifiers import ConvConfig, VisionTransformerConfig


def resolve(cfg: Config) -> Config:
    """The same; where the digits are missing it says so before the start."""
    read_digits()
    return cfg


def build(cell: dict[str, Any]) -> Classifier:
    if cell["model"] == CONV:
        return image_classifiers.build_conv(ConvConfig(widths=tuple(cell["widths"])))
    sizes = {name: cell[name] for name in ("patch", "num_layers", "d_model", "num_heads")}
    return image_classifiers.build_vision_transformer(VisionTransformerConfig(**sizes))


def pixel_orders() -> dict[str, np.ndarray]:
    """i64[64], which pixel stands at each place."""
    return {IN_PLACE: np.arange(64), SHUFFLED: np.random.default_rng(0).permutation(64)}


def parts(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a seed, the images to train on, in their order, and those of the test."""
    order = np.random.default_rng((seed, 1)).permutation(NUM_IMAGES)
    return order[:NUM_TRAINED_ON], order[NUM_TRAINED_ON:]


def run_cell(cell: dict[str, Any]) -> list[Row]:
    images, labels = read_digits()
    shown = {
        name: images.reshape(-1, 64)[:, order].reshape(images.shape)
        for name, order in pixel_orders().items()
    }
    model = build(cell)
    runs = list(
        itertools.product(shown, cell["num_images"], cell["peak_lrs"], range(cell["num_seeds"]))
    )
    lanes = []
    for pixels, num_images, peak_lr, seed in runs:
        chosen = parts(seed)[0][:num_images]
        lanes.append(Lane(seed, Examples(shown[pixels][chosen], labels[chosen]), peak_lr, {}))
    _, logits = train_classifier(
        model,
        lanes,
        np.concatenate(list(shown.values())),  # all images; what counts is chosen below
        num_steps=cell["num_steps"],
        batch_size=cell["batch_size"],
    )
    said = dict(zip(shown, np.split(logits.argmax(-1), len(shown), axis=1), strict=True))
    size = float(count_params(model.specs))
    rows = [Row({"model": cell["model"]}, None, None, "parameters", size, "parameters")]
    for place, (pixels, num_images, peak_lr, seed) in enumerate(runs):
        test = parts(seed)[1]
        error = float(np.mean(said[pixels][place, test] != labels[test]))
        fields = {"model": cell["model"], "pixels": pixels, "num_images": num_images}
        fields["peak_lr"] = peak_lr
        rows.append(Row(fields, seed, cell["num_steps"], "error", error, "share"))
    return rows
