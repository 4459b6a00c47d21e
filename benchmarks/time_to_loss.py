"""Time to a validation loss on one text: jaxlm's config against the PyTorch recipe.

    python -m benchmarks.time_to_loss --data=tinyshakespeare.txt

Whole processes, from start to end: imports, compiling (with an empty compile cache), tokenising,
training, a full validation, and for jaxlm also its checkpoints, samples and report. The two
alternate; medians and their ratio are printed. Needs the `parity` extra.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent


def timed(command, **env):
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started, done.stdout


def run_jaxlm(data, overrides):
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "launch.py", "--config=configs/shakespeare_char.py"]
        command += [f"--config.data.path={data}", f"--workdir={folder}/run", *overrides]
        seconds, _ = timed(command, XDG_CACHE_HOME=f"{folder}/cache")
        summary = json.loads(pathlib.Path(folder, "run", "summary.json").read_text())
    return seconds, summary["val_loss"]


def run_torch(data):
    seconds, out = timed([sys.executable, "-m", "benchmarks.torch_recipe", f"--data={data}"])
    return seconds, json.loads(out.splitlines()[-1])["val_loss"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("jaxlm", "torch"))
    args, overrides = parser.parse_known_args()
    data = pathlib.Path(args.data).resolve()
    sides = {"torch": lambda: run_torch(data), "jaxlm": lambda: run_jaxlm(data, overrides)}
    times = {name: [] for name in sides if args.only in (None, name)}
    for _ in range(args.repeats):
        for name, seconds in times.items():
            took, loss = sides[name]()
            seconds.append(took)
            print(f"{name:6} {took:6.1f} s  validation loss {loss:.4f}", flush=True)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    print("median " + ", ".join(f"{name} {s:.1f} s" for name, s in medians.items()))
    if len(medians) == 2:
        print(f"ratio  jaxlm / torch = {medians['jaxlm'] / medians['torch']:.2f}")


if __name__ == "__main__":
    main()
