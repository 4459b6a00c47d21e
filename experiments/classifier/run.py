"""Pretrains, trains and distils the classifiers; what they say of sentences not seen."""

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.classifier import Config
from experiments.classifier.readings import (
    ALL,
    BAG,
    DISTILLED,
    LABELS,
    NEGATED,
    PLAIN,
    PRETRAINED,
    SCRATCH,
)
from experiments.classifying import Lane, stack, train_classifier, train_lanes
from jaxlm.core.arrays import Params
from jaxlm.core.config import from_dict
from jaxlm.core.params import count_params, init_params, path_key
from jaxlm.core.results import Row
from jaxlm.data import sentiment
from jaxlm.data.batches import Batch
from jaxlm.data.examples import Examples
from jaxlm.data.sentiment import CLASSES, VOCABULARY, Sentences, make_sentences
from jaxlm.evals.classification import class_scores, confusion_matrix, macro_average
from jaxlm.evals.curves import average_precision, precision_recall_curve, roc_auc, roc_curve
from jaxlm.models import bag_of_ngrams, encoder
from jaxlm.models.api import Classifier
from jaxlm.models.bag_of_ngrams import Bag, BagConfig
from jaxlm.models.encoder import BERT_BASE, BERT_TINY, DISTILBERT, EncoderConfig, TextInput
from jaxlm.objectives import masked_tokens
from jaxlm.objectives.classification import balanced_weights

TEST, TRAIN, UNLABELLED = range(3)  # kinds of sentences, each with draws of its own
AT = np.linspace(0, 1, 41)  # where curves are read


def run_cell(cell: dict[str, Any]) -> list[Row]:
    match cell["part"]:
        case "encoders":
            return encoder_rows(from_dict(Config, cell["config"]))
        case "bag":
            return bag_rows(from_dict(Config, cell["config"]))
    return size_rows()


# The sentences.


def test_sentences(cfg: Config) -> Sentences:
    return make_sentences((0, TEST), [cfg.num_test * n for n in cfg.counts])


def train_sentences(cfg: Config, seed: int) -> Sentences:
    return make_sentences((seed, TRAIN), cfg.counts)


def read(texts: Sequence[str]) -> TextInput:
    return TextInput(*sentiment.encode(texts))


# Training.


def encoder_config(cfg: Config, num_layers: int) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=len(VOCABULARY),
        context_length=sentiment.LONGEST,
        num_layers=num_layers,
        d_model=cfg.d_model,
        num_heads=cfg.num_heads,
        num_types=0,
        dropout=cfg.dropout,
    )


def take(params: Params, lanes: Sequence[int]) -> Params:
    """Of parameters of leading P those of some lanes."""
    return jax.tree.map(lambda x: x[np.asarray(lanes)], params)


def fit(model: Classifier, lanes: Sequence[Lane], cfg: Config, test: Any, **more: Any):
    """`train_classifier` with the weights of the classes."""
    return train_classifier(
        model,
        lanes,
        test,
        class_weights=balanced_weights(np.array(cfg.counts)),
        num_steps=cfg.num_steps,
        batch_size=cfg.batch_size,
        **more,
    )


def pretrain(cfg: Config, model: EncoderConfig) -> Params:
    """The encoder's weights of each seed, after predicting masked words."""
    lanes = []
    for seed in range(cfg.num_seeds):
        drawn = make_sentences((seed, UNLABELLED), [cfg.num_unlabelled * n for n in cfg.counts])
        text = read(drawn.texts)
        ones = np.ones(text.tokens.shape, np.float32)
        batch = Batch(text.tokens, None, ones, text.segment_ids)
        lanes.append(Lane(seed, batch, cfg.pretraining_lr, {"dropout": cfg.dropout}))
    masked_lm = encoder.build_masked_lm(model)
    loss_fn = masked_tokens.make_loss_fn(
        masked_lm,
        mask_id=sentiment.MASK,
        num_special=len(sentiment.SPECIAL),
        vocab_size=model.vocab_size,
    )
    trained = train_lanes(
        masked_lm.specs,
        loss_fn,
        lanes,
        num_steps=cfg.pretraining_steps,
        batch_size=cfg.batch_size,
    )
    params = jax.device_get(trained.state.params)
    return {name: params[name] for name in encoder.param_specs(model)}


