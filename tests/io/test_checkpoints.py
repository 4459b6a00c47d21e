"""Checkpoints: bit-exact, whole or absent, not trusted when damaged, not deleted when needed."""

import contextlib
import errno
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.core.config import ConfigError
from jaxlm.io import checkpoints
from jaxlm.io.checkpoints import Checkpointer, CheckpointError
from jaxlm.train.state import TrainState

ROOT = pathlib.Path(__file__).parents[2]


def make_state(seed: int = 0) -> TrainState:
    """A state with every kind of leaf a run may have."""
    rng = np.random.default_rng(seed)
    odd = np.array([np.nan, -np.nan, np.inf, -0.0, 1e-45, np.pi], np.float32)
    params = {
        "blocks": {
            "wq": jnp.asarray(rng.normal(size=(2, 8, 4)), jnp.float32),
            "odd": jnp.asarray(odd),
        },
        "half": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
    }
    return TrainState(
        step=jnp.asarray(2**31 - 1, jnp.int32),
        params=params,
        frozen=None,
        carry={"empty": {}, "none": None, "rows": jnp.zeros((0, 3)), "flag": jnp.asarray(True)},
        hypers={"lr": jnp.asarray(0.1, jnp.float32)},
        opt_state=optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(params),
        key=jax.random.key(seed + 5),
    )


def bits(leaf) -> tuple:
    if jnp.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.dtype.name, array.shape, array.tobytes()


def assert_same_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        assert bits(a) == bits(b), jax.tree_util.keystr(path)


