"""Figures: the numbers that end up in the SVG, the colours, and text that stays apart and whole."""

import itertools
import math
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.lines import Line2D

from jaxlm.analysis.statistics import mean_interval
from jaxlm.reports import figures, heat_maps, line_charts, style
from jaxlm.reports.figures import Band, Panel, interval_band

ROOT = pathlib.Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
NAN, INF = math.nan, math.inf
WORDS = {"name": "n", "title": "Title", "caption": "What one sees."}
AXES = {"x_label": "step", "y_label": "nats a token"}
MAP = {"x_label": "length", "y_label": "positions", "value_label": "share"}


def lines(series, **options):
    return figures.lines(series, **{**WORDS, **AXES, **options})


def heat_map(values, **options):
    rows, columns = np.shape(values)
    labels = {"row_labels": range(rows), "column_labels": range(columns)}
    return figures.heat_map(values, **{**WORDS, **MAP, **labels, **options})


def bands(count, x=(1, 2, 3)):
    y = np.arange(len(x))
    return [Band(f"series number {i}", x, y + i, y + i - 0.5, y + i + 0.5) for i in range(count)]


def draw(figure, palette=style.ON_WHITE):
    """The matplotlib figure, laid out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with style.drawing(figure.name, palette):
        drawn = figures._draw(figure, palette)
        FigureCanvasAgg(drawn).draw()
    return drawn


def texts_of(svg) -> list[str]:
    root = xml.etree.ElementTree.fromstring(svg) if isinstance(svg, str) else svg
    return ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]


def examples():
    rng = np.random.default_rng(0)
    names = ["query and value", "query, key and value", "all linear layers", "embedding"]
    deep = np.where(np.arange(64) < np.array([[2], [16], [64]]), 10.0 ** -np.arange(64.0), NAN)
    tokens = [*"ab", "<sep>", *"ab", "\n"]
    heads = [(f"layer {i}, head {i}", rng.random((6, 6))) for i in range(5)]
    reference = [("full fine-tuning", 1.0), ("the same, stopped early", 1.01), ("base", 9.0)]
    return {
        "lines": lines(bands(3)),
        "many": lines(bands(11, names), title="A long title " * 9),
        "crowded": lines(bands(2, [1, 2, 3, 4, 5, 6, 7, 8, 300]), log_x=True, references=reference),
        "small": lines([Band("a", [0, 1e-5], [1e-7, 12e-7])], wide=True),
        "decades": lines([Band("a", [1, 2, 3], [1e-9, 1, 1e9])], log_y=True),
        "grid": figures.grid(
            [Panel(f"warmup {i}", bands(2, [0, 10_000])) for i in range(5)],
            **{**WORDS, **AXES},
            references=reference,
        ),
        "depths": heat_map(deep, log=True, row_labels=[2, 16, 64], missing="no such layer"),
        "shares": heat_map(rng.random((4, 12)), row_labels=["none", "learned", "rope", "x" * 60]),
        "named": heat_map(rng.random((2, 3)), column_labels=names[:3], limits=(0, 1)),
        "crowded words": heat_map(rng.random((20, 70)), column_labels=["token"] * 70),
        "heads": figures.heat_maps(
            heads, **{**WORDS, **MAP}, row_labels=tokens, column_labels=tokens
        ),
    }


EXAMPLES = examples()


@pytest.mark.parametrize("example", EXAMPLES)
def test_no_text_touches_another_or_the_edge(example):
    """In matplotlib's font; those of a page are no wider."""
    drawn = draw(EXAMPLES[example])
    width, height = drawn.canvas.get_width_height()
    shown = [t for t in drawn.findobj(lambda a: hasattr(a, "get_text")) if t.get_visible()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown if t.get_text().strip()]
    assert len(boxes) > 6
    for text, box in boxes:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert inside or not box.width or _unused_tick(drawn, text, box), (text, box)
    boxes = [(text, box) for text, box in boxes if not _unused_tick(drawn, text, box)]
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 + 0.5 or b.y1 <= a.y0 + 0.5
        assert apart, (one, a, other, b)


