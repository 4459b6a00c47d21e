"""--experiment=NAME: runs a study cell by cell, keeps what is done, and reports what it found."""

import hashlib
import importlib
import json
import pathlib
import time
from types import ModuleType
from typing import Any

from jaxlm.core import results as results_lib
from jaxlm.core.config import (
    FLAG,
    ConfigError,
    MissingPackage,
    apply_overrides,
    check_numbers,
    from_dict,
    nearest,
    to_dict,
)
from jaxlm.core.json_forms import count
from jaxlm.core.results import Results, Row
from jaxlm.io import compile_cache, metric_log, provenance, workdir
from jaxlm.io.results import load_results, save_results
from jaxlm.jobs import Launch
from jaxlm.jobs.configs import run_file
from jaxlm.jobs.devices import one_cpu_device_per_core
from jaxlm.jobs.recorder import PROVENANCE_FILE, TIMINGS_FILE
from jaxlm.jobs.signals import stop_requests
from jaxlm.reports.study_report import (
    REPORT,
    IndexEntry,
    StudyReport,
    write_index,
    write_study_report,
)

ALL = "all"
CELLS = "cells"
MEASURED_FILE = "measured.json"
POPULATION = ("population",)
_TIMING = {"programs": count}


def main(launch: Launch) -> int:
    name = launch.flags.experiment
    one_cpu_device_per_core()
    compile_cache.enable()
    if name == ALL:
        return run_all(launch)
    study = open_study(name)
    cfg = study_config(study, launch)
    folder = pathlib.Path(launch.workdir) if launch.workdir else workdir.new_run_dir("runs", name)
    return run_study(name, study, cfg, folder)


def open_study(name: str) -> ModuleType:
    """The package of a study; a ConfigError with the nearest name where there is none."""
    studies = importlib.import_module("experiments").STUDIES
    if name not in studies:
        known = ", ".join([*studies, ALL])
        raise ConfigError(
            f"--experiment={name}: no such study{nearest(name, list(studies))} (studies: {known})"
        )
    return importlib.import_module(f"experiments.{name}")


def study_config(study: ModuleType, launch: Launch, scale: str = "default") -> Any:
    """The study's config: a saved one, or its defaults by scale; then what is given by path.

    A .py file in place of a saved one has get_config(scale) and knows its own scales.
    """
    overrides = dict(launch.overrides)
    saved = launch.config or _saved_in(launch.workdir)
    if saved and saved.endswith(".py"):
        base = _from_file(study, saved, overrides.pop("scale", scale))
    else:
        base = read_study_config(study, saved) if saved else study.Config()
    if "scale" in overrides or not saved:
        base = apply_overrides(base, {"scale": overrides.pop("scale", scale)})
        base = apply_overrides(base, study.SCALES.get(base.scale, {}))
    cfg = apply_overrides(base, overrides)
    check_numbers(cfg)
    resolve = getattr(run_module(study), "resolve", None)
    return resolve(cfg) if resolve else cfg


def read_study_config(study: ModuleType, path: str) -> Any:
    """A config of this study, from the config.json of its folder."""
    name = study.__name__.rpartition(".")[2]
    file = pathlib.Path(path)
    file = file / workdir.CONFIG_FILE if file.is_dir() else file
    if file.suffix != ".json":
        raise ConfigError(
            f"--config={path}: expected the config.json of a study, or a .py file for one"
        )
    saved = workdir.load_json(file)
    if not isinstance(saved, dict) or saved.get("experiment") != name:
        raise ConfigError(f"--config={path}: not a config of --experiment={name}")
    return workdir.load_config(file, study.Config)


def _from_file(study: ModuleType, path: str, scale: str) -> Any:
    flag = f"--config={path}"
    apply_overrides(study.Config(), {"scale": scale})  # is one
    config = run_file(pathlib.Path(path), flag, "get_config", scale)
    if not isinstance(config, study.Config):
        raise ConfigError(f"{flag}: get_config(scale) gave no config of {study.__name__}")
    return from_dict(study.Config, to_dict(config), flag)


def _saved_in(folder: str | None) -> str | None:
    return folder if folder and (pathlib.Path(folder) / workdir.CONFIG_FILE).exists() else None


def run_module(study: ModuleType) -> ModuleType:
    return importlib.import_module(f"{study.__name__}.run")


