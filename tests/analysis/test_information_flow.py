"""The proof of causality: it holds where it should, and each planted mistake is caught."""

import dataclasses

import jax
import numpy as np
import pytest
from compiling import quick_jit
from drawn import draw_params
from oracles.attention_loops import may_read

from jaxlm.analysis import information_flow as flow
from jaxlm.data.batches import batch_at
from jaxlm.models import transformer
from jaxlm.models.transformer import TransformerConfig
from jaxlm.nn import attention, split_attention

S = 12
CFG = TransformerConfig(
    vocab_size=S + flow.NUM_FREE_IDS,
    context_length=S,
    num_layers=2,
    d_model=8,
    num_heads=2,
    d_ff=16,
)
ALONE = dataclasses.replace(CFG, num_layers=1, residual=0.0)  # a layer without its skip connection
QUERIES = np.arange(S, dtype=np.int32)


def row(**options):
    return flow.training_row(S, seed=3, **options)


def measure(cfg, the_row, attend=attention.attend, cached=False):
    model = transformer.build(cfg, attend=attend)
    segments = None if the_row.segment_ids is None else np.array(the_row.segment_ids)[None]

    @quick_jit
    def run(params, tokens):
        def logits(table):
            weights = params | {"embed": table}
            if cached:
                return flow.cached_logits(model, weights, tokens[None])
            return model.forward(weights, tokens[None], segment_ids=segments)

        return flow.dependence(logits, params["embed"], tokens, QUERIES, jax.random.key(1))[0]

    return np.asarray(run(draw_params(model.specs), the_row.tokens))


def offence(cfg, the_row, **options):
    reach = None if cfg.window is None else cfg.num_layers * (cfg.window - 1)
    return flow.first_offence(
        measure(cfg, the_row, **options), QUERIES, flow.readable(the_row, reach)
    )


RIGHT = [
    {},
    {"window": 3, "positions": "sinusoidal", "norm": "layer", "bias": True, "residual": 0.5},
    {"positions": "learned", "tied_head": True, "qk_norm": True, "dtype": "bfloat16"},
    {"num_layers": 1, "residual": 0.0, "window": 4, "norm_placement": "post", "output_init": 0},
]


@pytest.mark.parametrize(
    ("fields", "cached"),
    [
        *zip(RIGHT, (False, True, False, True), strict=True),
        *(
            pytest.param(fields, cached, marks=pytest.mark.slow)
            for fields, cached in zip(RIGHT, (True, False, True, False), strict=True)
        ),
    ],
)
def test_a_right_model_is_proved(fields, cached):
    assert offence(dataclasses.replace(CFG, **fields), row(), cached=cached) is None


def test_packed_rows_are_proved():
    packed = row(mask_documents=True)
    assert len(set(packed.document)) > 2 and packed.segment_ids is not None
    for cfg in (CFG, dataclasses.replace(ALONE, window=3)):
        assert offence(cfg, packed) is None
        assert offence(cfg, packed, attend=split_attention.attend) is None


@pytest.mark.parametrize("window, masked", [(None, False), (3, False), (4, True)])
def test_what_may_be_read_is_what_the_loops_of_the_oracle_say(window, masked):
    the_row = row(mask_documents=masked)
    segments = np.zeros(S) if the_row.segment_ids is None else the_row.segment_ids
    want = [
        [
            may_read(
                t, s, causal=True, window=window, q_segment=segments[t], kv_segment=segments[s]
            )
            for s in range(S)
        ]
        for t in range(S)
    ]
    got = flow.readable(the_row, None if window is None else window - 1)
    np.testing.assert_array_equal(got, want)


def with_mask(change):
    """An `attend` whose mask is changed: `change(distance, kinds) -> bool[S, T]`."""

    def attend(q, k, v, **kinds):
        mask = attention.attention_mask

        def changed(q_positions, kv_positions, **options):
            return change(q_positions[:, None] - kv_positions[None, :], options)

        attention.attention_mask = changed
        try:
            return attention.attend(q, k, v, **kinds)
        finally:
            attention.attention_mask = mask

    return attend


PLANTED = {
    # name: (cfg, mask, first offence)
    "one key too many": (CFG, lambda d, o: d >= -1, (0, 1)),
    "one key too few": (ALONE, lambda d, o: d > 0, (0, 0)),
    "the first key left out": (ALONE, lambda d, o: (d >= 0) & (d < S - 1), (S - 1, 0)),
    "a window one too long": (
        dataclasses.replace(CFG, window=3),
        lambda d, o: (d >= 0) & (d <= o["window"]),
        (5, 0),  # two layers of window 3 reach back 4
    ),
    "a window one too short": (
        dataclasses.replace(CFG, window=3),
        lambda d, o: (d >= 0) & (d < o["window"] - 1),
        (3, 0),
    ),
    "one future key for one query": (
        CFG,
        lambda d, o: (d >= 0) | ((d == -1) & (np.arange(S)[:, None] == 6)),
        (6, 7),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mask_is_caught(name):
    cfg, mask, want = PLANTED[name]
    found = offence(cfg, row(), attend=with_mask(mask))
    assert (found.t, found.s) == want
    assert ("do not depend" in str(found)) == (
        cfg is ALONE or "too short" in name or "left" in name
    )


def test_a_segment_leak_is_caught():
    packed = row(mask_documents=True)
    border = int(np.argmax(packed.document != packed.document[0]))
    found = offence(CFG, packed._replace(segment_ids=None))
    assert (found.t, found.s) == (border, 0)
    one_late = np.array(packed.segment_ids)
    one_late[border] = one_late[border - 1]  # a document begins a token too late
    assert offence(CFG, packed._replace(segment_ids=one_late)).t == border


@pytest.mark.parametrize("shift, want", [(-1, (0, 0)), (1, (0, 1))])
def test_a_shifted_target_is_caught(shift, want):
    """By -1 the target is the input itself, by 1 the token in between is never read."""

    def shifted(*args, **options):
        batch = batch_at(*args, **options)
        return batch.replace(targets=batch.targets + shift)

    found = offence(CFG, row(make_batch=shifted))
    assert (found.t, found.s) == want


def test_a_cache_that_reads_behind_its_end_is_caught(monkeypatch):
    """Entries behind a row's length are those of later tokens, or of none."""

    def one_too_many(*args, q_positions, **options):
        return attention.attend(*args, q_positions=q_positions + 1, **options)

    monkeypatch.setattr(transformer, "plain_attend", one_too_many)
    found = offence(CFG, row(), cached=True)
    assert (found.t, found.s) == (0, 1)


def test_nan_is_an_offence_wherever_it_is():
    allowed = flow.readable(row())
    measured = np.where(allowed, 1.0, 0.0)
    assert flow.first_offence(measured, QUERIES, allowed) is None
    for t, s in ((2, 1), (2, 3)):
        broken = measured.copy()
        broken[t, s] = np.nan
        assert flow.first_offence(broken, QUERIES, allowed)[:2] == (t, s)


def test_long_rows_are_asked_at_the_edges_of_blocks():
    assert len(flow.queries_of(256)) == 256
    asked = set(flow.queries_of(2047))
    assert len(asked) < 110 and {0, 63, 64, 511, 512, 1024, 2046} <= asked