def _unused_tick(drawn, text, box) -> bool:
    """Whether this is the label of a tick beyond the ends of its axis, which is not drawn."""
    for axes in drawn.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            low, high = sorted(limits)
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                label = tick.label1
                if label.get_text() == text and np.allclose(label.get_window_extent(), box):
                    room = 1e-9 * (high - low)
                    if not low - room <= tick.get_loc() <= high + room:
                        return True
    return False


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_page_element_is_whole_xml_in_the_colours_of_the_page_and_scales_with_it(example):
    figure = EXAMPLES[example]
    svg = figure.svg()
    root = xml.etree.ElementTree.fromstring(svg)
    assert root.get("aria-label") == figure.title
    assert root.get("viewBox") and root.get("width") is None and root.get("height") is None
    used = set(re.findall(r"var\(--(\w+)\)", svg))
    assert {"text", "muted"} <= used <= set(style.LIGHT)
    assert not re.search(r"#0102[0-9a-f]{2}", svg), "a placeholder colour is left"
    assert style.LIGHT["muted"] not in svg
    assert "<image" not in svg and "NaN" not in svg and "nan" not in svg
    ids = re.findall(r'\bid="([^"]*)"', svg)
    references = re.findall(r'(?:url\(|href=")#([^")]*)', svg)
    assert len(ids) == len(set(ids)) and set(references) <= set(ids)
    assert svg == figure.svg()


def test_ids_of_two_figures_and_of_one_figure_on_two_pages_differ():
    one, other = lines(bands(2), name="one"), lines(bands(2), name="other")
    page = one.svg() + other.svg() + one.svg(prefix="study-2-")
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert ids and len(ids) == len(set(ids))


@pytest.mark.parametrize("example", ["lines", "depths"])
def test_files_are_in_light_colours_on_white(tmp_path, example):
    from matplotlib.image import imread

    figure = EXAMPLES[example]
    svg, png = figure.write(tmp_path / "figures")
    assert (svg.name, png.name) == ("n.svg", "n.png")
    assert sorted(p.name for p in svg.parent.iterdir()) == ["n.png", "n.svg"]
    text = svg.read_text()
    xml.etree.ElementTree.fromstring(text)
    assert "var(--" not in text and style.LIGHT["text"] in text
    assert set(texts_of(text)) == set(texts_of(figure.svg()))
    picture = imread(png)
    assert picture.shape[1] == 160 * (11.0 if figure.wide else 5.4)
    np.testing.assert_array_equal(picture[[0, 0, -1, -1], [0, -1, 0, -1], :3], 1)
    before = svg.read_bytes(), png.read_bytes()
    figure.write(tmp_path / "figures")
    assert (svg.read_bytes(), png.read_bytes()) == before


def test_text_is_shown_as_it_is():
    nasty = 'a <b> & "c" $x_1$ _d \\alpha'
    figure = lines([Band(nasty, [1, 2], [1, 2]), Band("_hidden", [1], [1])], title=f"{nasty}\n2")
    shown = texts_of(figure.svg())
    assert {nasty, "_hidden"} <= set(shown)
    assert " ".join(shown).count("\\n2") == 1


def lines_of(axes, marked=False):
    """The points of the lines with data, in order."""
    wanted = [line for line in axes.lines if len(line.get_xdata()) and "axhline" not in str(line)]
    return [line.get_xydata() for line in wanted if (line.get_marker() == "o") == marked]


def test_lines_go_through_their_points_by_x_and_leave_gaps():
    x, y = [3, 1, 2, 4], [30.0, 10.0, NAN, INF]
    low, high = [29.0, 9.0, 0.0, 0.0], [31.0, NAN, 1.0, 1.0]
    (axes,) = draw(lines([Band("a", x, y, low, high)])).axes
    np.testing.assert_array_equal(lines_of(axes)[0], [[1, 10], [2, NAN], [3, 30], [4, NAN]])
    np.testing.assert_array_equal(lines_of(axes, marked=True)[0], [[1, 10], [3, 30]])
    # The interval at 3 stands alone, so it is a bar; that at 1 has one end only.
    shade, bar = axes.collections
    np.testing.assert_array_equal(bar.get_segments(), [[[3, 29], [3, 31]]])
    assert axes.get_ylim()[0] <= 9 and axes.get_ylim()[1] >= 31


