"""The classifier study: the rows of a tiny one, its curves by hand, verdicts on made-up numbers."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn import metrics

from experiments.classifier import Config, cells, claims, plot, run, tables
from experiments.classifier.readings import (
    ALL,
    BAG,
    DISTILLED,
    LABELS,
    NEGATED,
    PLAIN,
    PRETRAINED,
    SCRATCH,
    models,
)
from jaxlm.analysis.claims import NOT_SUPPORTED, SUPPORTED
from jaxlm.core.config import to_dict
from jaxlm.core.results import Results, Row
from jaxlm.data.sentiment import CLASSES

TINY = Config(
    counts=(8, 4, 20),
    num_test=1,
    num_unlabelled=1,
    num_seeds=2,
    num_layers=2,
    d_model=8,
    num_heads=2,
    batch_size=4,
    pretraining_steps=2,
    num_steps=2,
    bag_words=20,
    bag_ngrams=40,
    bag_d_model=4,
    num_shown=2,
)
WEIGHTED = [(LABELS, True), (DISTILLED, True)]
ALL_MODELS = [(name, w) for name in (BAG, SCRATCH, PRETRAINED) for w in (False, True)] + WEIGHTED


@pytest.fixture(scope="module")
def measured():
    """The results, and {(model, weighted, seed): the logits of the test that were scored}."""
    plain = json.loads(json.dumps(cells(TINY)))  # as a cell that was kept
    score_rows, logits = run.score_rows, {}

    def kept(cfg, name, weighted, seed, values, test):
        logits[name, weighted, seed] = np.asarray(values)
        return score_rows(cfg, name, weighted, seed, values, test)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "score_rows", kept)
        rows = [row for cell in plain for row in run.run_cell(cell)]
    return Results(study="classifier", config=to_dict(TINY), rows=tuple(rows)), logits


@pytest.fixture(scope="module")
def results(measured):
    return measured[0]


def test_every_model_is_measured_on_every_sentence(results):
    assert models(results) == ALL_MODELS
    confusion = results.select("confusion")
    for group in confusion.by("model", "weighted", "seed").values():
        counts = np.array(group.values()).reshape(3, 3)
        assert counts.sum(1).tolist() == [8, 4, 20]
    [shares] = [
        [
            results.select("accuracy", model=BAG, weighted=True, sentences=s).values()[0]
            for s in kind
        ]
        for kind in [(ALL, NEGATED, PLAIN)]
    ]
    negated = run.test_sentences(TINY).negated.mean()
    assert shares[0] == pytest.approx(negated * shares[1] + (1 - negated) * shares[2])


ONE_APART = {  # lanes that differ by one thing
    "weights of the bag": ((BAG, False), (BAG, True)),
    "weights": ((SCRATCH, False), (SCRATCH, True)),
    "weights after pretraining": ((PRETRAINED, False), (PRETRAINED, True)),
    "start": ((SCRATCH, False), (PRETRAINED, False)),
    "start of the weighted": ((SCRATCH, True), (PRETRAINED, True)),
    "teacher": ((LABELS, True), (DISTILLED, True)),
}


@pytest.mark.parametrize("what", ONE_APART)
def test_what_two_lanes_of_a_seed_differ_by_shows_in_their_logits(measured, what):
    _, logits = measured
    a, b = ONE_APART[what]
    for seed in (0, 1):
        assert np.abs(logits[*a, seed] - logits[*b, seed]).max() > 1e-6


def test_seeds_differ_and_agreement_is_a_share(measured):
    results, logits = measured
    for key in ALL_MODELS:
        assert np.abs(logits[*key, 0] - logits[*key, 1]).max() > 1e-6
    assert all(0 <= value <= 1 for value in results.select("agreement").values())


def test_sizes_are_published_and_the_student_has_half_of_the_layers(results):
    published = {
        row.fields.get("published"): row.value for row in results.select("parameters").rows
    }
    assert published["BERT-base"] == 109_482_240 and published["DistilBERT"] == 66_362_880
    [teacher], [student] = (
        results.select("parameters", model=name).values() for name in (PRETRAINED, DISTILLED)
    )
    layer = 4 * (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + 4 * 8
    assert teacher - student == layer


def test_attention_is_of_sentences_that_were_misclassified(results):
    rows = results.select("attention")
    for group in rows.by("example", "layer", "head").values():
        fields = group.rows[0].fields
        assert fields["label"] != fields["predicted"] and fields["word"] == "[CLS]"
        assert sum(group.values()) == pytest.approx(1, abs=1e-5)
    assert len(rows.by("example")) == 2


def test_report_parts_are_made_and_latency_is_a_table(results):
    assert len(claims(results)) == 10
    figures = plot(results)
    assert all(figure.svg().startswith("<svg") for figure in figures)
    assert len({figure.name for figure in figures}) == 8
    for table in tables(results):
        assert table.rows and all(len(row) == len(table.header) for row in table.rows)
    records = run.measure(TINY)
    assert len(records) == 6 and all(r["median of 30, milliseconds"] > 0 for r in records)


def test_curves_are_read_off_scikit_learns():
    rng = np.random.default_rng(0)
    labels = rng.random(200) < 0.2
    scores = np.round(labels + rng.normal(size=200), 1)
    found = run.curves(labels, scores)
    false, true, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    precision, recall, _ = metrics.precision_recall_curve(labels, scores)
    for at, high, exact in zip(run.AT, found["roc"], found["precision_recall"], strict=True):
        assert high == true[false <= at].max()
        assert exact == precision[:-1][recall[:-1] >= at].max()


# ---- verdicts


def made_up(**changes):
    """Each claim hangs on one number."""
    given = {
        "recall": 0.1,
        "precision": -0.1,
        "ranking": 0.0,
        "pretrained": 0.1,
        "distilled": 0.02,
        "kept": 0.99,
        "negated": 0.2,
    } | changes
    cfg, rows = dataclasses.replace(TINY, num_seeds=4), []
    for seed in range(4):
        noise = 0.001 * np.sin(seed)
        for model, weighted in ALL_MODELS:

            def add(metric, value, seed=seed, model=model, weighted=weighted, **more):
                fields = {"model": model, "weighted": weighted, **more}
                rows.append(Row(fields, seed, 2, metric, value, "share"))

            for label in CLASSES:
                for metric, gain in (
                    ("recall", given["recall"]),
                    ("precision", given["precision"]),
                    ("average_precision", given["ranking"]),
                ):
                    add(metric, 0.5 + weighted * (gain + noise), label=label)
            f1 = {SCRATCH: 0.8 - given["pretrained"], DISTILLED: 0.8 * given["kept"]}
            f1[LABELS] = f1[DISTILLED] - given["distilled"]
            add("macro_f1", f1.get(model, 0.8) + noise * len(model))
            accuracy = 0.9 - given["negated"] * (model == BAG)
            add("accuracy", accuracy + noise * len(model), sentences=NEGATED)
    return Results(study="classifier", config=to_dict(cfg), rows=tuple(rows))


@pytest.mark.parametrize(
    ("places", "change"),
    [
        ((0, 3), {"recall": -0.1}),
        ((1, 4), {"precision": 0.1}),
        ((2, 5), {"ranking": 0.1}),
        ((6,), {"pretrained": -0.1}),
        ((7,), {"distilled": -0.1}),
        ((8,), {"kept": 0.9}),
        ((9,), {"negated": 0.05}),
    ],
)
def test_each_claim_follows_its_number(places, change):
    assert [claim.verdict for claim in claims(made_up())] == [SUPPORTED] * 10
    found = claims(made_up(**change))
    expected = [NOT_SUPPORTED if n in places else SUPPORTED for n in range(10)]
    assert [claim.verdict for claim in found] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": (1, 2)}, "expected three"),
        ({"counts": (1, 0, 2)}, "must be at least 1"),
        ({"num_layers": 3}, "must be even"),
        ({"soft_share": 1.5}, "soft_share=1.5"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"d_model": 10, "num_heads": 4}, "multiple of num_heads"),
        ({"num_seeds": 0}, "num_seeds=0"),
    ],
)
def test_configs_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
