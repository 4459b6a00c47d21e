"""Compiled programs kept between runs in the user's cache folder, and what that saved."""

import collections
import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import threading
import warnings
from typing import Any

_HIT = "/jax/compilation_cache/cache_hits"
_BACKEND = "/jax/core/compile/backend_compile_duration"
_LOWERING = "/jax/core/compile/jaxpr_to_mlir_module_duration"


@dataclasses.dataclass(frozen=True)
class CompileCounts:
    """Programs made ready to run: how many, how many of them from the cache, seconds in all."""

    programs: int = 0
    from_cache: int = 0
    seconds: float = 0.0

    def __sub__(self, earlier: "CompileCounts") -> "CompileCounts":
        return CompileCounts(
            self.programs - earlier.programs,
            self.from_cache - earlier.from_cache,
            self.seconds - earlier.seconds,
        )

    def __str__(self) -> str:
        compiled = self.programs - self.from_cache
        programs = "program" if self.from_cache == 1 else "programs"
        return (
            f"{self.seconds:.1f} s ({self.from_cache} {programs} from cache, {compiled} compiled)"
        )


_counts = CompileCounts()
_by_name: collections.Counter[str] = collections.Counter()
_counts_lock = threading.Lock()  # programs may be compiled by several threads
_listening = False


def enable(cache_dir: str | os.PathLike | None = None) -> pathlib.Path | None:
    """Turns on JAX's persistent compilation cache and the counting of programs; starts no backend.

    Call it before the first compilation: JAX settles on its cache then, for the whole process.

    Args:
      cache_dir: where to keep programs. By default the folder JAX is already set to use
        (JAX_COMPILATION_CACHE_DIR), else one in the user's cache folder, apart for each version
        of jaxlib, platform and set of CPU features: a program compiled for other instructions
        than this machine's must not be loaded here.
    Returns:
      The folder, or None when it cannot be made; programs are then compiled anew in each run.
    """
    import jax

    _listen()
    # A disk that is full slows the next start down, and is no matter of this run.
    warnings.filterwarnings("ignore", message="Error writing persistent compilation cache")
    path = pathlib.Path(cache_dir or _setting("jax_compilation_cache_dir") or default_dir())
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(path, os.W_OK | os.X_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    # A run starts with dozens of small programs of 10 to 50 ms each: they are worth keeping too.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path


def _setting(name: str) -> Any:
    import jax

    return getattr(jax.config, name)  # set on it at run time, each


def counts() -> CompileCounts:
    """Programs and seconds since `enable`; subtract two of them for a part of a run."""
    return _counts


def programs_named(*names: str) -> int:
    """How many programs of jitted functions with these names were made ready since `enable`."""
    return sum(_by_name[f"jit({name})"] for name in names)


def default_dir() -> pathlib.Path:
    """`$XDG_CACHE_HOME/jaxlm/xla/<jaxlib>-<platform>-<hash of the CPU's features>`."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    # The device kind would need a backend; JAX's own key of each program holds it.
    platforms = (_setting("jax_platforms") or "default").replace(",", "_")
    features = hashlib.sha256(_cpu_features().encode()).hexdigest()[:12]
    name = f"{importlib.metadata.version('jaxlib')}-{platforms}-{features}"
    return pathlib.Path(cache) / "jaxlm" / "xla" / name


def _cpu_features() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return f"{platform.machine()} {line.partition(':')[2].strip()}"
    except OSError:
        pass
    return f"{platform.system()} {platform.machine()} {platform.processor()}"


def _listen() -> None:
    global _listening
    if _listening:
        return
    from jax import monitoring

    def on_event(event: str, **_) -> None:
        global _counts
        if event == _HIT:
            with _counts_lock:
                _counts = dataclasses.replace(_counts, from_cache=_counts.from_cache + 1)

    def on_duration(event: str, duration_secs: float, **about: Any) -> None:
        global _counts
        if event in (_BACKEND, _LOWERING):
            with _counts_lock:
                _by_name[str(about.get("fun_name", ""))] += event == _BACKEND
                _counts = dataclasses.replace(
                    _counts,
                    programs=_counts.programs + (event == _BACKEND),
                    seconds=_counts.seconds + duration_secs,
                )

    monitoring.register_event_listener(on_event)
    monitoring.register_event_duration_secs_listener(on_duration)
    _listening = True
