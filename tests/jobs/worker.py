"""A process that launches one run after another, so that the imports are paid for once.

Each line of standard input is a JSON request, {"args": [...], "crash": [method, step, after]};
each is answered with a line {"code": ..., "out": ..., "err": ...}. A process of its own keeps the
flags, caches and signal handlers of the launches away from the other tests, and may compile with
less effort than they do. Charts, a second for each run, are left out of its reports, and a bad step
is not run operation by operation, which takes ten; the command itself does both. What earlier
launches compiled is taken over, see kept_programs.py.
"""

import contextlib
import gc
import importlib.util
import io
import json
import pathlib
import sys
import traceback
from unittest import mock

from absl.testing import flagsaver

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


class Crash(BaseException):
    """The end of the process, as far as a process that goes on can have it."""


def crash_in(name: str, step: int, after: bool):
    """A context in which that method of `Recorder` ends the run at `step`, its work done or not."""
    from jaxlm.jobs.recorder import Recorder

    method = getattr(Recorder, name)

    def crashing(self, *args, **kwargs):
        here = self._step == step
        if here and not after:
            raise Crash
        value = method(self, *args, **kwargs)
        if here and after:
            raise Crash
        return value

    return mock.patch.object(Recorder, name, crashing)


def answer(launcher, args: list[str], crash: list | None = None) -> dict:
    out, err = io.StringIO(), io.StringIO()
    with (
        flagsaver.flagsaver(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch("jaxlm.reports.run_report.chart", return_value="<svg></svg>"),
        mock.patch("jaxlm.jobs.bad_steps.first_nonfinite", return_value="not looked for"),
        crash_in(*crash) if crash else contextlib.nullcontext(),
    ):
        try:
            overrides = launcher.guarded(launcher.parse, ["launch.py", *args])
            code = launcher.guarded(launcher.main, overrides)
        except SystemExit as stop:
            code = stop.code
        except Crash:
            code = "crash"
        except BaseException:
            code = "traceback"
            traceback.print_exc()
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("launcher", ROOT / "launch.py")
    launcher = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launcher)
    gc.set_threshold(50_000, 20, 20)  # as in tests/conftest.py
    import kept_programs  # of this folder; JAX with it

    kept_programs.keep_programs()
    for line in sys.stdin:
        print(json.dumps(answer(launcher, **json.loads(line))), flush=True)
