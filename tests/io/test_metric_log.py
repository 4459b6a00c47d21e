"""Metric logs: valid lines only, nothing lost to a kill, cut back exactly to a step."""

import errno
import json
import math
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.core.config import ConfigError
from jaxlm.core.json_forms import count
from jaxlm.io import metric_log
from jaxlm.io.metric_log import MetricLog

ROOT = pathlib.Path(__file__).parents[2]


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_records_come_back_exactly(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricLog(path) as log:
        log.append({"step": 1, "loss": jnp.float32(0.1), "text": 'a\n"b" \u2028 \ud800'})
        log.append({"step": np.int64(2), "loss": float("nan"), "list": [float("inf"), 0.1 + 0.2]})
    lines = path.read_bytes().split(b"\n")
    assert lines[2:] == [b""]
    first, second = (json.loads(line, parse_constant=refuse) for line in lines[:2])
    assert first == {"step": 1, "loss": float(np.float32(0.1)), "text": 'a\n"b" \u2028 \ud800'}
    assert second == {"step": 2, "loss": None, "list": [None, 0.1 + 0.2]}
    assert metric_log.read(path) == [first, second]


def test_reopening_appends_and_drops_a_torn_line(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st')
    assert metric_log.read(path) == [{"step": 1}]
    with MetricLog(path) as log:
        log.append({"step": 2})
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


@settings(max_examples=50, deadline=None)
@given(
    gaps=st.lists(st.integers(0, 3), max_size=12),
    stepless=st.sets(st.integers(0, 12)),
    at=st.integers(-1, 40),
    torn=st.binary(max_size=20).filter(lambda b: b"\n" not in b),
)
def test_truncation_is_the_longest_prefix_and_resuming_repeats_the_file(
    tmp_path_factory, gaps, stepless, at, torn
):
    path = tmp_path_factory.mktemp("log") / "m.jsonl"
    steps = np.cumsum(gaps).tolist()
    records = [
        {"event": i} if i in stepless else {"step": step, "loss": step / 3}
        for i, step in enumerate(steps)
    ]
    with MetricLog(path) as log:
        for record in records:
            log.append(record)
    unbroken = path.read_bytes()
    path.write_bytes(unbroken + torn)
    metric_log.truncate(path, lambda record: record.get("step", at) <= at)

    later = [i for i, r in enumerate(records) if r.get("step", -math.inf) > at]
    kept = records[: later[0]] if later else records
    assert path.read_bytes() == b"".join(unbroken.splitlines(keepends=True)[: len(kept)])
    assert metric_log.read(path) == kept
    with MetricLog(path) as log:
        for record in records[len(kept) :]:
            log.append(record)
    assert path.read_bytes() == unbroken


def test_truncating_a_missing_file_leaves_it_missing(tmp_path):
    metric_log.truncate(tmp_path / "m.jsonl", lambda _: False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"7\n", b'{"step": 2\n', b"\n"])
def test_damage_before_the_end_is_named_and_nothing_is_cut(tmp_path, damage):
    path = tmp_path / "m.jsonl"
    data = b'{"step": 1}\n' + damage + b'{"step": 3}\n'
    path.write_bytes(data)
    for use in (
        metric_log.read,
        lambda p: metric_log.truncate(p, lambda record: record["step"] < 2),
    ):
        with pytest.raises(ConfigError, match=r"m\.jsonl: line 2 is not a JSON object"):
            use(path)
    assert path.read_bytes() == data


def run_child(code: str, path: pathlib.Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_a_killed_writer_loses_nothing_it_had_appended(tmp_path):
    code = (
        "import sys; from jaxlm.io.metric_log import MetricLog\n"
        "log = MetricLog(sys.argv[1])\n"
        "for i in range(10**9):\n"
        "    log.append({'step': i, 'pad': 'x' * (i % 5000)})\n"
        "    if i % 1000 == 0: print(i, flush=True)"
    )
    path = tmp_path / "m.jsonl"
    writer = run_child(code, path)
    for _ in range(4):
        announced = int(writer.stdout.readline())
    writer.kill()
    writer.communicate()
    records = metric_log.read(path)
    assert [r["step"] for r in records] == list(range(len(records)))
    assert len(records) > announced


def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path):
    code = (
        "import resource, sys; from jaxlm.core.config import ConfigError\n"
        "from jaxlm.io.metric_log import MetricLog\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "log = MetricLog(sys.argv[1]); log.append({'step': 1})\n"
        "try: log.append({'step': 2, 'pad': 'x' * 500})\n"
        "except ConfigError as error: print(error)\n"
        "log.append({'step': 3})"
    )
    path = tmp_path / "m.jsonl"
    out, _ = run_child(code, path).communicate()
    assert out == f"{path}: cannot be written: File too large\n"
    assert path.read_bytes() == b'{"step": 1}\n{"step": 3}\n'


def test_a_disk_that_fails_at_a_sync_is_one_line(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with MetricLog(tmp_path / "m.jsonl") as log:
        log.append({"step": 1})
        log.sync()
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match="m.jsonl: cannot be written: No space left"):
            log.sync()


def test_unwritable_place_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        MetricLog(tmp_path / "none" / "m.jsonl")
    with pytest.raises(ConfigError, match="No such file"):
        metric_log.read(tmp_path / "m.jsonl")


def test_a_record_of_another_form_is_named_and_nothing_is_cut(tmp_path):
    path = tmp_path / "m.jsonl"
    data = b'{"step": 1}\n{"step": [2]}\n{"step": 3}\n'
    path.write_bytes(data)
    for use in (metric_log.read, lambda p, form: metric_log.truncate(p, lambda _: False, form)):
        with pytest.raises(ConfigError, match=r"m\.jsonl: line 2: step: expected count"):
            use(path, {"step": count})
    assert path.read_bytes() == data
