"""What is found out about a training step that went wrong, and kept for whoever looks into it."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxlm.analysis.nonfinite import first_nonfinite
from jaxlm.data.batches import batch_at, row_starts
from jaxlm.io import checkpoints
from jaxlm.jobs.setup import Data, batch_options
from jaxlm.train.config import RunConfig
from jaxlm.train.state import TrainState

FOLDER = "bad_steps"
TEXT_SHOWN = 60  # characters of a row


class BadStep(NamedTuple):
    """step: updates done after it. problem: for a reader. finite: False where a value is not."""

    step: int
    problem: str
    finite: bool


def examine(
    cfg: RunConfig,
    folder: pathlib.Path,
    data: Data,
    step: Callable[[TrainState, Any], Any],
    state: TrainState,
    bad: BadStep,
    batch_number: int,
) -> list[str]:
    """Saves the state before a bad step with the batch it read, and finds where it went wrong.

    They are in `<folder>/bad_steps`, a checkpoint whose manifest tells the rows of the batch in
    "extra": where in the train split each begins, its documents and the beginning of its text.

    Args:
      step: (state, batch) -> (state, metrics), as it is compiled. state: that before the bad step.
    Returns:
      lines for the reader.
    """
    options = batch_options(cfg)
    placing = {name: options[name] for name in ("batch_size", "context_length", "order")}
    starts = row_starts(data.train, cfg.seed, batch_number, **placing)
    batch = batch_at(data.train, cfg.seed, batch_number, **options)
    stops = starts + cfg.model.context_length
    first, last = (
        np.searchsorted(data.train.document_starts, ends, side="right") - 1
        for ends in (starts, stops)
    )
    documents = sorted({d for a, b in zip(first, last, strict=True) for d in range(a, b + 1)})
    rows = [
        {
            "first_token": int(start),
            "documents": [int(a), int(b)],
            "text": data.tokenizer.decode(ids[:TEXT_SHOWN])[:TEXT_SHOWN],
        }
        for start, a, b, ids in zip(starts, first, last, batch.tokens, strict=True)
    ]
    lines = []
    if not bad.finite:
        origin = first_nonfinite(
            step, {"": state, "batch": batch}, lambda out: (out[1]["loss"], out[1]["grad_norm"])
        )
        lines.append(
            f"{origin}"
            if origin
            else "run op by op it is finite: the value hangs on how the compiled step rounds"
        )
    extra = {"problem": bad.problem, "found": lines[:1], "batch": batch_number, "rows": rows}
    with checkpoints.Checkpointer(folder / FOLDER, keep_last=1, keep_best=0) as writer:
        writer.save(bad.step - 1, state.replace(frozen={}), extra=extra)
    numbers = ", ".join(map(str, documents[:8])) + (", ..." if len(documents) > 8 else "")
    where = checkpoints.step_dir(folder / FOLDER, bad.step - 1)
    lines.append(f"it read batch {batch_number}, of documents {numbers} of the train split")
    return [*lines, f"the state before it, and the rows of the batch: {where}"]
