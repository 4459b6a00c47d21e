"""--job=doctor: what this machine offers, what is wrong with it, and what puts it right."""

import glob
import importlib.util
import os
import pathlib
import platform
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple

from jaxlm.core.config import ConfigError
from jaxlm.io.provenance import version_of
from jaxlm.jobs import Launch

GIB = 2**30
SMALL_DISK = 2 * GIB
LARGE_CACHE = 10 * GIB
PACKAGES = ("jaxlm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tiktoken")
EXTRAS = {  # of pyproject.toml, and the module that tells whether it is installed
    "parity": "transformers",
    "gguf": "gguf",
    "chat": "jinja2",
    "constrained": "llguidance",
    "digits": "sklearn",
    "slurm": "submitit",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "tpu-aot": "libtpu",
}


class Finding(NamedTuple):
    """what: one or two words. says: what was found. fix: what to do about it, where it is wrong."""

    what: str
    says: str
    fix: str | None = None


def main(launch: Launch) -> int:
    """Prints a line a finding; 1 if something is wrong."""
    if launch.config or launch.workdir or launch.overrides:
        raise ConfigError("--job=doctor looks at the machine: leave --config and --workdir out")
    findings = list(examine())
    for finding in findings:
        print(f"{finding.what:12}{finding.says}")
        if finding.fix:
            print(f"{'':12}-> {finding.fix}")
    wrong = sum(finding.fix is not None for finding in findings)
    print("all is well" if not wrong else f"{wrong} to look at, see the arrows")
    return int(wrong > 0)


def examine() -> Iterator[Finding]:
    """Everything there is to say; starts JAX's backend."""
    yield Finding("python", f"{platform.python_version()}, {platform.platform()}, {sys.executable}")
    yield versions({name: version_of(name) for name in PACKAGES})
    try:
        import jax

        devices = jax.devices()
    except Exception as error:  # whatever keeps JAX from starting is what is asked here
        says = " ".join(str(error).split())[:300]
        fix = "set JAX_PLATFORMS=cpu to go on without it, or repair the installation named"
        yield Finding("devices", f"JAX does not start: {says}", fix)
        return
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    yield Finding("devices", f"{len(devices)} x {kinds} ({devices[0].platform}){processes}")
    yield accelerator(devices[0].platform, os.environ.get("JAX_PLATFORMS", ""), seen_hardware())
    yield from device_memory(devices[0].memory_stats())
    yield Finding("arithmetic", *arithmetic())
    yield host_memory()
    yield compile_cache()
    yield disk(pathlib.Path("."))
    flags = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_FLAGS)}
    if flags:
        yield Finding("environment", " ".join(f"{name}={value}" for name, value in flags.items()))
    yield extras()


_FLAGS = ("XLA_", "JAX_", "TPU_", "CUDA_VISIBLE", "LIBTPU")


def versions(found: dict[str, str | None]) -> Finding:
    """found: the version of each package, or None."""
    says = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    jax, jaxlib = found["jax"], found["jaxlib"]
    if jax and jaxlib and jax.split(".")[:2] != jaxlib.split(".")[:2]:
        return Finding("packages", says, f"pip install -U jax=={jax} jaxlib=={jax}")
    missing = [name for name, version in found.items() if version is None]
    return Finding("packages", says, f"pip install {' '.join(missing)}" if missing else None)


def seen_hardware() -> str | None:
    """ "gpu" or "tpu" where the machine shows one, whatever JAX sees."""
    if glob.glob("/dev/nvidia[0-9]*") or shutil.which("nvidia-smi"):
        return "gpu"
    told = any(name in os.environ for name in ("TPU_NAME", "COLAB_TPU_ADDR", "TPU_WORKER_ID"))
    nodes = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return "tpu" if told or nodes else None


