"""--sweep=FILE: trains every point of a sweep, all points of one structure in one program."""

import hashlib
import itertools
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.core import sweep as sweep_lib
from jaxlm.core.arrays import Params
from jaxlm.core.config import FLAG, ConfigError, apply_overrides, to_dict
from jaxlm.core.json_forms import count, finite
from jaxlm.core.sweep import Point
from jaxlm.data.batches import Batch, lane_batches, stack_batches
from jaxlm.io import checkpoints, compile_cache, metric_log, provenance, workdir
from jaxlm.io.results import write_table
from jaxlm.jobs import Launch
from jaxlm.jobs.configs import launch_config, run_file
from jaxlm.jobs.devices import free_bytes
from jaxlm.jobs.recorder import PROVENANCE_FILE, TIMINGS_FILE
from jaxlm.jobs.room import check_memory
from jaxlm.jobs.setup import (
    Data,
    backends_of,
    batch_options,
    prepare_data,
    validation_batches,
    with_vocabulary,
)
from jaxlm.jobs.signals import stop_requests
from jaxlm.jobs.sources import open_base, tokenizer_of_source
from jaxlm.jobs.train import check_source
from jaxlm.models import kinds
from jaxlm.optim.optimizers import updates_done
from jaxlm.optim.schedules import learning_rate
from jaxlm.reports.sweep_report import (
    FinishedPoint,
    best_setting,
    describe,
    settings_of,
    write_sweep_report,
)
from jaxlm.train.config import RunConfig, TrainConfig
from jaxlm.train.layouts import MeshConfig
from jaxlm.train.population import compile_population, means, stack_hypers, start_all_from
from jaxlm.train.program import Group, group_by_structure, hyper_values, make_program, trained_specs

SWEEP_FILE = "sweep.json"
TABLE_FILE = "table.csv"
POINTS, GROUPS, ROWS_FILE = "points", "groups", "rows.jsonl"
FORMAT = 1
CALL_BYTES = 1 << 27  # of batches given to one call of a program
SHARE = 0.9  # of the free memory for the program: batches are made beside it
SHOW_EVERY_S = 5.0
_ROW = {str: (finite, None), "point": count, "step": count}  # of rows.jsonl and a point's rows.json


class Sweep(NamedTuple):
    """What is to be trained: configs[i] is `base` with points[i]."""

    name: str
    base: RunConfig
    points: list[Point]
    configs: list[RunConfig]


def main(launch: Launch) -> int:
    started = time.perf_counter()
    compile_cache.enable()
    sweep, index = read_sweep(launch), launch.flags.sweep_index
    if index is not None and index >= len(sweep.points):
        raise ConfigError(
            f"--sweep_index={index}: the sweep has {len(sweep.points)} points, 0 to "
            f"{len(sweep.points) - 1}"
        )
    if index is not None and launch.workdir is None:
        raise ConfigError(f"--sweep_index={index} needs --workdir, one folder for all points")
    for cfg in sweep.configs:
        check_source(cfg)
    data = open_data(sweep)
    configs = [with_vocabulary(c, data(c).tokenizer) for c in sweep.configs]
    groups = group_by_structure(configs)
    bases = open_bases(groups)
    for group in groups:  # refuses what cannot be trained before a folder is made
        check_memory(group.cfg, trained_specs(group.cfg, kinds.param_specs(group.cfg.model)))
        backends_of(group.cfg)
        for place in group.members:
            hyper_values(configs[place], group.traced)
    folder = pathlib.Path(launch.workdir or workdir.new_run_dir("runs", sweep.name))
    lock = folder if index is None else point_folder(folder, index)
    with workdir.WorkdirLock(lock), stop_requests(print) as stopped:
        save_sweep(folder, sweep)
        describe_sweep(folder, sweep, groups)
        for number, group in enumerate(groups):
            wanted = group.members if index is None else (index,)
            places = [p for p in wanted if p in group.members and not is_finished(folder, p)]
            if not places:
                continue
            print(f"group     {number + 1}/{len(groups)}: {len(places)} points", flush=True)
            text = data(group.cfg)
            train_points(configs, group, places, text, bases[number], folder, stopped)
            if (by := stopped()) is not None:
                print(f"stopped   by {by.name}; finished points are kept, go on with:")
                print(f"          python launch.py --sweep={launch.flags.sweep} --workdir={folder}")
                return 128 + by
    missing = [p for p in range(len(sweep.points)) if not is_finished(folder, p)]
    if missing:
        print(f"finished  {len(sweep.points) - len(missing)} of {len(sweep.points)} points")
        return 0
    finish(folder, sweep)
    print(f"report    {folder / 'report.html'}  ({time.perf_counter() - started:.1f} s in all)")
    return 0