def encoder_rows(cfg: Config) -> list[Row]:
    """Teachers, then their students; the seeds side by side."""
    seeds, whole = range(cfg.num_seeds), encoder_config(cfg, cfg.num_layers)
    model = encoder.build_classifier(whole, len(CLASSES))
    sentences, test = [train_sentences(cfg, seed) for seed in seeds], test_sentences(cfg)
    labelled = [Examples(read(drawn.texts), drawn.labels) for drawn in sentences]
    fresh = jax.jit(
        jax.vmap(lambda seed: init_params(path_key(jax.random.key(seed), "params"), model.specs))
    )
    starts = {SCRATCH: jax.device_get(fresh(np.arange(cfg.num_seeds)))}
    starts[PRETRAINED] = {**starts[SCRATCH], **pretrain(cfg, whole)}

    runs = list(itertools.product((SCRATCH, PRETRAINED), (False, True), seeds))
    lanes = [
        Lane(
            seed,
            labelled[seed],
            cfg.peak_lr,
            {"dropout": cfg.dropout, "class_balance": float(weighted)},
        )
        for _, weighted, seed in runs
    ]
    start = jax.tree.map(
        lambda *x: np.concatenate(x),
        *(starts[name] for name in (SCRATCH, SCRATCH, PRETRAINED, PRETRAINED)),
    )
    params, logits = fit(model, lanes, cfg, read(test.texts), start=start)
    rows = [_parameters(name, model) for name in starts]
    for (name, weighted, seed), values in zip(runs, logits, strict=True):
        rows += score_rows(cfg, name, weighted, seed, values, test)

    teachers = [runs.index((PRETRAINED, True, seed)) for seed in seeds]
    teacher = take(params, teachers)
    rows += attention_rows(take(teacher, 0), whole, test, logits[teachers[0]], cfg.num_shown)
    forward = jax.jit(jax.vmap(model.forward))
    taught = np.asarray(forward(teacher, stack([each.inputs for each in labelled])))
    return rows + student_rows(cfg, teacher, labelled, taught, test, logits[teachers])


