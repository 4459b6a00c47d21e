"""Checkpoints that are whole or not there: `<workdir>/checkpoints/step_00000400/`.

Orbax writes the arrays in the background into a temporary folder; then every file is hashed and
forced to the disk, `manifest.json` is written last, and the folder gets its name. So a folder
with a name is complete, and its hashes tell whether it still is.

Arrays are stored under the path of their leaf, "params/blocks/wq". A checkpoint knows nothing of
the classes of a state, and one part of it can be restored alone.
"""

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxlm.core import json_forms, trees
from jaxlm.core.config import ConfigError
from jaxlm.io import workdir as workdir_lib

FORMAT = 1
FOLDER = "checkpoints"
MANIFEST = "manifest.json"
_ARRAYS = "arrays"
BARRIER_MS = 600_000  # until the other processes are taken for dead
_TEMPORARY, _REPLACED = ".tmp-", ".old-"
_NAME = re.compile(r"step_(\d{8,})")


class CheckpointError(ConfigError):
    """A checkpoint that could not be written or read; the message is one line."""


def preload() -> Any:
    """Imports Orbax, some 0.4 s; a program may call this from a thread while it does other work."""
    import orbax.checkpoint

    _quieten_orbax()
    return orbax.checkpoint


@functools.cache
def _quieten_orbax() -> None:
    """Every error Orbax prints, with traceback, it also raises, and is one line of ours then."""
    logging.getLogger("absl").addFilter(_not_an_orbax_error)
    logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())
    show = sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        # Of the writes beside a failed one, which end when nobody waits for them any more.
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = show_others


def _not_an_orbax_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def step_dir(workdir: str | os.PathLike, step: int) -> pathlib.Path:
    """Where the checkpoint of `step` is, or would be."""
    return pathlib.Path(workdir) / FOLDER / f"step_{step:08d}"


def newest_good(
    workdir: str | os.PathLike,
    report: Callable[[str], None] | None = None,
    at_most: int | None = None,
) -> tuple[pathlib.Path, dict[str, Any]] | None:
    """The newest checkpoint whose files are all as they were written.

    Args:
      workdir: the folder of the run.
      report: called with one line for each newer checkpoint that is passed over and why; prints to
        standard error by default.
      at_most: the latest step that is looked at; None: any.
    Returns:
      (folder, manifest), or None when there is no good one. The manifest holds "step", "metrics",
      "extra", "leaves" and "files".
    """
    steps = [step for step in _steps(workdir) if at_most is None or step <= at_most]
    return _first_good(sorted(steps, reverse=True), workdir, report)


def best(
    workdir: str | os.PathLike,
    metric: str = "val_loss",
    report: Callable[[str], None] | None = None,
) -> tuple[pathlib.Path, dict[str, Any]] | None:
    """As `newest_good`, for the good checkpoint with the lowest `metric`; the later of equals."""
    ranked = _ranking(_readable(workdir), metric)
    return _first_good(ranked, workdir, report)