def read_sweep(launch: Launch) -> Sweep:
    """The sweep of a .py file; each of its points is checked as a config.

    Raises:
      ConfigError: the file, a point or a combination of values cannot be used.
    """
    path = pathlib.Path(launch.flags.sweep)
    flag = f"--sweep={path}"
    if not path.is_file() or path.suffix != ".py":
        near = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        known = f" (in {path.parent}: {', '.join(near)})" if near else ""
        raise ConfigError(f"{flag}: expected a .py file with get_sweep(){known}")
    points = run_file(path, flag, "get_sweep")
    if not isinstance(points, list) or not all(
        isinstance(point, dict) and all(isinstance(path, str) for path in point) for point in points
    ):
        raise ConfigError(f"{flag}: get_sweep() must return a list of points; build it with axis()")
    if not points:
        raise ConfigError(f"{flag}: get_sweep() gave no points")
    source = launch.config
    if source is None and "def get_config" in path.read_text(encoding="utf-8"):
        source = str(path)
    base, _ = launch_config(launch._replace(config=source or launch.default_config))
    both = sorted({p for point in points for p in point} & set(launch.overrides))
    if both:
        raise ConfigError(f"{FLAG}{both[0]}: the sweep sets this field itself; leave one out")
    configs = []
    for number, point in enumerate(points):
        try:
            configs.append(apply_overrides(base, point))
        except ConfigError as error:
            raise ConfigError(f"{flag}: point {number}: {error}") from None
        check_train(configs[-1].train, f"{flag}: point {number}")
        if configs[-1].mesh != MeshConfig() or configs[-1].train.parallel != "jit":
            raise ConfigError(
                f"{flag}: point {number}: a sweep spreads its runs over the devices, each of them "
                "on one: leave mesh and train.parallel as they are"
            )
    return Sweep(path.stem, base, points, configs)


def check_train(train: TrainConfig, where: str) -> None:
    """Raises ConfigError for what a run does beside its steps and a lane of a program cannot do.

    A lane whose loss is not finite stays so and is reported as diverged, or with skip leaves those
    steps out; the others go on.
    """
    refused = {
        "on_nonfinite=rollback": train.on_nonfinite == "rollback",
        "spike_sigmas without on_nonfinite=skip": (
            train.spike_sigmas is not None and train.on_nonfinite != "skip"
        ),
        "trackers": train.trackers,
        "profile_steps": train.profile_steps is not None,
    }
    for name, asked in refused.items():
        if asked:
            raise ConfigError(
                f"{where}: {FLAG}train.{name}: not in a sweep, whose runs are lanes of "
                "one program; leave it out, or train the point alone"
            )


def open_data(sweep: Sweep) -> Callable[[RunConfig], Data]:
    """config -> its text as tokens; each text is read once."""
    opened: dict[Any, Data] = {}

    def data(cfg: RunConfig) -> Data:
        key = (cfg.data, cfg.tokenizer, cfg.train.init_from, cfg.model.context_length)
        if key not in opened:
            opened[key] = prepare_data(cfg, tokenizer_of_source(cfg))
        return opened[key]

    for cfg in sweep.configs:
        data(cfg)
    return data


def open_bases(groups: Sequence[Group]) -> list[Any]:
    """For each group the weights that its points start from; None without `train.init_from`."""
    return [
        None
        if group.cfg.train.init_from is None
        else open_base(group.cfg, kinds.build(group.cfg.model)).params
        for group in groups
    ]


def save_sweep(folder: pathlib.Path, sweep: Sweep) -> None:
    """Writes sweep.json, or raises ConfigError where another sweep is in the folder."""
    saved = {
        "format_version": FORMAT,
        "base": to_dict(sweep.base),
        "points": json.loads(json.dumps(sweep.points)),
    }
    path = folder / SWEEP_FILE
    if not path.exists():
        if (folder / workdir.CONFIG_FILE).exists():
            raise ConfigError(f"--workdir={folder}: holds a run or a study; choose another folder")
        (folder / POINTS).mkdir(parents=True, exist_ok=True)
        workdir.save_json(path, saved)
    elif workdir.load_json(path) != saved:
        raise ConfigError(
            f"--workdir={folder}: holds another sweep; give it its own file and overrides, or "
            "choose another --workdir"
        )


