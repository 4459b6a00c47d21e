"""Every config file is a run that can be launched."""

import pathlib

import pytest

from jaxlm.core.config import from_dict, to_dict
from jaxlm.jobs.configs import read_config
from jaxlm.train.config import RunConfig
from jaxlm.train.program import hyper_values

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_loads_fits_together_and_survives_json(path):
    cfg = read_config(path)
    assert hyper_values(cfg)["total_steps"] == cfg.train.num_steps
    assert from_dict(RunConfig, to_dict(cfg)) == cfg