def test_the_shade_covers_the_interval_and_nothing_else():
    (axes,) = draw(lines([Band("a", [1, 2, 3], [5, 6, 5], [4, 5, 3], [7, 8, 9])])).axes
    shade, bars = axes.collections
    assert len(bars.get_segments()) == 0
    (path,) = shade.get_paths()
    at = {2: (5, 8), 1.5: (4.5, 7.5), 2.75: (3.5, 8.75)}  # straight between the points
    for x, (low, high) in at.items():
        assert path.contains_point((x, low + 0.01)) and path.contains_point((x, high - 0.01))
        assert not path.contains_point((x, low - 0.01))
        assert not path.contains_point((x, high + 0.01))


def test_a_logarithmic_axis_leaves_out_what_is_not_positive():
    band = Band("a", [1, 2, 3], [1.0, 0.0, 0.1], [0.5, 0.0, -1.0], [2.0, 0.0, 0.2])
    (axes,) = draw(lines([band], log_y=True)).axes
    assert axes.get_yscale() == "log" and 0 < axes.get_ylim()[0] <= 0.1
    np.testing.assert_array_equal(lines_of(axes, marked=True)[0], [[1, 1], [3, 0.1]])
    _, bars = axes.collections
    (_, second) = bars.get_segments()
    assert 0 < second[0][1] < axes.get_ylim()[0], "an interval down to below zero leaves the axis"
    assert second[1][1] == 0.2


def test_a_long_series_marks_only_points_that_stand_alone():
    y = np.arange(100.0)
    y[[1, 49, 51]] = NAN
    (axes,) = draw(lines([Band("a", range(100), y)])).axes
    np.testing.assert_array_equal(lines_of(axes, marked=True)[0], [[0, 0], [50, 50]])


def test_categories_stand_in_the_order_given():
    series = [Band("a", ["rope", "none"], [1, 2]), Band("b", ["learned"], [3])]
    figure = lines(series, x_ticks=["none", "learned", "rope"])
    (axes,) = draw(figure).axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["none", "learned", "rope"]
    first, second = (np.transpose(line.get_data()) for line in axes.lines)
    np.testing.assert_allclose(first, [[0 - 0.125, 2], [2 - 0.125, 1]])
    np.testing.assert_allclose(second, [[1 + 0.125, 3]])


def test_categories_are_points_beside_each_other_with_bars_and_no_line():
    names, y = ["one", "two"], np.array([2.0, 3.0])
    solid = Band("a", names, y, y - 1, y + 1)
    hollow = Band("b", names, [1.0, NAN], [0.5, NAN], [1.5, NAN], dashed=True)
    drawn = draw(lines([solid, hollow]))
    (axes,) = drawn.axes
    assert [line.get_linestyle() for line in axes.lines] == ["None", "None"]
    assert [line.get_markerfacecolor() for line in axes.lines] == [style_of(0)[0], "none"]
    bars = [np.array(part.get_segments()) for part in axes.collections]
    np.testing.assert_allclose(bars[0][:, :, 1], [[1, 3], [2, 4]])
    np.testing.assert_allclose(bars[1], [[[0.125, 0.5], [0.125, 1.5]]])
    keys = [line for line in drawn.artists if isinstance(line, Line2D)]
    assert [key.get_marker() for key in keys] == ["o", "o"]
    # Those of one label stand in one place: such as single points that a chart is made of.
    (axes,) = draw(lines([Band("a", ["one"], [1.0]), Band("a", ["two"], [2.0])])).axes
    assert [line.get_xdata().tolist() for line in axes.lines] == [[0.0], [1.0]]


