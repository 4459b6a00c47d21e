"""What --job=doctor says of machines that have something wrong with them."""

import pathlib
import shutil
import tomllib
import types

import jax
import pytest

from jaxlm.jobs import Launch, doctor

ROOT = pathlib.Path(__file__).parents[2]


def test_this_machine_can_multiply_and_is_described(capsys):
    code = doctor.main(Launch(None, {}, None, "", None))
    out = capsys.readouterr().out
    assert code == int("->" in out)  # what is wrong has an arrow to what puts it right
    for word in ("python", "jaxlib", "devices", "arithmetic", "cache", "disk", "extras"):
        assert word in out
    assert "right to" in out


@pytest.mark.parametrize(
    ("platform", "forced", "hardware", "says", "fix"),
    [
        ("gpu", "", "gpu", "uses the gpu", None),
        ("cpu", "", None, "uses the CPU", None),
        ("cpu", "", "gpu", "NVIDIA GPU is here", ".[cuda]"),
        ("cpu", "", "tpu", "TPU is here", ".[tpu]"),
        ("cpu", "cpu", "gpu", "JAX_PLATFORMS=cpu leaves it out", "unset JAX_PLATFORMS"),
    ],
)
def test_an_accelerator_that_is_not_used_is_noticed(platform, forced, hardware, says, fix):
    finding = doctor.accelerator(platform, forced, hardware)
    assert says in finding.says
    assert fix is None if finding.fix is None else fix in finding.fix


def test_packages_that_do_not_fit_are_named():
    good = {"jax": "0.10.2", "jaxlib": "0.10.1", "flax": "0.12"}
    assert doctor.versions(good).fix is None
    assert "jaxlib==0.10.2" in doctor.versions(good | {"jaxlib": "0.9.0"}).fix
    assert doctor.versions(good | {"flax": None}).fix == "pip install flax"


def test_a_device_that_another_process_holds_is_noticed(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    [finding] = doctor.device_memory({"bytes_limit": 60 * doctor.GIB, "bytes_in_use": doctor.GIB})
    assert "60.0 GiB" in finding.says and "three quarters" in finding.says and not finding.fix
    [finding] = doctor.device_memory({"bytes_limit": doctor.GIB})
    assert "another process" in finding.fix
    assert list(doctor.device_memory(None)) == []


def test_a_small_disk_is_noticed(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=doctor.GIB))
    assert "1.0 GiB free" in doctor.disk(pathlib.Path(".")).says
    assert doctor.disk(pathlib.Path(".")).fix


def test_a_jax_that_does_not_start_is_an_answer_too(monkeypatch, capsys):
    def fails():
        raise RuntimeError("Unable to initialize backend 'cuda':\n no driver")

    monkeypatch.setattr(jax, "devices", fails)
    assert doctor.main(Launch(None, {}, None, "", None)) == 1
    assert "JAX does not start: Unable to initialize backend 'cuda': no driver" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(("error", "expected"), [(0, None), (1e-3, None), (0.5, "broken")])
def test_wrong_arithmetic_is_noticed(error, expected, monkeypatch):
    exact = jax.numpy.dot
    monkeypatch.setattr(jax.numpy, "dot", lambda a, b: exact(a, b) * (1 + error))
    says, fix = doctor.arithmetic()
    assert "product is" in says and (fix is None if expected is None else expected in fix)
    assert ("rounds its operands" in says) == (error == 1e-3)


def test_every_extra_is_looked_for():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(declared["project"]["optional-dependencies"])
    # What these bring shows as the devices, or is of use to those who work on jaxlm alone.
    assert set(doctor.EXTRAS) == extras - {"cuda", "tpu", "test", "dev"}