def describe_sweep(folder: pathlib.Path, sweep: Sweep, groups: Sequence[Group]) -> None:
    axes = ["+".join(axis) for axis in sweep_lib.axes_of(sweep.points)]
    done = sum(is_finished(folder, place) for place in range(len(sweep.points)))
    print(f"sweep     {folder}: {len(sweep.points)} points over {', '.join(axes) or 'no axis'}")
    programs = "program" if len(groups) == 1 else "programs"
    print(f"programs  {len(groups)} {programs} to train them, one for each structure")
    if done:
        print(f"kept      {done} finished points")


def point_folder(folder: pathlib.Path, place: int) -> pathlib.Path:
    return folder / POINTS / f"{place:04d}"


def is_finished(folder: pathlib.Path, place: int) -> bool:
    return (point_folder(folder, place) / "rows.json").exists()


def train_points(
    configs: Sequence[RunConfig],
    group: Group,
    places: Sequence[int],
    data: Data,
    base: Params | None,
    folder: pathlib.Path,
    stopped: Callable[[], Any],
) -> None:
    """Trains points of one group side by side and writes the rows of each.

    The state of all of them is checkpointed, so a killed sweep goes on where it was.
    """
    cfg, started = group.cfg, time.perf_counter()
    mine = [configs[place] for place in places]
    seeds = np.array([c.seed for c in mine], np.int32)
    options = backends_of(cfg).options
    program = make_program(cfg, data.tokenizer.token_bytes, group.traced, **options)
    numbers = [hyper_values(c, group.traced) for c in mine]
    hypers = stack_hypers(numbers)
    frozen = base if cfg.lora.rank is not None else {}
    num_steps, every = cfg.train.num_steps, cfg.train.eval_every
    per_call = steps_per_call(cfg, len(places))

    def inputs(first: int) -> Batch:
        steps = range(first, first + per_call)
        return lane_batches(data.train, seeds.tolist(), steps, **batch_options(cfg))

    free = free_bytes(jax.devices())
    validation = itertools.islice(validation_batches(cfg, data), cfg.train.eval_batches)
    shared = stack_batches(list(validation))
    xs = inputs(0)
    population = compile_population(
        program.init,
        program.step,
        num_lanes=len(places),
        hypers=hypers,
        xs=xs,
        frozen=frozen,
        evaluate=program.evaluate,
        shared=shared,
        bytes_free=None if free is None else int(SHARE * free),
    )
    if population.lanes_at_once < len(places):
        print(f"memory    {population.lanes_at_once} points at once fit; the others wait")
    # Its name tells the points apart: a checkpoint of others must not be taken for, nor lie beside,
    # one of these.
    own = folder / GROUPS / hashlib.sha256(str(list(places)).encode()).hexdigest()[:16]
    own.mkdir(parents=True, exist_ok=True)
    done, state = _restore(own, jax.eval_shape(population.init, seeds, hypers))
    if state is None:
        state = population.init(seeds, hypers)
        if base is not None and cfg.lora.rank is None:  # every point trains the base's weights
            state = start_all_from(state, base)
    metric_log.truncate(own / ROWS_FILE, lambda row: row["step"] <= done, _ROW)
    shown = time.perf_counter()
    with (
        metric_log.MetricLog(own / ROWS_FILE) as log,
        checkpoints.Checkpointer(own, keep_last=1, keep_best=0) as checkpointer,
    ):
        if done:
            print(f"resumed   at step {done}")
            xs = inputs(done) if done < num_steps else None
        while done < num_steps and not stopped():
            due = (done + per_call) % every == 0 or done + per_call == num_steps
            updates = np.asarray(updates_done(state.opt_state))
            state, metrics, scores = population.run(state, frozen, xs, shared, due)
            done += per_call
            checkpointer.check()
            if done < num_steps:
                xs = inputs(done)
            values = means(metrics)
            evaluated = means(scores) if due else {}
            for row in table_rows(mine, places, numbers, done, updates, values, evaluated):
                log.append(row)
            save = done % cfg.train.save_every == 0 or stopped()
            if save and done < num_steps:
                log.sync()
                checkpointer.save(done, state)
            if time.perf_counter() - shown > SHOW_EVERY_S or done == num_steps:
                shown = time.perf_counter()
                print(f"step      {done}/{num_steps}  {_losses(values)}", flush=True)
    if done < num_steps:
        return
    keep_points(folder, configs, places, metric_log.read(own / ROWS_FILE, _ROW))
    record = {"points": len(places), "seconds": time.perf_counter() - started}
    with metric_log.MetricLog(folder / TIMINGS_FILE) as timings:
        timings.append({**record, "lanes_at_once": population.lanes_at_once})


