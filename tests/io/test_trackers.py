"""Trackers: what they are sent, what a resume sends again, and that none of them ends a run."""

import json
import math
import pathlib
import sys
import types

import pytest

from jaxlm.core.config import ConfigError, apply_overrides
from jaxlm.io import trackers
from jaxlm.train.config import FREE_ON_RESUME, RunConfig

TRAIN = [{"step": n, "split": "train", "loss": 4 / n, "grad_norm": 0.1 * n} for n in range(1, 9)]
VALIDATION = [
    {"step": n, "split": "validation", "loss": 5 / n, "num_tokens": 123, "perplexity": math.exp(1)}
    for n in (4, 8)
]
SAMPLES = [{"step": 4, "temperature": t, "prompt": "a", "text": f" b\n  c {t}"} for t in (0.0, 0.8)]
# As a run writes them: at a step the training metrics, validation, samples.
RECORDS = sorted([*TRAIN, *VALIDATION, *SAMPLES], key=lambda record: record["step"])


def failing(note: str) -> None:
    raise AssertionError(note)


def opened(name, folder, start=0, history=(), note=failing):
    return trackers.Trackers([name], folder, {"seed": 3}, start, history, note)


def send_all(name, folder, records, **options):
    with opened(name, folder, **options) as open_trackers:
        for record in records:
            open_trackers.send(record)


def expected_scalars(records):
    """{"train/loss": [(1, 4.0), ...]} of the records themselves."""
    series = {}
    for record in records:
        if "split" in record:
            for name in record.keys() - {"step", "split"}:
                point = (record["step"], record[name])
                series.setdefault(f"{record['split']}/{name}", []).append(point)
    return series


def read_events(folder):
    """Scalars and texts by tag, through TensorBoard's own reader."""
    module = "tensorboard.backend.event_processing.event_accumulator"
    accumulator = pytest.importorskip(module).EventAccumulator(
        str(folder / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0}
    )
    accumulator.Reload()
    tags = accumulator.Tags()
    scalars = {t: [(e.step, e.value) for e in accumulator.Scalars(t)] for t in tags["scalars"]}
    texts = {
        t: [(e.step, e.tensor_proto.string_val[0].decode()) for e in accumulator.Tensors(t)]
        for t in tags["tensors"]
    }
    return scalars, texts


def assert_scalars(got, records):
    want = expected_scalars(records)
    assert got.keys() == want.keys()
    for tag, points in want.items():
        assert [step for step, _ in got[tag]] == [step for step, _ in points], tag
        values = [value for _, value in points]
        assert [value for _, value in got[tag]] == pytest.approx(values, rel=1e-6), tag


def test_tensorboard_reads_back_what_the_logs_hold(tmp_path):
    pytest.importorskip("tensorboard")
    send_all("tensorboard", tmp_path, RECORDS)
    scalars, texts = read_events(tmp_path)
    assert_scalars(scalars, RECORDS)
    assert texts == {
        "samples/temperature_0": [(4, "    a b\n      c 0.0\n")],
        "samples/temperature_0.8": [(4, "    a b\n      c 0.8\n")],
    }


def test_tensorboard_after_a_kill_holds_each_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    send_all("tensorboard", tmp_path, [r for r in RECORDS if r["step"] <= 6])
    torn = next((tmp_path / "tensorboard").iterdir())
    torn.write_bytes(torn.read_bytes()[:-5])
    # Saved at step 4 before it was evaluated: the logs are cut back to the training metrics of 4.
    history = [r for r in TRAIN if r["step"] <= 4]
    rest = [r for r in RECORDS if r not in history]
    send_all("tensorboard", tmp_path, rest, start=4, history=history)
    scalars, texts = read_events(tmp_path)
    assert_scalars(scalars, RECORDS)
    # Of texts this reader drops none; what was written at a step twice is the same.
    assert [set(points) for points in texts.values()] == [
        {(4, "    a b\n      c 0.0\n")},
        {(4, "    a b\n      c 0.8\n")},
    ]


def test_tensorboard_turned_on_at_a_resume_gets_the_steps_before_it(tmp_path):
    pytest.importorskip("tensorboard")
    history = [r for r in RECORDS if r["step"] <= 5]
    rest = [r for r in RECORDS if r["step"] > 5]
    send_all("tensorboard", tmp_path, rest, start=5, history=history)
    assert_scalars(read_events(tmp_path)[0], RECORDS)


