import json

import numpy as np
import pytest

from jaxlm.core.results import Results, Row, from_json, to_json, to_table

ROWS = (
    Row({"rank": 1}, 0, 10, "loss", 0.1 + 0.2, "nats/token"),
    Row({"rank": 1}, 1, 10, "loss", float("nan"), "nats/token"),
    Row({"rank": 2, "part": "a"}, 0, 20, "loss", float("inf"), "nats/token"),
    Row({"rank": 2}, None, None, "count", 7.0, "parameters"),
)
RESULTS = Results(study="s", config={"scale": "small"}, rows=ROWS)


def test_json_brings_back_every_bit():
    back = from_json(json.loads(json.dumps(to_json(RESULTS), allow_nan=False)))
    assert (back.study, back.config) == ("s", {"scale": "small"})
    np.testing.assert_array_equal(back.values(), RESULTS.values())
    assert [r._replace(value=0) for r in back.rows] == [r._replace(value=0) for r in ROWS]


def test_rows_are_selected_by_metric_step_and_fields():
    assert RESULTS.select("loss", rank=1).values()[0] == 0.1 + 0.2
    assert len(RESULTS.select("loss").rows) == 3
    assert RESULTS.select(step=20).rows == (ROWS[2],)
    assert RESULTS.select(step=None).rows == (ROWS[3],)
    assert RESULTS.select(part="a").rows == (ROWS[2],)
    assert RESULTS.select(rank=lambda r: r > 1, step=20).rows == (ROWS[2],)
    assert list(RESULTS.by("rank", "seed")) == [(1, 0), (1, 1), (2, 0), (2, None)]


def test_the_table_has_a_column_for_every_field():
    header, rows = to_table(RESULTS)
    assert header == ["study", "rank", "part", "seed", "step", "metric", "value", "unit"]
    assert rows[0] == ["s", 1, "", 0, 10, "loss", "0.30000000000000004", "nats/token"]
    assert rows[3][3:5] == ["", ""]


@pytest.mark.parametrize("data", [[], {}, {"format_version": 2}, {"format_version": 1}])
def test_other_data_is_refused(data):
    with pytest.raises(ValueError, match="expected"):
        from_json(data)
