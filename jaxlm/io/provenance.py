"""What else a result depends on besides its config: code, versions and devices."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jaxlm
from jaxlm.core.config import ConfigError
from jaxlm.io import workdir

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tiktoken")


def collect(seed: int | None = None) -> dict[str, Any]:
    """A dict of JSON values that says where a run came from.

    Needs a JAX backend and starts one if there is none. Without git, or outside a checkout, the
    commit is None.
    """
    import jax

    devices = jax.devices()
    return {
        "jaxlm": jaxlm.__version__,
        **git_state(pathlib.Path(jaxlm.__file__).parent),
        "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "backend": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "packages": {name: version for name in PACKAGES if (version := version_of(name))},
    }


def save(path: pathlib.Path, seed: int | None = None, *, goes_on: bool = True) -> None:
    """Writes `collect` of this start to `path`.

    goes_on: whether what an earlier start made is kept. Those that differ from this one, by a
    commit or a version say, are then listed under "earlier", the first first.
    """
    now, earlier = collect(seed), []
    if goes_on and path.exists():
        with contextlib.suppress(ConfigError):  # a damaged file tells nothing, and is replaced
            before = workdir.load_json(path, {"earlier": ([dict], None)})
            earlier = before.pop("earlier", None) or []
            earlier += [before] if before != now and before not in earlier else []
    workdir.save_json(path, {**now, "earlier": earlier} if earlier else now)


def git_state(folder: pathlib.Path) -> dict[str, Any]:
    """{"commit": hash or None, "dirty": whether tracked files differ from it, or None}.

    A package installed into an environment inside some other project's checkout is not that
    project's commit: `folder` itself must be under version control.
    """
    commit = None
    if _git(folder, "ls-files", "--error-unmatch", ".") is not None:
        commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: pathlib.Path, *args: str) -> str | None:
    # Nothing is written: a lock that `git status` takes to renew its index would be in the way of
    # the user's own git, and stay if this process is killed.
    command = ["git", "--no-optional-locks", "-C", str(folder), *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def version_of(name: str) -> str | None:
    """The version of an installed package; None: it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