def accelerator(platform: str, forced: str, hardware: str | None) -> Finding:
    """platform: of JAX's devices. forced: JAX_PLATFORMS. hardware: of `seen_hardware`."""
    if platform != "cpu":
        return Finding("accelerator", f"JAX uses the {platform}")
    if hardware is None:
        return Finding("accelerator", "none here; JAX uses the CPU")
    name = {"gpu": "an NVIDIA GPU", "tpu": "a TPU"}[hardware]
    if forced:
        fix = "unset JAX_PLATFORMS"
        return Finding("accelerator", f"{name} is here, JAX_PLATFORMS={forced} leaves it out", fix)
    extra = {"gpu": "cuda", "tpu": "tpu"}[hardware]
    fix = f"pip install -e '.[{extra}]', then start Python anew"
    if hardware == "tpu":
        fix += "; on Colab first choose Runtime > Change runtime type > TPU"
    return Finding("accelerator", f"{name} is here, but JAX does not see it", fix)


def device_memory(stats: dict[str, int] | None) -> Iterator[Finding]:
    """stats: of the first device; None where it keeps no account."""
    if not stats or not stats.get("bytes_limit"):
        return
    limit, used = stats["bytes_limit"], stats.get("bytes_in_use", 0)
    says = f"{limit / GIB:.1f} GiB for JAX on each device, {used / GIB:.1f} in use"
    share = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
    if os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "true").lower() in ("false", "0"):
        says += ", taken as needed"
    elif share:
        says += f", taken at the start (XLA_PYTHON_CLIENT_MEM_FRACTION={share})"
    else:
        says += ", taken at the start: three quarters of it, XLA_PYTHON_CLIENT_MEM_FRACTION=.9 or "
        says += "XLA_PYTHON_CLIENT_PREALLOCATE=false changes that"
    few = limit < 2 * GIB
    fix = "another process holds the device: see nvidia-smi, and end it" if few else None
    yield Finding("memory", says, fix)


def arithmetic() -> tuple[str, str | None]:
    """Whether the first device multiplies rightly."""
    import jax.numpy as jnp
    import numpy as np

    a, b = np.random.default_rng(0).normal(size=(2, 128, 128)).astype(np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    off = float(np.abs(np.asarray(jnp.dot(a, b)) - exact).max() / np.abs(exact).max())
    if off < 1e-5:
        return f"a float32 product is right to {off:.0e}", None
    if off < 2e-2:
        return (
            f"a float32 product is right to {off:.0e}: this device rounds its operands "
            "(JAX_DEFAULT_MATMUL_PRECISION=highest does not)"
        ), None
    return f"a float32 product is off by {off:.0e}", "the device or its driver is broken: reinstall"


def host_memory() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return Finding("host", f"{cores} cores")
    return Finding("host", f"{cores} cores, {total / GIB:.1f} GiB of memory")


def compile_cache() -> Finding:
    """The folder of compiled programs: whether it can be used, and its size."""
    from jaxlm.io import compile_cache

    folder = compile_cache.enable()
    if folder is None:
        says = "compiled programs cannot be kept: their folder is not writable"
        return Finding("cache", says, "set JAX_COMPILATION_CACHE_DIR to a folder that is")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    says = f"{folder}, {size / 2**20:,.0f} MiB of compiled programs"
    return Finding("cache", says, f"rm -r {folder}" if size > LARGE_CACHE else None)


def disk(folder: pathlib.Path) -> Finding:
    free = shutil.disk_usage(folder).free
    says = f"{free / GIB:.1f} GiB free in {folder.resolve()}"
    few = free < SMALL_DISK
    return Finding("disk", says, "make room, or give a --workdir elsewhere" if few else None)


def extras() -> Finding:
    """Which extras are installed."""
    there = [extra for extra, module in EXTRAS.items() if importlib.util.find_spec(module)]
    absent = [extra for extra in EXTRAS if extra not in there]
    says = ", ".join(there) or "none"
    return Finding("extras", says + (f" (not installed: {', '.join(absent)})" if absent else ""))
