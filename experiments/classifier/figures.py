"""Figures of the study."""

import numpy as np

from experiments.classifier.readings import (
    ALL,
    BAG,
    NEGATED,
    PLAIN,
    PRETRAINED,
    SCRATCH,
    models,
    of,
    rarest,
)
from experiments.comparing import band, band_by, over_seeds
from jaxlm.core.results import Results
from jaxlm.data.sentiment import CLASSES
from jaxlm.reports.figures import Band, Figure, grid, heat_map, heat_maps, lines

WEIGHTS = {False: "without weights", True: "with weights"}


def plot(results: Results) -> list[Figure]:
    return [
        scores_by_class(results),
        curve(results, "roc"),
        curve(results, "precision_recall"),
        macro_f1(results),
        accuracy_by_negation(results),
        confusions(results),
        *attention_maps(results),
    ]


def scores_by_class(results: Results) -> Figure:
    counts = dict(zip(CLASSES, results.config["counts"], strict=True))
    order = sorted(CLASSES, key=counts.get)
    panels = []
    for metric in ("precision", "recall", "f1"):
        series = [
            band(
                label,
                (
                    (f"{name}, {counts[name]}", of(results, metric, PRETRAINED, w, label=name))
                    for name in order
                ),
            )
            for w, label in WEIGHTS.items()
        ]
        panels.append((metric if metric != "f1" else "F1", series))
    return grid(
        panels,
        name="scores_by_class",
        title="Each class, with and without weights",
        caption="The pretrained encoder; classes from the rarest on, with their numbers of "
        f"training sentences: {over_seeds(results)}.",
        x_label="class",
        y_label="share",
        y_limits=(0.0, 1.02),
    )


def curve(results: Results, kind: str) -> Figure:
    name = rarest(results)
    words = {
        "roc": ("ROC", "false positive rate", "true positive rate"),
        "precision_recall": ("Precision and recall", "recall", "precision"),
    }
    title, x_label, y_label = words[kind]
    series = []
    for model, weighted in models(results):
        if model not in (BAG, SCRATCH, PRETRAINED):
            continue
        rows = of(results, kind, model, weighted)
        look = {"dashed": not weighted, "colour": (BAG, SCRATCH, PRETRAINED).index(model)}
        series.append(band_by(f"{model}, {WEIGHTS[weighted]}", rows, "at", **look))
    more = "" if kind == "roc" else " Precision is the best at that recall or above."
    return lines(
        series,
        name=kind,
        title=f"{title} of the rarest class, {name}",
        caption=f"{name.capitalize()} against the others, at every threshold: "
        f"{over_seeds(results)}.{more}",
        x_label=x_label,
        y_label=y_label,
        y_limits=(0.0, 1.02),
    )


def _by_model(results: Results, metric: str, **fields) -> list[Band]:
    found = models(results)
    series = []
    for weighted, label in WEIGHTS.items():
        names = [model for model, w in found if w == weighted]
        groups = ((name, of(results, metric, name, weighted, **fields)) for name in names)
        series.append(band(label, groups))
    return series


def macro_f1(results: Results) -> Figure:
    return lines(
        _by_model(results, "macro_f1"),
        name="macro_f1",
        title="Macro F1 by model",
        caption=f"The plain mean of the three classes' F1: {over_seeds(results)}. The models of "
        "half the depth begin with every second layer of the pretrained one with weights.",
        x_label="model",
        y_label="macro F1",
        x_ticks=list(dict.fromkeys(model for model, _ in models(results))),
    )


def accuracy_by_negation(results: Results) -> Figure:
    names = {ALL: "all sentences", NEGATED: "verdict negated", PLAIN: "verdict plain"}
    panels = [
        (title, _by_model(results, "accuracy", sentences=which)) for which, title in names.items()
    ]
    return grid(
        panels,
        name="accuracy_by_negation",
        title="Accuracy where the verdict is negated, and where it is not",
        caption=f"Share of sentences of the test that are right: {over_seeds(results)}.",
        x_label="model",
        y_label="accuracy",
        x_ticks=list(dict.fromkeys(model for model, _ in models(results))),
    )


def confusions(results: Results) -> Figure:
    maps = []
    for weighted, label in WEIGHTS.items():
        rows = of(results, "confusion", PRETRAINED, weighted)
        values = np.array(
            [
                [np.mean(rows.select(label=a, predicted=b).values()) for b in CLASSES]
                for a in CLASSES
            ]
        )
        maps.append((label, values / values.sum(1, keepdims=True)))
    return heat_maps(
        maps,
        name="confusion",
        title="What each class is taken for",
        caption="The pretrained encoder: share of the sentences of a class that are said to be of "
        f"each, over {results.config['num_seeds']} seeds.",
        row_labels=CLASSES,
        column_labels=CLASSES,
        x_label="said",
        y_label="class",
        value_label="share of the class",
        limits=(0.0, 1.0),
    )


def attention_maps(results: Results) -> list[Figure]:
    """What each head's [CLS] looks at, in sentences that a real run got wrong."""
    figures = []
    for (example,), rows in results.select("attention").by("example").items():
        fields = rows.rows[0].fields
        words = [row.fields["word"] for row in rows.select(layer=0, head=0).rows]
        heads = list(rows.by("layer", "head"))
        values = [rows.select(layer=layer, head=head).values() for layer, head in heads]
        figures.append(
            heat_map(
                values,
                name=f"misclassified_{example + 1}",
                title=f"{fields['label']}, taken for {fields['predicted']}",
                caption="Attention of [CLS] to each word, by layer and head, of the pretrained "
                "encoder with weights, seed 0: one of the first sentences of the test that it "
                f"gets wrong. It gave {fields['label']} a probability of "
                f"{fields['probability']:.2f}.",
                row_labels=[f"layer {layer + 1}, head {head + 1}" for layer, head in heads],
                column_labels=words,
                x_label="word",
                y_label="",
                value_label="attention",
                limits=(0.0, 1.0),
                annotate=False,
            )
        )
    return figures
