"""--job=train: from text to a trained model, its checkpoints, metrics, samples and report."""

import contextlib
import functools
import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.core import json_forms
from jaxlm.core import params as params_lib
from jaxlm.core.config import FLAG, ConfigError, diff
from jaxlm.data.batches import batch_at, num_windows
from jaxlm.io import checkpoints, compile_cache, provenance, trackers, workdir
from jaxlm.jobs import Launch, bad_steps, preflight, processes
from jaxlm.jobs.bad_steps import BadStep
from jaxlm.jobs.configs import launch_config
from jaxlm.jobs.devices import free_bytes
from jaxlm.jobs.profiler import Profiler
from jaxlm.jobs.recorder import (
    METRICS_FILE,
    PROVENANCE_FILE,
    SAMPLES_FILE,
    SUMMARY_FILE,
    NonFiniteError,
    Recorder,
    sample_request,
)
from jaxlm.jobs.room import check_batches, checkpoint_bytes, low_disk
from jaxlm.jobs.setup import (
    TOKENIZER_FILE,
    Backends,
    Data,
    TrainedRun,
    backends_of,
    batch_options,
    check_corpus,
    check_tokenizer,
    layout_of,
    prepare_data,
    restore_frozen,
    with_vocabulary,
)
from jaxlm.jobs.sources import USAGE_FILE, open_base, tokenizer_of_source, usage_of_source
from jaxlm.models import kinds
from jaxlm.models.api import LanguageModel
from jaxlm.models.lora import LoraConfig
from jaxlm.optim.schedules import schedule_table
from jaxlm.reports.run_report import REPORT, write_run_report
from jaxlm.tokenizers import load_tokenizer, save_tokenizer
from jaxlm.train import run_files
from jaxlm.train.config import FREE_ON_RESUME, RunConfig
from jaxlm.train.estimates import flops_per_token
from jaxlm.train.layouts import Layout
from jaxlm.train.loop import run_loop
from jaxlm.train.passed_over import Ranges, batch_number, num_passed, pass_over
from jaxlm.train.program import (
    PlacedProgram,
    hyper_values,
    make_program,
    place_program,
    trained_specs,
)
from jaxlm.train.state import TrainState

SCHEDULE_FILE = "schedule.json"


def main(launch: Launch) -> int:
    """Trains; whatever can be refused is refused before the run's folder is made."""
    started = time.perf_counter()
    processes.join(launch.flags)
    compile_cache.enable()
    cfg, name = launch_config(launch)
    trackers.require(cfg.train.trackers)
    check_source(cfg)
    folder = pathlib.Path(launch.workdir) if launch.workdir else None
    saved = None
    if folder and (folder / workdir.CONFIG_FILE).exists():
        saved = workdir.load_config(folder, RunConfig)
        tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
    else:
        tokenizer = tokenizer_of_source(cfg)
    threading.Thread(target=_preload, daemon=True).start()
    data = prepare_data(cfg, tokenizer)
    cfg = with_vocabulary(cfg, data.tokenizer)
    changes = workdir.check_same_run(saved, cfg, set(FREE_ON_RESUME)) if saved else []
    run = build_run(cfg, data)
    limit, attention = free_bytes(run.layout.mesh.devices.flat), run.backends.attention
    done = saved is not None and folder is not None and finished(folder, cfg) is not None
    if not (done or preflight.has_room(cfg, run.layout, run.program, attention, limit)):
        return 2
    starts_from_weights = cfg.train.init_from is not None and saved is None
    base = open_base(cfg, run.model, run.layout) if starts_from_weights else None
    if jax.process_count() > 1 and (folder is None or cfg.train.parallel == "pmap"):
        what = "--workdir must be given" if folder is None else "train.parallel must be jit"
        raise ConfigError(f"--coordinator={launch.flags.coordinator}: {what}")
    folder = folder or workdir.new_run_dir("runs", name)

    lock = workdir.WorkdirLock(folder) if processes.is_writer() else contextlib.nullcontext()
    with lock, processes.own_folder(folder) as own, processes.end_together():
        summary = finished(folder, cfg) if saved else None
        if summary is not None:
            print(f"{folder} is finished: {result_line(summary)}")
            if processes.is_writer() and not has_report(folder):
                write_run_report(folder)
            return 0
        found = checkpoints.newest_good(folder)
        if found is not None:
            check_resumable(cfg, data, *found)
        processes.wait_for_all("the folder is read")
        if saved is None:
            save_tokenizer(data.tokenizer, own / TOKENIZER_FILE)
            if usage := usage_of_source(cfg.train.init_from):
                workdir.save_json(own / USAGE_FILE, usage)
        if saved != cfg:
            workdir.save_config(own, cfg)
        print(f"run       {folder}")
        for change in changes:
            print(f"changed   {change}")
        describe(run)
        try:
            return _train(run, folder, own, base, found, started)
        except NonFiniteError as error:
            print(f"launch.py: {error}", file=sys.stderr)
            return 1
        except jax.errors.JaxRuntimeError as error:
            if not preflight.ran_out(error):
                raise
            preflight.explain(error, folder, cfg, run.layout, run.program, attention, limit)
            return processes.leave(2)


