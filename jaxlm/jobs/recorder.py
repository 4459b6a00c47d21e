"""What happens beside the training loop: logs, checkpoints, validation, samples, signals.

At the end of a call of the loop, in this order: the metrics of its steps are written, the state
is saved where a save is due, then validation and samples where they are due. A run killed in
between is saved first and evaluated on resume, so its files end up as those of an unbroken run.
"""

import contextlib
import functools
import itertools
import pathlib
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxlm.analysis import flops
from jaxlm.core.arrays import Params
from jaxlm.core.config import FLAG, ConfigError, to_dict
from jaxlm.decode.generate import generate
from jaxlm.evals.perplexity import make_evaluator
from jaxlm.io import checkpoints, compile_cache, frozen, metric_log, workdir
from jaxlm.io.trackers import Trackers
from jaxlm.jobs import processes
from jaxlm.jobs.bad_steps import BadStep
from jaxlm.jobs.room import checkpoint_bytes, low_disk
from jaxlm.jobs.setup import (
    Data,
    decoding_model,
    finite_or_none,
    model_weights,
    validation_batches,
)
from jaxlm.jobs.signals import stop_requests
from jaxlm.models.api import LanguageModel
from jaxlm.optim.schedules import learning_rate
from jaxlm.reports.progress import make_progress
from jaxlm.train import run_files
from jaxlm.train.config import RunConfig
from jaxlm.train.layouts import Layout
from jaxlm.train.passed_over import Ranges, batch_number, num_passed
from jaxlm.train.run_files import OF_A_STEP
from jaxlm.train.state import TrainState

METRICS_FILE = "metrics.jsonl"  # only what is a function of (config, text, step)
PROVENANCE_FILE = "provenance.json"
TIMINGS_FILE = "timings.jsonl"  # clocks and memory
SAMPLES_FILE = "samples.jsonl"
SUMMARY_FILE = "summary.json"


class NonFiniteError(RuntimeError):
    """Training reached a step that went wrong, and the config says to stop."""