def test_lines_past_the_last_colour_are_dashed_and_a_label_keeps_its_look():
    looks = [style_of(i) for i in range(24)]
    assert len(set(looks)) == 24 and len({colour for colour, _ in looks}) == 8
    assert all(dash == "-" for _, dash in looks[:8])
    assert all(dash != "-" for _, dash in looks[8:])
    drawn = draw(
        figures.grid(
            [("one", [Band("a", [1], [1])]), ("two", [Band("b", [1], [1]), Band("a", [1], [2])])],
            **{**WORDS, **AXES},
        )
    )
    first, second = ([line.get_color() for line in axes.lines[::2]] for axes in drawn.axes)
    assert second == [style.ON_WHITE.lines[1], first[0]]
    (axes,) = draw(lines([Band("a", [1], [1], colour=3), Band("b", [1], [1], dashed=True)])).axes
    a, b = axes.lines[::2]
    assert a.get_color() == style.ON_WHITE.lines[3] and a.get_linestyle() == "-"
    assert b.get_color() == style.ON_WHITE.lines[1] and b.get_linestyle() == "--"


def style_of(place):
    return line_charts.series_colour(place, style.ON_WHITE)


def test_references_are_dashed_across_and_labelled_and_panels_share_one_axis():
    drawn = draw(EXAMPLES["grid"])
    assert len(drawn.axes) == 5
    assert {axes.get_ylim() for axes in drawn.axes} == {drawn.axes[0].get_ylim()}
    for axes in drawn.axes:
        across = [line for line in axes.lines if list(line.get_xdata()) == [0, 1]]
        assert [line.get_ydata()[0] for line in across] == [1.0, 1.01, 9.0]
        assert all(line.get_linestyle() == "--" for line in across)
    shown = texts_of(EXAMPLES["grid"].svg())
    assert shown.count("base") == 1 and [f"warmup {i}" for i in range(5)] == [
        text for text in shown if text.startswith("warmup")
    ]


@settings(max_examples=60, deadline=None)
@given(y=st.lists(st.floats(-1e6, 1e6) | st.just(NAN), min_size=1, max_size=9), log=st.booleans())
@example(y=[5e-324], log=True)
def test_limits_hold_every_value(y, log):
    content = lines([Band("a", range(len(y)), y)], log_y=log).content
    low, high = line_charts._limits(content)
    assert low < high and math.isfinite(low) and math.isfinite(high)
    known = [v for v in y if math.isfinite(v) and (v > 0 or not log)]
    assert all(low <= v <= high for v in known)
    assert low > 0 or not log


def test_zero_is_on_the_axis_where_it_is_not_far():
    def limits(*y):
        return line_charts._limits(lines([Band("a", range(len(y)), y)]).content)

    assert limits(1, 4) == pytest.approx((0, 4.2))
    assert limits(3, 4) == pytest.approx((2.95, 4.05))
    assert limits(5, 5) == pytest.approx((4.75, 5.25))
    assert limits(-1, 1) == pytest.approx((-1.1, 1.1))