class Run(NamedTuple):
    """What a run is made of before it has a folder.

    hypers: the numbers of its config. model: with the backends, for its devices.
    """

    cfg: RunConfig
    data: Data
    hypers: dict[str, float]
    layout: Layout
    backends: Backends
    model: LanguageModel
    program: PlacedProgram


def build_run(cfg: RunConfig, data: Data) -> Run:
    """Raises ConfigError for what cannot be trained, or not here."""
    hypers = hyper_values(cfg)
    sample_request(cfg, data)
    layout = layout_of(cfg, kinds.param_specs(cfg.model))
    backends = backends_of(cfg, layout)
    model = kinds.build(cfg.model, **backends.options, **layout.functions)
    trained_specs(cfg, model.specs)  # refuses what cannot be adapted
    check_batches(cfg)
    pmap = cfg.train.parallel == "pmap"  # in which nothing is split any more
    options = backends.on_one_device if pmap else backends.options
    program = place_program(cfg, data.tokenizer.token_bytes, layout, hypers, **options)
    return Run(cfg, data, hypers, layout, backends, model, program)


def check_source(cfg: RunConfig) -> None:
    """Raises ConfigError where adapters are spoken of and there are none, or no model for them."""
    if cfg.lora.rank is None and cfg.lora != LoraConfig():
        given = "; ".join(diff(LoraConfig(), cfg.lora))
        raise ConfigError(f"{FLAG}lora ({given}): without lora.rank there are no adapters; set it")
    if cfg.lora.rank is not None and cfg.train.init_from is None:
        raise ConfigError(
            f"{FLAG}lora.rank={cfg.lora.rank}: adapters need a trained model to be added to; name "
            f"its run with {FLAG}train.init_from=WORKDIR"
        )


def finished(folder: pathlib.Path, cfg: RunConfig) -> dict[str, Any] | None:
    """The summary of a run that has done all its steps, or None."""
    path = folder / SUMMARY_FILE
    summary = workdir.load_json(path, run_files.SUMMARY) if path.exists() else {}
    return summary if summary.get("step") == cfg.train.num_steps else None


def has_report(folder: pathlib.Path) -> bool:
    """Whether the report is there and younger than the summary it shows."""
    report = folder / REPORT
    return report.exists() and report.stat().st_mtime >= (folder / SUMMARY_FILE).stat().st_mtime


