"""--job=prove_causal: that no prediction of a config's model sees its own target, by autodiff."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis import information_flow as flow
from jaxlm.core.arrays import Params
from jaxlm.core.config import FLAG
from jaxlm.io import compile_cache, host_memory
from jaxlm.jobs import Launch
from jaxlm.jobs.configs import launch_config
from jaxlm.jobs.room import check_memory, require_room
from jaxlm.jobs.setup import backends_of
from jaxlm.models import kinds, transformer
from jaxlm.models.backends import TOLERANCE
from jaxlm.models.kinds import AnyModelConfig
from jaxlm.reports.figures import heat_maps
from jaxlm.train.config import RunConfig

DRAWN = 48  # places along the sides of the figure


class Finding(NamedTuple):
    """What was measured of one model, and what it should be.

    measured, allowed, required: as `flow.first_offence` takes them. difference: of the logits from
    those of the forward pass, as a share of the largest; 0 where they are not compared.
    """

    what: str
    measured: np.ndarray
    allowed: np.ndarray
    required: np.ndarray
    difference: float = 0.0


def main(launch: Launch) -> int:
    compile_cache.enable()
    cfg, name = launch_config(launch)
    m = cfg.model
    require_room(
        m.context_length**2,
        host_memory.free_bytes(),
        f"{FLAG}model.context_length={m.context_length}: a mark for each pair of tokens",
        "lower it",
    )
    with_ids = dataclasses.replace(m, vocab_size=m.context_length + flow.NUM_FREE_IDS)
    check_memory(cfg, kinds.param_specs(with_ids))
    apart = "kept apart" if cfg.data.mask_documents else "read across"
    print(
        f"config    {name}: {m.summary}, window {getattr(m, 'window', None) or 'none'}, documents "
        f"{apart}, {m.dtype}"
    )
    queries, proved, found = flow.queries_of(m.context_length), True, []
    for finding in findings(cfg, queries):
        found.append(finding)
        problem = problem_of(finding, queries, TOLERANCE[m.dtype])
        proved &= problem is None
        print(f"{'proved' if problem is None else 'disproved':10}{finding.what}: ", end="")
        print(problem or summary(finding, queries))
    if launch.workdir:
        print(f"figure    {draw(found, queries, pathlib.Path(launch.workdir))}")
    else:
        print("figure    none; --workdir=FOLDER draws the matrices")
    return 0 if proved else 1


def findings(cfg: RunConfig, queries: np.ndarray) -> Iterator[Finding]:
    """All that is on trial: each way to compute the model, and of attention also one layer.

    Of one layer without its skip connection the dependence is that of its attention, so that a
    query that fails to read itself shows, too.
    """
    S = cfg.model.context_length
    model_cfg = dataclasses.replace(cfg.model, vocab_size=S + flow.NUM_FREE_IDS)
    cfg = dataclasses.replace(cfg, model=model_cfg)
    row = flow.training_row(
        S, seed=cfg.seed, order=cfg.data.order, mask_documents=cfg.data.mask_documents
    )
    whole = row._replace(document=np.zeros_like(row.document), segment_ids=None)
    backends, parts = backends_of(cfg), {"": model_cfg}
    name = None if backends.attention is None else backends.attention.name
    if isinstance(model_cfg, transformer.TransformerConfig):
        parts[", one layer alone"] = dataclasses.replace(model_cfg, num_layers=1, residual=0.0)
    for depth, part in parts.items():
        allowed = _readable(row, part)
        measured, plain = measure(part, row, queries, forward, **backends.options)
        trained = f"{name} attention, as in training" if name else "as in training"
        yield Finding(trained + depth, measured, *allowed)
        if name not in (None, "plain"):
            measured, plain = measure(part, row, queries, forward)
            yield Finding(f"plain attention{depth}", measured, *allowed)
        if row.segment_ids is not None:
            model = kinds.build(part)
            plain = jax.jit(model.forward)(drawn_params(model), whole.tokens[None])
        measured, cached = measure(part, whole, queries, flow.cached_logits)
        difference = float(np.max(np.abs(cached - plain)) / np.max(np.abs(plain)))
        allowed = _readable(whole, part)
        yield Finding(f"cached decoding{depth}", measured, *allowed, difference)


def _readable(row: flow.Row, cfg: AnyModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """What may be read, and what of it must."""
    return flow.readable(row, cfg.reach), flow.readable(row, cfg.sure_reach)


def forward(model: Any, params: Any, tokens: Any, segment_ids: Any = None) -> Any:
    options = {} if segment_ids is None else {"segment_ids": segment_ids}
    return model.forward(params, tokens, **options)


def measure(
    cfg: AnyModelConfig, row: flow.Row, queries: np.ndarray, logits_of: Callable, **build: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The dependence f32[Q, S] of the logits on the row, and the logits f32[1, S, V]."""
    model = kinds.build(cfg, **build)
    segments = () if row.segment_ids is None else (jnp.asarray(row.segment_ids)[None],)

    @jax.jit
    def run(params, tokens, queries, key):
        def of_table(table):
            return logits_of(model, params | {"embed": table}, tokens[None], *segments)

        return flow.dependence(of_table, params["embed"], tokens, queries, key)

    return jax.device_get(run(drawn_params(model), row.tokens, queries, jax.random.key(1)))


def drawn_params(model: Any) -> Params:
    """The same of all ways to compute a model."""
    return model.settle(flow.lively_params(jax.random.key(0), model.specs), model.init_carry(1))


def problem_of(finding: Finding, queries: np.ndarray, tolerance: float) -> str | None:
    """One line with what disproves it, or None."""
    offence = flow.first_offence(finding.measured, queries, finding.allowed, finding.required)
    if offence is not None:
        return str(offence)
    if not finding.difference <= tolerance:
        return f"logits differ from those of the forward pass by {finding.difference:.1e}"
    return None


def summary(finding: Finding, queries: np.ndarray) -> str:
    allowed, required = finding.allowed[queries], finding.required[queries]
    text = (
        f"of {allowed.size:,} derivatives the {np.sum(~allowed):,} that must be zero are, the "
        f"{np.sum(required):,} that must not be are not"
    )
    if finding.what.startswith("cached"):
        text += f"; logits within {finding.difference:.0e} of the forward pass"
    return text


def draw(found: list[Finding], queries: np.ndarray, folder: pathlib.Path) -> pathlib.Path:
    """Writes prove_causal.svg and .png: the first places, or those around the first offence."""
    offences = (flow.first_offence(f.measured, queries, f.allowed, f.required) for f in found)
    worst = next((offence.t for offence in offences if offence), 0)
    first = max(0, min(int(np.searchsorted(queries, worst)) - DRAWN // 2, len(queries) - DRAWN))
    rows = slice(first, first + DRAWN)
    shown = queries[rows]
    maps = [(f.what, np.where(f.measured > 0, f.measured, np.nan)[rows][:, shown]) for f in found]
    figure = heat_maps(
        maps,
        name="prove_causal",
        title="What a prediction depends on",
        caption="",
        row_labels=shown,
        column_labels=shown,
        x_label="token s",
        y_label="prediction t",
        value_label="largest |d logits[t] / d embedding[s]|",
        log=True,
        annotate=False,
        missing="exactly zero",
    )
    return figure.write(folder)[0]
