"""Frozen weights: kept once under their hash, exact, refused when they are not what was saved."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.io import checkpoints, frozen
from jaxlm.io.checkpoints import CheckpointError


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "embed": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32),
        "blocks": {"wq": jnp.asarray(rng.normal(size=(2, 3)), jnp.bfloat16)},
    }


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def folder_of(workdir, digest):
    return workdir / frozen.FOLDER / digest


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_weights_come_back_bit_for_bit_and_are_written_once(tmp_path):
    tree = weights()
    digest = frozen.save(tmp_path, tree)
    before = files(tmp_path)
    assert frozen.save(tmp_path, weights()) == digest
    assert files(tmp_path) == before
    got = frozen.restore(tmp_path, digest, abstract(tree))
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(tree), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_damaged_weights_are_written_again(tmp_path):
    digest = frozen.save(tmp_path, weights())
    damage(folder_of(tmp_path, digest))
    assert frozen.save(tmp_path, weights()) == digest
    frozen.restore(tmp_path, digest, abstract(weights()))


def damage(folder):
    """Flips one bit of a file that holds values."""
    path = max(folder.glob("**/d/*"), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("fate", ["missing", "damaged", "others", "shape"])
def test_weights_that_are_not_those_are_refused_in_one_line(tmp_path, fate):
    digest, target = frozen.save(tmp_path, weights()), abstract(weights())
    if fate == "missing":
        shutil.rmtree(folder_of(tmp_path, digest))
    if fate == "damaged":
        damage(folder_of(tmp_path, digest))
    if fate == "others":  # whole, but of another run
        other = frozen.save(tmp_path, weights(1))
        shutil.rmtree(folder_of(tmp_path, digest))
        folder_of(tmp_path, other).rename(folder_of(tmp_path, digest))
    if fate == "shape":
        target["embed"] = jax.ShapeDtypeStruct((5, 4), jnp.float32)
    with pytest.raises(CheckpointError) as error:
        frozen.restore(tmp_path, digest, target)
    message = str(error.value)
    assert message.startswith("frozen weights of this run: ") and "\n" not in message
    assert str(checkpoints.step_dir(folder_of(tmp_path, digest), 0)) in message
    said = {"missing": "No such file", "damaged": "changed", "others": "other weights"}
    assert said.get(fate, "embed: shape") in message


def test_the_fingerprint_sees_values_paths_shapes_and_dtypes():
    x = jnp.zeros((2, 3))
    trees = [
        {"a": x},
        {"b": x},
        {"a": x.at[1, 2].set(-0.0)},
        {"a": x.reshape(3, 2)},
        {"a": x.astype(jnp.int32)},
        {"a": {"a": x}},
    ]
    assert len({frozen.fingerprint(tree) for tree in trees}) == len(trees)
    assert frozen.fingerprint({"a": x}) == frozen.fingerprint({"a": np.zeros((2, 3), np.float32)})
    both = {"a": x, "b": x + 1}
    assert frozen.fingerprint(both) == frozen.fingerprint(dict(reversed(both.items())))


@pytest.mark.parametrize("digest", ["../../x", "/etc", "", "0" * 63, 7, None])
def test_a_fingerprint_that_is_a_path_is_refused(tmp_path, digest):
    with pytest.raises(CheckpointError, match="no fingerprint"):
        frozen.restore(tmp_path, digest, {})
