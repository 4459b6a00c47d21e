"""The study of gradient norms: its rows against plain JAX, its verdicts on made-up rows."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from experiments import grad_norm_depth as study
from experiments.grad_norm_depth import readings, run
from experiments.grad_norm_depth.readings import LAYERS, STREAM
from experiments.texts import lane_batches, plays
from jaxlm.analysis.claims import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED
from jaxlm.core.config import ConfigError, apply_overrides, to_dict, with_traced
from jaxlm.core.results import Results, Row
from jaxlm.data.batches import batch_at
from jaxlm.models import transformer
from jaxlm.nn.cross_entropy import cross_entropy

TINY = apply_overrides(
    study.Config(),
    {
        "depths": "3,4",
        "trained_depths": "3",
        "norm_placements": "post",
        "num_seeds": 2,
        "d_model": 8,
        "context_length": 8,
        "batch_size": 2,
        "num_examples": 4,
        "num_steps": 4,
        "warmups": "0,2",
        "measured_steps": "4",
        "log_every": 2,
    },
)
NUM_STARTS = 2 * 2 * TINY.num_seeds  # residual, output


@pytest.fixture(scope="module")
def cell():
    return study.cells(TINY)[0]


@pytest.fixture(scope="module")
def measured(cell):
    return run.train_and_measure(cell, run.lanes_of(cell))


@pytest.fixture(scope="module")
def trained(cell, measured):
    rows = run.rows_of(cell, run.lanes_of(cell), *measured)
    return Results(study="", config=to_dict(TINY), rows=tuple(rows))


# Cells and lanes.


def test_at_most_18_programs_and_training_at_three_depths_only():
    cells = study.cells(study.Config())
    assert len(cells) == len({(c["depth"], c["norm_placement"]) for c in cells}) == 18
    assert {c["depth"] for c in cells} == {2, 4, 8, 16, 32, 64}
    assert {c["depth"] for c in cells if c["trained"]} == {2, 8, 32}


def test_every_start_is_a_lane_and_only_with_a_residual_are_warmups_compared(cell):
    lanes = run.lanes_of(cell)
    assert len(set(lanes)) == len(lanes) == NUM_STARTS + 2 * TINY.num_seeds
    assert {lane.residual for lane in lanes if lane.warmup_steps == 0} == {1.0}
    untrained = run.lanes_of({**cell, "trained": False})
    assert (
        len({lane._replace(warmup_steps=0) for lane in untrained}) == len(untrained) == NUM_STARTS
    )


@pytest.mark.parametrize("output, expected", [(study.PLAIN, 1.0), (study.SCALED, 6**-0.5)])
def test_what_a_lane_is_set_to(cell, output, expected):
    cfg = run.run_config(cell, run.Lane(0.0, output, 2, 1))
    assert (cfg.model.num_layers, cfg.model.residual, cfg.seed) == (3, 0.0, 1)
    assert cfg.model.output_init == pytest.approx(expected)
    assert (cfg.optim.peak_lr, cfg.optim.warmup_steps) == (TINY.peak_lr, 2)


# Rows.


def test_no_lane_has_moved_when_the_start_is_measured(cell, measured):
    (step, values), lanes = measured[0][0], run.lanes_of(cell)
    whole = dict(zip(lanes, values["whole"], strict=True))
    at_once = [lane for lane in lanes if lane.warmup_steps == 0]
    assert step == 0 and len(at_once) == 2 * TINY.num_seeds
    for lane in at_once:
        assert whole[lane] == whole[lane._replace(warmup_steps=2)]


@pytest.fixture(scope="module")
def start(cell):
    """`start(lane)`: the state of one lane, apart from any population."""
    program = run.program_of(cell)
    init = quick_jit(program.init)

    def of(lane):
        values = run.hyper_values(run.run_config(cell, lane), run.TRACED)
        return init(lane.seed, {name: jnp.float32(value) for name, value in values.items()})

    return of


@pytest.fixture(scope="module")
def gradients(cell):
    """`gradients(state, batch)`: of the loss, with respect to the weights and the stream."""
    cfg = run.run_config(cell, run.lanes_of(cell)[0]).model

    def loss_fn(params, probes, hypers, batch):
        traced = with_traced(cfg, {name: hypers[name] for name in run.TRACED})
        logits = transformer.forward(params, batch.tokens, traced, probes=probes)
        return jnp.mean(cross_entropy(logits, batch.targets)[0])

    grad = quick_jit(jax.grad(loss_fn, (0, 1)))

    def of(state, batch):
        probes = jnp.zeros((cfg.num_layers, *batch.tokens.shape, cfg.d_model))
        return jax.device_get(grad(state.params, probes, state.hypers, batch))

    return of


@pytest.mark.parametrize("place", [0, -1])
def test_gradients_at_the_start_are_those_of_the_loss_at_the_initial_weights(
    cell, trained, start, gradients, place
):
    lane = run.lanes_of(cell)[place]
    shape = {"batch_size": TINY.num_examples, "context_length": TINY.context_length}
    batch = batch_at(plays().validation, lane.seed, 0, **shape)
    grads, stream = gradients(start(lane), batch)
    rows = trained.select(step=0, residual=bool(lane.residual), output=lane.output)
    for metric, parts in ((LAYERS, list(grads["blocks"].values())), (STREAM, [stream])):
        for i in range(cell["depth"]):
            expected = math.sqrt(sum(float(np.sum(np.float64(p[i]) ** 2)) for p in parts))
            [found] = [
                r.value for r in rows.select(metric, layer=i + 1).rows if r.seed == lane.seed
            ]
            assert found == pytest.approx(expected, rel=2e-4)


def test_a_lane_trains_as_it_does_alone(cell, trained, start):
    lane = run.lanes_of(cell)[0]
    shape = {"batch_size": TINY.batch_size, "context_length": TINY.context_length}
    inputs = lane_batches(plays().train, [lane.seed], **shape)
    state, step, losses = start(lane), quick_jit(run.program_of(cell).step), []
    for n in range(TINY.num_steps):
        state, metrics = step(state, jax.tree.map(lambda x: x[0, 0], inputs(n, n + 1)))
        losses.append(float(metrics["loss"].compute()))
    at = {"residual": True, "output": lane.output, "warmup_steps": lane.warmup_steps}
    for done in (2, 4):
        rows = trained.select("training_loss", step=done, **at).rows
        [found] = [row.value for row in rows if row.seed == lane.seed]
        assert found == pytest.approx(np.mean(losses[done - 2 : done]), rel=1e-5)


def test_a_trained_depth_has_at_the_start_what_an_untrained_one_has(cell, trained):
    rows = run.run_cell({**cell, "trained": False})
    start = trained.select(step=0).rows
    assert [row[:4] for row in rows] == [row[:4] for row in start]
    values = [[row.value for row in each] for each in (rows, start)]
    np.testing.assert_allclose(*values, rtol=1e-4)


def test_training_is_measured_when_it_should_be(trained):
    per_lane = 2 * 3 + 4  # norms by layer, and four numbers of the whole gradient
    assert {row.step for row in trained.select(LAYERS).rows} == {0, 4}
    assert len(trained.select(step=0).rows) == NUM_STARTS * per_lane
    num_lanes = NUM_STARTS + 2 * TINY.num_seeds
    of_gradients = trained.select(step=4).rows
    assert len(of_gradients) == num_lanes * (per_lane + 1)
    assert len(trained.select("training_loss").rows) == num_lanes * 2
    before, after = (trained.select("gradient_norm", step=n, residual=True) for n in (0, 4))
    assert not set(before.values()) & set(after.values())


# Readings, by hand.


def test_the_slope_of_a_geometric_profile():
    norms = 0.1 * 2.0 ** np.arange(1, 7) * np.array([[1.0], [5.0], [9.0]])
    fit = readings.slope(norms)
    assert fit.slope[:3] == pytest.approx([math.log(2)] * 3)
    assert fit.r2.mean == pytest.approx(1)


def test_a_norm_that_is_zero_leaves_no_slope_and_no_ratio():
    norms = np.array([[0.0, 1.0, 2.0], [1.0, 2.0, 4.0]])
    fit, ratio = readings.slope(norms), readings.spread(norms)
    assert math.isnan(fit.slope.mean) and math.isnan(fit.slope.low) and math.isnan(fit.r2.low)
    assert ratio.mean == math.inf and math.isnan(ratio.low)
    assert "0 in 1 of 2 seeds" in ratio.kind


def test_the_spread_is_the_geometric_mean_of_ratios():
    assert readings.spread(np.array([[1.0, 2.0], [8.0, 1.0]])).mean == pytest.approx(4)


def noise_rows(examples_square, batch_square):
    rows = []
    for seed, squares in enumerate(zip(examples_square, batch_square, strict=True)):
        names = ("example_gradient_norm_rms", "gradient_norm")
        rows += [Row({}, seed, 0, n, s**0.5, "") for n, s in zip(names, squares, strict=True)]
    return Results(study="", config={}, rows=tuple(rows))


def test_the_noise_scale_is_the_ratio_of_means_and_its_interval_a_jackknife():
    # B = 2: |G|^2 = 2 b - e and trace = 2 (e - b), of the means e = 6 and b = 4.
    interval = readings.noise(noise_rows([4.0, 6.0, 8.0], [3.0, 4.0, 5.0]), batch_size=2)
    assert interval.mean == pytest.approx(2.0)
    left_out = np.log([2 * (7 - 4.5) / (9 - 7), 2 * (6 - 4) / (8 - 6), 2 * (5 - 3.5) / (7 - 5)])
    error = math.sqrt(2 / 3 * np.sum((left_out - left_out.mean()) ** 2))
    half = 4.302652729911275 * error  # t of 2 degrees of freedom
    assert np.log(interval[1:3]) == pytest.approx([math.log(2) - half, math.log(2) + half])


def test_noise_too_large_to_measure_has_no_interval():
    interval = readings.noise(noise_rows([4.0, 4.0, 4.0], [1.0, 1.0, 1.0]), batch_size=2)
    assert interval.mean == math.inf and math.isnan(interval.low)


# Claims, figures and tables, on rows made to fit.

MADE = apply_overrides(
    study.Config(),
    {
        "depths": "4,8",
        "trained_depths": "4,8",
        "num_seeds": 3,
        "num_steps": 20,
        "warmups": "0,10",
        "measured_steps": "2,20",
    },
)


def norm_that_bears_out(metric, placement, residual, layer):
    """Falls towards the input without residuals, in the stream and in the layers; else is even."""
    return 1.0 if residual else 3.0**layer


def loss_that_bears_out(placement, output, warmup_steps):
    """Post-norm gains 0.5 by warmup, pre-norm nothing; scaled output projections gain 0.1."""
    return 3 - 0.1 * (output == study.SCALED) - 0.5 * (placement == "post" and warmup_steps > 0)


def made(norm=norm_that_bears_out, loss=loss_that_bears_out):
    jitter = np.random.default_rng(0)
    rows = []
    for cell in study.cells(MADE):
        for lane in run.lanes_of(cell):
            placement = cell["norm_placement"]
            shared = {"depth": cell["depth"], "norm_placement": placement}
            shared |= {"residual": bool(lane.residual), "output": lane.output}
            for step in (0, *MADE.measured_steps):
                if step == 0 and lane.warmup_steps == 0:
                    continue
                fields = shared | ({"warmup_steps": lane.warmup_steps} if step else {})
                for layer in range(1, cell["depth"] + 1):
                    for metric in (LAYERS, STREAM):
                        value = norm(metric, placement, lane.residual, layer)
                        value *= math.exp(jitter.normal(0, 0.01))
                        at = {**fields, "layer": layer}
                        rows.append(Row(at, lane.seed, step, metric, value, ""))
                whole = {"gradient_norm": 1.0, "example_gradient_norm_rms": 2.0}
                rows += [Row(fields, lane.seed, step, n, v, "") for n, v in whole.items()]
            for step in (10, 20):
                value = loss(placement, lane.output, lane.warmup_steps) + jitter.normal(0, 0.001)
                fields = {**shared, "warmup_steps": lane.warmup_steps}
                rows.append(Row(fields, lane.seed, step, "training_loss", value, ""))
    return Results(study="grad_norm_depth", config=to_dict(MADE), rows=tuple(rows))


def verdicts(results):
    return [claim.verdict for claim in study.claims(results)]


def test_claims_that_hold_on_rows_made_to_fit():
    assert verdicts(made()) == [SUPPORTED] * 9


def test_a_norm_that_rises_towards_the_input_is_not_a_fall():
    def rising(metric, placement, residual, layer):
        return 1.0 if residual else 3.0**-layer

    assert verdicts(made(norm=rising))[:4] == [NOT_SUPPORTED] * 4


def test_a_fall_that_is_not_a_line_is_not_geometric():
    def sudden(metric, placement, residual, layer):
        return 1.0 if residual or layer > 1 else 1e-3

    assert verdicts(made(norm=sudden))[:4] == [NOT_SUPPORTED] * 4


def test_norms_below_float32_leave_the_claim_open():
    def nothing(metric, placement, residual, layer):
        return 1.0 if residual else 0.0

    assert verdicts(made(norm=nothing))[:4] == [INCONCLUSIVE] * 4


def test_layers_more_than_a_factor_of_ten_apart_are_not_kept_together():
    def apart(metric, placement, residual, layer):
        return 20.0 if layer == 2 else norm_that_bears_out(metric, placement, residual, layer)

    assert verdicts(made(norm=apart))[4:6] == [NOT_SUPPORTED] * 2


def test_a_warmup_that_costs_loss_is_not_needed():
    def loss(placement, output, warmup_steps):
        return 3 + 0.5 * (placement == "post" and warmup_steps > 0)

    assert verdicts(made(loss=loss))[6:8] == [NOT_SUPPORTED] * 2


def test_a_warmup_that_pre_norm_needs_as_much_is_not_what_post_norm_needs():
    def loss(placement, output, warmup_steps):
        return 3 - 0.5 * (warmup_steps > 0) - (0.2 * (placement == "pre" and warmup_steps > 0))

    assert verdicts(made(loss=loss))[6:8] == [NOT_SUPPORTED] * 2


def test_a_run_that_diverged_leaves_its_claims_open():
    def loss(placement, output, warmup_steps):
        return math.nan if placement == "post" and warmup_steps == 0 else 3.0

    results = made(loss=loss)
    assert verdicts(results)[6:8] == [INCONCLUSIVE] * 2
    [drawn] = [figure.content for figure in study.plot(results) if figure.name == "warmup"]
    assert drawn.y_limits == pytest.approx((2.9, 5.0), abs=0.01)


def test_figures_and_tables_of_all_settings_say_what_is_zero():
    def some_zero(metric, placement, residual, layer):
        return 0.0 if not residual and layer == 1 else 1.0

    results = made(norm=some_zero)
    figures = {figure.name: figure for figure in study.plot(results)}
    assert len(figures) == 2 + 6 + 2 + 3
    assert "no residual, plain: 12% of norms are 0" in figures[f"{STREAM}_none"].caption
    depths, warmups = study.tables(results)
    assert len(depths.rows) == 12 and len(warmups.rows) == 12
    zeros = {row[1]: row[depths.header.index("zeros, stream")] for row in depths.rows}
    assert zeros == {"on": "0%", "off": "12%"}
    for figure in figures.values():
        assert figure.svg().startswith("<svg")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"depths": ""}, "depths must name at least one"),
        ({"depths": "2,2"}, "none twice"),
        ({"depths": "2,4", "trained_depths": "8"}, "must be among"),
        ({"depths": "1", "trained_depths": "1"}, "at least 2 of them"),
        ({"num_examples": 1}, "at least 2"),
        ({"warmups": "5"}, "two or more"),
        ({"warmups": "0,100"}, "two or more from 0"),
        ({"num_steps": 95}, "multiple of log_every"),
        ({"measured_steps": "0"}, "from 1 to num_steps"),
        ({"num_seeds": 0}, "num_seeds=0"),
        ({"peak_lr": 0}, "peak_lr"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(study.Config(), overrides)
