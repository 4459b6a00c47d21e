"""Launches in one process take over what an earlier one of the same model and step compiled.

To trace it again is most of what a tiny run costs.
"""

import functools

from jaxlm.jobs import evaluate, recorder, sample, train

# Of these fields of a run's `train` its program knows nothing.
OF_THE_LOOP = (
    *("num_steps", "log_every", "eval_", "save_", "keep_", "sample_"),
    *("rollback_steps", "max_passed_over", "init_from"),
)


def keep_programs(setattr=setattr) -> None:
    """setattr: a monkeypatch's, where it is to end."""
    of_model = kept(sample.decoding_model, lambda cfg: cfg)
    setattr(train, "place_program", kept(train.place_program, _of_run))
    for job in (recorder, sample):
        setattr(job, "decoding_model", of_model)
    for job in (recorder, evaluate):
        setattr(job, "make_evaluator", kept(job.make_evaluator, _of_functions))


def kept(make, key_of):
    """`make`, which for a key it has met gives what it made then; of the last 16 keys."""
    made = {}

    @functools.wraps(make)
    def once(*args, **options):
        key = key_of(*args, **options)
        if key not in made:
            made[key] = make(*args, **options)
            if len(made) > 16:
                del made[next(iter(made))]
        return made[key]

    return once


def _of_run(cfg, token_bytes, layout, hypers, **options):
    """What the layout and the options follow from, the devices being those of the process."""
    parts = {name: part for name, part in vars(cfg).items() if name != "train"}
    step = {n: v for n, v in vars(cfg.train).items() if not n.startswith(OF_THE_LOOP)}
    step["on_nonfinite"] = step["on_nonfinite"] == "skip"
    return *parts.values(), *step.values(), *hypers.items(), token_bytes.tobytes()


def _of_functions(model, *, token_bytes, vocab_chunk):
    return *map(_identity, model[1:]), token_bytes.tobytes(), vocab_chunk


def _identity(x):
    if not isinstance(x, functools.partial):
        return x
    return x.func, *map(_identity, x.args), *((n, _identity(v)) for n, v in x.keywords.items())
