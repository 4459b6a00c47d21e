"""Batches that a run has passed over: after a rollback it goes on with those behind them.

A batch has a number, that of the step which would read it if none were passed over. Ranges
(first, stop) of numbers are passed over; they are sorted and apart.
"""

Ranges = tuple[tuple[int, int], ...]


def batch_number(step: int, passed: Ranges) -> int:
    """The number of the batch that a step reads, both from 0."""
    for first, stop in passed:
        if step < first:
            break
        step += stop - first
    return step


def pass_over(passed: Ranges, first: int, stop: int) -> Ranges:
    """`passed` and, beside it, the numbers from `first` to before `stop`."""
    apart = [r for r in passed if r[1] < first or r[0] > stop]
    touching = [r for r in passed if r not in apart]
    first, stop = min([first, *(r[0] for r in touching)]), max([stop, *(r[1] for r in touching)])
    return tuple(sorted([*apart, (first, stop)]))


def num_passed(passed: Ranges) -> int:
    return sum(stop - first for first, stop in passed)
