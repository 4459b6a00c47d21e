"""Seconds from the start of `launch.py` to its first step, with and without a compile cache.

    python -m benchmarks.startup
    python -m benchmarks.startup --imports      # what is imported, and what of it takes long

The default config, one step a call. cold: an empty cache folder, so that the text is read and
encoded and every program compiled; warm: the next launch with the folder that cold left. A launch
is broken off when it has printed the line of its first step. `--help` is the whole process. They
take turns; Python's byte code is there already, from a first round that does not count. Further
arguments go to `launch.py`, such as --config=configs/shakespeare_char.py.
"""

import argparse
import collections
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from benchmarks.alternate import alternate
from jaxlm.reports.tables import print_table

ROOT = pathlib.Path(__file__).parent.parent
_IMPORT = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \|\s*(\S+)$")


class Launcher:
    """Launches of `launch.py` that share a temporary folder, but for it like a user's."""

    def __init__(self, folder: pathlib.Path, overrides: Sequence[str]):
        self.folder, self.overrides = folder, overrides
        self.compiled: dict[str, list[str]] = {}  # what the last launch of a kind said of it
        self._cache = folder / "none"
        self._num_launches = 0

    def cold(self, *python: str) -> float:
        self._cache = self.folder / f"cache-{self._num_launches}"
        return self._first_step("cold", python)

    def warm(self, *python: str) -> float:
        return self._first_step("warm", python)

    def help(self, *python: str) -> float:
        started = time.perf_counter()
        with self._start(python, ["--help"]) as process:
            process.communicate()
        seconds = time.perf_counter() - started
        self._check(process.returncode == 0)
        return seconds

    def errors(self) -> str:
        """What the last launch wrote to its standard error."""
        return (self.folder / "errors").read_text()

    def _first_step(self, kind: str, python: Sequence[str]) -> float:
        self._num_launches += 1
        options = [f"--workdir={self.folder}/run-{self._num_launches}"]
        options += ["--config.train.steps_per_call=1", *self.overrides]
        seconds, self.compiled[kind] = None, []
        started = time.perf_counter()
        with self._start(python, options) as process:
            for line in process.stdout:
                if line.startswith("step "):
                    seconds = time.perf_counter() - started
                    process.kill()
                    break
                if "compile:" in line:
                    self.compiled[kind].append(line.partition("compile:")[2].strip())
        self._check(seconds is not None)
        return seconds

    def _start(self, python: Sequence[str], options: Sequence[str]) -> subprocess.Popen:
        # A cache or a ban on byte code that the user has set would be measured in its place.
        own = ("PYTHONDONTWRITEBYTECODE", "JAX_COMPILATION_CACHE_DIR")
        env = {name: value for name, value in os.environ.items() if name not in own}
        env |= {"XDG_CACHE_HOME": str(self._cache)}
        env |= {"PYTHONPYCACHEPREFIX": str(self.folder / "pycache")}
        command = [sys.executable, *python, "launch.py", *options]
        with open(self.folder / "errors", "w") as errors:
            pipes = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
            return subprocess.Popen(command, cwd=ROOT, env=env, **pipes)

    def _check(self, well: bool) -> None:
        if not well:
            sys.exit(f"launch.py ended too early:\n{self.errors()}")


def measure(launcher: Launcher, rounds: int) -> None:
    kinds = {"cold": launcher.cold, "warm": launcher.warm, "--help": launcher.help}
    medians = alternate(kinds, rounds)
    rows = [("launch", "s", "time / cold's")]
    rows += [(kind, f"{s:.2f}", f"{s / medians['cold']:.2f}") for kind, s in medians.items()]
    print_table(rows)
    for kind, parts in launcher.compiled.items():
        print(f"{kind} compiles, in the last launch: {', then '.join(parts)}")


def report_imports(launcher: Launcher, num_rows: int = 15) -> None:
    """Prints where the time of imports goes, once byte code and compiled programs are there."""
    launcher.cold()
    launcher.help()
    for name, launch in {"--help": launcher.help, "to a first step, warm": launcher.warm}.items():
        seconds = launch("-X", "importtime")
        modules = [m.groups() for m in map(_IMPORT.match, launcher.errors().splitlines()) if m]
        packages: collections.Counter[str] = collections.Counter()
        for alone, _, module in modules:
            packages[module.partition(".")[0]] += int(alone)
        total = sum(packages.values())
        print(f"{name}: {seconds:.2f} s, of which importing {len(modules)} modules, listed as they")
        print(f"are imported, {total / 1e6:.2f} s")
        own = [(package, f"{us / 1e6:.3f}") for package, us in packages.most_common(num_rows)]
        print_table([("package", "own s"), *own])
        slowest = sorted(modules, key=lambda m: -int(m[1]))[:num_rows]
        rows = [(module, f"{int(us) / 1e6:.3f}") for _, us, module in slowest]
        print_table([("module", "s with all that it imports"), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--imports", action="store_true", help="list imports in place of timing")
    args, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        launcher = Launcher(pathlib.Path(folder), overrides)
        if args.imports:
            report_imports(launcher)
        else:
            measure(launcher, args.rounds)


if __name__ == "__main__":
    main()