def verify(path: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a checkpoint after every file was found as it was written.

    Raises:
      CheckpointError: a file is missing or differs, or the manifest does.
    """
    path = pathlib.Path(path)
    manifest, inside = read_manifest(path), path.resolve()
    for name, written in manifest["files"].items():
        try:
            if not stat.S_ISREG(os.lstat(path / name).st_mode):  # a link might lead anywhere
                raise CheckpointError(f"{path}: {name} is not a regular file")
            if not (path / name).resolve().is_relative_to(inside):
                raise CheckpointError(f"{path}: {name} is in another folder, by a link")
            size, digest = _fingerprint(path / name)
        except OSError as error:
            raise CheckpointError(f"{path}: {name}: {error.strerror}") from None
        if size != written["size"]:
            raise CheckpointError(
                f"{path}: {name} has {size} bytes, {written['size']} were written"
            )
        if digest != written["sha256"]:
            raise CheckpointError(f"{path}: {name} was changed after it was written (its sha256)")
    return manifest


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a checkpoint folder; its own hash is checked, the files are not looked at."""
    path = pathlib.Path(path)
    try:
        manifest = json_forms.parse((path / MANIFEST).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {MANIFEST}: {error.strerror}") from None
    except ValueError:
        raise CheckpointError(f"{path}: {MANIFEST} is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT:
        given = manifest.get("format_version") if isinstance(manifest, dict) else None
        raise CheckpointError(
            f"{path}: checkpoint format {given}, this version of jaxlm reads {FORMAT}"
        )
    if manifest.get("sha256") != _manifest_hash(manifest):
        raise CheckpointError(f"{path}: {MANIFEST} was changed after it was written (its sha256)")
    if problem := json_forms.problem(manifest, _FORM):
        raise CheckpointError(f"{path}: {MANIFEST}: {problem}")
    if path.name != step_dir("", manifest["step"]).name:
        raise CheckpointError(f"{path}: this folder holds step {manifest['step']}")
    return manifest


def restore(path: str | os.PathLike, target: Any, part: str | None = None) -> Any:
    """The state saved in a checkpoint, bit for bit, in the structure of `target`.

    Args:
      path: a checkpoint's folder, as `newest_good` and `best` give it; hashes are theirs to check.
      target: a pytree of arrays or `jax.ShapeDtypeStruct`s. A leaf comes back as what its target
        is: a Python number, a numpy array, or else a jax array, a typed key included. A target
        with a sharding over several devices is restored so.
      part: restore only what was saved under this name, "params" for the weights of a state;
        `target` is then the target of that part.
    Raises:
      CheckpointError: leaves are missing, extra, or of another shape or dtype; the path of the
        first is named.
    """
    ocp = preload()
    path = pathlib.Path(path).absolute()
    saved = read_manifest(path)["leaves"]
    prefix = f"{part}/" if part else ""
    targets, structure = _named_leaves(target, prefix)
    saved = {n: leaf for n, leaf in saved.items() if n == part or n.startswith(prefix)}
    _check_leaves(path, saved, targets)

    stored = {name: leaf for name, leaf in targets.items() if 0 not in saved[name]["shape"]}
    arrays: dict[str, Any] = {}
    if stored:
        item = trees.unflatten(dict.fromkeys(stored, 0))
        restore_args = {name: _restore_args(ocp, leaf) for name, leaf in stored.items()}
        # Two of the largest arrays may be on their way at once, beside those that have arrived.
        at_once = 2 * max(_num_bytes(saved[name]) for name in stored) + 2**20
        handler = ocp.PyTreeCheckpointHandler(
            handler_impl=ocp.BasePyTreeCheckpointHandler(restore_concurrent_bytes=at_once)
        )
        with contextlib.closing(ocp.Checkpointer(handler)) as reader:
            try:
                tree = reader.restore(
                    path / _ARRAYS,
                    args=ocp.args.PyTreeRestore(
                        item, restore_args=trees.unflatten(restore_args), partial_restore=True
                    ),
                )
            except (OSError, ValueError, KeyError) as error:
                raise CheckpointError(f"{path}: {_reason(error)}") from None
        arrays = {name: _at(tree, name) for name in stored}
        del tree
    leaves = []
    for name, leaf in targets.items():
        array = arrays.pop(name, None)
        if array is None:
            array = np.zeros(saved[name]["shape"], jnp.dtype(saved[name]["dtype"]))
        # One by one, so that there are never two copies of all.
        leaves.append(jax.block_until_ready(_as_target(array, leaf, saved[name])))
    return jax.tree.unflatten(structure, leaves)


class Checkpointer:
    """Writes the checkpoints of one run in the background and deletes those no longer needed.

    Kept are the newest `keep_last`, and the `keep_best` of lowest `metric`. A checkpoint that
    cannot be read is neither counted nor deleted. One run at a time, the one with the lock of the
    workdir, may have a Checkpointer: it clears away what a killed one left. Of a run of several
    processes each has one, and all save together.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        keep_last: int = 2,
        keep_best: int = 1,
        metric: str = "val_loss",
    ):
        if keep_last < 1:
            raise ConfigError(f"keep_last={keep_last}: must be at least 1")
        if keep_best < 0:
            raise ConfigError(f"keep_best={keep_best}: must not be negative")
        self._workdir = pathlib.Path(workdir).absolute()
        self._keep_last, self._keep_best, self._metric = keep_last, keep_best, metric
        self._writer = None
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None
        self._writes = jax.process_index() == 0
        try:
            if self._writes:
                (self._workdir / FOLDER).mkdir(parents=True, exist_ok=True)
                _clear_leftovers(self._workdir / FOLDER)
        except OSError as error:
            raise CheckpointError(f"{self._workdir / FOLDER}: {error.strerror}") from None

    def save(
        self,
        step: int,
        state: Any,
        *,
        metrics: dict[str, float] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Copies `state` to the host and returns; the writing goes on in the background.

        The arrays may be donated or overwritten once this returns. A checkpoint of the same step
        is replaced. At most one is being written: the call waits for the one before.

        Args:
          step: number of updates done.
          state: a pytree of arrays, typed keys and numbers. A weakly typed array is restored as a
            strongly typed one.
          metrics: numbers to be kept with it; `metric` decides which is best (NaN never is).
          extra: JSON values that come back from the manifest as they are.
        Raises:
          CheckpointError: this checkpoint could not be begun, or the one before was not written.
            Those already there are as they were.
        """
        self.wait()
        final = step_dir(self._workdir, step)
        temporary = final.with_name(_TEMPORARY + final.name)
        leaves, _ = _named_leaves(state)
        manifest = {
            "format_version": FORMAT,
            "step": step,
            "metrics": {name: float(value) for name, value in (metrics or {}).items()},
            "extra": extra or {},
            "leaves": {name: _describe(leaf) for name, leaf in leaves.items()},
        }
        manifest = json.loads(json.dumps(manifest))  # what cannot be JSON fails here, not later
        stored = {n: _to_stored(leaf) for n, leaf in leaves.items() if 0 not in np.shape(leaf)}
        try:
            if self._writes:
                shutil.rmtree(temporary, ignore_errors=True)  # of a save that was interrupted
                temporary.mkdir()
            _wait_for_all(f"{temporary.name} made")
            if stored:
                self._begin(temporary / _ARRAYS, trees.unflatten(stored))
        except Exception as error:
            self._writer = None  # what an error left of it is not relied on
            _discard(temporary)
            raise CheckpointError(_not_written(final, error)) from None
        self._thread = threading.Thread(
            target=self._finish, args=(temporary, final, manifest), name="checkpoint"
        )
        self._thread.start()

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Adds metrics to the checkpoint of `step`, once it is written: those found out since.

        Raises:
          CheckpointError: as `wait`, or there is no readable checkpoint of this step.
        """
        self.wait()
        if not self._writes:
            return
        path = step_dir(self._workdir, step)
        manifest = read_manifest(path)
        manifest["metrics"] |= {name: float(value) for name, value in metrics.items()}
        manifest["sha256"] = _manifest_hash(manifest)
        workdir_lib.write_text_atomic(path / MANIFEST, json.dumps(manifest, indent=1))
        self._delete_unneeded(step)

    def delete_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps, which a rollback has taken back."""
        self.wait()
        if self._writes:
            for later in _steps(self._workdir):
                if later > step:
                    _delete(step_dir(self._workdir, later))

    def check(self) -> None:
        """Raises CheckpointError if a write has failed by now; waits for none."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being written; raises CheckpointError if that failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """`wait`, then lets go of Orbax's threads."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                with contextlib.suppress(Exception):  # reported by wait already
                    self._writer.close()
                self._writer = None

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _begin(self, path: pathlib.Path, tree: Any) -> None:
        ocp = preload()
        if self._writer is None:
            self._writer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._writer.save(path, args=ocp.args.PyTreeSave(tree))

    def _finish(self, temporary: pathlib.Path, final: pathlib.Path, manifest: dict) -> None:
        try:
            if self._writer is not None:
                self._writer.wait_until_finished()
            _wait_for_all(f"{temporary.name} written")
            if not self._writes:
                return
            manifest["files"] = _hash_and_sync(temporary)
            manifest["sha256"] = _manifest_hash(manifest)
            workdir_lib.write_text_atomic(temporary / MANIFEST, json.dumps(manifest, indent=1))
            _put_in_place(temporary, final)
        except Exception as error:
            self._writer = None
            _discard(temporary)
            self._error = CheckpointError(_not_written(final, error))
            return
        try:
            self._delete_unneeded(manifest["step"])
        except CheckpointError as error:
            self._error = error

    def _delete_unneeded(self, just_written: int) -> None:
        for path in (self._workdir / FOLDER).glob(f"{_TEMPORARY}*"):
            # On NFS a folder stays until those who read it, such as an evaluation, are done.
            shutil.rmtree(path, ignore_errors=True)
        manifests = _readable(self._workdir)
        keep = {just_written, *sorted(manifests)[-self._keep_last :]}
        keep.update(_ranking(manifests, self._metric)[: self._keep_best])
        for step in manifests.keys() - keep:
            _delete(step_dir(self._workdir, step))


def on_host(leaf: Any) -> np.ndarray:
    """A leaf as a numpy array, gathered from the other processes where they hold parts of it."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(jax.device_get(leaf))


def _wait_for_all(what: str) -> None:
    """Returns when every process of the run is here; from a thread of each as well."""
    if jax.process_count() > 1:
        preload().multihost.get_barrier_sync_fn()(key=what, timeout_ms=BARRIER_MS)


def _delete(path: pathlib.Path) -> None:
    doomed = path.with_name(_TEMPORARY + path.name)
    try:
        path.rename(doomed)  # so that no reader finds half of it
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be deleted: {_reason(error)}") from None
    shutil.rmtree(doomed, ignore_errors=True)  # else by the next save, see _delete_unneeded


def _steps(workdir: str | os.PathLike) -> list[int]:
    try:
        names = os.listdir(pathlib.Path(workdir) / FOLDER)
    except FileNotFoundError:
        return []
    return [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]


def _readable(workdir: str | os.PathLike) -> dict[int, dict[str, Any]]:
    """{step: manifest} of the checkpoints that look whole: manifest intact, files of its sizes."""
    found = {}
    for step in _steps(workdir):
        path = step_dir(workdir, step)
        with contextlib.suppress(CheckpointError, OSError):
            manifest = read_manifest(path)
            files = manifest["files"].items()
            if all((path / name).stat().st_size == file["size"] for name, file in files):
                found[step] = manifest
    return found


def _ranking(manifests: dict[int, dict[str, Any]], metric: str) -> list[int]:
    """Steps that have a finite `metric`, the lowest first, the later of equals first."""
    values = {step: m["metrics"].get(metric, math.nan) for step, m in manifests.items()}
    finite = [step for step, value in values.items() if math.isfinite(value)]
    return sorted(finite, key=lambda step: (values[step], -step))


def _first_good(
    steps: list[int], workdir: str | os.PathLike, report: Callable[[str], None] | None
) -> tuple[pathlib.Path, dict[str, Any]] | None:
    report = report or (lambda line: print(line, file=sys.stderr))
    for step in steps:
        path = step_dir(workdir, step)
        try:
            return path, verify(path)
        except CheckpointError as error:
            report(f"checkpoint passed over: {error}")
    return None


def _clear_leftovers(folder: pathlib.Path) -> None:
    """Removes what a killed process left half-written, and puts back what it was replacing."""
    for path in folder.iterdir():
        if path.name.startswith(_REPLACED):
            whole = path.with_name(path.name.removeprefix(_REPLACED))
            if whole.exists():
                shutil.rmtree(path)
            else:
                path.rename(whole)
        elif path.name.startswith(_TEMPORARY):
            shutil.rmtree(path, ignore_errors=True)


def _discard(temporary: pathlib.Path) -> None:
    """Removes what a failed save has left, until it stays away.

    The writes beside the one that failed are not waited for by Orbax; those under way end all the
    same, and make their folders anew.
    """
    gone = 0
    for _ in range(200):
        shutil.rmtree(temporary, ignore_errors=True)
        time.sleep(0.05)
        gone = 0 if temporary.exists() else gone + 1
        if gone == 10:
            return


def _put_in_place(temporary: pathlib.Path, final: pathlib.Path) -> None:
    old = final.with_name(_REPLACED + final.name)
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    workdir_lib.fsync_dir(final.parent)
    if old.exists():
        shutil.rmtree(old)


def _hash_and_sync(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    files = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = pathlib.Path(parent, name)
            size, digest = _fingerprint(path, sync=True)
            files[path.relative_to(folder).as_posix()] = {"size": size, "sha256": digest}
        workdir_lib.fsync_dir(parent)
    return dict(sorted(files.items()))


def _fingerprint(path: pathlib.Path, sync: bool = False) -> tuple[int, str]:
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_hash(manifest: dict[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_inside(name: str) -> bool:
    """Whether it can be the name of a file, and is one in the checkpoint's own folder."""
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return b"\0" not in encoded and not name.startswith("/") and ".." not in name.split("/")


def _known_dtype(value: Any) -> bool:
    try:
        return isinstance(value, str) and value.isidentifier() and str(jnp.dtype(value)) == value
    except TypeError:
        return False


_SHAPE = [json_forms.count]
_KEYS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}
_LEAF = (
    {"shape": _SHAPE, "dtype": _known_dtype},
    *({"shape": _SHAPE, "dtype": dtype, "key_impl": impl} for dtype, impl in _KEYS.items()),
)
_FORM = {  # of a manifest: see `jaxlm.core.json_forms`
    "step": json_forms.count,
    "metrics": {str: float},
    "extra": dict,
    "leaves": {str: _LEAF},
    "files": {_file_inside: {"size": json_forms.count, "sha256": str}},
}


def _named_leaves(tree: Any, prefix: str = "") -> tuple[dict[str, Any], Any]:
    """{"params/blocks/wq": leaf} in the order of the tree, and its structure."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    named: dict[str, Any] = {}
    for path, leaf in pairs:
        name = prefix + jax.tree_util.keystr(path, simple=True, separator="/")
        name = name.removesuffix("/")
        if name in named:
            raise CheckpointError(f"{name}: two leaves of the state have this path")
        named[name] = leaf
    return named, structure


def _at(tree: dict[str, Any], name: str) -> Any:
    for part in name.split("/"):
        tree = tree[part]
    return tree


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(leaf: Any) -> dict[str, Any]:
    """Shape and dtype of a leaf as JSON; for a typed key also which generator it belongs to."""
    description = {"shape": list(np.shape(leaf)), "dtype": str(_dtype(leaf))}
    if _is_key(leaf) and isinstance(leaf, jax.Array):
        description["key_impl"] = str(jax.random.key_impl(leaf))
    return description


def _num_bytes(saved: dict[str, Any]) -> int:
    """Of a saved leaf; a typed key of any generator is no larger than here."""
    width = 16 if "key_impl" in saved else jnp.dtype(saved["dtype"]).itemsize
    return math.prod(saved["shape"]) * width


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def _check_leaves(path: pathlib.Path, saved: dict[str, Any], targets: dict[str, Any]) -> None:
    problems = [f"{name}: not in this checkpoint" for name in targets if name not in saved]
    problems += [
        f"{name}: in the checkpoint, not expected" for name in saved if name not in targets
    ]
    for name in (n for n in targets if n in saved):
        want = _describe(targets[name])
        have = {field: saved[name][field] for field in ("shape", "dtype")}
        for field in have:
            if have[field] != want[field]:
                problems.append(f"{name}: {field} {have[field]}, expected {want[field]}")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckpointError(f"{path}: {problems[0]}{more}")


def _to_stored(leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _restore_args(ocp: Any, leaf: Any) -> Any:
    if _is_spread(leaf) and not _is_key(leaf):
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding)
    return ocp.RestoreArgs(restore_type=np.ndarray)


def _is_spread(leaf: Any) -> bool:
    sharding = getattr(leaf, "sharding", None)
    return sharding is not None and len(sharding.device_set) > 1


def _as_target(array: Any, leaf: Any, saved: dict[str, Any]) -> Any:
    if _is_key(leaf):
        # Placed as numbers: a key cannot be put on devices of other processes.
        data = jax.device_put(array, leaf.sharding) if _is_spread(leaf) else jnp.array(array)
        return jax.random.wrap_key_data(data, impl=saved["key_impl"])
    if isinstance(leaf, np.ndarray | np.generic):
        return np.asarray(array) if np.shape(array) else np.asarray(array)[()]
    if not hasattr(leaf, "dtype"):
        return np.asarray(array).item()
    if isinstance(array, jax.Array):
        return array
    # A copy of our own: a jax array that shares a numpy buffer cannot be donated. Placed as the
    # target is even on one device, or programs for it would be compiled again after a resume.
    return jax.device_put(array, getattr(leaf, "sharding", None), may_alias=False)


def _not_written(final: pathlib.Path, error: Exception) -> str:
    return f"{final}: not written: {_reason(error)}; earlier checkpoints are as they were"


def _reason(error: BaseException) -> str:
    """One line of an error that may be of any library and of any length."""
    text = " ".join(str(error).split())
    if code := re.search(r"os_error_code='(\d+)'", text):  # how TensorStore reports a failed write
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if not text:
        return type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
