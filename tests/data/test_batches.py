"""Batches: pure in (seed, step), each window once an epoch, each token evaluated once."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.core.config import ConfigError
from jaxlm.data import batches
from jaxlm.data.batches import (
    Batch,
    batch_at,
    check_length,
    evaluation_batches,
    num_windows,
    open_splits,
    split_from_array,
)
from jaxlm.data.config import DataConfig
from jaxlm.data.corpus import open_corpus
from jaxlm.data.token_file import cached_token_file, open_token_file

LENGTHS = st.integers(2, 400)
CONTEXTS = st.integers(1, 20)
SEEDS = st.integers(-(2**65), 2**65)


def counting(num_tokens, document_starts=None):
    """A split whose ids are their own positions, so that a batch says where it was read."""
    return split_from_array(np.arange(num_tokens), document_starts)


def leaves(batch):
    return jax.tree.leaves(batch)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(leaves(a), leaves(b), strict=True):
        assert x.dtype == y.dtype and np.array_equal(x, y)


class CodePoints:
    fingerprint = "c" * 64
    vocab_size = 0x110000

    def encode_iterable(self, texts):
        for text in texts:
            yield np.frombuffer(text.encode("utf-32-le"), np.uint32)


def open_tokens(folder, documents, separator="#"):
    (folder / "text.txt").write_text(separator.join(documents))
    cfg = DataConfig(path=str(folder / "text.txt"), document_separator=separator)
    path = cached_token_file(open_corpus(cfg), CodePoints(), folder)
    return open_token_file(path, CodePoints.fingerprint)


def text_of(split):
    return "".join(map(chr, split.take(np.arange(split.num_tokens))))


@settings(deadline=None, max_examples=80)
@given(LENGTHS, CONTEXTS, SEEDS, st.integers(1, 9))
def test_every_window_once_an_epoch(num_tokens, context, seed, batch_size):
    split = counting(max(num_tokens, context + 1))
    windows = num_windows(split, context)
    num_steps = -(-3 * windows // batch_size)
    starts = np.concatenate(
        [
            batch_at(split, seed, s, batch_size=batch_size, context_length=context).tokens[:, 0]
            for s in range(num_steps)
        ]
    )
    for epoch in range(3):
        visited = np.sort(starts[epoch * windows : (epoch + 1) * windows])
        phase = visited[0]
        assert 0 <= phase < context
        assert np.array_equal(visited, phase + context * np.arange(windows))
        assert visited[-1] + context < split.num_tokens
        unseen = split.num_tokens - 1 - windows * context
        assert unseen < 2 * context


def test_phases_are_uniform_and_epochs_are_in_different_orders():
    split, context = counting(1000), 8
    windows = num_windows(split, context)
    epochs = [
        batch_at(split, 7, e, batch_size=windows, context_length=context).tokens[:, 0]
        for e in range(800)
    ]
    phases = np.array([e.min() for e in epochs])
    counts = np.bincount(phases, minlength=context)
    assert len(counts) == context and abs(counts - 100).max() < 45
    assert len({((e - p) // context).tobytes() for e, p in zip(epochs, phases, strict=True)}) == 800


@settings(deadline=None, max_examples=60)
@given(LENGTHS, CONTEXTS, SEEDS, st.integers(0, 10**9), st.booleans())
def test_contents_are_the_tokens_at_their_places(num_tokens, context, seed, step, masked):
    num_tokens = max(num_tokens, context + 1)
    starts = np.unique([0, num_tokens // 3, num_tokens // 2])
    tokens = np.random.default_rng(0).integers(50_000, size=num_tokens).astype(np.uint16)
    places = batch_at(counting(num_tokens), seed, step, batch_size=3, context_length=context)
    batch = batch_at(
        split_from_array(tokens, starts), seed, step, batch_size=3, context_length=context,
        mask_documents=masked,
    )  # fmt: skip
    assert batch.tokens.shape == batch.targets.shape == batch.weights.shape == (3, context)
    assert batch.tokens.dtype == batch.targets.dtype == np.int32
    assert batch.weights.dtype == np.float32
    assert np.array_equal(batch.tokens, tokens[places.tokens])
    assert np.array_equal(batch.targets, tokens[places.tokens + 1])
    if not masked:
        assert batch.segment_ids is None and (batch.weights == 1).all()
        return
    assert batch.segment_ids.dtype == np.int32
    for row in range(3):
        segment = 1
        for s in range(context):
            place = places.tokens[row, s]
            segment += s > 0 and place in starts
            assert batch.segment_ids[row, s] == segment
            assert batch.weights[row, s] == (place + 1 not in starts)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(0, 10**12), st.sampled_from(["shuffled", "contiguous"]), st.booleans())
def test_processes_make_the_rows_of_the_global_batch(seed, step, order, masked):
    split = counting(333, np.array([0, 50, 51, 200]))
    options = {"batch_size": 8, "context_length": 5, "order": order, "mask_documents": masked}
    whole = batch_at(split, seed, step, **options)
    for num_processes in (1, 2, 4, 8):
        each = 8 // num_processes
        parts = [
            batch_at(split, seed, step, rows=slice(p * each, (p + 1) * each), **options)
            for p in range(num_processes)
        ]
        assert_equal(whole, jax.tree.map(lambda *x: np.concatenate(x), *parts))


@pytest.mark.parametrize("order", ["shuffled", "contiguous"])
def test_a_restart_at_any_step_goes_on_equally(order):
    split = counting(500)
    options = {"batch_size": 4, "context_length": 7, "order": order}
    straight = [batch_at(split, 3, step, **options) for step in range(60)]
    for step in np.random.default_rng(1).permutation(60):
        batches._window_starts.cache_clear()
        assert_equal(straight[step], batch_at(counting(500), 3, int(step), **options))


def test_seeds_and_batch_sizes():
    split = counting(500)

    def first(seed, batch_size):
        steps = range(24 // batch_size)
        options = {"batch_size": batch_size, "context_length": 7}
        return np.concatenate([batch_at(split, seed, s, **options).tokens for s in steps])

    assert len({first(seed, 8).tobytes() for seed in range(20)}) == 20
    assert np.array_equal(first(1, 8), first(1, 3))  # the batch size cuts one stream of examples


def test_examples_straddle_epochs_within_a_batch():
    split = counting(20)  # context 5: three windows an epoch
    batch = batch_at(split, 0, 0, batch_size=300, context_length=5)
    epochs = np.sort(batch.tokens[:, 0].reshape(100, 3), axis=1)
    assert (np.diff(epochs, axis=1) == 5).all() and len(np.unique(epochs[:, 0])) == 5


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 300))
def test_contiguous_rows_read_on(batch_size, context, extra):
    split = counting(batch_size * context + 1 + extra)
    per_row = (split.num_tokens - 1) // context // batch_size
    options = {"batch_size": batch_size, "context_length": context, "order": "contiguous"}
    end = per_row * batch_size * context
    steps = [batch_at(split, 0, s, **options) for s in range(2 * per_row + 1)]
    for now, then in zip(steps, steps[1:], strict=False):
        assert np.array_equal(then.tokens[:, 0], now.targets[:, -1] % end)
    for first in (0, per_row):
        seen = np.concatenate([b.tokens for b in steps[first : first + per_row]], axis=None)
        assert np.array_equal(np.sort(seen), np.arange(end))
    assert split.num_tokens - 1 - end < batch_size * context


def test_a_row_that_reads_on_from_the_beginning_says_that_a_document_begins():
    """A model that carries its state asks the last target, else it takes it into the first one."""
    split, sizes = counting(64, np.array([0, 50])), {"batch_size": 3, "context_length": 4}
    steps = [
        batch_at(split, 0, n, **sizes, order="contiguous", mask_documents=True) for n in range(11)
    ]
    wrapped = 0
    for now, then in zip(steps, steps[1:], strict=False):
        reads_on = then.tokens[:, 0] == now.targets[:, -1]
        assert not now.weights[~reads_on, -1].any()
        wrapped += np.sum(~reads_on)
        np.testing.assert_array_equal(now.weights[reads_on, -1], now.targets[reads_on, -1] != 50)
    assert wrapped == 2


@settings(deadline=None, max_examples=80)
@given(LENGTHS, CONTEXTS, st.integers(1, 9), st.booleans())
def test_evaluation_counts_each_target_once(num_tokens, context, batch_size, masked):
    num_tokens = max(num_tokens, context + 1)
    starts = np.unique([0, num_tokens // 3, num_tokens // 2])
    split = counting(num_tokens, starts)
    evaluated = list(
        evaluation_batches(
            split, batch_size=batch_size, context_length=context, mask_documents=masked
        )
    )
    counted = np.zeros(num_tokens, int)
    for batch in evaluated:
        assert all(x.shape == (batch_size, context) for x in leaves(batch))
        assert len(leaves(batch)) == 3 + masked
        real = batch.weights > 0
        assert set(np.unique(batch.weights)) <= {0, 1}
        assert np.array_equal(batch.targets[real], batch.tokens[real] + 1)
        np.add.at(counted, batch.targets[real], 1)
        if masked:
            padding = batch.segment_ids == 0
            assert not batch.tokens[padding].any() and not batch.targets[padding].any()
            assert not batch.weights[padding].any()
    expected = np.ones(num_tokens, int)
    expected[starts if masked else [0]] = 0
    assert np.array_equal(counted, expected)
    assert len(evaluated) == -(-(num_tokens - 1) // (context * batch_size))


def test_evaluation_of_ten_tokens_written_out():
    split = split_from_array(np.arange(100, 110), np.array([0, 6]))
    first, second = evaluation_batches(
        split, batch_size=2, context_length=4, mask_documents=True
    )  # fmt: skip
    assert first.tokens.tolist() == [[100, 101, 102, 103], [104, 105, 106, 107]]
    assert first.targets.tolist() == [[101, 102, 103, 104], [105, 106, 107, 108]]
    assert first.weights.tolist() == [[1, 1, 1, 1], [1, 0, 1, 1]]
    assert first.segment_ids.tolist() == [[1, 1, 1, 1], [1, 1, 2, 2]]
    assert second.tokens.tolist() == [[108, 0, 0, 0], [0, 0, 0, 0]]
    assert second.targets.tolist() == [[109, 0, 0, 0], [0, 0, 0, 0]]
    assert second.weights.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]
    assert second.segment_ids.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("val_fraction", [0.1, 0.25, 0.5])
def test_the_tail_validates(tmp_path, val_fraction):
    documents = ["a" * 30, "b" * 31, "c" * 36]
    tokens = open_tokens(tmp_path, documents)
    train, validation = open_splits(tokens, DataConfig(val_fraction=val_fraction))
    assert train.num_tokens == int(97 * (1 - val_fraction))
    assert text_of(train) + text_of(validation) == "".join(documents)
    for split in (train, validation):
        text = text_of(split)
        changes = [0, *(i for i in range(1, len(text)) if text[i] != text[i - 1])]
        assert split.document_starts.tolist() == changes


def test_documents_are_chosen_by_their_text_whatever_their_order(tmp_path):
    rng = np.random.default_rng(0)
    documents = [f"{i}:" + "x" * int(rng.integers(0, 30)) for i in range(50)]
    cfg = DataConfig(split="document", val_fraction=0.2)
    chosen = []
    for order in (np.arange(50), rng.permutation(50)):
        train, validation = open_splits(
            open_tokens(tmp_path, [documents[i] for i in order], "#"), cfg
        )
        sides = []
        for split in (train, validation):
            parts = np.split(split.take(np.arange(split.num_tokens)), split.document_starts[1:])
            sides.append(["".join(map(chr, part)) for part in parts])
        train_order = [documents[i] for i in order if documents[i] not in sides[1]]
        assert sides[0] == train_order  # the order of the corpus is kept
        assert len(sides[1]) == 10 and sorted(sides[0] + sides[1]) == sorted(documents)
        assert len(validation.run_starts) > 1
        chosen.append(set(sides[1]))
    assert chosen[0] == chosen[1]


def test_equal_documents_fall_on_one_side(tmp_path):
    tokens = open_tokens(tmp_path, ["aa", "b", "aa", "aa", "c", "aa"])
    for val_fraction in (0.1, 0.5, 0.9):
        cfg = DataConfig(split="document", val_fraction=val_fraction)
        try:
            sides = open_splits(tokens, cfg)
        except ConfigError as error:  # all would validate
            assert "train split of text.txt would be empty" in str(error)
            continue
        assert sum("a" in text_of(side) for side in sides) == 1


def test_batches_of_a_document_split_do_not_leak(tmp_path):
    documents = [chr(1000 + i) * (5 + i) for i in range(20)]
    tokens = open_tokens(tmp_path, documents)
    sides = open_splits(tokens, DataConfig(split="document", val_fraction=0.3))
    train, validation = (
        {
            token
            for step in range(40)
            for token in np.unique(batch_at(side, 0, step, batch_size=4, context_length=6).targets)
        }
        for side in sides
    )
    assert not train & validation and len(train | validation) == 20


@pytest.mark.parametrize(
    "documents, options, message",
    [
        (["abc"], {"split": "document"}, "split=document: text.txt has 1 different document"),
        (["abc", "abc"], {"split": "document"}, "document_separator"),
        (["a"], {"val_fraction": 0.5}, "val_fraction=0.5: the train split of text.txt would be"),
    ],
)
def test_a_split_that_cannot_be_made(tmp_path, documents, options, message):
    with pytest.raises(ConfigError, match=message):
        open_splits(open_tokens(tmp_path, documents), DataConfig(**options))


def test_a_split_that_is_too_short_says_what_to_change(tmp_path):
    train, validation = open_splits(open_tokens(tmp_path, ["x" * 100]), DataConfig())
    calls = [
        lambda: check_length(validation, 10),
        lambda: batch_at(validation, 0, 0, batch_size=2, context_length=10),
        lambda: evaluation_batches(validation, batch_size=2, context_length=10),
    ]
    for call in calls:
        with pytest.raises(ConfigError) as error:
            call()
        for part in (
            "validation split of text.txt (100 tokens) has 10 tokens",
            "context_length=10 needs at least 11",
            "--config.data.path",
            "--config.model.context_length",
            "--config.data.val_fraction",
        ):
            assert part in str(error.value)
    check_length(validation, 9)
    assert batch_at(validation, 0, 5, batch_size=2, context_length=9).tokens.shape == (2, 9)
    with pytest.raises(ConfigError, match="order=contiguous.*90 tokens.*batch_size"):
        batch_at(train, 0, 0, batch_size=12, context_length=8, order="contiguous")


def test_arguments_that_make_no_sense():
    with pytest.raises(ValueError, match="document_starts"):
        split_from_array(np.arange(9), np.array([1, 3]))
    with pytest.raises(ValueError, match="document_starts"):
        split_from_array(np.arange(9), np.array([0, 9]))
    with pytest.raises(ValueError, match="rows"):
        batch_at(counting(9), 0, 0, batch_size=2, context_length=3, rows=slice(2, 4))


def test_a_batch_is_a_pytree():
    batch = batch_at(counting(50), 0, 0, batch_size=2, context_length=3)
    doubled = jax.tree.map(lambda x: x * 2, batch)
    assert isinstance(doubled, Batch) and doubled.segment_ids is None
    assert np.array_equal(doubled.tokens, batch.tokens * 2)
