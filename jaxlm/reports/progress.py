"""What a person sees while a run goes.

On a terminal a live bar, and a line for each validation; elsewhere a line now and then.
"""

import sys
import time
from typing import Any

_BAR_INTERVAL_S = 0.1
_LINE_INTERVAL_S = 5.0


def make_progress(
    num_steps: int,
    start_step: int = 0,
    is_terminal: bool | None = None,
    *,
    unit: str = "step",
    first: str = "compiling",
):
    """The display of a run that goes from `start_step` to `num_steps`; close it at the end.

    Args:
      is_terminal: a live bar or plain lines; by default whether standard output is a terminal.
      unit: what is counted.
      first: what is being done until the first update; only a live bar says so.
    Returns:
      An object with `update`, `note` and `close`, and a context manager.
    """
    if is_terminal is None:
        is_terminal = sys.stdout.isatty()
    return (_Bar if is_terminal else _Lines)(num_steps, start_step, unit, first)


class Progress:
    """Decides when to show something, and words it; subclasses show it."""

    _interval_s: float  # the least time between two displays
    _keep_val_loss: bool  # whether a validation loss stays on display until the next one

    def __init__(self, num_steps: int, start_step: int, unit: str, first: str):
        self._unit, self._first = unit, first
        self._num_steps, self._step, self._shown_step = num_steps, start_step, start_step
        self._clock_step: int | None = None  # time left is measured from the first update on,
        self._clock_s = 0.0  # so that compiling does not count as speed
        self._shown_s = -float("inf")
        self._latest: dict[str, Any] = {}

    def update(
        self, step: int, *, loss: Any = None, tokens_per_s: Any = None, val_loss: Any = None
    ) -> None:
        """Tells that `step` updates are done; what is not given stays as it was.

        Cheap when nothing is due to be shown: `loss` may be an array still being computed, it is
        not waited for then.

        Args:
          loss: of the last step, nats a token.
          tokens_per_s: training tokens in a second of wall clock.
          val_loss: when there is a new one; it is always shown.
        """
        now = time.monotonic()
        if self._clock_step is None:
            self._clock_step, self._clock_s = step, now
        self._step = step
        news = {"loss": loss, "tokens_per_s": tokens_per_s, "val_loss": val_loss}
        self._latest.update({name: value for name, value in news.items() if value is not None})
        if val_loss is not None or now - self._shown_s >= self._interval_s:
            self._show_latest(now)

    def note(self, line: str) -> None:
        """Prints a line beside what is shown."""
        raise NotImplementedError

    def close(self) -> None:
        """Shows the last step, if it has not been, and ends the display."""
        if self._shown_step != self._step:
            self._show_latest(time.monotonic())

    def _show_latest(self, now: float) -> None:
        self._shown_s, self._shown_step = now, self._step
        words = self._losses()
        if "tokens_per_s" in self._latest:
            words.append(f"{_short(float(self._latest['tokens_per_s']))} tokens/s")
        if self._clock_step is not None and self._clock_step < self._step < self._num_steps:
            per_step = (now - self._clock_s) / (self._step - self._clock_step)
            words.append(f"{_duration(per_step * (self._num_steps - self._step))} left")
        self._show("  ".join(words))
        if not self._keep_val_loss:
            self._latest.pop("val_loss", None)

    def _losses(self) -> list[str]:
        names = {"loss": "loss", "val_loss": "val"}
        return [f"{names[n]} {float(self._latest[n]):.4f}" for n in names if n in self._latest]

    def _line(self, words: str) -> str:
        width = len(str(self._num_steps))
        return f"{self._unit} {self._step:>{width}}/{self._num_steps}  {words}"

    def _show(self, text: str) -> None:
        raise NotImplementedError

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


class _Lines(Progress):
    _interval_s = _LINE_INTERVAL_S
    _keep_val_loss = False

    def _show(self, text: str) -> None:
        print(self._line(text), flush=True)

    def note(self, text: str) -> None:
        print(text, flush=True)


class _Bar(Progress):
    _interval_s = _BAR_INTERVAL_S
    _keep_val_loss = True

    def __init__(self, *args):
        super().__init__(*args)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._rich = Progress(
            TextColumn(self._unit),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(file=sys.stdout, force_terminal=True),
            refresh_per_second=5,
            expand=True,
        )
        self._task = self._rich.add_task(
            "", total=self._num_steps, completed=self._step, text=self._first
        )
        self._rich.start()

    def update(self, step: int, *, val_loss: Any = None, **news: Any) -> None:
        super().update(step, val_loss=val_loss, **news)
        if val_loss is not None:  # stays where the bar goes on
            self.note(self._line("  ".join(self._losses())))

    def _show(self, text: str) -> None:
        self._rich.update(self._task, completed=self._step, text=text)

    def note(self, text: str) -> None:
        self._rich.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        super().close()
        self._rich.stop()


def _short(number: float) -> str:
    """1234567 -> "1.23M", to three digits."""
    unit = 0
    while abs(number) >= 999.5 and unit < 3:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g}{('', 'k', 'M', 'G')[unit]}"


def _duration(seconds: float) -> str:
    """3725 -> "1:02:05", 42 -> "0:42"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