def student_rows(
    cfg: Config,
    teacher: Params,
    labelled: Sequence[Examples],
    taught: np.ndarray,
    test: Sentences,
    said: np.ndarray,
) -> list[Row]:
    """Models of half the depth.

    Args:
      teacher: parameters of leading P, one for each seed. labelled: of each seed.
      taught: f32[P, n, C], the teachers' logits of those; said: of the test.
    """
    half = encoder_config(cfg, cfg.num_layers // 2)
    model = encoder.build_classifier(half, len(CLASSES))
    runs = list(itertools.product((LABELS, DISTILLED), range(cfg.num_seeds)))
    shares = {LABELS: 0.0, DISTILLED: cfg.soft_share}
    lanes = [
        Lane(
            seed,
            labelled[seed].replace(teacher_logits=taught[seed]),
            cfg.peak_lr,
            {
                "dropout": cfg.dropout,
                "temperature": cfg.temperature,
                "soft_share": shares[name],
            },
        )
        for name, seed in runs
    ]
    start = jax.jit(jax.vmap(encoder.every_second_layer))(teacher)
    start = jax.tree.map(lambda x: np.concatenate([x, x]), jax.device_get(start))
    _, logits = fit(model, lanes, cfg, read(test.texts), start=start)
    rows = [_parameters(name, model) for name in shares]
    for (name, seed), values in zip(runs, logits, strict=True):
        rows += score_rows(cfg, name, True, seed, values, test)
        same = float(np.mean(values.argmax(-1) == said[seed].argmax(-1)))
        fields = {"model": name, "weighted": True}
        rows.append(Row(fields, seed, cfg.num_steps, "agreement", same, "share"))
    return rows


def bag_rows(cfg: Config) -> list[Row]:
    bag = bag_config(cfg)
    model, test = bag_of_ngrams.build(bag), test_sentences(cfg)
    drawn = [train_sentences(cfg, seed) for seed in range(cfg.num_seeds)]
    read_all = bag_of_ngrams.bag_of([t for each in (test, *drawn) for t in each.texts], bag)
    cuts = np.cumsum([len(each.texts) for each in (test, *drawn)])[:-1]
    bags = [Bag(*x) for x in zip(*(np.split(x, cuts) for x in read_all), strict=True)]
    runs = list(itertools.product((False, True), range(cfg.num_seeds)))
    lanes = [
        Lane(
            seed,
            Examples(bags[1 + seed], drawn[seed].labels),
            cfg.bag_lr,
            {"class_balance": float(weighted)},
        )
        for weighted, seed in runs
    ]
    _, logits = fit(model, lanes, cfg, bags[0])
    rows = [_parameters(BAG, model)]
    for (weighted, seed), values in zip(runs, logits, strict=True):
        rows += score_rows(cfg, BAG, weighted, seed, values, test)
    return rows


def bag_config(cfg: Config) -> BagConfig:
    return BagConfig(
        num_classes=len(CLASSES),
        num_words=cfg.bag_words,
        num_ngrams=cfg.bag_ngrams,
        d_model=cfg.bag_d_model,
    )


# What is read off.


def _parameters(name: str, model: Classifier) -> Row:
    fields = {"model": name}
    return Row(fields, None, None, "parameters", float(count_params(model.specs)), "parameters")


def size_rows() -> list[Row]:
    """Of published encoders, with nothing allocated."""
    published = {"BERT-base": BERT_BASE, "DistilBERT": DISTILBERT, "BERT-tiny": BERT_TINY}
    rows = []
    for name, cfg in published.items():
        pooler = cfg is not DISTILBERT
        specs = encoder.param_specs(cfg) | (encoder.pooler_specs(cfg) if pooler else {})
        fields = {"published": name, "pooler": "dense and tanh" if pooler else "none"}
        count = float(count_params(specs))
        rows.append(Row(fields, None, None, "parameters", count, "parameters"))
    return rows


def score_rows(
    cfg: Config, name: str, weighted: bool, seed: int, logits: np.ndarray, test: Sentences
) -> list[Row]:
    """What one run says of the test, f32[n, C]."""
    fields = {"model": name, "weighted": weighted}
    rows = []

    def add(metric, value, unit="share", **more):
        rows.append(Row({**fields, **more}, seed, cfg.num_steps, metric, float(value), unit))

    said = logits.argmax(-1)
    confusion = confusion_matrix(test.labels, said, len(CLASSES))
    right = said == test.labels
    for which, chosen in (
        (ALL, right),
        (NEGATED, right[test.negated]),
        (PLAIN, right[~test.negated]),
    ):
        add("accuracy", np.mean(chosen), sentences=which)
    add("macro_f1", macro_average(confusion).f1)
    scores = class_scores(confusion)
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    for i, label in enumerate(CLASSES):
        for metric in ("precision", "recall", "f1"):
            add(metric, getattr(scores, metric)[i], label=label)
        add("auc", roc_auc(test.labels == i, log_p[:, i]), label=label)
        add("average_precision", average_precision(test.labels == i, log_p[:, i]), label=label)
        for j, other in enumerate(CLASSES):
            add("confusion", confusion[i, j], "sentences", label=label, predicted=other)
    rare = int(np.argmin(cfg.counts))
    for kind, values in curves(test.labels == rare, log_p[:, rare]).items():
        for at, value in zip(AT, values, strict=True):
            add(kind, value, at=float(at))
    return rows


def curves(labels: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """f64[41] each, at AT: the true positive rate at a false positive rate of at most that, and the
    best precision at a recall of at least that."""
    false, true, _ = roc_curve(labels, scores)
    precision, recall, _ = precision_recall_curve(labels, scores)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return {
        "roc": true[np.searchsorted(false, AT, side="right") - 1],
        "precision_recall": best[np.searchsorted(recall, AT, side="left")],
    }


def attention_rows(
    params: Params, model: EncoderConfig, test: Sentences, logits: np.ndarray, num_shown: int
) -> list[Row]:
    """What [CLS] looks at in the first sentences of each class that are taken for another."""
    wrong = np.flatnonzero(logits.argmax(-1) != test.labels)
    firsts = [wrong[test.labels[wrong] == i] for i in range(len(CLASSES))]
    chosen = [at for group in itertools.zip_longest(*firsts) for at in group if at is not None]
    chosen = sorted(chosen[:num_shown])
    if not chosen:
        return []
    text = read([test.texts[i] for i in chosen])
    maps = np.asarray(jax.jit(lambda p, t: encoder.trace(p, t, model).attention)(params, text))
    shares = np.asarray(jax.nn.softmax(logits))
    rows = []
    for example, i in enumerate(chosen):
        words = ["[CLS]", *test.texts[i].split(), "[SEP]"]
        fields = {
            "example": example,
            "label": CLASSES[test.labels[i]],
            "predicted": CLASSES[int(logits[i].argmax())],
            "probability": float(shares[i, test.labels[i]]),
        }
        for layer, head, (at, word) in itertools.product(
            range(maps.shape[0]), range(maps.shape[2]), enumerate(words)
        ):
            where = {**fields, "layer": layer, "head": head, "position": at, "word": word}
            value = float(maps[layer, example, head, 0, at])
            rows.append(Row(where, 0, None, "attention", value, "share"))
    return rows


def measure(cfg: Config) -> list[dict[str, Any]]:
    """How long each model takes to classify, compiled; its weights do not matter."""
    models = {
        "teacher": encoder.build_classifier(encoder_config(cfg, cfg.num_layers), len(CLASSES)),
        "student": encoder.build_classifier(encoder_config(cfg, cfg.num_layers // 2), len(CLASSES)),
        BAG: bag_of_ngrams.build(bag_config(cfg)),
    }
    texts, records = test_sentences(cfg).texts, []
    weights = {
        name: jax.jit(functools.partial(init_params, specs=model.specs))(jax.random.key(0))
        for name, model in models.items()
    }
    for (name, model), num in itertools.product(models.items(), (1, 64)):
        inputs = (
            bag_of_ngrams.bag_of(texts[:num], bag_config(cfg)) if name == BAG else read(texts[:num])
        )
        milliseconds = 1000 * _seconds(jax.jit(model.forward), weights[name], inputs)
        records.append(
            {
                "latency of": name,
                "parameters": count_params(model.specs),
                "sentences": num,
                "median of 30, milliseconds": round(milliseconds, 3),
            }
        )
    return records


def _seconds(run: Callable, *arguments: Any) -> float:
    jax.block_until_ready(run(*arguments))
    taken = []
    for _ in range(30):
        start = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
