"""Charts: the averages and limits behind them, and SVG that a page can hold."""

import re
import xml.etree.ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.reports.curves import SECOND, Curve, chart, cropped_limits, running_average

values = st.floats(-100, 100) | st.just(float("nan"))


@settings(max_examples=60, deadline=None)
@given(y=st.lists(values, min_size=1, max_size=30), reach=st.integers(0, 8))
def test_running_average_is_the_mean_around_each_place(y, reach):
    y = np.array(y)
    want = []
    for i in range(len(y)):
        around = y[max(0, i - reach) : i + reach + 1]
        known = around[~np.isnan(around)]
        want.append(known.mean() if len(known) else np.nan)
    np.testing.assert_allclose(running_average(y, 2 * reach + 1), want, rtol=0, atol=1e-10)


def test_limits_crop_a_steep_start_and_only_that():
    steps = np.arange(1, 101)
    falling = Curve("a", steps, 1 + 9 * (steps <= 3) + 0.5 * np.exp(-steps / 30))
    low, high = 1 + 0.5 * np.exp(-100 / 30), 1 + 0.5 * np.exp(-5 / 30)  # at steps 100 and 5
    margin = 0.05 * (high - low)
    assert cropped_limits([falling]) == pytest.approx((low - margin, high + margin))
    steady = Curve("a", steps, np.linspace(3, 1, 100))
    low, high = cropped_limits([steady])
    assert (low, high) == pytest.approx((0.9, 3.1))
    low, high = cropped_limits([Curve("a", [5], [2.0])])
    assert low < 2 < high
    low, high = cropped_limits([falling, Curve("b", [50, 100], [np.nan, 7.0])])
    assert high > 7


def draw(name="loss", **options):
    steps = np.arange(1, 101)
    noisy = 2 + np.random.default_rng(0).normal(size=100)
    curves = [
        Curve("train <1>", steps, np.abs(noisy), smooth=True),
        Curve("val", [50, 100], [1.5, np.nan], colour=SECOND, points=True),
    ]
    return chart(curves, title="Loss & more", y_label="nats", name=name, **options)


@pytest.mark.parametrize("options", [{}, {"log_y": True}, {"crop_start": True}])
def test_charts_are_whole_xml_with_text_as_text_in_the_colours_of_the_page(options):
    svg = draw(**options)
    root = xml.etree.ElementTree.fromstring(svg)
    assert root.get("aria-label") == "Loss & more" and root.get("viewBox")
    assert root.get("width") is None and root.get("height") is None
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Loss & more", "nats", "step", "train <1>", "val", "100"} <= set(texts)
    assert re.findall(r"var\(--\w+\)", svg)
    assert not re.search(r"#0102\d\d", svg), "a placeholder colour is left"


def test_ids_are_unique_across_two_charts_and_references_resolve():
    page = draw("one") + draw("two")
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:url\(|href=")#([^")]*)', page)
    assert references and set(references) <= set(ids)


def test_a_chart_is_a_function_of_its_data():
    assert draw() == draw()


@pytest.mark.parametrize("y", [[0.0], [0.0, 0.0], [3.0, 3.0], [-1.0, 2.0]])
def test_few_or_equal_values(y):
    xml.etree.ElementTree.fromstring(
        chart([Curve("a", range(len(y)), y)], title="t", y_label="", name="n")
    )
