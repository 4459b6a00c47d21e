"""Batches as a function of (seed, step): no iterator, no shuffle buffer, nothing to save.

A split of T tokens has windows of S = context_length tokens and their S next tokens. In an epoch
the windows do not overlap and cover the split from a phase that depends on (seed, epoch), so later
epochs cut the text elsewhere. The windows of an epoch are visited once each, in an order that is a
keyed permutation. Example number step * batch_size + row says which epoch and which place in it,
whatever the number of processes.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from flax import struct

from jaxlm.core.config import FLAG, ConfigError
from jaxlm.data.config import DataConfig
from jaxlm.data.order import epoch_key, hash_u64, permute
from jaxlm.data.token_file import TokenFile

BLOCK_EXAMPLES = 1024


@struct.dataclass
class Batch:
    """What one training step reads.

    tokens: i32[B, S], the input.
    targets: i32[B, S], the token after each.
    weights: f32[B, S], 1 where the target counts, else 0.
    segment_ids: i32[B, S], or None without document masking: from 1 in each row, one more at each
      new document; 0 is padding. Attention stays among equal ids.
    """

    tokens: Any
    targets: Any
    weights: Any
    segment_ids: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """A train or validation view of a token source: runs of it, read as one stream of tokens.

    source: indexed by i64[...] positions, a `TokenFile` or an array of ids.
    run_starts: i64[R], where in the source each run begins.
    run_offsets: i64[R], where in this split each run begins; the first is 0.
    document_starts: i64[...], where in this split documents begin, sorted; the first is 0.
    num_tokens: the length of this split.
    description: for messages, such as "the train split of plays.txt (9,000 tokens)".
    """

    source: Any
    run_starts: np.ndarray
    run_offsets: np.ndarray
    document_starts: np.ndarray
    num_tokens: int
    description: str

    def take(self, positions: np.ndarray) -> np.ndarray:
        """i32[...], the tokens at i64[...] positions in range(num_tokens)."""
        if len(self.run_starts) == 1:
            positions = positions + self.run_starts[0]
        else:
            run = np.searchsorted(self.run_offsets, positions, side="right") - 1
            positions = positions + (self.run_starts - self.run_offsets)[run]
        return self.source[positions].astype(np.int32)


def open_splits(tokens: TokenFile, cfg: DataConfig) -> tuple[Split, Split]:
    """(train, validation) views of one token file, disjoint and together all of it.

    split=tail: the first int(num_tokens * (1 - val_fraction)) tokens train, the rest validates.
    split=document: round(num_documents * val_fraction) documents, at least one, validate: those
    whose text has the smallest hashes. Neither the order of the documents nor the tokenizer plays
    a part, and equal documents fall on one side.

    Raises:
      ConfigError: a part would be empty.
    """
    stops, total = tokens.document_stops, len(tokens)
    starts = np.concatenate([[0], stops[:-1]])
    name = tokens.header.corpus_name
    if cfg.split == "tail":
        cut = int(total * (1 - cfg.val_fraction))
        parts = [(np.minimum(starts, cut), np.minimum(stops, cut))]
        parts.append((np.maximum(starts, cut), np.maximum(stops, cut)))
    else:
        keys = tokens.document_keys
        num_different = len(np.unique(keys))
        if num_different < 2:
            raise ConfigError(
                f"{FLAG}data.split=document: {name} has {num_different} different document, at "
                f"least two are needed; set {FLAG}data.document_separator, give a folder, or use "
                f"{FLAG}data.split=tail"
            )
        num_validation = max(1, round(len(keys) * cfg.val_fraction))
        chosen = keys <= np.sort(keys)[num_validation - 1]
        parts = [(starts[side], stops[side]) for side in (~chosen, chosen)]
    views = []
    for part, (begin, end) in zip(("train", "validation"), parts, strict=True):
        if not (begin < end).any():
            raise ConfigError(
                f"{FLAG}data.val_fraction={cfg.val_fraction}: the {part} split of {name} would be "
                f"empty ({total:,} tokens, {len(stops):,} documents, split={cfg.split})"
            )
        views.append(_view(tokens, begin, end, f"the {part} split of {name} ({total:,} tokens)"))
    return views[0], views[1]


def split_from_array(tokens: np.ndarray, document_starts: np.ndarray | None = None) -> Split:
    """A split over int[T] ids in memory, one document or one at each of `document_starts`."""
    starts = np.zeros(1, np.int64) if document_starts is None else np.asarray(document_starts)
    stops = np.append(starts[1:], len(tokens))
    if starts[0] != 0 or (starts >= stops).any():
        raise ValueError("document_starts must rise from 0 and stay below the number of tokens")
    return _view(tokens, starts, stops, f"an array of {len(tokens):,} tokens")


def _view(source: Any, starts: np.ndarray, stops: np.ndarray, description: str) -> Split:
    """The documents source[start:stop], empty ones left out, read one after the other."""
    kept = starts < stops
    starts, stops = starts[kept], stops[kept]
    offsets = np.concatenate([[0], np.cumsum(stops - starts)])
    begins_run = np.append(True, starts[1:] != stops[:-1])
    return Split(
        source=source,
        run_starts=starts[begins_run],
        run_offsets=offsets[:-1][begins_run],
        document_starts=offsets[:-1],
        num_tokens=int(offsets[-1]),
        description=description,
    )


def check_length(split: Split, context_length: int) -> None:
    """Raises ConfigError if the split is too short for one window and its last target."""
    if split.num_tokens < context_length + 1:
        raise ConfigError(
            f"{split.description} has {split.num_tokens:,} tokens, context_length={context_length} "
            f"needs at least {context_length + 1:,}; give more text ({FLAG}data.path), lower "
            f"{FLAG}model.context_length, or change {FLAG}data.val_fraction"
        )


def num_windows(split: Split, context_length: int) -> int:
    """Windows an epoch (order=shuffled): as many as fit whatever the phase, and at least one."""
    return _windows_per_epoch(split.num_tokens, context_length)


def batch_at(
    split: Split,
    seed: int,
    step: int,
    *,
    batch_size: int,
    context_length: int,
    rows: slice = slice(None),
    order: Literal["shuffled", "contiguous"] = "shuffled",
    mask_documents: bool = False,
) -> Batch:
    """The batch of one step, a pure function of its arguments.

    order=shuffled: as the head of this file says. The phase is uniform over [0, context_length)
    (over what the split has room for, if it is shorter than two windows); the tokens before it and
    after the last window, fewer than 2 * context_length, wait for another epoch.
    order=contiguous: row r at step + 1 reads on where row r ended at `step`. The rows start evenly
    spaced over the split, the end of one at the start of the next, and run through all of it; the
    seed plays no part. Behind the end of the split a row begins anew, in another document: with
    `mask_documents` its last target there has weight 0, at which a carried state ends.

    Args:
      split: at least context_length + 1 tokens.
      seed: any integer.
      step: from 0.
      batch_size: B, rows over all processes.
      context_length: S.
      rows: which of the B rows to make, a slice with a positive step: the part of this process.
      mask_documents: give segment ids, and weight 0 to a target in another document than its input.
    Returns:
      numpy arrays [number of rows, S].
    Raises:
      ConfigError: the split is too short for S, or with order=contiguous for B rows of S.
    """
    starts = functools.partial(
        row_starts,
        split,
        seed,
        batch_size=batch_size,
        context_length=context_length,
        rows=rows,
        order=order,
    )
    start = starts(step)
    batch = _gather(split, start[:, None] + np.arange(context_length + 1), mask_documents)
    if mask_documents and order == "contiguous":
        batch.weights[starts(step + 1) != start + context_length, -1] = 0
    return batch


def row_starts(
    split: Split,
    seed: int,
    step: int,
    *,
    batch_size: int,
    context_length: int,
    rows: slice = slice(None),
    order: Literal["shuffled", "contiguous"] = "shuffled",
) -> np.ndarray:
    """i64[number of rows], where in the split each row of `batch_at` begins; arguments as there."""
    check_length(split, context_length)
    row = np.arange(batch_size)[rows]
    if not row.size:
        raise ValueError(f"rows={rows} is none of the batch's {batch_size} rows")
    if order == "contiguous":
        return _contiguous_starts(split, step, row, batch_size, context_length)
    return _shuffled_starts(split, seed, step * batch_size + row, context_length)


def lane_batches(split: Split, seeds: Sequence[int], steps: Sequence[int], **options) -> Batch:
    """[P, steps, B, S]: for each seed its `batch_at` of each step.

    Equal seeds see the same, which is made once.

    Args:
      options: batch_size and the rest, as `batch_at` takes them.
    """
    by_seed = {
        seed: stack_batches([batch_at(split, seed, n, **options) for n in steps])
        for seed in dict.fromkeys(seeds)
    }
    return stack_batches([by_seed[seed] for seed in seeds])


def stack_batches(batches: Sequence[Batch]) -> Batch:
    """Batches of one shape along a new leading axis."""
    return Batch(
        **{
            name: None if value is None else np.stack([getattr(b, name) for b in batches])
            for name, value in vars(batches[0]).items()
        }
    )


def _shuffled_starts(
    split: Split, seed: int, example: np.ndarray, context_length: int
) -> np.ndarray:
    first, last = example[0] // BLOCK_EXAMPLES, example[-1] // BLOCK_EXAMPLES
    blocks = [
        _window_starts(split.num_tokens, context_length, seed, block)
        for block in range(first, last + 1)
    ]
    return np.concatenate(blocks)[example - first * BLOCK_EXAMPLES]


@functools.lru_cache(maxsize=16)
def _window_starts(num_tokens: int, context_length: int, seed: int, block: int) -> np.ndarray:
    """Where the windows of BLOCK_EXAMPLES consecutive examples begin; a memo, for speed only."""
    windows = _windows_per_epoch(num_tokens, context_length)
    num_phases = min(context_length, num_tokens - windows * context_length)
    epoch, place = np.divmod(block * BLOCK_EXAMPLES + np.arange(BLOCK_EXAMPLES), windows)
    key = epoch_key(seed, epoch)
    phase = (hash_u64(~key) % np.uint64(num_phases)).astype(np.int64)
    return permute(place, windows, key) * context_length + phase


def _windows_per_epoch(num_tokens: int, context_length: int) -> int:
    return max(1, num_tokens // context_length - 1)


def _contiguous_starts(
    split: Split, step: int, row: np.ndarray, batch_size: int, context_length: int
) -> np.ndarray:
    windows_per_row = (split.num_tokens - 1) // context_length // batch_size
    if windows_per_row == 0:
        raise ConfigError(
            f"{FLAG}data.order=contiguous: {split.description} has {split.num_tokens:,} tokens, "
            f"too few for {batch_size} rows of context_length={context_length}; lower "
            f"{FLAG}data.batch_size or {FLAG}model.context_length, or give more text"
        )
    window = (row * windows_per_row + step) % (batch_size * windows_per_row)
    return window * context_length


def evaluation_batches(
    split: Split, *, batch_size: int, context_length: int, mask_documents: bool = False
) -> Iterator[Batch]:
    """The whole split in order, in batches of one shape [batch_size, context_length].

    Windows do not overlap and each token after the first of the split is a target once, with
    weight 1 (0 if `mask_documents` and it begins a document). What pads the last window and the
    last batch is 0 in tokens, targets, weights and segment ids.

    Raises:
      ConfigError: at the call, if the split is shorter than context_length + 1 tokens.
    """
    check_length(split, context_length)
    last = split.num_tokens - 1
    starts = np.arange(0, last, context_length)
    padding = -len(starts) % batch_size
    starts = np.append(starts, np.full(padding, last))

    def batches() -> Iterator[Batch]:
        for first in range(0, len(starts), batch_size):
            start = starts[first : first + batch_size, None]
            positions = start + np.arange(context_length + 1)
            batch = _gather(split, np.minimum(positions, last), mask_documents)
            yield _blank(batch, positions[:, 1:] > last)

    return batches()


def _gather(split: Split, positions: np.ndarray, mask_documents: bool) -> Batch:
    """[B, S + 1] positions in the split -> a batch of S tokens and their next tokens."""
    ids = split.take(positions)
    weights = np.ones(positions[:, 1:].shape, np.float32)
    segment_ids = None
    if mask_documents:
        document = np.searchsorted(split.document_starts, positions, side="right")
        weights = (document[:, 1:] == document[:, :-1]).astype(np.float32)
        segment_ids = (document[:, :-1] - document[:, :1] + 1).astype(np.int32)
    return Batch(tokens=ids[:, :-1], targets=ids[:, 1:], weights=weights, segment_ids=segment_ids)


def _blank(batch: Batch, padding: np.ndarray) -> Batch:
    """The batch with zeros where bool[B, S] `padding` is set."""
    return Batch(
        **{
            name: None if value is None else np.where(padding, value.dtype.type(0), value)
            for name, value in vars(batch).items()
        }
    )