def check_resumable(
    cfg: RunConfig, data: Data, path: pathlib.Path, manifest: dict[str, Any]
) -> None:
    """Raises ConfigError unless a run of this config and text can go on from the checkpoint."""
    if problem := json_forms.problem(manifest["extra"], run_files.CHECKPOINT_EXTRA):
        raise ConfigError(f"{path}: its manifest's extra: {problem}")
    if "imported" in manifest["extra"]:
        raise ConfigError(
            f"--workdir={path.parent.parent}: holds imported weights and no run to go on with; "
            f"start one from them: {FLAG}train.init_from={path.parent.parent}"
        )
    check_tokenizer(manifest, data.tokenizer, path)
    check_corpus(cfg, data.corpus, manifest["extra"].get("corpus"), path)
    if manifest["step"] > cfg.train.num_steps:
        raise ConfigError(
            f"{FLAG}train.num_steps={cfg.train.num_steps}: the run is already at step "
            f"{manifest['step']}; raise it"
        )


def result_line(summary: dict[str, Any]) -> str:
    """One line with what a run came to."""
    if summary.get("val_loss") is None:
        return f"step {summary['step']}, no validation loss that is finite"
    count = summary.get("val_num_tokens")  # with train.eval_batches not all that there are
    return (
        f"step {summary['step']}, validation loss {summary['val_loss']:.4f} nats a token, "
        f"perplexity {summary['val_perplexity']:.2f}, "
        f"{summary['val_bits_per_byte']:.3f} bits a byte"
        + (f", over {count:,} tokens of validation text" if count else "")
    )


def _preload() -> None:
    """Imports what writes checkpoints, beside the reading of the text.

    Where the process ends meanwhile an import fails in its midst; one that fails otherwise fails
    again where it is needed.
    """
    with contextlib.suppress(Exception):
        checkpoints.preload()


def describe(run: Run) -> None:
    """Prints what is about to be trained, on what, at which learning rates, and by what means."""
    cfg, data, specs = run.cfg, run.data, run.model.specs
    corpus, tokenizer, train = data.corpus, data.tokenizer, data.train
    windows = num_windows(train, cfg.model.context_length)
    documents = f"{corpus.num_documents:,} document{'' if corpus.num_documents == 1 else 's'}"
    print(
        f"data      {corpus.name}: {corpus.num_bytes:,} bytes in {documents}; "
        f"{train.num_tokens:,} tokens to train, {data.validation.num_tokens:,} to validate; "
        f"a vocabulary of {tokenizer.vocab_size:,} ({tokenizer.kind})"
    )
    epochs = cfg.train.num_steps * cfg.data.batch_size / windows
    print(f"model     {params_lib.count_params(specs):,} parameters: {cfg.model.summary}")
    if cfg.lora.rank is not None:
        num_trained = params_lib.count_params(trained_specs(cfg, specs))
        print(
            f"adapters  {num_trained:,} parameters trained: "
            f"rank {cfg.lora.rank} on {', '.join(cfg.lora.targets)}, alpha {cfg.lora.alpha:g}, "
            f"{cfg.lora.scaling}; the {params_lib.count_params(specs):,} above are frozen"
        )
    cost = flops_per_token(cfg)
    print(
        f"cost      {cost.full / 1e6:.2f} MFLOP a token ({cost.causal / 1e6:.2f} with causal "
        f"attention); {cfg.train.num_steps:,} steps of {cfg.data.batch_size} x "
        f"{cfg.model.context_length} tokens are {epochs:.2f} epochs"
    )
    table = schedule_table(cfg.optim.schedule, run.hypers, cfg.train.num_steps, rows=8)
    rates = [(n + 1, f"{rate:.2e}") for n, rate in table]
    among = zip([None, *rates], rates, [*rates[1:], None], strict=False)
    # Not the steps between two of the same rate.
    turns = [row for row in among if len({each and each[1] for each in row}) > 1]
    steps = "  ".join(f"{step}: {rate}" for _, (step, rate), _ in turns)
    print(f"optimizer {cfg.optim.name}, {cfg.optim.schedule}; learning rate by step: {steps}")
    print(f"attention {run.backends}")
    if jax.device_count() > 1:
        used = f"{run.layout.mesh.size} of {jax.device_count()}"
        print(f"devices   {used}: {run.layout.description}")


