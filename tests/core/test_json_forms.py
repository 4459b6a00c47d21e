"""What a JSON text may be, and what a form says of a value."""

import json
import math

import pytest

from jaxlm.core.json_forms import count, finite, parse, problem


@pytest.mark.parametrize(
    "value",
    [{}, [], 0, -(2**63), 2**63 - 1, 0.1, 1e308, "a\0b\ud800\u2028", None, True, {"a": [{"b": 1}]}],
)
def test_what_json_writes_comes_back(value):
    for text in (json.dumps(value), json.dumps(value).encode()):
        assert repr(parse(text)) == repr(value)


@pytest.mark.parametrize(
    ("text", "number"), [("9223372036854775808", 2.0**63), ("-1" + "0" * 400, -math.inf)]
)
def test_an_integer_beyond_64_bits_is_a_float(text, number):
    assert repr(parse(text)) == repr(number)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        (b"\xff", "utf-8"),
        ("{}".encode("utf-16"), "utf-8"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": {"b": 1, "c": 2, "b": 1}}', "'b' is given twice"),
    ],
)
def test_anything_else_is_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(text)
    assert "\n" not in str(error.value)


RUN = {
    "step": count,
    "loss": (finite, None),
    "kind": ("a", "b"),
    "shapes": {str: [count]},
    "rows": [[int, float]],
}
GOOD = {"step": 0, "loss": 0.5, "kind": "b", "shapes": {"w": [2, 3]}, "rows": [[1, 2], [-1, 0.5]]}


@pytest.mark.parametrize(
    "changes", [{}, {"loss": None}, {"loss": 1}, {"more": object}, {"shapes": {}}, {"rows": []}]
)
def test_a_value_of_the_form(changes):
    assert problem(GOOD | changes, RUN) is None


def test_a_missing_field_is_null():
    assert problem({n: v for n, v in GOOD.items() if n != "loss"}, RUN) is None
    assert problem({}, {"step": count}) == "step: expected count"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"step": -1}, "step: expected count"),
        ({"step": True}, "step: expected count"),
        ({"step": 1.0}, "step: expected count"),
        ({"step": [1]}, "step: expected count"),
        ({"loss": float("nan")}, "loss: expected finite"),
        ({"loss": float("inf")}, "loss: expected finite"),
        ({"loss": "1"}, "loss: expected finite"),
        ({"kind": "c"}, "kind: expected 'a'"),
        ({"kind": ["a"]}, "kind: expected 'a'"),
        ({"shapes": [1]}, "shapes: expected an object"),
        ({"shapes": {"a\nb": [1, "2"]}}, r"shapes.'a\\nb'\[1\]: expected count"),
        ({"rows": {}}, "rows: expected a list"),
        ({"rows": [[1, 2], [1]]}, r"rows\[1\]: expected a list of 2"),
        ({"rows": [[1.0, 2]]}, r"rows\[0\]\[0\]: expected a whole number"),
        ({"rows": [[1, False]]}, r"rows\[0\]\[1\]: expected a number"),
    ],
)
def test_a_departure_is_told_with_its_place(changes, says):
    with pytest.raises(AssertionError, match=f"^{says}$"):
        raise AssertionError(problem(GOOD | changes, RUN))
    assert problem([GOOD, GOOD | changes], [RUN]).startswith("[1].")


def test_names_may_have_a_form_too():
    def lower(name):
        return name.islower()

    assert problem({"a": 1}, {lower: int}) is None
    assert problem({"A": 1}, {lower: int}) == "the name A: expected lower"
    assert problem({"a": "1"}, {lower: int}) == "a: expected a whole number"
