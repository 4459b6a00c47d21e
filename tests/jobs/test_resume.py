"""A run that was broken off, anywhere and any number of times, ends as the unbroken one."""

import shutil

from job_runs import assert_same_run, fingerprint

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
    assert_same_run(folder, fingerprint(finished))


def test_a_run_broken_off_before_its_report_still_gets_one(launch, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "report.html").unlink()
    outcome = launch(f"--workdir={folder}")
    assert outcome.code == 0
    assert_same_run(folder, fingerprint(finished))
