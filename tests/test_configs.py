"""Every config file is a run, or a study at each scale, that can be launched."""

import pathlib

import pytest

from experiments import lora_rank
from jaxlm.core.config import ConfigError, from_dict, to_dict
from jaxlm.jobs import Launch
from jaxlm.jobs.configs import read_config
from jaxlm.jobs.study import study_config
from jaxlm.train.config import RunConfig
from jaxlm.train.program import hyper_values

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
STUDIES = {FOLDER / "lora_rank_smollm2.py": lora_rank}
CONFIGS = sorted(set(FOLDER.glob("*.py")) - STUDIES.keys())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_loads_fits_together_and_survives_json(path):
    cfg = read_config(path)
    assert hyper_values(cfg)["total_steps"] == cfg.train.num_steps
    assert from_dict(RunConfig, to_dict(cfg)) == cfg


@pytest.mark.parametrize("scale", ["small", "default", "full"])
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_s_config_has_every_scale_and_survives_json(path, scale, monkeypatch):
    study = STUDIES[path]
    monkeypatch.setattr("experiments.lora_rank.run.resolve", lambda cfg: cfg)
    overrides = {"scale": scale, "num_steps": "60", "eval_every": "20"}
    cfg = study_config(study, Launch(str(path), overrides, None, "", None))
    assert (cfg.scale, cfg.num_steps, cfg.eval_every) == (scale, 60, 20)
    assert from_dict(study.Config, to_dict(cfg)) == cfg
    assert cfg.base.source is not None and cfg.ranks[0] == 1
    with pytest.raises(ConfigError, match="scale=huge"):
        study_config(study, Launch(str(path), {"scale": "huge"}, None, "", None))