def saved_steps(workdir) -> list[int]:
    return sorted(int(p.name.removeprefix("step_")) for p in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints at steps 10 and 20, to be copied before it is damaged."""
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpointer(workdir) as checkpointer:
        for step in (10, 20):
            extra = {"best": float("inf"), "passed_over": [3, 4]}
            checkpointer.save(
                step, make_state(step), metrics={"val_loss": jnp.float32(2.0)}, extra=extra
            )
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def test_a_state_comes_back_bit_for_bit(run):
    path, manifest = checkpoints.newest_good(run)
    assert path == checkpoints.step_dir(run, 20)
    assert (manifest["step"], manifest["metrics"]) == (20, {"val_loss": 2.0})
    assert manifest["extra"] == {"best": float("inf"), "passed_over": [3, 4]}
    for target in (make_state(1), jax.eval_shape(lambda: make_state(1))):
        restored = checkpoints.restore(path, target)
        assert_same_bits(restored, make_state(20))
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
    draw = jax.random.normal(restored.key, (3,))
    np.testing.assert_array_equal(draw, jax.random.normal(jax.random.key(25), (3,)))


def test_leaves_come_back_as_what_the_target_is(tmp_path):
    state = {"int": 3, "float": 0.1, "numpy": np.arange(3), "scalar": np.float64(0.1)}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
    restored = checkpoints.restore(checkpoints.step_dir(tmp_path, 1), state)
    assert {name: type(v) for name, v in restored.items()} == {n: type(v) for n, v in state.items()}
    assert_same_bits(restored, state)


def test_a_part_is_restored_alone(run):
    path, _ = checkpoints.newest_good(run)
    state = make_state(20)
    params = checkpoints.restore(path, jax.eval_shape(lambda: state.params), part="params")
    assert_same_bits(params, state.params)
    assert_same_bits(checkpoints.restore(path, state.step, part="step"), state.step)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p | {"new": p["half"]}, "params/new: not in this checkpoint"),
        (
            lambda p: {"half": p["half"]},
            r"params/blocks/odd: in the checkpoint, not .*\(and 1 more",
        ),
        (
            lambda p: p | {"half": jnp.zeros(8, jnp.bfloat16)},
            r"params/half: shape \[7\], expected \[8\]",
        ),
        (lambda p: p | {"half": jnp.zeros(7)}, "params/half: dtype bfloat16, expected float32"),
        (lambda p: p | {"half": None}, "params/half: in the checkpoint, not expected"),
    ],
)
def test_a_mismatch_names_the_path(run, change, message):
    path, _ = checkpoints.newest_good(run)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoints.restore(path, change(make_state().params), part="params")
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_key_of_another_generator_is_refused(run):
    path, _ = checkpoints.newest_good(run)
    with pytest.raises(CheckpointError, match=r"key: dtype key<fry>, expected key<rbg>"):
        checkpoints.restore(path, jax.random.key(0, impl="rbg"), part="key")


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
    """The buffers are donated and overwritten while the background write is still going on."""
    overwrite = jax.jit(lambda t: jax.tree.map(lambda x: -x - 1, t), donate_argnums=0)
    state = {f"w{i}": jnp.full((256, 256), float(i)) for i in range(30)}
    want = {name: np.array(value) for name, value in state.items()}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        for _ in range(5):
            state = overwrite(state)
        jax.block_until_ready(state)
    restored = checkpoints.restore(checkpoints.step_dir(tmp_path, 1), want)
    assert_same_bits(restored, want)


def largest_file(path: pathlib.Path) -> pathlib.Path:
    files = [p for p in path.rglob("*") if p.is_file() and p.name != "manifest.json"]
    return max(files, key=lambda p: p.stat().st_size)


def flip_a_bit(path):
    file = largest_file(path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut_short(path):
    os.truncate(largest_file(path), 5)


def edit_manifest(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_bit, r"was changed after it was written \(its sha256\)"),
        (cut_short, "has 5 bytes, .* were written"),
        (lambda p: largest_file(p).unlink(), "No such file"),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json: No such file"),
        (lambda p: (p / "manifest.json").write_text("{"), "manifest.json is not JSON"),
        (lambda p: (p / "manifest.json").write_text("[]"), "checkpoint format None"),
        (
            lambda p: edit_manifest(p, format_version=2),
            "checkpoint format 2, this version .* reads 1",
        ),
        (lambda p: edit_manifest(p, metrics={"val_loss": 1.0}), "manifest.json was changed"),
        (lambda p: edit_manifest(p, files={}), "manifest.json was changed"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_reported(run, damage, reason):
    damage(checkpoints.step_dir(run, 20))
    lines = []
    path, manifest = checkpoints.newest_good(run, lines.append)
    assert (path.name, manifest["step"]) == ("step_00000010", 10)
    assert len(lines) == 1 and "\n" not in lines[0]
    with pytest.raises(CheckpointError, match=reason):
        checkpoints.verify(checkpoints.step_dir(run, 20))
    assert checkpoints.best(run, report=lines.append)[0] == path


def test_a_renamed_checkpoint_is_not_another_step(run, capsys):
    checkpoints.step_dir(run, 20).rename(checkpoints.step_dir(run, 30))
    assert checkpoints.newest_good(run)[1]["step"] == 10
    assert "step_00000030: this folder holds step 20" in capsys.readouterr().err


def test_without_a_good_checkpoint_there_is_none(run, tmp_path):
    for step in (10, 20):
        flip_a_bit(checkpoints.step_dir(run, step))
    lines = []
    assert checkpoints.newest_good(run, lines.append) is None
    assert ["step_00000020" in lines[0], "step_00000010" in lines[1]] == [True, True]
    assert checkpoints.newest_good(tmp_path / "nothing") is None
    assert checkpoints.best(tmp_path / "nothing") is None


NAN = float("nan")


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "losses", "kept"),
    [
        (2, 1, {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.0}, [2, 3, 4]),
        (1, 1, {1: 3.0, 2: 2.0, 3: 1.0}, [3]),
        (1, 1, {1: 1.0, 2: 1.0, 3: 2.0}, [2, 3]),  # the later of equals
        (1, 2, {1: 1.0, 2: 5.0, 3: 2.0, 4: 3.0}, [1, 3, 4]),
        (1, 1, {1: 1.0, 2: NAN, 3: None}, [1, 3]),
        (2, 0, {1: 1.0, 2: 2.0, 3: 3.0}, [2, 3]),
    ],
)
def test_retention(tmp_path, keep_last, keep_best, losses, kept):
    with Checkpointer(tmp_path, keep_last, keep_best) as checkpointer:
        for step, loss in losses.items():
            metrics = {} if loss is None else {"val_loss": loss}
            checkpointer.save(step, {"x": jnp.arange(3)}, metrics=metrics)
    assert saved_steps(tmp_path) == kept


def test_retention_does_not_count_what_is_damaged(tmp_path):
    with Checkpointer(tmp_path, keep_last=2, keep_best=1) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, {"x": jnp.arange(3)}, metrics={"val_loss": float(step)})
        checkpointer.wait()
        cut_short(checkpoints.step_dir(tmp_path, 1))
        cut_short(checkpoints.step_dir(tmp_path, 3))
        checkpointer.save(4, {"x": jnp.arange(3)}, metrics={"val_loss": 9.0})
        checkpointer.wait()
        # 2 is now the best of the good ones and one of the two newest good ones.
        assert saved_steps(tmp_path) == [1, 2, 3, 4]
        assert checkpoints.best(tmp_path)[1]["step"] == 2


def test_retention_keeps_what_was_just_written_though_later_steps_are_there(run):
    with Checkpointer(run, keep_last=1, keep_best=0) as checkpointer:
        checkpointer.save(5, make_state())
    assert saved_steps(run) == [5, 20]


def test_what_another_process_still_reads_is_deleted_later(run, monkeypatch):
    """On NFS its folder cannot be removed until then, which is no reason to end a run."""
    rmdir, read = os.rmdir, True

    def busy(path, **where):
        if read and "step_00000010" in str(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        rmdir(path, **where)

    monkeypatch.setattr(os, "rmdir", busy)
    with Checkpointer(run, keep_best=0) as checkpointer:
        checkpointer.save(30, make_state())
    there = lambda: sorted(os.listdir(run / "checkpoints"))  # noqa: E731
    assert there() == [".tmp-step_00000010", "step_00000020", "step_00000030"]
    with Checkpointer(run, keep_best=0) as checkpointer:  # nor not to begin one
        checkpointer.save(40, make_state())
        checkpointer.wait()
        assert there() == [".tmp-step_00000010", "step_00000030", "step_00000040"]
        read = False
        checkpointer.save(50, make_state())
    assert there() == ["step_00000040", "step_00000050"]


def test_metrics_known_later_decide_what_is_kept(tmp_path):
    with Checkpointer(tmp_path, keep_last=1) as checkpointer:
        for step, loss in {1: 2.0, 2: 1.0, 3: 3.0}.items():
            checkpointer.save(step, {"x": jnp.arange(3)})
            checkpointer.record(step, {"val_loss": loss})
        assert saved_steps(tmp_path) == [2, 3]
        assert checkpoints.verify(checkpoints.step_dir(tmp_path, 3))["metrics"] == {"val_loss": 3.0}
        with pytest.raises(CheckpointError, match="step_00000001"):
            checkpointer.record(1, {"val_loss": 0.0})


def test_saving_a_step_again_replaces_it(run):
    with Checkpointer(run) as checkpointer:
        checkpointer.save(20, make_state(99), metrics={"val_loss": 1.0})
    assert_same_bits(
        checkpoints.restore(checkpoints.newest_good(run)[0], make_state()), make_state(99)
    )
    assert saved_steps(run) == [10, 20]


def test_the_next_start_clears_what_a_kill_left(run):
    folder = run / "checkpoints"
    (folder / ".tmp-step_00000030" / "arrays").mkdir(parents=True)
    (folder / "step_00000020").rename(folder / ".old-step_00000020")  # killed between two renames
    shutil.copytree(folder / "step_00000010", folder / ".old-step_00000010")  # and just after
    Checkpointer(run).close()
    assert saved_steps(run) == [10, 20]
    assert checkpoints.verify(folder / "step_00000020")["step"] == 20


def test_a_failed_background_write_is_raised_once_and_leaves_the_rest(run, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Checkpointer(run) as checkpointer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            checkpointer.save(30, make_state())
            checkpointer._thread.join()
        message = "step_00000030: not written: No space left on device"
        with pytest.raises(CheckpointError, match=message) as error:
            checkpointer.save(40, make_state())
        assert isinstance(error.value, ConfigError) and "\n" not in str(error.value)
        assert saved_steps(run) == [10, 20]
        checkpointer.save(40, make_state(40), metrics={"val_loss": 3.0})
    assert_same_bits(
        checkpoints.restore(checkpoints.newest_good(run)[0], make_state()), make_state(40)
    )


def test_a_failure_is_known_without_waiting_for_a_write(run, monkeypatch):
    done, fsync = threading.Event(), os.fsync

    def full(fd):
        done.wait(600)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Checkpointer(run) as checkpointer:
        checkpointer.check()
        monkeypatch.setattr(os, "fsync", full)
        checkpointer.save(30, make_state())
        checkpointer.check()  # it is being written still
        done.set()
        checkpointer._thread.join()
        with pytest.raises(CheckpointError, match="not written: No space left on device"):
            checkpointer.check()
        checkpointer.check()  # once is enough
        monkeypatch.setattr(os, "fsync", fsync)
        checkpointer.save(40, make_state())


def test_close_raises_a_failed_write(run, monkeypatch):
    checkpointer = Checkpointer(run)
    monkeypatch.setattr(os, "fsync", lambda fd: os.close(-1))
    checkpointer.save(30, make_state())
    with pytest.raises(CheckpointError, match="step_00000030: not written: Bad file descriptor"):
        checkpointer.close()


@contextlib.contextmanager
def small_files(workdir):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def small_disk(workdir):
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(workdir)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs more rights")
    try:
        yield
    finally:
        # Lazily: a thread of TensorStore may still be closing what could not be written.
        subprocess.run(["umount", "--lazy", str(workdir)], check=True)


@pytest.mark.parametrize(
    ("limit", "reason"),
    [(small_files, "File too large"), (small_disk, "No space left on device")],
)
def test_a_disk_that_takes_no_more(tmp_path, limit, reason, caplog, capfd):
    noise = np.frombuffer(np.random.default_rng(0).bytes(4 << 20), np.uint8)
    with limit(tmp_path), Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"x": np.arange(3)}, metrics={"val_loss": 1.0})
        checkpointer.wait()
        message = rf"^{tmp_path}/checkpoints/step_00000002: not written: {reason}; earlier .* were$"
        with pytest.raises(CheckpointError, match=message):
            checkpointer.save(2, {"x": noise})
            checkpointer.wait()
        assert saved_steps(tmp_path) == [1]
        checkpointer.save(3, {"x": np.arange(4)}, metrics={"val_loss": 2.0})
        checkpointer.wait()
        assert saved_steps(tmp_path) == [1, 3]
        for step, size in ((1, 3), (3, 4)):
            path = checkpoints.step_dir(tmp_path, step)
            checkpoints.verify(path)
            restored = checkpoints.restore(path, {"x": np.zeros(size, int)})
            np.testing.assert_array_equal(restored["x"], np.arange(size))
    # One error, ours: no traceback of a library on the way.
    assert (caplog.text, capfd.readouterr().err) == ("", "")


SAVE_FOREVER = """
import sys, numpy as np
from jaxlm.io.checkpoints import Checkpointer
with Checkpointer(sys.argv[1], keep_last=2, keep_best=1) as checkpointer:
    for step in range(int(sys.argv[2]), 10**6):
        state = {f"w{i}": np.full(20_000, step) for i in range(10)}
        checkpointer.save(step, state, metrics={"val_loss": float(step % 3)})
        print(step, flush=True)
"""


def test_a_kill_during_saving_never_costs_the_last_whole_checkpoint(tmp_path):
    done = 0
    for round_, delay_ms in enumerate((3, 47)):
        writer = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(tmp_path), str(done + 1)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for _ in range(6):
            announced = int(writer.stdout.readline())
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(delay_ms / 1000)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        lines = []
        path, manifest = checkpoints.newest_good(tmp_path, lines.append)
        step = manifest["step"]
        # `announced` was being written; the one before it was whole when that began.
        assert step >= announced - 1 > done and lines == [], round_
        target = {f"w{i}": np.zeros(20_000, int) for i in range(10)}
        for array in checkpoints.restore(path, target).values():
            np.testing.assert_array_equal(array, step)
        assert checkpoints.best(tmp_path)[1]["step"] % 3 == 0
        Checkpointer(tmp_path).close()
        assert len(saved_steps(tmp_path)) <= 4
        done = step


SHARDED = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxlm.io import checkpoints
mesh = Mesh(np.array(jax.devices()), ("data",))
split = NamedSharding(mesh, PartitionSpec("data"))
want = np.arange(12.0, dtype=np.float32).reshape(4, 3)
with checkpoints.Checkpointer(sys.argv[1]) as checkpointer:
    checkpointer.save(1, {"w": jax.device_put(want, split)})
path = checkpoints.step_dir(sys.argv[1], 1)
target = {"w": jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=split)}
got = checkpoints.restore(path, target)["w"]
assert got.sharding == split and got.addressable_shards[0].data.shape == (2, 3)
np.testing.assert_array_equal(got, want)
np.testing.assert_array_equal(checkpoints.restore(path, {"w": want})["w"], want)
print("equal")
"""


def test_sharded_arrays(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        },
    )
    assert child.stdout == "equal\n", child.stderr


