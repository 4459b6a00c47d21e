"""Names as documents; MLPs started in several ways, a stack of tanh layers, and a counted model."""

import dataclasses
import functools
import hashlib
import importlib.resources
import itertools
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import initialisation
from experiments.initialisation import (
    D_EMBED,
    GAINS,
    NORMED,
    QUANTILES,
    STARTS,
    SYMMETRY,
    WINDOW,
)
from jaxlm.core.config import FLAG, ConfigError, apply_overrides
from jaxlm.core.results import Row
from jaxlm.data.batches import Batch, stack_batches
from jaxlm.models import kinds, mlp, ngram
from jaxlm.models.scoring import score_targets
from jaxlm.tokenizers import TokenizerConfig, train_tokenizer
from jaxlm.train.config import RunConfig
from jaxlm.train.population import stack_hypers, train_population
from jaxlm.train.program import hyper_values, make_program

END = "\n"  # before the first letter of a name and behind its last
TRACED = ("init_scale", "output_init")
LOOKED_AT = 400  # training names whose hidden values are looked at
EQUAL = 0.1  # of every weight in "all equal"
SGD_STEPS = 400  # at most, of the symmetric starts: what they cannot learn takes no longer
DRAWN = (12, 8)  # characters and hidden units of the gradients that are drawn


class Names(NamedTuple):
    """Names as ids, each beginning with END: those to train on, to develop on and to test.

    characters: of each id.
    """

    train: list[np.ndarray]
    dev: list[np.ndarray]
    test: list[np.ndarray]
    characters: str

    @property
    def vocab_size(self) -> int:
        return len(self.characters)


def read_names(path: str | None) -> str:
    """The text of the list; a ConfigError where there is none."""
    try:
        if path is None:
            return (
                importlib.resources.files(initialisation).joinpath("names.txt").read_text("utf-8")
            )
        return pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", error)
        raise ConfigError(f"{FLAG}path={path}: no list of names: {why}") from None


@functools.cache
def open_names(path: str | None) -> Names:
    """The list in an order of its own, cut 80/10/10."""
    names = read_names(path).split()
    tokenizer = train_tokenizer(TokenizerConfig(kind="characters"), [END.join([*names, END])])
    order = np.random.default_rng(0).permutation(len(names))
    ids = [np.asarray(tokenizer.encode(END + names[n]), np.int32) for n in order]
    first, second = int(0.8 * len(ids)), int(0.9 * len(ids))
    characters = tokenizer.decode(range(tokenizer.vocab_size))
    return Names(ids[:first], ids[first:second], ids[second:], characters)


def resolve(cfg: Any) -> Any:
    """Fills in the hash of the list, or checks it."""
    found = hashlib.sha256(read_names(cfg.path).encode()).hexdigest()
    if cfg.names_sha256 not in (None, found):
        raise ConfigError(
            f"{FLAG}names_sha256={cfg.names_sha256}: the list has changed ({found}); put it back, "
            f"or set {FLAG}names_sha256=none and a new --workdir"
        )
    return dataclasses.replace(cfg, names_sha256=found)


def pack(names: list[np.ndarray], length: int) -> Batch:
    """Whole names in rows [R, length], each a segment; what is left of a row is padding."""
    rows, room = [[]], length
    for name in names:
        if len(name) > room:
            rows.append([])
            room = length
        rows[-1].append(name)
        room -= len(name)
    shape = (len(rows), length)
    tokens, targets, segments = (np.zeros(shape, np.int32) for _ in range(3))
    weights = np.zeros(shape, np.float32)
    for r, row in enumerate(rows):
        place = 0
        for number, name in enumerate(row, 1):
            here = slice(place, place + len(name))
            tokens[r, here], targets[r, here] = name, np.append(name[1:], name[0])
            weights[r, here], segments[r, here] = 1, number
            place += len(name)
    return Batch(tokens, targets, weights, segments)