class Recorder:
    """The open files and counters of a run being trained; a context manager and a loop hook."""

    def __init__(
        self,
        cfg: RunConfig,
        folder: pathlib.Path,
        own: pathlib.Path,
        data: Data,
        model: LanguageModel,
        layout: Layout,
        hypers: dict[str, float],
        start: int,
        started: float,
    ):
        self.cfg, self.folder, self.data, self.hypers = cfg, own, data, hypers
        self._checkpoints = folder  # of all processes; `own` is where this one writes its logs
        self._stop: signal.Signals | None = None
        self.started, self._layout = started, layout
        self.validation: dict[str, float] = {}
        self.passed_over: Ranges = ()
        self.bad: BadStep | None = None  # the last step that went wrong, until it is dealt with
        self._num_skipped = num_skipped(folder)
        self._told_of_disk = False
        self._speeds: list[float] = []
        self._compiled = compile_cache.counts()
        self._saved_step = start if start else None
        self._seconds_before = seconds_of_starts(own / TIMINGS_FILE) if start else 0.0
        self._frozen: str | None = None  # fingerprint of state.frozen, once it is saved
        self._step = start
        self._model = model
        self._evaluate = make_evaluator(
            model, token_bytes=data.tokenizer.token_bytes, vocab_chunk=cfg.train.vocab_chunk
        )
        self._generate = functools.partial(generate, decoding_model(cfg.model))
        self._prompt, self._num_sample_tokens = sample_request(cfg, data)
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> "Recorder":
        train = self.cfg.train
        stack = self._exit
        self._metrics = stack.enter_context(metric_log.MetricLog(self.folder / METRICS_FILE))
        self._timings = stack.enter_context(metric_log.MetricLog(self.folder / TIMINGS_FILE))
        self._samples = stack.enter_context(metric_log.MetricLog(self.folder / SAMPLES_FILE))
        self._checkpointer = stack.enter_context(
            checkpoints.Checkpointer(self._checkpoints, train.keep_last, train.keep_best)
        )
        self._progress = stack.enter_context(make_progress(train.num_steps, self._step))
        self._trackers = stack.enter_context(self._open_trackers())
        self._stop_request = stack.enter_context(stop_requests(self._progress.note))
        self._timings.append({"event": "start", "step": self._step})
        self._clock = time.perf_counter()
        return self

    def __exit__(self, *exc) -> None:
        with contextlib.suppress(ConfigError):  # a full disk is told of by what failed
            end = {"event": "end", "step": self._step, "elapsed_s": self._elapsed()}
            self._timings.append(end)
        self._exit.__exit__(*exc)

    def note(self, line: str) -> None:
        """Prints a line beside the progress shown."""
        self._progress.note(line)

    @property
    def signal(self) -> signal.Signals | None:
        """The one that asked the run to end, if one did; known from the end of a call on."""
        return self._stop

    @staticmethod
    def cut_back(path: pathlib.Path, step: int) -> None:
        """Drops from a log what is written again after a resume at `step`."""
        metric_log.truncate(path, lambda record: _order(record) <= (step, 0), OF_A_STEP)

    def after_call(self, step: int, state: TrainState, metrics: dict[str, np.ndarray]) -> bool:
        """The loop's hook; True ends the loop after a signal."""
        seconds = time.perf_counter() - self._clock
        num_steps = step - self._step
        self._step = step
        self._log_steps(step, num_steps, metrics)
        self._checkpointer.check()
        if self.bad is not None and self.cfg.train.on_nonfinite != "skip":
            return True
        tokens = num_steps * self.cfg.data.batch_size * self.cfg.model.context_length
        speed = self._log_speed(step, seconds / num_steps, tokens / seconds)
        if self._due(step, self.cfg.train.save_every):
            self.save(state)
        val_loss = self.finish_edge(step, state)
        self._progress.update(step, loss=metrics["loss"][-1], tokens_per_s=speed, val_loss=val_loss)
        # One of several processes may have been asked alone: all end at the same step.
        self._stop = (
            signal.Signals(n) if (n := processes.largest(self._stop_request() or 0)) else None
        )
        return self._stop is not None or self.bad is not None

    def roll_back(self, step: int, state: TrainState) -> None:
        """Takes back what was written of later steps; what belongs to `step` itself stays.

        The state is saved first: never is a checkpoint deleted that is the only one.
        """
        saved = checkpoints.step_dir(self._checkpoints, step).exists()
        self._step, self._saved_step = step, step if saved else None
        if step:
            self.save(state)
        self._checkpointer.delete_after(step)
        for name in (METRICS_FILE, SAMPLES_FILE):
            metric_log.truncate(
                self.folder / name, lambda record: record["step"] <= step, OF_A_STEP
            )
        self._clock = time.perf_counter()

    def finish_edge(self, step: int, state: TrainState) -> float | None:
        """Validation and samples of `step`, where they are due; returns the validation loss."""
        val_loss = None
        if step and self._due(step, self.cfg.train.eval_every):
            val_loss = self._validate(step, state)
        if step and self.cfg.train.sample_tokens and self._due(step, self.cfg.train.sample_every):
            self._write_samples(step, state)
        self._clock = time.perf_counter()
        return val_loss

    def save(self, state: TrainState) -> None:
        """Begins to write a checkpoint of the state, unless this step has one."""
        if self._saved_step == self._step:
            return
        self._metrics.sync()
        if not self._told_of_disk and processes.is_writer():
            size = checkpoint_bytes(state.replace(frozen={}))
            if line := low_disk(self._checkpoints, 2 * size, "this checkpoint and the next"):
                self._told_of_disk = True
                self.note(line)
        extra: dict[str, Any] = {
            "tokenizer": self.data.tokenizer.fingerprint,
            "corpus": self.data.corpus.fingerprint,
        }
        if self.passed_over:
            extra["passed_over"] = self.passed_over
        if state.frozen:
            self._frozen = self._frozen or frozen.save(self._checkpoints, state.frozen)
            extra["frozen"] = self._frozen
        self._checkpointer.save(self._step, state.replace(frozen={}), extra=extra)
        self._saved_step = self._step

    def write_summary(self, num_params: int, cost: flops.TrainFlops) -> dict[str, Any]:
        """Writes and returns what the finished run came to."""
        cfg = self.cfg
        records = metric_log.read(self.folder / METRICS_FILE, run_files.METRICS)
        validations = [r for r in records if r["split"] == "validation"]
        validations = [r for r in validations if r.get("loss") is not None]
        best = min(validations, key=lambda record: record["loss"], default={})
        summary = {
            "step": self._step,
            "num_params": num_params,
            "tokens_seen": self._step * cfg.data.batch_size * cfg.model.context_length,
            **{f"val_{name}": value for name, value in finite_or_none(self.validation).items()},
            "best_step": best.get("step"),
            "best_val_loss": best.get("loss"),
            "num_skipped": self._num_skipped,
            "num_passed_over": num_passed(self.passed_over),
            "seconds": self._seconds_before + self._elapsed(),
            "peak_memory_bytes": _peak_memory(),
        }
        if self._speeds:
            speed = statistics.median(self._speeds)
            device = {
                "device_kind": jax.devices()[0].device_kind,
                "dtype": cfg.model.dtype,
                "num_devices": self._layout.mesh.size,
            }
            summary |= {
                "tokens_per_s": speed,
                "flops_per_s": speed * cost.full,
                "mfu": flops.mfu(speed, cost.full, **device),
                "mfu_causal": flops.mfu(speed, cost.causal, **device),
            }
        workdir.save_json(self.folder / SUMMARY_FILE, summary)
        return summary

    def _elapsed(self) -> float:
        """Seconds since this start of the run."""
        return time.perf_counter() - self.started

    def _open_trackers(self) -> Trackers:
        names, history = self.cfg.train.trackers if processes.is_writer() else (), []
        if names:
            for name in (METRICS_FILE, SAMPLES_FILE):
                history += metric_log.read(self.folder / name, OF_A_STEP)
            history.sort(key=lambda record: record["step"])
        note = self._progress.note
        return Trackers(names, self.folder, to_dict(self.cfg), self._step, history, note)

    def _log_metrics(self, record: dict[str, Any]) -> None:
        self._metrics.append(record)
        self._trackers.send(record)

    def _due(self, step: int, every: int | None) -> bool:
        return step == self.cfg.train.num_steps or bool(every and step % every == 0)

    def _log_steps(self, step: int, num_steps: int, metrics: dict[str, np.ndarray]) -> None:
        for i in range(num_steps):
            done = step - num_steps + i + 1
            values = {name: float(series[i]) for name, series in metrics.items()}
            finite = values.pop("finite") == 1
            spike = values.pop("spike", 0) == 1
            updates = done - 1 - self._num_skipped  # the schedule counts no step that was skipped
            rate = float(learning_rate(self.cfg.optim.schedule, updates, self.hypers))
            record = {"step": done, "split": "train", **values, "learning_rate": rate}
            record |= {} if finite else {"finite": False}
            record |= {"spike": True} if spike else {}
            read, before = (batch_number(n, self.passed_over) for n in (done - 1, done - 2))
            record |= {"passed_over": [before + 1, read]} if read > before + 1 else {}
            unusual = record.keys() & {"finite", "spike", "passed_over"}
            if done % self.cfg.train.log_every == 0 or done == 1 or unusual:
                self._log_metrics(record)
            if finite and not spike:
                continue
            what = "the loss jumps" if finite else "not finite"
            problem = f"{what}: loss {values['loss']:.6g}, gradient norm {values['grad_norm']:.6g}"
            if self.cfg.train.on_nonfinite != "skip":
                self.bad = BadStep(done, problem, finite)
                return
            self._num_skipped += 1
            self._progress.note(f"step {done}: {problem}; skipped ({self._num_skipped} so far)")
            if self._num_skipped == 1:
                self.bad = BadStep(done, problem, finite)

    def _log_speed(self, step: int, seconds_per_step: float, tokens_per_s: float) -> float | None:
        """Returns the speed to show; None of a call that compiled, whose time is mostly that."""
        compiled = compile_cache.counts() - self._compiled
        record = {"step": step, "seconds_per_step": seconds_per_step, "tokens_per_s": tokens_per_s}
        if compiled.programs:
            self._compiled = compile_cache.counts()
            record = {"event": "compile", "step": step, **vars(compiled)}
            self._timings.append({**record, "elapsed_s": self._elapsed()})
            self._progress.note(f"compiled  {compiled}")
            return None
        self._speeds.append(tokens_per_s)
        if step % self.cfg.train.log_every == 0:
            more = {"peak_memory_bytes": _peak_memory(), "elapsed_s": self._elapsed()}
            self._timings.append({**record, **more})
        return tokens_per_s

    def _attempt(self, what: str, compute: Callable[[], Any]) -> Any:
        """`compute()`, or None where it fails: that is said, and no reason to end training."""
        try:
            return compute()
        except Exception as error:
            if jax.process_count() > 1:  # the others wait for this one inside of it
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.note(f"step {self._step}: {what} failed, training goes on: {reason}")
            self._timings.append({"event": f"{what} failed", "step": self._step, "error": reason})
            return None

    def _validate(self, step: int, state: TrainState) -> float | None:
        batches = validation_batches(self.cfg, self.data, self._layout.num_rows)
        batches = itertools.islice(batches, self.cfg.train.eval_batches)
        found = self._attempt("validation", lambda: self._evaluate(self._weights(state), batches))
        self.validation = found or {}
        if found is None:
            return None
        self._log_metrics({"step": step, "split": "validation", **self.validation})
        if self._saved_step == step:
            self._checkpointer.record(step, {"val_loss": self.validation["loss"]})
        return self.validation["loss"]

    def _weights(self, state: TrainState) -> Params:
        params = model_weights(self.cfg, state.params, state.frozen)
        return self._model.settle(params, state.carry)

    def _write_samples(self, step: int, state: TrainState) -> None:
        weights = self._weights(state)
        key = jax.random.fold_in(jax.random.key(self.cfg.seed), step)
        for temperature in self.cfg.train.sample_temperatures:
            draw = functools.partial(
                self._generate,
                weights,
                [self._prompt],
                key,
                num_tokens=self._num_sample_tokens,
                temperature=temperature,
            )
            out = self._attempt("sampling", draw)
            if out is None:
                return
            prompt, text = (
                self.data.tokenizer.decode(ids) for ids in (self._prompt, out.tokens[0])
            )
            record = {"step": step, "temperature": temperature, "prompt": prompt, "text": text}
            self._samples.append(record)
            self._trackers.send(record)