PEAK = r"""
import re, sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxlm.io import checkpoints
mesh = Mesh(np.array(jax.devices()), ("data",))
split = NamedSharding(mesh, PartitionSpec("data"))
leaf = jax.ShapeDtypeStruct((1 << 24,), jnp.float32, sharding=split)
make = jax.jit(lambda i: jnp.arange(leaf.size, dtype=jnp.float32) + i, out_shardings=split)
if sys.argv[2] == "save":
    with checkpoints.Checkpointer(sys.argv[1]) as checkpointer:
        checkpointer.save(1, {f"w{i}": make(i) for i in range(8)})
else:
    checkpoints.preload()
    make(0).block_until_ready()
    def kib(name):  # getrusage would give the greatest size of the process that started this one
        return int(re.search(name + r":\s+(\d+) kB", open("/proc/self/status").read())[1])
    resident = kib("VmRSS")
    got = checkpoints.restore(
        checkpoints.step_dir(sys.argv[1], 1), {f"w{i}": leaf for i in range(8)}
    )
    assert float(got["w7"][5]) == 12
    print((kib("VmHWM") - resident) * 1024 / (8 * 4 * leaf.size))
"""


@pytest.mark.slow
def test_restoring_takes_little_more_memory_than_what_is_restored(tmp_path):
    """512 MiB in 8 arrays, written by 8 devices: 1.4 to 1.7 times that.

    Two of the 8 arrays may be on their way; the rest is what the allocator has not given back.
    """

    def child(what, devices):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path), what],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            },
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    child("save", 8)
    copies = {devices: float(child("restore", devices)) for devices in (1, 4, 8)}
    assert max(copies.values()) < 1.9, copies


