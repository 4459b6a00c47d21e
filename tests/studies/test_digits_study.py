"""The digits study: its rows, that its test is unseen, and verdicts on made-up numbers."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.digits import (
    CONV,
    IN_PLACE,
    MODELS,
    NUM_IMAGES,
    NUM_TRAINED_ON,
    ORDERS,
    SHUFFLED,
    VISION,
    Config,
    cells,
    claims,
    plot,
    run,
    tables,
)
from jaxlm.analysis.claims import NOT_SUPPORTED, SUPPORTED
from jaxlm.core.config import to_dict
from jaxlm.core.params import count_params
from jaxlm.core.results import Results, Row

TINY = Config(
    num_images=(10, 300),
    num_seeds=2,
    peak_lrs=(1e-2,),
    num_steps=60,
    batch_size=16,
    widths=(8, 8),
    patch=4,
    num_layers=1,
    d_model=8,
    num_heads=2,
)


@pytest.fixture(scope="module")
def results():
    rows = [row for cell in json.loads(json.dumps(cells(TINY))) for row in run.run_cell(cell)]
    return Results(study="digits", config=to_dict(TINY), rows=tuple(rows))


def test_training_and_test_share_no_image_and_seeds_differ():
    train, test = run.parts(3)
    assert len(train) == NUM_TRAINED_ON and sorted([*train, *test]) == list(range(NUM_IMAGES))
    assert not np.array_equal(train, run.parts(4)[0])
    orders = run.pixel_orders()
    assert sorted(orders[SHUFFLED]) == orders[IN_PLACE].tolist() == list(range(64))
    assert not np.array_equal(orders[SHUFFLED], orders[IN_PLACE])


def test_both_models_have_about_as_many_weights():
    sizes = [count_params(run.build(cell).specs) for cell in cells(Config())]
    assert max(sizes) / min(sizes) < 1.02


def test_more_images_help_and_every_run_has_its_row(results):
    errors = results.select("error")
    assert len(errors.rows) == 2 * 2 * 2 * 2
    few, many = (
        errors.select(model=CONV, pixels=IN_PLACE, num_images=n).values() for n in (10, 300)
    )
    assert np.mean(many) < np.mean(few) < 0.95


def test_errors_are_counted_on_the_images_not_trained_on(results):
    counts = np.array(results.select("error").values()) * (NUM_IMAGES - NUM_TRAINED_ON)
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-6)


def test_report_parts_are_made(results):
    assert len(claims(results)) == 5
    [figure] = plot(results)
    assert figure.svg().startswith("<svg")
    [table] = tables(results)
    assert len(table.rows) == 4 and all(len(row) == len(table.header) for row in table.rows)


def made_up(few=0.2, many=0.01, conv_cost=0.1, vision_cost=0.02):
    """errors of the convolution are 0.05 with pixels in place; the rest is given."""
    cfg, rows = dataclasses.replace(TINY, num_seeds=4), []
    for seed in range(4):
        noise = 0.001 * np.sin(seed)
        for model in MODELS:
            for order in ORDERS:
                for num_images, gap in zip(cfg.num_images, (few, many), strict=True):
                    value = 0.05 + (model == VISION) * (gap + noise)
                    cost = {CONV: conv_cost, VISION: vision_cost}[model]
                    value += (order == SHUFFLED) * (cost + noise * (model == CONV))
                    fields = {"model": model, "pixels": order, "num_images": num_images}
                    fields["peak_lr"] = 1e-2
                    rows.append(Row(fields, seed, 40, "error", value, "share"))
    return Results(study="digits", config=to_dict(cfg), rows=tuple(rows))


@pytest.mark.parametrize(
    ("places", "change"),
    [
        ((), {}),
        ((0, 1), {"few": -0.1}),
        ((1, 2, 4), {"many": 0.3}),
        ((3, 4), {"conv_cost": 0.01}),
        ((4,), {"conv_cost": 0.025}),
    ],
)
def test_each_claim_follows_its_number(places, change):
    expected = [NOT_SUPPORTED if n in places else SUPPORTED for n in range(5)]
    assert [claim.verdict for claim in claims(made_up(**change))] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": (100,)}, "expected two or more"),
        ({"num_images": (100, 1001)}, "up to 1000"),
        ({"num_images": (100, 50)}, "must rise"),
        ({"widths": ()}, "widths"),
    ],
)
def test_configs_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