def seconds_of_starts(path: pathlib.Path) -> float:
    """What the starts in a timings.jsonl took, each up to its last line."""
    total = last = 0.0
    for record in metric_log.read(path, run_files.TIMING) if path.exists() else ():
        if record.get("event") == "start":
            total, last = total + last, 0.0
        last = record.get("elapsed_s") or last
    return total + last


def num_skipped(folder: pathlib.Path) -> int:
    """How many steps so far were not finite, by the log: each of them has its record there."""
    path = folder / METRICS_FILE
    records = metric_log.read(path) if path.exists() else []
    return sum("finite" in record or "spike" in record for record in records)


def sample_request(cfg: RunConfig, data: Data) -> tuple[np.ndarray, int]:
    """The ids to go on from, and how many tokens to write; checked before training begins."""
    train, tokenizer = cfg.train, data.tokenizer
    if train.sample_prompt is None:
        prompt = data.validation.take(np.arange(1))
    else:
        try:
            prompt = tokenizer.encode(train.sample_prompt, allow_special=True)
        except ConfigError as error:
            raise ConfigError(f"{FLAG}train.sample_prompt: {error}") from None
    room = cfg.model.max_positions
    if room is None:
        return prompt, train.sample_tokens
    if len(prompt) > room:
        raise ConfigError(
            f"{FLAG}train.sample_prompt: {len(prompt)} tokens, the model has {room} positions"
        )
    return prompt, min(train.sample_tokens, room + 1 - len(prompt))


def _order(record: dict[str, Any]) -> tuple[int, int]:
    """Where a record stands in its log: at one step the training metrics come first."""
    return record["step"], int(record.get("split") != "train")


def _peak_memory() -> int:
    """Bytes: of the device's memory where it counts them, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
