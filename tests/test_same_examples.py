"""The examples of property tests are the same every time, whatever ran before them."""

import importlib.util
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

CONSTANTS = "".join(f"word_{n}, number_{n} = 'said {n}', {n}54_321\n" for n in range(1, 99))
drawn = []


@given(st.text(max_size=30), st.integers())
@settings(max_examples=300)
def draw(text, number):
    drawn.append((text, number))


@pytest.mark.skipif(not settings.default.derandomize, reason="others are asked for")
def test_they_do_not_depend_on_the_modules_that_are_imported(tmp_path, monkeypatch):
    """Hypothesis would draw constants of those that are of no package, as ours are."""
    (tmp_path / "ours.py").write_text(CONSTANTS)
    spec = importlib.util.spec_from_file_location("ours", tmp_path / "ours.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    draw()
    before = drawn.copy()
    drawn.clear()
    monkeypatch.setitem(sys.modules, "ours", module)
    draw()
    assert drawn == before and len(before) == 300