class FakeWandb(types.ModuleType):
    """Keeps what it is given; a run that is resumed goes on from the last step it has, or from 0.

    offline: a run knows nothing of what earlier processes of it logged.
    """

    def __init__(self):
        super().__init__("wandb")
        self.inits, self.logged, self.finished = [], [], 0
        self.logged_in = self.offline = self.broken = False

    def login(self, *, prompt, verify):
        assert not prompt and not verify, "asks the user, or the network"
        return self.logged_in

    def Settings(self, **settings):  # noqa: N802
        return settings

    def Table(self, columns, data):  # noqa: N802
        return [dict(zip(columns, row, strict=True)) for row in data]

    def init(self, **options):
        self.inits.append(options)
        self.step = 0 if self.offline or not self.logged else self.logged[-1][0]
        return self

    def log(self, values, step):
        if self.broken:
            raise OSError("no space left\non the device")
        assert step >= self.step, "wandb drops a step before its newest"
        self.step = step
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return module


def points(module):
    series = {}
    for step, values in module.logged:
        for name, value in values.items():
            if not name.startswith("samples/"):
                series.setdefault(name, []).append((step, value))
    return series


def test_wandb_gets_what_the_logs_hold(wandb, tmp_path):
    send_all("wandb", tmp_path, RECORDS)
    assert_scalars(points(wandb), RECORDS)
    tables = [values for _, values in wandb.logged if any("samples" in name for name in values)]
    assert tables[1] == {
        "samples/temperature_0.8": [{"step": 4, "temperature": 0.8, "text": "a b\n  c 0.8"}]
    }
    (init,) = wandb.inits
    assert init["dir"] == str(tmp_path) and init["config"] == {"seed": 3}
    assert wandb.finished == 1


@pytest.mark.parametrize("offline", [False, True])
def test_wandb_goes_on_with_the_same_run(wandb, tmp_path, offline):
    wandb.offline = offline
    send_all("wandb", tmp_path, [r for r in RECORDS if r["step"] <= 6])
    history = [r for r in TRAIN if r["step"] <= 4]
    rest = [r for r in RECORDS if r not in history]
    before = len(wandb.logged)
    send_all("wandb", tmp_path, rest, start=4, history=history)
    first, second = wandb.inits
    assert first["id"] == second["id"] and second["resume"] == "allow"
    again = [step for step, _ in wandb.logged[before:]]
    assert again[0] == (4 if offline else 6)
    got = {name: sorted(set(series)) for name, series in points(wandb).items()}
    assert_scalars(got, RECORDS)


@pytest.mark.parametrize(
    ("logged_in", "environment", "mode", "project"),
    [
        (False, {}, "offline", "jaxlm"),
        (True, {}, None, "jaxlm"),
        (False, {"WANDB_MODE": "online"}, None, "jaxlm"),
        (False, {"WANDB_PROJECT": "mine"}, "offline", None),
    ],
)
def test_wandb_is_offline_unless_the_user_chose(
    wandb, tmp_path, monkeypatch, logged_in, environment, mode, project
):
    wandb.logged_in = logged_in
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    send_all("wandb", tmp_path, [])
    assert wandb.inits[0].get("mode") == mode and wandb.inits[0].get("project") == project


def test_a_tracker_that_fails_is_noted_once_and_left_alone(wandb, tmp_path):
    notes = []
    with opened("wandb", tmp_path, note=notes.append) as open_trackers:
        open_trackers.send(TRAIN[0])
        wandb.broken = True
        open_trackers.send(TRAIN[1])
        wandb.broken = False
        open_trackers.send(TRAIN[2])
    assert len(wandb.logged) == 1
    assert notes == [
        "wandb failed, the run goes on without it: OSError: no space left on the device"
    ]


def test_a_tracker_that_cannot_start_is_noted(wandb, tmp_path):
    notes = []
    (tmp_path / "file").write_text("")
    with opened("wandb", tmp_path / "file", note=notes.append) as open_trackers:
        open_trackers.send(TRAIN[0])
    assert len(notes) == 1 and notes[0].startswith("wandb failed")
    assert not wandb.inits


def test_null_and_flags_are_no_scalars():
    record = {"step": 3, "split": "train", "loss": None, "finite": False, "learning_rate": 0}
    assert trackers.scalars(record) == {"train/learning_rate": 0.0}


def test_a_missing_package_is_refused_by_the_name_of_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[wandb\]'") as refusal:
        trackers.require(("wandb",))
    assert "\n" not in str(refusal.value)
    trackers.require(())


def test_the_config_names_trackers():
    cfg = apply_overrides(RunConfig(), {"train.trackers": "tensorboard,wandb"})
    assert cfg.train.trackers == ("tensorboard", "wandb")
    assert "train.trackers" in FREE_ON_RESUME
    for wrong in ("tensorbord", "wandb,wandb"):
        with pytest.raises(ConfigError, match="trackers"):
            apply_overrides(RunConfig(), {"train.trackers": wrong})


def test_every_tracker_has_an_extra_of_its_name():
    text = (pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text()
    for name in trackers._TRACKERS:
        assert f"\n{name} = [" in text, json.dumps(name)