def starting_state(
    run: Run,
    folder: pathlib.Path,
    found: tuple[pathlib.Path, dict[str, Any]] | None,
    base: TrainedRun | None = None,
) -> tuple[int, TrainState, str | None]:
    """(step, state, where it comes from) at the beginning of a run, or from a checkpoint of it.

    Args:
      found: the checkpoint and its manifest; None: there is none yet.
      base: the weights of `train.init_from`, where they have been read already.
    """
    cfg = run.cfg
    if found is not None:
        path, manifest = found
        state = _restore(path, run.program.state.replace(frozen={}), run.hypers)
        frozen = restore_frozen(folder, manifest, run.model, run.layout)
        step = manifest["step"]
        return step, state.replace(frozen=frozen), f"resumed   at step {step} from {path}"
    state = run.program.init()
    if cfg.train.init_from is None:
        return 0, state, None
    base = base or open_base(cfg, run.model, run.layout)  # killed before its first checkpoint
    part = "params" if cfg.lora.rank is None else "frozen"
    state = state.replace(**{part: base.params})
    return 0, state, f"weights   of step {base.step} of {cfg.train.init_from}"


def _train(
    run: Run,
    folder: pathlib.Path,
    own: pathlib.Path,
    base: TrainedRun | None,
    found: tuple[pathlib.Path, dict[str, Any]] | None,
    started: float,
) -> int:
    cfg, data, program = run.cfg, run.data, run.program
    start, state, source = starting_state(run, folder, found, base)
    if source:
        print(source)
    for name in (METRICS_FILE, SAMPLES_FILE):
        Recorder.cut_back(own / name, start)

    provenance.save(own / PROVENANCE_FILE, cfg.seed, goes_on=start > 0)
    table = schedule_table(cfg.optim.schedule, run.hypers, cfg.train.num_steps, rows=200)
    workdir.save_json(own / SCHEDULE_FILE, [[n + 1, rate] for n, rate in table])

    rows = run.layout.local_rows(cfg.data.batch_size)

    def batch(n):
        number = batch_number(n, recorder.passed_over)
        return batch_at(data.train, cfg.seed, number, rows=rows, **batch_options(cfg))

    loop = functools.partial(run_loop, program.run, batch_at=batch)

    def replay(step):
        """The state before an update: the newest checkpoint before it, and the same calls again."""
        first, state, _ = starting_state(run, folder, checkpoints.newest_good(folder, at_most=step))
        edge = step - step % cfg.train.steps_per_call
        sizes = {"steps_per_call": cfg.train.steps_per_call, "hooks": []}
        state = loop(state, start=first, num_steps=edge, **sizes)
        sizes["steps_per_call"] = 1
        return loop(state, start=max(first, edge), num_steps=step, **sizes)

    size = checkpoint_bytes(program.state.replace(frozen={}))
    kept = cfg.train.keep_last + cfg.train.keep_best + 1  # one more while it is written
    more = kept - len(list((folder / checkpoints.FOLDER).glob("step_*")))
    if line := low_disk(folder, more * size, f"{more} more checkpoints"):
        print(line)
    print(f"compiled  so far {compile_cache.counts()}")
    with (
        Recorder(
            cfg, folder, own, data, run.model, run.layout, run.hypers, start, started
        ) as recorder,
        Profiler(cfg.train, own, recorder.note) as profiler,
    ):
        if found is not None:
            recorder.passed_over = tuple(map(tuple, found[1]["extra"].get("passed_over") or ()))
        # What a killed run saved but did not evaluate.
        profiler.around(recorder.finish_edge)(start, state)
        while start < cfg.train.num_steps:
            state = loop(
                state,
                start=start,
                num_steps=cfg.train.num_steps,
                steps_per_call=cfg.train.steps_per_call,
                hooks=[profiler.around(recorder.after_call)],
            )
            if (bad := recorder.bad) is None:
                break
            if cfg.train.on_nonfinite == "skip":
                start = int(state.step)
            else:
                del state  # it is lost, and its memory needed
            examine_bad_step(run, folder, recorder, bad, replay)
            if cfg.train.on_nonfinite != "skip":
                start, passed = go_back(cfg, folder, recorder, bad)
                state = replay(start)
                recorder.passed_over = passed
                recorder.roll_back(start, state)
            recorder.bad = None
            if recorder.signal is not None:
                break
        if recorder.signal is not None:
            recorder.save(state)
            print(f"stopped   by {recorder.signal.name}; the run is saved, go on with:")
            print(f"          python launch.py --workdir={folder}")
            return 128 + recorder.signal
    summary = recorder.write_summary(params_lib.count_params(program.specs), flops_per_token(cfg))
    print(f"result    {result_line(summary)}")
    if not processes.is_writer():
        return 0
    report = write_run_report(folder)
    of = "in all" if found is None else "since this start"
    print(f"report    {report}  ({time.perf_counter() - started:.1f} s {of})")
    return 0


