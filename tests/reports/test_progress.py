"""Progress: what is shown, when, and that nothing is computed in between."""

import re
import subprocess
import sys

import pytest

from jaxlm.reports import progress
from jaxlm.reports.progress import make_progress


class Pending:
    """A loss that is still being computed: to read it would wait for it."""

    def __init__(self, value: float):
        self.value, self.reads = value, 0

    def __float__(self):
        self.reads += 1
        return self.value


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_come_seconds_apart_and_at_each_validation(clock, capsys):
    losses = [Pending(4 - step / 10) for step in range(31)]
    with make_progress(30, 10, is_terminal=False) as shown:
        for step in range(11, 31):
            clock[0] += 1.5
            shown.update(step, loss=losses[step], tokens_per_s=1234567.0)
            if step == 20:
                shown.update(step, val_loss=1.23456)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 11/30  loss 2.9000  1.23M tokens/s"
    assert lines[1] == "step 15/30  loss 2.5000  1.23M tokens/s  0:22 left"
    assert [line.split()[1] for line in lines] == [
        f"{step}/30" for step in (11, 15, 19, 20, 24, 28, 30)
    ]
    assert [("val 1.2346" in line) for line in lines] == [i == 3 for i in range(7)]
    assert lines[-1] == "step 30/30  loss 1.0000  1.23M tokens/s"
    read = [step for step, loss in enumerate(losses) if loss.reads]
    assert read == [11, 15, 19, 20, 24, 28, 30]


def test_time_left_does_not_count_compilation(clock, capsys):
    shown = make_progress(110, 0, is_terminal=False)
    clock[0] += 300  # compiling
    shown.update(10, loss=1.0, tokens_per_s=1.0)
    clock[0] += 10
    shown.update(20, loss=1.0, tokens_per_s=1.0)
    assert capsys.readouterr().out.splitlines()[1].endswith("1:30 left")


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with make_progress(30, 10, is_terminal=True) as shown:
        shown.update(20, loss=1.5, tokens_per_s=999.6, val_loss=1.25)
        shown.note("[red]not markup[/red]")
    out = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert "10/30" in out and "20/30" in out
    assert "loss 1.5000  val 1.2500  1k tokens/s" in out
    assert "[red]not markup[/red]\n" in out
    lines = [line.strip() for line in out.splitlines()]
    assert [line for line in lines if line.startswith("step 20/30  loss")] == [
        "step 20/30  loss 1.5000  val 1.2500"  # of the validation, and it stays
    ]


def test_notes_and_nothing_else_without_updates(capsys):
    with make_progress(30, is_terminal=False) as shown:
        shown.note("hello")
    assert capsys.readouterr().out == "hello\n"


def test_rich_is_imported_only_for_a_terminal():
    code = (
        "import sys; from jaxlm.reports.progress import make_progress\n"
        "import jaxlm.reports.run_report\n"
        "make_progress(3).close()\n"
        "print([m for m in ('rich', 'matplotlib', 'jax') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (59.6, "1:00"), (3599.7, "1:00:00"), (90061, "25:01:01")]
)
def test_durations(seconds, text):
    assert progress._duration(seconds) == text