def run_study(
    name: str, study: ModuleType, cfg: Any, folder: pathlib.Path, flags: str | None = None
) -> int:
    """Runs the cells that are not done yet, then judges and draws all of them.

    flags: that go on with it; by default those of this study alone.
    """
    flags = flags or f"--experiment={name} --workdir={folder}"
    started = time.perf_counter()
    cells = study.cells(cfg)
    with workdir.WorkdirLock(folder), stop_requests(print) as stopped:
        if (folder / workdir.CONFIG_FILE).exists():
            workdir.check_same_run(read_study_config(study, str(folder)), cfg, set())
        else:
            workdir.save_config(folder, cfg, experiment=name)
        (folder / CELLS).mkdir(exist_ok=True)
        print(f"study     {name}: {study.QUESTION}")
        print(f"folder    {folder}", flush=True)
        rows, told = [], False
        with metric_log.MetricLog(folder / TIMINGS_FILE) as timings:
            for place, cell in enumerate(cells):
                label = f"cell      {place + 1}/{len(cells)}  {describe(cell, cells)}"
                done, record = run_kept_cell(study, cell, folder / CELLS)
                rows += done
                if record is None:
                    print(f"{label}  kept", flush=True)
                    continue
                if not told:  # of the launches that ran cells, whichever it was that ends
                    provenance.save(folder / PROVENANCE_FILE)
                    told = True
                timings.append({"cell": place, "what": describe(cell, cells), **record})
                print(f"{label}  {record['seconds']:.1f} s", flush=True)
                if (by := stopped()) is not None:
                    print(f"stopped   by {by.name}; finished cells are kept, go on with:")
                    print(f"          python launch.py {flags}")
                    return 128 + by
        # Of all launches, and not of other studies in this process.
        programs = sum(r["programs"] for r in metric_log.read(folder / TIMINGS_FILE, _TIMING))
        print(f"programs  {programs} compiled for {len(cells)} cells", flush=True)
        results = Results(study=name, config=to_dict(cfg), rows=tuple(rows))
        save_results(folder, results)
        measure_once(study, cfg, folder)
        if not (folder / PROVENANCE_FILE).exists():
            provenance.save(folder / PROVENANCE_FILE)
        redraw(study, folder)
    for claim in study.claims(results):
        print(f"claim     {claim.verdict}: {claim.text} ({claim.evidence})")
    print(f"report    {folder / REPORT}  ({time.perf_counter() - started:.1f} s in all)")
    return 0


def run_kept_cell(
    study: ModuleType, cell: dict, folder: pathlib.Path
) -> tuple[list[Row], dict[str, Any] | None]:
    """The rows of a cell, from its file where it was run before; else also what running it took."""
    text = json.dumps(cell, sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
    if path.exists():
        return list(load_results(path).rows), None
    run, before = run_module(study), compile_cache.counts()
    named = _program_names(study)
    programs, started = compile_cache.programs_named(*named), time.perf_counter()
    rows = run.run_cell(cell)
    record = {
        "seconds": time.perf_counter() - started,
        "compile_seconds": (compile_cache.counts() - before).seconds,
        "programs": compile_cache.programs_named(*named) - programs,
    }
    saved = results_lib.to_json(Results(study=study.__name__, config=cell, rows=tuple(rows)))
    workdir.save_json(path, saved)
    return list(results_lib.from_json(saved).rows), record


def _program_names(study: ModuleType) -> tuple[str, ...]:
    return getattr(run_module(study), "PROGRAMS", POPULATION)


def describe(cell: dict, cells: list[dict]) -> str:
    """The fields in which a cell differs from others that have them: "positions=rope"."""

    def values(name):
        return {json.dumps(c[name], sort_keys=True) for c in cells if name in c}

    shown = {n: v for n, v in cell.items() if isinstance(v, str | int | float)}
    return " ".join(f"{name}={v}" for name, v in shown.items() if len(values(name)) > 1)


def measure_once(study: ModuleType, cfg: Any, folder: pathlib.Path) -> None:
    measure = getattr(run_module(study), "measure", None)
    if measure and not (folder / MEASURED_FILE).exists():
        workdir.save_json(folder / MEASURED_FILE, measure(cfg))


def redraw(study: ModuleType, folder: pathlib.Path) -> None:
    """Writes report.html and the figures, from the files in the folder; needs no JAX."""
    results = load_results(folder)
    timings = metric_log.read(folder / TIMINGS_FILE)
    measured = folder / MEASURED_FILE
    write_study_report(
        folder,
        StudyReport(
            name=results.study,
            question=study.QUESTION,
            claims=study.claims(results),
            figures=study.plot(results),
            tables=study.tables(results),
            config=results.config,
            timings=[*timings, *(workdir.load_json(measured, [dict]) if measured.exists() else [])],
            provenance=workdir.load_json(folder / PROVENANCE_FILE, dict),
            notes=getattr(study, "NOTES", []),
        ),
    )


def run_all(launch: Launch) -> int:
    """Every study at scale=small, and a page that leads to their reports."""
    studies = importlib.import_module("experiments").STUDIES
    if launch.config or set(launch.overrides) - {"scale"}:
        raise ConfigError(f"--experiment={ALL} takes no config but {FLAG}scale")
    if _saved_in(launch.workdir):
        raise ConfigError(f"--workdir={launch.workdir}: holds a run; give a folder for all studies")
    root = pathlib.Path(launch.workdir) if launch.workdir else workdir.new_run_dir("runs", ALL)
    flags = " ".join(
        [
            f"--experiment={ALL} --workdir={root}",
            *(f"{FLAG}{path}={value}" for path, value in launch.overrides.items()),
        ]
    )
    started, entries = time.perf_counter(), []
    for name in studies:
        study, folder = open_study(name), root / name
        part = launch._replace(workdir=str(folder))
        try:
            cfg = study_config(study, part, "small")
        except MissingPackage as missing:  # of one study: the others do not need it
            print(f"left out  {name}: {missing}")
            continue
        code = run_study(name, study, cfg, folder, flags)
        if code:
            return code
        entries.append(folder)
    index = write_index(root, [index_entry(folder) for folder in entries])
    print(f"index     {index}  ({time.perf_counter() - started:.1f} s in all)")
    return 0


def index_entry(folder: pathlib.Path) -> IndexEntry:
    results = load_results(folder)
    study = open_study(results.study)
    return {
        "name": results.study,
        "question": study.QUESTION,
        "claims": study.claims(results),
        "folder": folder.name,
        "figures": study.plot(results),
    }
