import random

from jaxlm.train.passed_over import batch_number, num_passed, pass_over


def test_steps_read_what_is_not_passed_over_in_order():
    rng, passed, gone = random.Random(0), (), set()
    for _ in range(40):
        first = rng.randrange(60)
        stop = first + rng.randrange(1, 6)
        passed = pass_over(passed, first, stop)
        gone |= set(range(first, stop))
        kept = [n for n in range(200) if n not in gone]
        assert [batch_number(step, passed) for step in range(80)] == kept[:80]
        assert num_passed(passed) == len(gone)
        assert list(passed) == sorted(passed)
        assert all(a[1] < b[0] for a, b in zip(passed[:-1], passed[1:], strict=True))
