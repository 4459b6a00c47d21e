"""--job=fields: what it lists can be typed, is all that there is, and fits the terminal."""

import pytest

from jaxlm.core.config import apply_overrides, flatten
from jaxlm.jobs.configs import read_config
from jaxlm.jobs.fields import list_fields
from jaxlm.train.config import RunConfig


@pytest.mark.parametrize("kind", ["transformer", "lstm", "mlp"])
def test_what_is_listed_sets_the_same_config(kind):
    cfg = apply_overrides(read_config("configs/shakespeare_char.py"), {"model.kind": kind})
    lines = list_fields(cfg, 80)
    settings = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    given = dict(setting.split("=", 1) for setting in settings)
    assert list(given) == sorted(flatten(cfg), key=lambda path: "." in path)  # the seed is first
    assert apply_overrides(RunConfig(), given) == cfg
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if "model.kind" in line][0].split()[1:3] == ["one", "of"]


def test_the_job_tells_types_and_notes(launch, finished):
    outcome = launch("--job=fields", f"--workdir={finished}", "--config.optim.b1=0.5")
    assert (outcome.code, outcome.err) == (0, "")
    said = " ".join(outcome.out.split())
    assert "optim.b1=0.5 float; first-moment decay of adamw, adam and lion" in said
    assert "model.d_ff=32 int or none; None: 4 * d_model" in said
    assert "data.order=shuffled one of shuffled, contiguous; contiguous: for carried" in said
    refused = launch("--job=fields", "--config.optim.b3=1")
    assert refused.code == 2 and "no field 'b3'" in refused.err