class Batches:
    """`batches(seed, step)`: the names in an order of each epoch's own, some rows at a time."""

    def __init__(self, cell: dict[str, Any]):
        self.names = open_names(cell["path"]).train
        self.rows, self.length = cell["rows"], cell["row_length"]
        total = sum(map(len, self.names))
        self.per_epoch = max(1, total // self.length // self.rows)
        self._epoch = functools.lru_cache(maxsize=16)(self._make)

    def _make(self, seed: int, epoch: int) -> Batch:
        order = np.random.default_rng([seed, epoch]).permutation(len(self.names))
        return pack([self.names[n] for n in order], self.length)

    def __call__(self, seed: int, step: int) -> Batch:
        epoch, place = divmod(step, self.per_epoch)
        here = slice(place * self.rows, (place + 1) * self.rows)
        return jax.tree.map(lambda x: x[here], self._epoch(seed, epoch))


def run_cell(cell: dict[str, Any]) -> list[Row]:
    parts = {"starts": starts, "batch norm": starts, "symmetry": symmetry, "depth": deep}
    return parts[cell["part"]](cell)


def scales(start: str, vocab_size: int, d_model: int) -> dict[str, float]:
    """The factors that make the initial weights of these sizes, see `jaxlm.core.params.xavier`."""
    kernel, head = STARTS["loud, quiet head" if start == NORMED else start]
    return {
        "model.init_scale": kernel / math.sqrt(2 / (WINDOW * D_EMBED + d_model)),
        "model.output_init": head / math.sqrt(2 / (d_model + vocab_size)),
    }


def run_config(cell: dict[str, Any], vocab_size: int, start: str, seed: int) -> RunConfig:
    return apply_overrides(
        RunConfig(),
        {
            "seed": seed,
            "model.kind": "mlp",
            "model.vocab_size": vocab_size,
            "model.context_length": cell["row_length"],
            "model.window": WINDOW,
            "model.d_embed": D_EMBED,
            "model.d_model": cell["d_model"],
            "model.batch_norm": start == NORMED,
            **scales(start, vocab_size, cell["d_model"]),
            "data.batch_size": cell["rows"],
            "data.mask_documents": True,
            "optim.name": "adamw",
            "optim.schedule": "warmup_cosine",
            "optim.warmup_steps": 0,
            "optim.peak_lr": cell["peak_lr"],
            "optim.weight_decay": cell["weight_decay"],
            "optim.clip_norm": None,
            "train.num_steps": cell["num_steps"],
            "train.steps_per_call": cell["eval_every"],
            "train.eval_every": cell["eval_every"],
            "train.save_every": cell["num_steps"],
        },
    )


def _whole(names: list[np.ndarray], length: int) -> Batch:
    """[1, R, length]: one batch of all names."""
    return stack_batches([pack(names, length)])


def starts(cell: dict[str, Any]) -> list[Row]:
    """Every start and seed a lane; with batch norm it is one start."""
    names, length = open_names(cell["path"]), cell["row_length"]
    wanted = tuple(STARTS) if cell["part"] == "starts" else (NORMED,)
    lanes = list(itertools.product(wanted, range(cell["num_seeds"])))
    configs = [run_config(cell, names.vocab_size, *lane) for lane in lanes]
    program = make_program(configs[0], np.ones(names.vocab_size, np.int32), TRACED)
    seeds = [seed for _, seed in lanes]
    hypers = stack_hypers(hyper_values(cfg, TRACED) for cfg in configs)
    batches = Batches(cell)

    def inputs(first, last):
        by_seed = {
            s: stack_batches([batches(s, n) for n in range(first, last)]) for s in set(seeds)
        }
        return stack_batches([by_seed[seed] for seed in seeds])

    parts = {"train": names.train[: len(names.dev)], "dev": names.dev, "test": names.test}
    shared = {f"{name}_loss": _whole(part, length) for name, part in parts.items()}

    def evaluate(state, shared):
        return {name: program.evaluate(state, text)["loss"] for name, text in shared.items()}

    trained = train_population(
        program.init,
        program.step,
        seeds=seeds,
        hypers=hypers,
        inputs=inputs,
        num_steps=cell["num_steps"],
        eval_every=cell["eval_every"],
        evaluate=evaluate,
        shared=shared,
    )
    rows = []
    for done, scores in trained.evaluations:
        for metric, mean in scores.items():
            rows += [
                Row({"start": start}, seed, done, metric, float(loss), "nats/token")
                for (start, seed), loss in zip(lanes, mean.compute(), strict=True)
            ]
    look = _look(configs[0].model, pack(names.train[:LOOKED_AT], length))
    look = jax.jit(jax.vmap(look))
    state = jax.jit(jax.vmap(program.init))(np.array(seeds, np.int32), hypers)
    for step, params in ((0, state.params), (cell["num_steps"], trained.state.params)):
        seen = jax.device_get(look(params))
        if step:
            del seen["first_loss"]
        by_unit = seen.pop("saturated_by_unit")
        for metric, values in seen.items():
            rows += [
                Row({"start": start}, seed, step, metric, float(value), "1")
                for (start, seed), value in zip(lanes, values, strict=True)
            ]
        shares_of = np.quantile(by_unit, QUANTILES, axis=1).T
        for (start, seed), shares in zip(lanes, shares_of, strict=True):
            rows += [
                Row({"start": start, "units": q}, seed, step, "saturated_unit", float(v), "share")
                for q, v in zip(QUANTILES, shares, strict=True)
            ]
    if cell["part"] == "batch norm":
        probe = jax.vmap(_fold_difference(configs[0].model, pack(names.dev[:200], length)))
        found = jax.device_get(probe(trained.state.params, trained.state.carry))
        rows += [
            Row({}, seed, cell["num_steps"], "fold_difference", float(value), "share")
            for seed, value in zip(seeds, found, strict=True)
        ]
        return rows
    return [*rows, *counted(cell, names)]


def counted(cell: dict[str, Any], names: Names) -> list[Row]:
    """What a 4-gram and a unigram distribution know, and the uniform one's size."""
    ids = np.concatenate(names.train)
    model, params = ngram.fit(ngram.NgramConfig(order=4), ids, names.vocab_size)
    batch = pack(names.test, cell["row_length"])
    nll = jax.jit(functools.partial(score_targets, model))(params, batch).nll
    loss = float(jnp.sum(nll * batch.weights) / jnp.sum(batch.weights))
    shares = np.bincount(ids, minlength=names.vocab_size) / len(ids)
    train = pack(names.train[: len(names.dev)], cell["row_length"])
    with np.errstate(divide="ignore"):
        unigram = -np.log(shares)[train.targets]
    mean = float(np.sum(unigram, where=train.weights > 0) / np.sum(train.weights))
    return [
        Row({}, None, None, "counted_loss", loss, "nats/token"),
        Row({}, None, None, "unigram_loss", mean, "nats/token"),
        Row({}, None, None, "vocabulary", float(names.vocab_size), "1"),
    ]


def _look(cfg: Any, batch: Batch):
    """(params) -> the loss, the shares of saturated values and of dead units, and of each unit the
    share of its values that are saturated, f32[D]."""
    model = kinds.build(cfg)
    counts = batch.weights > 0

    def look(params):
        carry, options = model.init_carry(1), {"segment_ids": batch.segment_ids}
        if model.train_hidden is None:
            h = model.hidden(params, batch.tokens, **options)
        else:
            h, _ = model.train_hidden(params, batch.tokens, carry, **options)
        logits = model.unembed(params, h)
        picked = jnp.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
        nll = jax.nn.logsumexp(logits, axis=-1) - picked
        beyond = jnp.abs(h) > 0.99
        number = jnp.sum(counts)
        return {
            "first_loss": jnp.sum(nll * counts) / number,
            "saturated": jnp.sum(beyond * counts[..., None]) / (number * h.shape[-1]),
            "dead": jnp.mean(jnp.all(beyond | ~counts[..., None], axis=(0, 1))),
            "saturated_by_unit": jnp.sum(beyond * counts[..., None], axis=(0, 1)) / number,
        }

    return look


def _fold_difference(cfg: Any, batch: Batch):
    """(params, carry) -> of the folded model's logits from those of the normalised one."""
    model = kinds.build(cfg)

    def probe(params, carry):
        x = mlp.embed_windows(params, batch.tokens, cfg, segment_ids=batch.segment_ids)
        y = jnp.tensordot(x, params["kernel"], 2)
        y = (y - carry["mean"]) / jnp.sqrt(carry["var"] + mlp.EPS)
        want = model.unembed(params, jnp.tanh(params["gain"] * y + params["shift"]))
        settled = model.settle(params, carry)
        got = model.forward(settled, batch.tokens, segment_ids=batch.segment_ids)
        return jnp.max(jnp.abs(got - want)) / jnp.max(jnp.abs(want))

    return jax.jit(probe)


def _symmetric(params: Any, start: str) -> Any:
    """Weights of which a start makes all units the same; the embeddings stay."""
    if start == "tuned":
        return params
    value = 0.0 if start == "all zero" else EQUAL
    names = ("kernel", "unembed")
    return {**params, **{name: np.full_like(params[name], value) for name in names}}


def symmetry(cell: dict[str, Any]) -> list[Row]:
    """Plain SGD from weights that are the same for every unit: the gradient first, then the end."""
    names, batches = open_names(cell["path"]), Batches(cell)
    base = run_config(cell, names.vocab_size, "tuned", 0)
    sgd = {"optim.name": "sgd", "optim.momentum": 0.0, "optim.schedule": "constant"}
    base = apply_overrides(base, sgd | {"optim.peak_lr": 0.5, "optim.weight_decay": 0.0})
    program = make_program(base, np.ones(names.vocab_size, np.int32))
    hypers = hyper_values(base)
    whole = _whole(names.train[: len(names.dev)], cell["row_length"])

    def spread(params):
        """The largest difference between two hidden units of what they read or are read with."""
        units = (params["kernel"], params["unembed"].T)
        return jnp.max(jnp.stack([jnp.max(jnp.ptp(w, axis=-1)) for w in units]))

    @jax.jit
    def train(state, text):
        first, _ = program.step(state, jax.tree.map(lambda x: x[0], text))
        rate = hypers["peak_lr"]
        gradient = jax.tree.map(lambda a, b: (a - b) / rate, state.params, first.params)
        state, _ = jax.lax.scan(program.step, state, text)
        loss = program.evaluate(state, whole)["loss"]
        return spread(gradient), spread(state.params), loss, gradient["unembed"].T

    num_steps = min(cell["num_steps"], SGD_STEPS)
    init, rows = jax.jit(program.init), []
    for start, seed in itertools.product(SYMMETRY, range(cell["num_seeds"])):
        state = init(seed, hypers)
        state = state.replace(params=_symmetric(state.params, start))
        text = stack_batches([batches(seed, n) for n in range(num_steps)])
        gradient, units, loss, head = jax.device_get(train(state, text))
        fields, final = {"start": start}, float(loss.compute())
        rows.append(Row(fields, seed, num_steps, "sgd_loss", final, "nats/token"))
        rows.append(Row(fields, seed, 0, "gradient_spread", float(gradient), "1"))
        rows.append(Row(fields, seed, num_steps, "unit_spread", float(units), "1"))
        if seed == 0:
            rows += [
                Row(
                    {**fields, "character": names.characters[at], "unit": unit},
                    seed,
                    0,
                    "head_gradient",
                    float(value),
                    "1",
                )
                for (at, unit), value in np.ndenumerate(head[: DRAWN[0], : DRAWN[1]])
            ]
    return rows


def deep(cell: dict[str, Any]) -> list[Row]:
    """A gain followed through a plain stack of tanh layers, forward and backward."""
    depth, width = cell["depth"], cell["d_deep"]

    @jax.jit
    def follow(seed, gain):
        keys = jax.random.split(jax.random.key(seed), depth + 2)
        weights = [gain * jax.random.normal(k, (width, width)) / math.sqrt(width) for k in keys[2:]]
        x = jax.random.normal(keys[0], (256, width))

        def run(probes):
            values, h = [], x
            for w, probe in zip(weights, probes, strict=True):
                h = jnp.tanh(h @ w) + probe
                values.append(h)
            direction = jax.random.normal(keys[1], h.shape)
            return jnp.sum(direction * h), values

        probes = [jnp.zeros_like(x)] * depth
        grads, values = jax.grad(run, has_aux=True)(probes)
        sizes = jnp.stack([jnp.std(v) for v in values])
        beyond = jnp.stack([jnp.mean(jnp.abs(v) > 0.99) for v in values])
        norms = jnp.stack([jnp.linalg.norm(g) for g in grads])
        return {"value_size": sizes, "deep_saturated": beyond, "deep_gradient": norms / norms[-1]}

    rows = []
    for (name, gain), seed in itertools.product(GAINS.items(), range(cell["num_seeds"])):
        for metric, values in jax.device_get(follow(seed, gain)).items():
            rows += [
                Row({"gain": name, "layer": n}, seed, 0, metric, float(value), "1")
                for n, value in enumerate(values, 1)
            ]
    return rows
