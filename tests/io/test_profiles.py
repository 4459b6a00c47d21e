"""Reading a trace of the profiler, and the hook that makes one."""

import jax
import jax.numpy as jnp
import pytest
from compiling import quick_jit

from jaxlm.io.profiles import read_profile, summarize
from jaxlm.jobs.profiler import Profiler, describe
from jaxlm.train.config import TrainConfig

MS = 1e6  # nanoseconds


def test_times_are_sums_and_what_overlaps_is_busy_once():
    events = [
        (10 * MS, 14 * MS, "dot.1", "jit_run"),
        (12 * MS, 16 * MS, "add.2", "jit_run"),  # beside it, in another thread
        (19 * MS, 20 * MS, "dot.1", "jit_run"),
        (20 * MS, 22 * MS, "dot.7", "jit_run"),
    ]
    profile = summarize(events)
    assert profile.operations[0][:2] == ("dot.1", "jit_run")
    assert [round(1e3 * op.seconds) for op in profile.operations] == [5, 4, 2]
    assert profile.operations[0].count == 2
    assert profile.span_s == pytest.approx(12e-3)
    assert profile.busy_s == pytest.approx(9e-3)
    assert profile.longest_gap_s == pytest.approx(3e-3)
    text = "\n".join(describe(profile, num_steps=2))
    assert "2 steps of 6.00 ms; no operation ran for 1.50 ms of them (25.0%)" in text
    assert "3.500 ms a step   63.6%     1.5 times  all dot" in text


def test_a_trace_without_operations_says_so(tmp_path):
    assert read_profile(tmp_path) is None and summarize([]) is None
    assert "no operation" in describe(None, 3)[0]


def test_the_steps_asked_for_are_traced(tmp_path):
    @quick_jit
    def run(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ x), x)

    x, notes = run(jnp.ones((64, 64))), []
    with Profiler(TrainConfig(profile_steps="10:30"), tmp_path, 0, notes.append) as profiler:
        for step in (10, 20, 30, 40):
            x = jax.block_until_ready(run(x))
            profiler.after_call(step)
            assert bool(notes) == (step >= 30)
    assert "20 steps of" in notes[0]
    counts = {op.name: op.count for op in read_profile(tmp_path).operations}
    assert 6 in counts.values()  # 2 calls of 3 turns: the calls after 10 and up to 30
    assert not any(name.startswith("while") for name in counts)


def test_a_run_that_ends_earlier_ends_its_trace(tmp_path):
    cfg = TrainConfig(profile_steps="0:30")
    with Profiler(cfg, tmp_path, 0, print):
        pass
    with Profiler(cfg, tmp_path, 0, print):  # the profiler allows one trace at a time
        pass


@pytest.mark.parametrize("value", ["10", "20:10", "10:10", "a:b", "-10:10", "10:15", ":", "1:20"])
def test_what_is_no_pair_of_edges_is_refused(value):
    with pytest.raises(ValueError, match="profile_steps"):
        TrainConfig(profile_steps=value)
