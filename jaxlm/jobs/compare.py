"""--job=compare: runs side by side, from the files in their folders."""

import contextlib
import json
import math
import pathlib
import statistics
from typing import Any

from jaxlm.core import json_forms
from jaxlm.core.config import FLAG, ConfigError, flatten
from jaxlm.core.params import count_params
from jaxlm.io import checkpoints, metric_log, workdir
from jaxlm.jobs import Launch
from jaxlm.jobs.recorder import METRICS_FILE, SUMMARY_FILE, TIMINGS_FILE
from jaxlm.jobs.setup import TOKENIZER_FILE, check_choice
from jaxlm.models import kinds
from jaxlm.reports.compare import ComparedRun, comparison_page, show
from jaxlm.train import run_files
from jaxlm.train.config import RunConfig
from jaxlm.train.program import trained_specs

PAGE_FILE = "compare.html"


def main(launch: Launch) -> int:
    check_choice(launch.flags, "output", ("text", "json"))
    given = ["--config"] if launch.config else [f"{FLAG}{path}" for path in launch.overrides]
    if given:
        raise ConfigError(f"{given[0]}: --job=compare uses the configs saved in --runs")
    folders = run_folders(launch.flags.runs)
    runs = [read_run(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    page = None
    if launch.workdir:
        folder = pathlib.Path(launch.workdir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--workdir={folder}: {error.strerror}") from None
        page = folder / PAGE_FILE
        workdir.write_text_atomic(page, comparison_page(runs))
    if launch.flags.output == "json":
        print(json.dumps([run.row for run in runs], indent=2))
    else:
        show(runs)
        if page:
            print(f"\npage      {page}")
    return 0


def run_folders(names: list[str]) -> list[pathlib.Path]:
    """The folders of --runs.

    Raises:
      ConfigError: none is given, one is given twice, or one holds no run.
    """
    folders = [pathlib.Path(name.strip()) for name in names if name.strip()]
    if not folders:
        raise ConfigError("--job=compare needs --runs=FOLDER,FOLDER, the folders of runs")
    seen: dict[pathlib.Path, pathlib.Path] = {}
    for folder in folders:
        if not (folder / workdir.CONFIG_FILE).is_file():
            raise ConfigError(f"--runs={folder}: holds no run (no {workdir.CONFIG_FILE})")
        same = seen.setdefault(folder.resolve(), folder)
        if same is not folder:
            raise ConfigError(f"--runs={folder}: given twice (as {same} before)")
    return folders


def read_run(folder: pathlib.Path, name: str) -> ComparedRun:
    """What a run has come to, finished or not; nothing of its weights is read.

    Raises:
      ConfigError: a file of it is not what this version writes.
    """
    cfg = workdir.load_config(folder, RunConfig)
    metrics, timings = (
        metric_log.read(folder / log, form) if (folder / log).exists() else []
        for log, form in ((METRICS_FILE, run_files.METRICS), (TIMINGS_FILE, run_files.TIMING))
    )
    train, validation = (
        [r for r in metrics if r["split"] == split] for split in ("train", "validation")
    )
    step = max((record["step"] for record in metrics), default=0)
    summary = _json(folder / SUMMARY_FILE, run_files.SUMMARY)
    if summary.get("step") != step:  # of before the run was made longer
        summary = {}
    speeds = [r["tokens_per_s"] for r in timings if r.get("tokens_per_s") is not None]
    last = validation[-1] if validation else {}
    tokens_a_step = cfg.data.batch_size * cfg.model.context_length
    row = {
        "run": name,
        "step": step,
        "num_steps": cfg.train.num_steps,
        "val_loss": last.get("loss"),
        "best_val_loss": min(
            (r["loss"] for r in validation if r.get("loss") is not None), default=None
        ),
        "val_perplexity": last.get("perplexity"),
        "val_bits_per_byte": last.get("bits_per_byte"),
        "num_params": count_params(trained_specs(cfg, kinds.param_specs(cfg.model))),
        "tokens_seen": step * tokens_a_step,
        "tokens_per_s": summary.get("tokens_per_s", statistics.median(speeds) if speeds else None),
        "seconds": summary.get("seconds"),
        "val_num_tokens": last.get("num_tokens"),
        "tokenizer": _json(folder / TOKENIZER_FILE, {"sha256": (str, None)}).get("sha256"),
        "corpus": _corpus(folder),
    }
    curves = [_curve(records, tokens_a_step) for records in (train, validation)]
    return ComparedRun(row, flatten(cfg), *curves)


def _curve(records: list[dict[str, Any]], tokens_a_step: int) -> tuple[list[float], list[float]]:
    values = [record.get("bits_per_byte") for record in records]
    return (
        [record["step"] * tokens_a_step for record in records],
        [math.nan if value is None else value for value in values],
    )


def _corpus(folder: pathlib.Path) -> str | None:
    """The fingerprint of the text, from the newest manifest that can be read."""
    for path in sorted((folder / checkpoints.FOLDER).glob("step_*"), reverse=True):
        with contextlib.suppress(checkpoints.CheckpointError):
            extra = checkpoints.read_manifest(path)["extra"]
            if json_forms.problem(extra, run_files.CHECKPOINT_EXTRA) is None:
                return extra.get("corpus")
    return None


def _json(path: pathlib.Path, form: dict[str, Any]) -> dict[str, Any]:
    return workdir.load_json(path, form) if path.exists() else {}


def _names(folders: list[pathlib.Path]) -> list[str]:
    """The last parts of the paths, or where two are alike the paths as they were given."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