def read_only(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_read_only_folder_is_one_line_and_leaves_the_rest(run, tmp_path, monkeypatch):
    """As root may write where the mode forbids it, the system's answer stands for such a folder."""
    with Checkpointer(run) as checkpointer, monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", read_only)
        with pytest.raises(
            CheckpointError, match="step_00000030: not written: Read-only file"
        ) as e:
            checkpointer.save(30, make_state())
    assert "\n" not in str(e.value)
    assert checkpoints.newest_good(run)[1]["step"] == 20
    monkeypatch.setattr(os, "mkdir", read_only)
    with pytest.raises(CheckpointError, match="checkpoints: Read-only file system"):
        Checkpointer(tmp_path / "new")


def test_a_clock_that_goes_backwards_changes_nothing(run):
    """Which checkpoint is the newest, and which are deleted, follows from their steps alone."""
    for age, step in ((10**9, 10), (0, 20)):  # the older one was written later
        for path in checkpoints.step_dir(run, step).rglob("*"):
            os.utime(path, (age, age))
        os.utime(checkpoints.step_dir(run, step), (age, age))
    assert checkpoints.newest_good(run)[1]["step"] == 20
    with Checkpointer(run, keep_last=2, keep_best=0) as checkpointer:
        checkpointer.save(30, make_state(), metrics={"val_loss": 3.0})
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "step_00000020",
        "step_00000030",
    ]