def keep_points(
    folder: pathlib.Path,
    configs: Sequence[RunConfig],
    places: Sequence[int],
    rows: Sequence[dict[str, Any]],
) -> None:
    """Gives each point its folder, with its config and its rows: it is finished then."""
    for place in places:
        path = point_folder(folder, place)
        path.mkdir(parents=True, exist_ok=True)
        workdir.save_config(path, configs[place])
        workdir.save_json(path / "rows.json", [row for row in rows if row["point"] == place])


def _restore(own: pathlib.Path, abstract: Any) -> tuple[int, Any]:
    """(step, state) of the newest checkpoint in the folder, (0, None) without one."""
    found = checkpoints.newest_good(own)
    if found is None:
        return 0, None
    path, manifest = found
    return manifest["step"], checkpoints.restore(path, abstract)


def steps_per_call(cfg: RunConfig, num_lanes: int) -> int:
    """Steps of one call: as many as evaluations and saves leave, and batches small enough."""
    most = math.gcd(cfg.train.num_steps, cfg.train.eval_every, cfg.train.save_every)
    step_bytes = 12 * num_lanes * cfg.data.batch_size * cfg.model.context_length
    fit = [d for d in range(1, most + 1) if most % d == 0 and d * step_bytes <= CALL_BYTES]
    return max(fit, default=1)


def table_rows(
    configs: Sequence[RunConfig],
    places: Sequence[int],
    numbers: Sequence[dict[str, float]],
    done: int,
    updates: np.ndarray,
    values: dict[str, np.ndarray],
    evaluated: dict[str, np.ndarray],
) -> list[dict[str, Any]]:
    """What is written of the steps of one call: those of log_every, and the evaluated one.

    Args:
      numbers: of each lane, as `hyper_values` gives them. done: steps after the call.
      updates: i[P], before the call. values: f32[P, steps]; evaluated: f32[P], or {}.
    """
    rows, num = [], values["loss"].shape[1]
    skipped = (values["finite"] == 0) | (values.get("spike", 0 * values["finite"]) == 1)
    for i in range(num):
        step = done - num + i + 1
        for lane, (cfg, place) in enumerate(zip(configs, places, strict=True)):
            last = i == num - 1 and evaluated
            if step % cfg.train.log_every and step != 1 and not last:
                continue
            row = {"point": place, "step": step}
            row |= {name: float(series[lane, i]) for name, series in values.items()}
            skips = np.sum(skipped[lane, :i]) if cfg.train.on_nonfinite == "skip" else 0
            rate = learning_rate(cfg.optim.schedule, updates[lane] + i - skips, numbers[lane])
            row["learning_rate"] = float(rate)
            if last:
                row |= {f"val_{name}": float(v[lane]) for name, v in evaluated.items()}
            rows.append(row)
    return rows


def _losses(values: dict[str, np.ndarray]) -> str:
    losses = values["loss"][:, -1]
    finite = losses[np.isfinite(losses)]
    if not finite.size:
        return "no loss is finite"
    text = f"loss {finite.min():.4f} to {finite.max():.4f}"
    return text + (f", {losses.size - finite.size} not finite" if finite.size < losses.size else "")


def finish(folder: pathlib.Path, sweep: Sweep) -> None:
    """The table of all points, the best setting, figures and the report."""
    finished = []
    for place, point in enumerate(sweep.points):
        rows = workdir.load_json(point_folder(folder, place) / "rows.json", [_ROW])
        finished.append(FinishedPoint(point, rows))
    axes = sweep_lib.axes_of(sweep.points)
    fields = list(dict.fromkeys(path for point in sweep.points for path in point))
    metrics = list(dict.fromkeys(n for p in finished for row in p.rows for n in row))
    table = [
        [
            row["point"],
            *(_cell(p.point.get(f)) for f in fields),
            *map(_cell, map(row.get, metrics[1:])),
        ]
        for p in finished
        for row in p.rows
    ]
    write_table(folder / TABLE_FILE, ["point", *fields, *metrics[1:]], table)
    provenance.save(folder / PROVENANCE_FILE)
    best = best_setting(settings_of(finished, axes))
    if best is None:
        print("best      none: every setting has a seed that diverged")
    else:
        print(f"best      {describe(best, axes)}: validation loss {best.interval}")
    write_sweep_report(
        folder,
        name=sweep.name,
        points=finished,
        axes=axes,
        config=to_dict(sweep.base),
        timings=metric_log.read(folder / TIMINGS_FILE),
        provenance=workdir.load_json(folder / PROVENANCE_FILE),
    )


def _cell(value: Any) -> Any:
    return "" if value is None else value
