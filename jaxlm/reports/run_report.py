"""report.html of one run, from the files in its folder and nothing else."""

import math
import os
import pathlib
from typing import Any

import numpy as np

from jaxlm.core import json_forms
from jaxlm.reports import page, sections
from jaxlm.reports.curves import SECOND, Curve, chart, cropped_limits
from jaxlm.reports.files import write_atomic
from jaxlm.train import run_files

REPORT = "report.html"
_MAX_SCHEDULE_ROWS = 16
_MAX_SAMPLES_OF_A_STEP = 12


def write_run_report(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes `<workdir>/report.html`, one file that needs no other, and returns its path.

    Read are, as far as they exist: config.json, summary.json, metrics.jsonl, samples.jsonl,
    schedule.json, timings.jsonl and provenance.json; a section without its file says so. What is
    not as jaxlm writes it is left out, and told: a whole file, or a line of a .jsonl.
    """
    workdir = pathlib.Path(workdir)
    run = _Run(workdir)
    name = workdir.absolute().name
    body = [
        *_headline(name, run),
        *_curves(run),
        *_samples(run),
        *_config(run),
        *_schedule(run),
        *_timings(run),
        *_environment(run),
    ]
    path = workdir / REPORT
    write_atomic(path, page.page(f"{name}: run report", body))
    return path


class _Run:
    """The files of a run; what is missing or broken is empty and listed in `problems`."""

    def __init__(self, workdir: pathlib.Path):
        self.problems: list[str] = []
        self._workdir = workdir
        config = self._json("config.json", run_files.CONFIG) or {}
        self.config: dict[str, Any] = config.get("config", {})
        self.summary: dict[str, Any] = self._json("summary.json", run_files.SUMMARY) or {}
        self.provenance: dict[str, Any] = self._json("provenance.json", run_files.PROVENANCE) or {}
        self.schedule: list[list] = self._json("schedule.json", run_files.SCHEDULE) or []
        metrics = self._lines("metrics.jsonl", run_files.METRICS)
        self.train = [r for r in metrics if r["split"] == "train"]
        self.validation = [r for r in metrics if r["split"] == "validation"]
        self.timings = self._lines("timings.jsonl", run_files.TIMING)
        self.samples = self._lines("samples.jsonl", run_files.SAMPLE)

    @property
    def last_step(self) -> int:
        steps = [r["step"] for r in (*self.train, *self.validation)]
        return max([*steps, self.summary.get("step", 0)])

    @property
    def planned_steps(self) -> int | None:
        return (self.config.get("train") or {}).get("num_steps")  # null is as good as missing

    def _json(self, name: str, form: Any) -> Any:
        try:
            value = json_forms.parse((self._workdir / name).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            self.problems.append(f"{name} cannot be read")
            return None
        if problem := json_forms.problem(value, form):
            self.problems.append(f"{name}: {problem}")
            return None
        return value

    def _lines(self, name: str, form: Any) -> list[dict[str, Any]]:
        try:
            lines = (self._workdir / name).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError:
            self.problems.append(f"{name} cannot be read")
            return []
        records, broken = [], 0
        for line in lines:
            try:
                record = json_forms.parse(line)
            except ValueError:
                record = None
            if json_forms.problem(record, form) is None:
                records.append(record)
            else:
                broken += 1
        if broken:
            self.problems.append(f"{name}: {broken} unreadable line{'s' if broken > 1 else ''}")
        return records


def _headline(name: str, run: _Run) -> list[str]:
    parts = [f"<h1>{page.escape(name)}</h1>"]
    device = run.provenance.get("device_kind")
    count = run.provenance.get("device_count")
    where = f" on {count} x {device}" if device else ""
    planned, last = run.planned_steps, run.last_step
    if planned and last >= planned:
        parts.append(page.paragraph(f"{planned:,} steps{where}", "muted"))
    elif planned:
        parts.append(page.paragraph(f"Step {last:,} of {planned:,}{where}", "muted"))
        parts.append(
            page.paragraph(
                f"This run is not finished: it has reached step {last:,} of {planned:,}. "
                "Start it again with the same folder to go on.",
                "notice",
            )
        )
    else:
        parts.append(page.paragraph(f"Step {last:,}{where}", "muted"))
    parts += [page.paragraph(f"Left out: {problem}.", "notice") for problem in run.problems]

    summary, final = run.summary, {}
    if run.validation:  # newer than a summary written before the run was made longer
        final = {f"val_{name}": value for name, value in run.validation[-1].items()}
    measured = final if final.get("val_step", 0) > summary.get("step", 0) else {**final, **summary}
    items = []
    for label, field, digits, detail in (
        ("validation loss", "val_loss", 4, _about_loss(run, measured.get("val_loss"))),
        ("perplexity", "val_perplexity", 3, "exp of the loss"),
        ("bits per byte", "val_bits_per_byte", 4, "compares across tokenizers"),
    ):
        if measured.get(field) is not None:
            items.append((label, f"{measured[field]:.{digits}f}", detail))
    for label, field, show, detail in (
        ("parameters", "num_params", _short, "trained weights"),
        ("tokens seen", "tokens_seen", _short, "in training"),
        ("time", "seconds", _duration, "wall clock"),
    ):
        if summary.get(field) is not None:
            items.append((label, show(summary[field]), detail))
    if items:
        parts.append(page.tiles(items))
    else:
        parts.append(page.paragraph("No result has been recorded yet.", "muted"))
    return parts


def _about_loss(run: _Run, final: Any) -> str:
    known = [r for r in run.validation if r.get("loss") is not None]
    lowest = min(known, key=lambda r: r["loss"], default=None)
    if lowest and final is not None and lowest["loss"] < final - 5e-5:
        return f"nats a token; lowest {lowest['loss']:.4f} at step {lowest['step']:,}"
    return "nats a token"


def _curves(run: _Run) -> list[str]:
    parts = ["<h2>Curves</h2>"]
    losses = [
        Curve("training", *_series(run.train, "loss"), smooth=True),
        Curve("validation", *_series(run.validation, "loss"), colour=SECOND, points=True),
    ]
    losses = [curve for curve in losses if np.isfinite(curve.y).any()]
    if losses:
        svg = chart(losses, title="Loss", y_label="nats a token", name="loss", crop_start=True)
        caption, top = "", cropped_limits(losses)[1]
        highest = max(np.nanmax(curve.y) for curve in losses)
        if highest > top:
            caption = f"The axis leaves out the first steps, where the loss is up to {highest:.3g}."
            caption = f"<figcaption>{page.escape(caption)}</figcaption>"
        parts.append(f'<div class="charts"><figure class="wide">{svg}{caption}</figure></div>')
    small = []
    for field, title, unit in (
        ("learning_rate", "Learning rate", ""),
        ("grad_norm", "Gradient norm", "global L2 norm"),
        ("update_norm", "Update norm", "global L2 norm"),
    ):
        small.append((Curve(title, *_series(run.train, field), smooth=True), title, unit, field))
    speed = Curve("tokens/s", *_series(run.timings, "tokens_per_s"))
    small.append((speed, "Speed", "tokens a second", "speed"))
    cells = []
    for curve, title, unit, name in small:
        y = np.asarray(curve.y, float)
        if not np.isfinite(y).any():
            continue
        known = y[np.isfinite(y)]
        wide_range = name.endswith("norm") and known.min() > 0 and known.max() > 10 * known.min()
        if name in ("learning_rate", "speed"):
            curve = Curve(curve.label, curve.x, curve.y)
        cells.append(
            chart([curve], title=title, y_label=unit, name=name, size=(5.4, 2.9), log_y=wide_range)
        )
    if cells:
        style = ["" for _ in cells]
        if len(cells) % 2:
            style[-1] = "last-odd"
        inner = "".join(f'<div class="{s}">{c}</div>' for s, c in zip(style, cells, strict=True))
        parts.append(f'<div class="charts">{inner}</div>')
    if not losses and not cells:
        parts.append(page.paragraph("metrics.jsonl holds nothing to plot.", "muted"))
    return parts


def _samples(run: _Run) -> list[str]:
    parts = ["<h2>Samples</h2>"]
    by_step: dict[int, list[dict[str, Any]]] = {}
    for record in run.samples:
        by_step.setdefault(record["step"], []).append(record)
    if not by_step:
        return [*parts, page.paragraph("No samples were taken.", "muted")]
    *earlier, last = by_step
    parts.append(_samples_of_step(last, by_step[last]))
    for step in reversed(earlier):
        content = _samples_of_step(step, by_step[step])
        parts.append(page.folded(f"Samples at step {step:,}", content))
    return parts


def _samples_of_step(step: int, records: list[dict[str, Any]]) -> str:
    parts = []
    for record in records[:_MAX_SAMPLES_OF_A_STEP]:
        prompt, text = record.get("prompt") or "", record.get("text") or ""
        about = [f"step {step:,}"]
        if record.get("temperature") is not None:
            about.append(f"temperature {record['temperature']:g}")
        parts.append(page.paragraph(", ".join(about), "muted"))
        parts.append(page.text_block(prompt, text.removeprefix(prompt)))
    if len(records) > _MAX_SAMPLES_OF_A_STEP:
        more = len(records) - _MAX_SAMPLES_OF_A_STEP
        parts.append(page.paragraph(f"{more} more in samples.jsonl.", "muted"))
    return "".join(parts)


def _config(run: _Run) -> list[str]:
    parts = ["<h2>Config</h2>"]
    if not run.config:
        return [*parts, page.paragraph("There is no config.json.", "muted")]
    return [*parts, sections.config(run.config)]


def _schedule(run: _Run) -> list[str]:
    parts = ["<h2>Learning-rate schedule</h2>"]
    rows = run.schedule
    if not rows:
        return [*parts, page.paragraph("There is no schedule.json.", "muted")]
    shown = rows
    if len(rows) > _MAX_SCHEDULE_ROWS:
        places = np.linspace(0, len(rows) - 1, _MAX_SCHEDULE_ROWS).round().astype(int)
        shown = [rows[i] for i in places]
        parts.append(
            page.paragraph(f"{len(shown)} of the {len(rows)} rows of schedule.json.", "muted")
        )
    half = math.ceil(len(shown) / 2) if len(shown) > 8 else len(shown)
    tables = [
        page.card(
            "",
            page.columns(("step", "learning rate"), [(f"{s:,}", f"{lr:.4g}") for s, lr in part]),
        )
        for part in (shown[:half], shown[half:])
        if part
    ]
    return [*parts, page.cards(tables)]


def _timings(run: _Run) -> list[str]:
    parts = ["<h2>Timings</h2>"]
    seconds, speeds = (_known(run.timings, n) for n in ("seconds_per_step", "tokens_per_s"))
    rows = []
    if seconds:
        rows.append(("time per step, median", _fine_duration(float(np.median(seconds)))))
        rows.append(("time per step, slowest", _fine_duration(max(seconds))))
    if speeds:
        rows.append(("tokens a second, median", f"{np.median(speeds):,.0f}"))
    for name, unit in (("flops_per_s", "FLOP/s"), ("peak_memory_bytes", "B")):
        if run.summary.get(name) is not None:
            label = {"flops_per_s": "compute", "peak_memory_bytes": "memory, peak"}[name]
            rows.append((label, f"{_short(run.summary[name])}{unit}"))
    for name, label in (("mfu", "MFU, full attention"), ("mfu_causal", "MFU, causal attention")):
        if run.summary.get(name) is not None:
            rows.append((label, f"{run.summary[name]:.1%}"))
    compiled = [r for r in run.timings if r.get("event") == "compile"]
    if compiled:
        total = {n: sum(_known(compiled, n)) for n in ("seconds", "programs", "from_cache")}
        rows.append(("compiling", _fine_duration(total["seconds"])))
        cached = f"{total['from_cache']:,} of {total['programs']:,}"
        rows.append(("programs from the compile cache", cached))
    starts = [r["step"] for r in run.timings if r.get("event") == "start" and r.get("step")]
    if starts:
        rows.append(("resumed at step", ", ".join(f"{step:,}" for step in starts)))
    if not rows:
        return [*parts, page.paragraph("There is nothing in timings.jsonl.", "muted")]
    return [*parts, page.card("", page.pairs(rows), "card plain")]


def _environment(run: _Run) -> list[str]:
    parts = ["<h2>Environment</h2>"]
    if not run.provenance:
        return [*parts, page.paragraph("There is no provenance.json.", "muted")]
    return [*parts, sections.environment(run.provenance)]


def _known(records: list[dict[str, Any]], field: str) -> list[float]:
    return [r[field] for r in records if r.get(field) is not None]


def _series(records: list[dict[str, Any]], field: str) -> tuple[list[float], list[float]]:
    """x and y of a field by step, the last record of each.

    A step may have several where a run was resumed and did it again; a null, which stands for NaN
    or infinity, leaves a gap.
    """
    values = {r["step"]: math.nan if r[field] is None else r[field] for r in records if field in r}
    steps = sorted(values)
    return steps, [values[step] for step in steps]


def _short(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:g} "


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _fine_duration(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