def sealed(path: pathlib.Path, **changes) -> None:
    """Changes a manifest and its hash with it."""
    manifest = json.loads((path / checkpoints.MANIFEST).read_text()) | changes
    manifest["sha256"] = checkpoints._manifest_hash(manifest)
    (path / checkpoints.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"/dev/zero": {"size": 1, "sha256": "x"}}},
        {"files": {"../../secret": {"size": 1, "sha256": "x"}}},
        {"files": {"a\0b": {"size": 1, "sha256": "x"}}},
        {"files": {"\ud800": {"size": 1, "sha256": "x"}}},
        {"files": {"arrays": {"size": -1, "sha256": "x"}}},
        {"leaves": {"w": {"shape": [-1], "dtype": "float32"}}},
        {"leaves": {"w": {"shape": [1], "dtype": "f4,f4"}}},
        {"leaves": {"w": {"shape": [1], "dtype": "float33"}}},
        {"leaves": {"key": {"shape": [], "dtype": "key<fry>", "key_impl": "rbg"}}},
        {"step": "20"},
        {"metrics": {"val_loss": "low"}},
        {"extra": []},
    ],
)
def test_a_manifest_with_a_good_hash_and_a_bad_form_is_refused(run, changes):
    """Whoever can write the file can write its hash: nothing outside the folder is opened."""
    path = checkpoints.step_dir(run, 20)
    sealed(path, **changes)
    with pytest.raises(CheckpointError, match=r"manifest.json: .*: expected"):
        checkpoints.verify(path)
    assert checkpoints.newest_good(run, report=lambda line: None)[1]["step"] == 10


