"""Reading a trace of the profiler, and the hook that makes one."""

import jax
import jax.numpy as jnp
import pytest
from compiling import quick_jit

from jaxlm.io.profiles import read_profile, summarize
from jaxlm.jobs.profiler import ASIDE, Profiler, describe
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
    assert "3.500 ms a step   63.6%     1.5 times  dot" in text


def test_what_is_left_out_is_in_no_figure_but_its_own():
    """As if the clock had stood still: evaluation and a save between two steps, one after them."""
    steps = [(10, 14, "dot.1", "jit_run"), (40, 43, "dot.1", "jit_run"), (43, 44, "add", "jit_run")]
    beside = [(18, 20, "dot.1", "jit_sums"), (46, 50, "add", "jit_sums")]
    events = [(a * MS, b * MS, *names) for a, b, *names in steps + beside]
    profile = summarize(events, [(16 * MS, 36 * MS), (45 * MS, 60 * MS)])
    assert {op.program for op in profile.operations} == {"jit_run"}
    assert profile.span_s == pytest.approx(14e-3)
    assert profile.busy_s == pytest.approx(8e-3)
    assert profile.longest_gap_s == pytest.approx(6e-3)
    assert profile.aside_s == pytest.approx(20e-3)
    text = describe(profile, num_steps=2)
    assert "2 steps of 7.00 ms; no operation ran for 3.00 ms" in text[0]
    assert "left out: 20.00 ms between them" in text[1]
    assert [line.strip() for line in text if " times " not in line][2:] == [
        "kinds of operations",
        "single operations",
    ]
    assert summarize(events[3:], [(16 * MS, 60 * MS)]) is None


def test_a_trace_without_operations_says_so(tmp_path):
    assert read_profile(tmp_path) is None and summarize([]) is None
    assert "no operation" in describe(None, 3)[0]


def test_the_steps_asked_for_are_traced(tmp_path):
    @quick_jit
    def run(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ x), x)

    @quick_jit
    def evaluate(x):
        return jnp.linalg.norm(x)

    x, notes = run(jnp.ones((64, 64))), []
    evaluate(x)
    with Profiler(TrainConfig(profile_steps="10:30"), tmp_path, notes.append) as profiler:

        def hook(step, x):
            assert bool(notes) == (step >= 30)
            jax.block_until_ready(evaluate(x))
            return step

        for step in (10, 20, 30, 40):
            x = jax.block_until_ready(run(x))
            assert profiler.around(hook)(step, x) == step
    assert "20 steps of" in notes[0] and "left out" in notes[1]
    programs = {op.program for op in read_profile(tmp_path).operations}
    assert any("evaluate" in program for program in programs), "of the hook after step 20"
    operations = read_profile(tmp_path, ASIDE).operations
    assert not any("evaluate" in op.program for op in operations)
    counts = {op.name: op.count for op in operations}
    assert 6 in counts.values()  # 2 calls of 3 turns: the calls after 10 and up to 30
    assert not any(name.startswith("while") for name in counts)


def test_a_run_that_ends_earlier_ends_its_trace(tmp_path):
    cfg = TrainConfig(profile_steps="0:30")
    for _ in range(2):  # the profiler allows one trace at a time
        with Profiler(cfg, tmp_path, print) as profiler:
            profiler.around(print)(0)
            with pytest.raises(RuntimeError, match="profile"):
                jax.profiler.start_trace(tmp_path)


@pytest.mark.parametrize("value", ["10", "20:10", "10:10", "a:b", "-10:10", "10:15", ":", "1:20"])
def test_what_is_no_pair_of_edges_is_refused(value):
    with pytest.raises(ValueError, match="profile_steps"):
        TrainConfig(profile_steps=value)