def cells_of(group, rows: int, columns: int) -> list[list[str]]:
    """The fill of each cell, read from the rectangles of the SVG."""
    boxes = []
    for path in group.iter(f"{SVG}path"):
        fill = re.search(r"fill: (#\w+|url\(#[^)]*\))", path.get("style") or "")
        for piece in path.get("d").split("M")[1:] if fill else ():
            corners = {(float(x), float(y)) for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", piece)}
            assert len(corners) == 4, piece
            boxes.append((np.mean(list(corners), axis=0), fill[1]))
    assert len(boxes) == rows * columns
    boxes.sort(key=lambda box: box[0][1])
    lines_of_boxes = [boxes[i : i + columns] for i in range(0, len(boxes), columns)]
    return [[f for _, f in sorted(row, key=lambda box: box[0][0])] for row in lines_of_boxes]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("shape", [(3, 5), (9, 60)])
def test_each_cell_is_a_rectangle_of_the_colour_of_its_value(log, shape):
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    values = 10 ** np.random.default_rng(1).uniform(-3, 2, shape)
    values[1, 2], values[0, 0] = NAN, INF
    low, high = 0.01, 10.0  # so some are beyond
    figure = heat_map(values, log=log, limits=(low, high))
    got = np.array(cells_of(axes_of(figure), *shape))
    for place, value in np.ndenumerate(values):
        if math.isnan(value):
            assert got[place].startswith("url(#"), "hatched"
            continue
        if log:
            share = (math.log(value) - math.log(low)) / math.log(high / low)
        else:
            share = (value - low) / (high - low)
        want = to_hex(colormaps["viridis"](int(min(max(share, 0), 1 - 1e-9) * 256)))
        assert got[place] == want, place
    assert "Values beyond 0.01 or 10 have the colour of that end." in figure.caption
    assert figure.caption.endswith("Hatched: no value.")


def axes_of(figure):
    """The part of the SVG with the cells: the second axes, after the bar of colours."""
    root = xml.etree.ElementTree.fromstring(figure.svg())
    (group,) = (g for g in root.iter(f"{SVG}g") if g.get("id") == f"{figure.name}-axes_2")
    return group


def test_zero_on_a_logarithmic_map_has_the_low_colour():
    scale = heat_maps.place_on_scale(np.array([0.0, -1, 0.1, 1, 10, INF, NAN]), (0.1, 10), True)
    np.testing.assert_allclose(scale, [0, 0, 0, 0.5, 1, 1, NAN], atol=1e-12)
    assert heat_maps.limits_of(np.array([0, 1e-9, 2, INF, NAN]), True) == (1e-9, 2)
    assert heat_maps.limits_of(np.array([0, 1e-9, 2, INF, NAN]), False) == (0, 2)
    for values in ([], [NAN], [3.0, 3.0], [0.0], [-1.0]):
        for log in (False, True):
            low, high = heat_maps.limits_of(np.array(values), log)
            assert low < high and (low > 0 or not log)


@pytest.mark.parametrize(
    ("values", "log", "want"),
    [
        ([0.974, 1, 0, -0.004], False, ["0.97", "1.00", "0.00", "0.00"]),
        ([1, 0, 8], False, ["1", "0", "8"]),
        ([5.4321, 9.94], False, ["5.43", "9.94"]),
        ([54.321, 0.5], False, ["54.3", "0.5"]),
        ([543.21, 0.2], False, ["543", "0"]),
        ([0.012345, 0.0005], False, ["0.012", "0.0005"]),
        ([123456, 1], False, ["120k", "1"]),
        ([1.234e-7, 12.5, 0], True, ["1.2e-7", "12", "0"]),
        ([INF, -INF, NAN, 1.5], False, ["inf", "-inf", "", "1.50"]),
    ],
)
def test_numbers_in_cells(values, log, want):
    write = heat_maps._number_writer(np.array(values, float), log)
    assert [write(v) for v in values] == want


def test_numbers_in_cells_stand_out_from_their_cell_and_are_where_they_belong():
    values = np.linspace(0, 1, 66).reshape(6, 11)
    values[2, 2] = NAN
    drawn = draw(heat_map(values))
    axes = drawn.axes[1]
    written = {t.get_position(): t for t in axes.texts if t.get_text()}
    assert len(written) == 65
    for (row, column), value in np.ndenumerate(values):
        place = (column + 0.5, row + 0.5)
        if math.isnan(value):
            assert place not in written
            continue
        text = written[place]
        assert text.get_text() == f"{value:.2f}"
        (cell,) = [p for p in axes.patches if p.get_path().contains_point(place)]
        assert contrast(text.get_color(), cell.get_facecolor()) >= 4.5  # WCAG 2.1, level AA


def contrast(one, other) -> float:
    from matplotlib.colors import to_rgb

    lights = []
    for colour in (one, other):
        rgb = np.array(to_rgb(colour))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_numbers_are_left_out_where_they_do_not_fit_or_are_not_wanted():
    values = np.full((3, 60), 0.25)
    for figure in (heat_map(values), heat_map(values[:, :3], annotate=False)):
        assert "0.25" not in texts_of(axes_of(figure))
    assert texts_of(axes_of(heat_map(values[:, :3]))).count("0.25") == 9


def test_maps_share_one_scale():
    maps = [("low", [[0.0, 1.0]]), ("high", [[1.0, 10.0]])]
    labels = {"row_labels": ["a"], "column_labels": [1, 2]}
    drawn = draw(figures.heat_maps(maps, **WORDS, **MAP, **labels))
    _, low, high = drawn.axes

    def colour(axes, column):
        point = (column + 0.5, 0.5)
        return [p.get_facecolor() for p in axes.patches if p.get_path().contains_point(point)]

    assert colour(low, 1) == colour(high, 0) != colour(high, 1)


@given(st.lists(st.floats(0.1, 3), min_size=1, max_size=12), st.floats(0.5, 6), st.floats(0, 0.5))
def test_rows_hold_every_item_once_and_no_more_than_fits(widths, width, gap):
    rows = style.rows_of(widths, width, gap)
    assert [i for row in rows for i in row] == list(range(len(widths)))
    sizes = [sum(widths[i] for i in row) + gap * (len(row) - 1) for row in rows]
    for row, size in zip(rows, sizes, strict=True):
        assert size <= width + 1e-9 or len(row) == 1
    for row, size, after in zip(rows, sizes, rows[1:], strict=False):
        assert size + gap + widths[after[0]] > width - 1e-9, (row, after)


def test_text_is_wrapped_between_words_and_cut_with_an_ellipsis():
    text = "one two three four five six"
    broken = style.wrapped(text, 1.0)
    assert " ".join(broken) == text and len(broken) > 1
    assert all(style.text_width(line) <= 1.0 for line in broken)
    short = style.shortened(text, 0.8)
    assert short.endswith("…") and text.startswith(short[:-1]) and style.text_width(short) <= 0.8
    assert style.shortened("one", 0.8) == "one"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: lines([], name="a/b"), "a chart without a single value"),
        (lambda: lines(bands(1), name="a/b"), "figure name 'a/b'"),
        (lambda: lines(bands(1), name="../up"), "figure name '../up'"),
        (lambda: lines([Band("q+v", [1, 2], [1])]), "series 'q+v': x, y, low and high differ"),
        (lambda: lines([Band("q+v", [1], [1], low=[0])]), "series 'q+v': low and high come"),
        (lambda: lines([Band("a", ["b", 2], [1, 2])]), "x is either text"),
        (lambda: lines([Band("a", ["b"], [1])], log_x=True), "x is either text"),
        (lambda: lines(bands(1), y_limits=(2, 1)), "limits 2, 1: expected low < high"),
        (lambda: lines(bands(1), y_limits=(0, 1), log_y=True), "above zero on a logarithmic"),
        (lambda: heat_map(np.ones((2, 2)), row_labels=["a"]), "shape (2, 2) for 1 row labels"),
        (lambda: heat_map(np.ones((2, 2)), limits=(1, 1)), "limits 1, 1"),
        (lambda: heat_map(np.ones((0, 2))), "shape (0, 2)"),
    ],
)
def test_what_does_not_fit_together_is_named(make, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        make()


def test_figures_import_neither_jax_nor_matplotlib_before_they_draw():
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "import jaxlm.reports.figures\n"
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_band_of_intervals_keeps_their_ends():
    intervals = [mean_interval([1.0, 3.0]), mean_interval([5.0])]
    band = interval_band("a", [0, 1], intervals, dashed=True)
    assert (band.label, band.x, band.y, band.dashed) == ("a", [0, 1], [2.0, 5.0], True)
    assert (band.low[0], band.high[0]) == intervals[0][1:3]
    assert math.isnan(band.low[1]) and math.isnan(band.high[1])