def examine_bad_step(
    run: Run,
    folder: pathlib.Path,
    recorder: Recorder,
    bad: BadStep,
    replay: Callable[[int], TrainState],
) -> None:
    """Finds out about a bad step and says it; `bad_steps.examine` tells what is kept."""
    recorder.note(f"bad step  {bad.step}: {bad.problem}")
    if jax.process_count() > 1:
        recorder.note("          not looked into: of several processes none can run it op by op")
        return
    cfg, data = run.cfg, run.data
    step = make_program(cfg, data.tokenizer.token_bytes, **run.backends.on_one_device).step
    number = batch_number(bad.step - 1, recorder.passed_over)
    for line in bad_steps.examine(cfg, folder, data, step, replay(bad.step - 1), bad, number):
        recorder.note(f"          {line}")


def go_back(
    cfg: RunConfig, folder: pathlib.Path, recorder: Recorder, bad: BadStep
) -> tuple[int, Ranges]:
    """The step to go on from after a bad one, and the batches that are then passed over.

    Raises:
      NonFiniteError: the config says to stop, or enough batches were passed over.
    """
    train = cfg.train
    if train.on_nonfinite == "stop":
        found = checkpoints.newest_good(folder)
        kept = f"step {found[1]['step']} is saved" if found else "no step was saved before it"
        raise NonFiniteError(
            f"step {bad.step}: {bad.problem}; {kept}. Lower optim.peak_lr or clip more "
            "(optim.clip_norm) in a new run, or go on, leaving out what is bad: python launch.py "
            f"--workdir={folder} {FLAG}train.on_nonfinite=skip (or rollback)"
        )
    step = max(0, bad.step - train.rollback_steps)
    step -= step % train.steps_per_call
    first, last = (batch_number(n, recorder.passed_over) for n in (step, bad.step - 1))
    passed = pass_over(recorder.passed_over, first, last + 1)
    if num_passed(passed) > train.max_passed_over:
        raise NonFiniteError(
            f"step {bad.step}: {bad.problem}; to roll back again would pass over "
            f"{num_passed(passed)} batches in all, train.max_passed_over={train.max_passed_over}. "
            "Lower optim.peak_lr or clip more (optim.clip_norm), or raise it"
        )
    recorder.note(f"rollback  to step {step}; batches {first} to {last} are passed over")
    return step, passed


def _restore(path: pathlib.Path, abstract: TrainState, hypers: dict[str, float]) -> TrainState:
    """The state of a checkpoint, with the hyper-parameters of this launch."""
    state = checkpoints.restore(path, abstract)
    fresh = {name: np.float32(value) for name, value in hypers.items()}
    where = {name: leaf.sharding for name, leaf in abstract.hypers.items()}
    return state.replace(hypers=jax.device_put(fresh, where))
