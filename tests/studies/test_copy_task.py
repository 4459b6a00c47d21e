"""The copy task's sequences and scores by hand, and its smallest study from cells to figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import copy_task
from experiments.copy_task import run
from jaxlm.analysis.claims import NOT_SUPPORTED
from jaxlm.core.results import Results


def test_a_row_is_the_sequence_a_separator_and_the_sequence_again():
    lengths = jnp.array([1, 3, 4])
    batch = run.copy_batch(jax.random.key(0), lengths, num_symbols=9, max_length=4)
    tokens, targets = np.asarray(batch.tokens), np.asarray(batch.targets)
    assert tokens.shape == (3, 9)
    for row, length in enumerate([1, 3, 4]):
        symbols = tokens[row, :length]
        assert len(set(symbols)) == length and symbols.min() >= run.FIRST_SYMBOL
        whole = [*symbols, run.SEPARATOR, *symbols] + [run.PAD] * (9 - 2 * length)
        np.testing.assert_array_equal(tokens[row], whole[:9])
        np.testing.assert_array_equal(targets[row], whole[1:10])
        counted = np.flatnonzero(batch.weights[row])
        np.testing.assert_array_equal(targets[row][counted], symbols)


def test_accuracies_by_hand():
    right = jnp.array([[True, False, True], [True, True, False]])
    weights = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    scores = run.accuracies(right, weights)
    assert (float(scores["token_accuracy"]), float(scores["exact_match"])) == (0.75, 0.5)


def test_a_head_that_only_copies_scores_one():
    """Length 3: the separator at 3 looks at 0, the copy's places 4 and 5 at 1 and 2."""
    maps = np.zeros((1, 1, 2, 6, 6), np.float32)
    for query, key in ((3, 0), (4, 1), (5, 2)):
        maps[0, 0, 0, query, key] = 1
        maps[0, 0, 1, query, query] = 1
    np.testing.assert_array_equal(run.copy_scores(jnp.asarray(maps), 3), [[1, 0]])


def test_the_classic_setting_is_the_one_described():
    cfg = run.classic_config(500)
    specs = run.classic_program(cfg).specs
    shapes = {path: spec.shape for path, spec in specs["blocks"].items()}
    assert shapes["wq"] == (1, 32, 2, 16) and shapes["w_up"] == (1, 32, 64)
    assert specs["embed"].shape == (10, 32) and specs["positions"].shape == (4, 32)
    assert "final_norm" not in specs and specs["unembed_bias"].shape == (10,)
    batch = run.classic_batch(jax.random.key(0), 200, cfg)
    assert batch.tokens.shape == (200, 4)
    assert set(np.unique(batch.tokens)) == set(range(1, 10))
    np.testing.assert_array_equal(batch.tokens, batch.targets)


@pytest.mark.slow
def test_the_classic_setting_is_solved_in_every_one_of_32_seeds():
    [(step, scores)] = run.train_classic(list(range(32)), 500).evaluations
    assert step == 500 and scores["exact_match"].shape == (32,)
    assert (scores["exact_match"] == 1).all()


@pytest.fixture(scope="module")
def results():
    cfg = copy_task.Config(
        classic_seeds=3,
        classic_steps=10,
        num_seeds=2,
        positions=("rope",),
        d_model=8,
        num_symbols=6,
        train_length=3,
        test_lengths=(2, 3, 6),
        num_test=8,
        num_steps=4,
        eval_every=2,
        batch_size=4,
        optimizer="adamw",
        warmup_steps=1,
    )
    rows = [row for cell in copy_task.cells(cfg) for row in run.run_cell(cell)]
    plain = {**vars(cfg), "test_lengths": [2, 3, 6], "num_layers": [2], "num_heads": [2]}
    return Results(study="copy_task", config=plain, rows=tuple(rows))


def test_ten_steps_do_not_solve_it_and_the_claims_say_so(results):
    verdicts = {claim.text: claim.verdict for claim in copy_task.claims(results)}
    [solved] = [v for text, v in verdicts.items() if "classic" in text]
    assert solved == NOT_SUPPORTED or solved == "inconclusive"
    [learned] = [v for text, v in verdicts.items() if "95% of tokens" in text]
    assert learned == NOT_SUPPORTED


def test_every_part_is_measured_drawn_and_tabled(results):
    assert len(results.select("token_accuracy", part="causal", step=4).rows) == 2 * 3
    assert len(results.select("copy_score").rows) == 2 * 4  # seeds, layers x heads
    attention = results.select("attention")
    for query in range(6):  # each row of the map is a distribution
        row = attention.select(query=query).values()
        assert sum(row) == pytest.approx(1, abs=1e-5) and len(row) == query + 1
    assert len({figure.name for figure in copy_task.plot(results)}) == 6
    assert copy_task.tables(results)[0].rows


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_symbols": 8}, "must be at least 64"),
        ({"test_lengths": (4, 8)}, "must hold train_length"),
        ({"positions": ()}, "positions must name at least one"),
        ({"num_steps": 601}, "multiple of eval_every"),
        ({"warmup_steps": 6000}, "warmup_steps=6000 must be at most num_steps="),
        ({"num_seeds": 0}, "num_seeds=0 must be at least 1"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        copy_task.Config(**fields)
