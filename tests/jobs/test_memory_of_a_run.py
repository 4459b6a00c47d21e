"""The host memory of a run does not grow with its steps."""

import contextlib
import pathlib
import time

import pytest
from job_runs import Launcher

from jaxlm.jobs.verify_resume import last_logged

STEPS, WARM = 10_000, 2_000
# Bytes from step 2,000 on, with 40 checkpoints: of each TensorStore keeps some 37 KiB for good, see
# benchmarks/RESULTS.md. Glibc's own arenas, one for every thread, would still be filling up here.
GROWTH = 8 << 20
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
FIELDS = ["context_length=16", "num_layers=1", "d_model=16", "num_heads=2"]
TRAIN = ["steps_per_call=20", "log_every=20", "eval_every=200", "save_every=200"]


def memory(pid: int) -> dict[str, int]:
    """{"RssAnon": bytes, "RssFile": bytes} of a process; KeyError where it has just ended."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    found = dict(line.split(":") for line in lines if line.startswith("Rss"))
    return {name: int(found[name].split()[0]) << 10 for name in ("RssAnon", "RssFile")}


@pytest.mark.slow
def test_ten_thousand_steps_take_no_more_than_two_thousand(config, tmp_path):
    """With an evaluation and a checkpoint every 200 steps: all that could keep something."""
    folder, launch = tmp_path / "run", Launcher(tmp_path)
    launch.env |= ONE_ARENA
    fields = [f"--config.train.{field}" for field in (*TRAIN, f"num_steps={STEPS}")]
    fields += [f"--config.model.{field}" for field in FIELDS]
    seen: list[tuple[int, dict[str, int]]] = []
    with launch.start(
        config, *fields, "--config.train.sample_every=2000", f"--workdir={folder}"
    ) as p:
        while p.poll() is None:
            with contextlib.suppress(FileNotFoundError, KeyError, ValueError):  # it has just ended
                seen.append((last_logged(folder), memory(p.pid)))
            time.sleep(0.1)
        assert p.returncode == 0, p.stderr.read()
    warm = [held for step, held in seen if WARM <= step < WARM + 1000]
    # Not of the last step, at which the report is drawn.
    last = [held for step, held in seen if STEPS - 1000 <= step < STEPS]
    assert warm and last
    grown = {
        name: max(held[name] for held in last) - max(held[name] for held in warm)
        for name in warm[0]
    }
    first = {name: size >> 20 for name, size in warm[0].items()}
    print(f"MiB at step {WARM}: {first}; more at {STEPS}: {[g / 2**20 for g in grown.values()]}")
    assert max(grown.values()) < GROWTH, grown