def test_a_file_that_is_a_link_is_refused(run, tmp_path):
    path = checkpoints.step_dir(run, 20)
    name = next(iter(checkpoints.verify(path)["files"]))
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="not a regular file"):
        checkpoints.verify(path)


def test_a_folder_that_is_a_link_is_refused(run, tmp_path):
    path = checkpoints.step_dir(run, 20)
    (path / "arrays").rename(tmp_path / "elsewhere")
    (path / "arrays").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="arrays/.* is in another folder, by a link"):
        checkpoints.verify(path)
    # The folder of the run may be one: it is what the user named.
    (tmp_path / "named").symlink_to(run)
    assert checkpoints.verify(checkpoints.step_dir(tmp_path / "named", 10))["step"] == 10


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="keep_last=0"):
        Checkpointer(tmp_path, keep_last=0)
    with pytest.raises(ConfigError, match="keep_best=-1"):
        Checkpointer(tmp_path, keep_best=-1)
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="checkpoints: File exists"):
        Checkpointer(tmp_path)


def test_arrays_that_go_after_the_check_are_one_line(run):
    """Deleted by hand between `newest_good` and `restore`."""
    path, _ = checkpoints.newest_good(run)
    shutil.rmtree(path / "arrays")
    with pytest.raises(CheckpointError, match="step_00000020: ") as error:
        checkpoints.restore(path, make_state())
    assert "\n" not in str(error.value)


def test_later_steps_are_deleted_and_no_others(run):
    with Checkpointer(run, keep_last=3) as writer:
        writer.save(30, make_state(30))
        writer.delete_after(10)
        assert saved_steps(run) == [10]
    assert checkpoints.newest_good(run)[1]["step"] == 10


def test_what_cannot_be_deleted_is_told_once_and_the_new_one_is_there(run, monkeypatch):
    rename = pathlib.Path.rename

    def busy(path, target):
        if path.name == "step_00000010":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", busy)
    writer = Checkpointer(run, keep_last=1, keep_best=0)
    writer.save(30, make_state(30))
    with pytest.raises(CheckpointError, match="step_00000010: cannot be deleted: Device or res"):
        writer.wait()
    writer.close()
    assert checkpoints.newest_good(run)[1]["step"] == 30


def test_two_leaves_of_one_path_are_refused(tmp_path):
    with (
        Checkpointer(tmp_path) as writer,
        pytest.raises(CheckpointError, match="a/b: two leaves of the state have this path"),
    ):
        writer.save(1, {"a/b": np.ones(1), "a": {"b": np.ones(1)}})
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\n  b"), "a b"),
        (ValueError(), "ValueError"),
        (ValueError("x" * 300), "x" * 200 + "..."),
        (ValueError("... os_error_code='28' ..."), "No space left on device"),
        (OSError(errno.EACCES, "Permission denied", "/a/b"), "Permission denied"),
    ],
)
def test_any_error_of_a_library_is_one_short_line(error, line):
    assert checkpoints._reason(error) == line
