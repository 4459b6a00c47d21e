"""--job=explain: a page on what a run's model makes of a text, layer by layer."""

import functools
import pathlib

import jax
import numpy as np

from jaxlm.analysis.logit_lens import explain
from jaxlm.core.config import ConfigError
from jaxlm.io import compile_cache
from jaxlm.jobs import Launch
from jaxlm.jobs.setup import check_choice, open_run, require_workdir
from jaxlm.jobs.sources import prompt_ids, usage_of_source
from jaxlm.models.transformer import TransformerConfig
from jaxlm.reports.explanation import Explained, write_explanation

PAGE = "explain.html"
MOST_WEIGHTS = 12_000_000  # of attention in a page, a byte each
TOP = 5


def main(launch: Launch) -> int:
    flags = launch.flags
    check_choice(flags, "checkpoint", ("newest", "best"))
    folder = require_workdir(launch, "explain")
    target = pathlib.Path(flags.target or folder / PAGE)
    compile_cache.enable()
    run = open_run(folder, flags.checkpoint)
    ids = prompt_ids(flags.prompt, run.tokenizer, usage_of_source(str(folder)))
    cfg = run.cfg.model
    if not isinstance(cfg, TransformerConfig):
        raise ConfigError(
            f"--workdir={folder}: a model of kind {cfg.kind} has no attention to show"
        )
    N, H = cfg.num_layers, cfg.num_heads
    most = max(2, int((MOST_WEIGHTS / N / H) ** 0.5))
    if cfg.max_positions:
        most = min(most, cfg.max_positions)
    if not 2 <= len(ids) <= most:
        given = f"has {len(ids)} tokens" if flags["prompt"].present else "is not given"
        raise ConfigError(f"--prompt: {given}; expected a text of 2 to {most} tokens")
    seen = jax.jit(functools.partial(explain, cfg=cfg, k=min(TOP, cfg.sizes.V)))(run.params, ids)
    seen = jax.tree.map(np.asarray, seen)
    explained = Explained(
        where=str(folder),
        tokens=[run.tokenizer.token_text(id) for id in ids.tolist()],
        names={int(id): run.tokenizer.token_text(int(id)) for id in np.unique(seen.top_ids)},
        ids=ids,
        num_bytes=int(run.tokenizer.token_bytes[ids[1:]].sum()),
        **seen._asdict(),
    )
    write_explanation(target, explained)
    print(f"loss      {seen.nll.mean():.4f} nats/token over {len(ids) - 1} tokens")
    print(f"page      {target}")
    return 0
