"""A run that was broken off, anywhere and any number of times, ends as the unbroken one."""

import json
import shutil

from job_runs import assert_same_run, fingerprint

from jaxlm.jobs.recorder import seconds_of_starts

CRASHES = [
    ("_log_steps", 8, True),  # before any checkpoint
    ("save", 16, False),  # metrics written, nothing saved
    ("_validate", 16, False),  # saved, not evaluated
    ("_validate", 32, True),  # evaluated, not recorded in the resume's memory
    ("_write_samples", 48, False),  # the last step saved and evaluated, no sample
    ("write_summary", 48, False),
]


def test_a_run_broken_off_at_every_edge_ends_as_the_unbroken_one(
    launch, config, finished, tmp_path
):
    folder = tmp_path / "run"
    for crash in CRASHES:
        outcome = launch(config, f"--workdir={folder}", crash=crash)
        assert outcome.code == "crash", outcome
        for log in ("metrics.jsonl", "samples.jsonl"):  # and the last line was half on the disk
            with (folder / log).open("a") as file:
                file.write('{"step": 4')
    outcome = launch(f"--workdir={folder}")
    assert outcome.code == 0, outcome.err
    assert "resumed   at step 48" in outcome.out
    last = json.loads((folder / "summary.json").read_text())["seconds"]
    assert last >= seconds_of_starts(folder / "timings.jsonl") > 0
    assert_same_run(folder, fingerprint(finished))


def test_a_run_broken_off_before_its_report_still_gets_one(launch, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "report.html").unlink()
    outcome = launch(f"--workdir={folder}")
    assert outcome.code == 0
    assert_same_run(folder, fingerprint(finished))


def test_the_time_of_a_run_is_that_of_all_its_starts(tmp_path):
    path = tmp_path / "timings.jsonl"
    assert seconds_of_starts(path) == 0
    first = [{"event": "start", "step": 0}, {"step": 8, "elapsed_s": 3.5}]
    killed = [{"event": "start", "step": 8}]
    second = [*killed, {"step": 16, "elapsed_s": 2.0}, {"step": 16, "tokens_per_s": 1.0}]
    stopped = [{"event": "end", "step": 24, "elapsed_s": 4.25}]
    path.write_text("".join(f"{json.dumps(r)}\n" for r in [*first, *killed, *second, *stopped]))
    assert seconds_of_starts(path) == 3.5 + 4.25
