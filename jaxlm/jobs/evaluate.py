"""--job=evaluate: the loss of a run on its validation text, recomputed from a checkpoint."""

import json

from jaxlm.evals.perplexity import make_evaluator
from jaxlm.io import compile_cache
from jaxlm.jobs import Launch
from jaxlm.jobs.setup import (
    backends_of,
    check_choice,
    check_corpus,
    finite_or_none,
    open_run,
    prepare_data,
    require_workdir,
    validation_batches,
)
from jaxlm.models import transformer


def main(launch: Launch) -> int:
    check_choice(launch.flags, "checkpoint", ("newest", "best"))
    check_choice(launch.flags, "output", ("text", "json"))
    folder = require_workdir(launch, "evaluate")
    compile_cache.enable()
    run = open_run(folder, launch.flags.checkpoint)
    data = prepare_data(run.cfg, run.tokenizer)
    check_corpus(run.cfg, data.corpus, run.corpus, run.checkpoint)
    evaluate = make_evaluator(
        transformer.build(run.cfg.model, **backends_of(run.cfg).options),
        token_bytes=run.tokenizer.token_bytes,
        vocab_chunk=run.cfg.train.vocab_chunk,
    )
    result = evaluate(run.params, validation_batches(run.cfg, data))
    if launch.flags.output == "json":
        print(json.dumps({"step": run.step, **finite_or_none(result)}))
    else:
        print(
            f"step {run.step}: loss {result['loss']:.4f} nats a token, perplexity "
            f"{result['perplexity']:.3f}, {result['bits_per_byte']:.4f} bits a byte, over "
            f"{result['num_tokens']:,} tokens of validation text"
        )
    return 0
