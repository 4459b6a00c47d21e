"""From the command line to a RunConfig."""

import dataclasses
import importlib.machinery
import pathlib
import types
from typing import Any

from jaxlm.core.config import FLAG, ConfigError, apply_overrides, flatten, from_dict
from jaxlm.io.workdir import CONFIG_FILE, load_config
from jaxlm.jobs import Launch
from jaxlm.jobs.sources import config_of_source
from jaxlm.train.config import RunConfig


def read_config(path: str | pathlib.Path) -> Any:
    """The config of a file: `get_config()` of a .py file, or a run's config.json.

    Raises:
      ConfigError: no such file, one that fails, or one that gives no RunConfig.
    """
    path = pathlib.Path(path)
    flag = f"--config={path}"
    if path.is_dir() and (path / CONFIG_FILE).exists():
        path = path / CONFIG_FILE
    if path.is_dir():
        raise ConfigError(f"{flag}: a folder without a run (no {CONFIG_FILE})")
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        known = f" (in {path.parent}: {', '.join(near)})" if near else ""
        raise ConfigError(f"{flag}: no such file{known}")
    if path.suffix == ".json":
        return load_config(path, RunConfig)
    if path.suffix != ".py":
        raise ConfigError(f"{flag}: expected a .py file with get_config() or a run's config.json")
    config = run_file(path, flag, "get_config")
    if not isinstance(config, RunConfig):
        raise ConfigError(f"{flag}: get_config() gave a {type(config).__name__}, not a RunConfig")
    return from_dict(
        RunConfig, dataclasses.asdict(config), flag
    )  # a dataclass does not check its types


def run_file(path: pathlib.Path, flag: str, function: str, *args: Any) -> Any:
    """What a function of a .py file gives; what goes wrong in it is one line behind `flag`."""
    loader = importlib.machinery.SourceFileLoader(path.stem, str(path))
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        loader.exec_module(module)
        if not callable(getattr(module, function, None)):
            raise ConfigError(f"the file has no {function}()")
        return getattr(module, function)(*args)
    except ConfigError as error:
        raise ConfigError(str(error) if FLAG in str(error) else f"{flag}: {error}") from None
    except (Exception, SystemExit) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{flag}: {what}") from None


def field_meant(flag: str) -> str:
    """ "; did you mean --config.model.num_layers?" of `num_layers` or `model.num_layers`, or ""."""
    found = [p for p in flatten(RunConfig()) if flag in (p, p.rpartition(".")[2])]
    return f"; did you mean {' or '.join(FLAG + path for path in found)}?" if found else ""


def launch_config(launch: Launch) -> tuple[RunConfig, str]:
    """The config to train with, and a name for the run.

    A workdir that holds a run is the base where no --config is given, so that
    `--workdir=runs/a` alone goes on with run a; else the run whose weights are to be started from,
    so that `--config.train.init_from=runs/a` alone has the model of run a.
    """
    source = launch.config
    if source is None and launch.workdir and (pathlib.Path(launch.workdir) / CONFIG_FILE).exists():
        source = launch.workdir
    base = launch.overrides.get("train.init_from")
    if source is None and base and (config := config_of_source(base)) is not None:
        return apply_overrides(config, launch.overrides), pathlib.Path(base).stem
    source = source or launch.default_config
    config = apply_overrides(read_config(source), launch.overrides)
    path = pathlib.Path(source)
    if path.suffix == ".json":
        path = path.parent
    return config, path.stem
