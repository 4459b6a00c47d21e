"""--job=evaluate: the loss of a run on its validation text, recomputed from a checkpoint."""

import dataclasses
import json

import jax

from jaxlm.evals.perplexity import make_evaluator
from jaxlm.io import compile_cache
from jaxlm.io.workdir import load_config
from jaxlm.jobs import Launch
from jaxlm.jobs.setup import (
    backends_of,
    check_choice,
    check_corpus,
    finite_or_none,
    layout_of,
    open_run,
    prepare_data,
    require_workdir,
    validation_batches,
)
from jaxlm.models import kinds
from jaxlm.train.config import RunConfig
from jaxlm.train.layouts import Layout, MeshConfig


def main(launch: Launch) -> int:
    check_choice(launch.flags, "checkpoint", ("newest", "best"))
    check_choice(launch.flags, "output", ("text", "json"))
    folder = require_workdir(launch, "evaluate")
    compile_cache.enable()
    layout = layout_here(load_config(folder, RunConfig))
    run = open_run(folder, launch.flags.checkpoint, layout=layout)
    data = prepare_data(run.cfg, run.tokenizer)
    check_corpus(run.cfg, data.corpus, run.corpus, run.checkpoint)
    evaluate = make_evaluator(
        kinds.build(run.cfg.model, **backends_of(run.cfg, layout).options, **layout.functions),
        token_bytes=run.tokenizer.token_bytes,
        vocab_chunk=run.cfg.train.vocab_chunk,
    )
    result = evaluate(run.settled, validation_batches(run.cfg, data, layout.num_rows))
    if launch.flags.output == "json":
        print(json.dumps({"step": run.step, **finite_or_none(result)}))
    else:
        print(
            f"step {run.step}: loss {result['loss']:.4f} nats a token, perplexity "
            f"{result['perplexity']:.3f}, {result['bits_per_byte']:.4f} bits a byte, over "
            f"{result['num_tokens']:,} tokens of validation text"
        )
    return 0


def layout_here(cfg: RunConfig) -> Layout:
    """The run's own layout, or one device where there are fewer than it was trained on."""
    mesh = cfg.mesh
    if (mesh.data or 1) * mesh.fsdp * mesh.tensor > jax.device_count():
        mesh = MeshConfig(data=1)
    specs = kinds.param_specs(cfg.model)
    return layout_of(dataclasses.replace(cfg, mesh=mesh), specs)
