import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.nn.rope import apply_rope, rope_angles

RNG = np.random.default_rng(0)
LAYOUTS = ["interleaved", "half"]


def rotate_oracle(x, positions, theta, layout):
    """Each pair of channels as a complex number, turned by its angle; x [S, H, Dh]."""
    Dh = x.shape[-1]
    i = np.arange(Dh // 2)
    first, second = (2 * i, 2 * i + 1) if layout == "interleaved" else (i, i + Dh // 2)
    turn = np.exp(1j * positions[:, None] * theta ** (-2.0 * i / Dh))[:, None, :]
    z = (x[..., first] + 1j * x[..., second]) * turn
    y = np.zeros_like(x)
    y[..., first], y[..., second] = z.real, z.imag
    return y


@functools.partial(quick_jit, static_argnums=(2, 3))
def rotated(x, positions, layout, theta=10_000.0):
    cos, sin = rope_angles(positions, x.shape[-1], theta)
    return apply_rope(jnp.asarray(x, jnp.float32), cos, sin, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("head_dim", "theta"), [(2, 10_000.0), (16, 10_000.0), (64, 500.0)])
def test_rope_turns_each_pair_by_its_angle(layout, head_dim, theta):
    x, positions = RNG.normal(size=(7, 3, head_dim)), np.array([0, 1, 2, 5, 100, 1000, 257])
    expected = rotate_oracle(x, positions.astype(np.float64), theta, layout)
    # an angle of 1000 radians has 6e-5 of rounding in float32
    np.testing.assert_allclose(rotated(x, positions, layout, theta), expected, atol=3e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_position_zero_is_the_identity(layout):
    x = RNG.normal(size=(1, 2, 8)).astype(np.float32)
    np.testing.assert_array_equal(rotated(x, np.zeros(1), layout), x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rope_keeps_the_norm_of_every_head(layout):
    x = RNG.normal(size=(6, 3, 8))
    y = np.asarray(rotated(x, np.arange(6) * 37, layout), np.float64)
    np.testing.assert_allclose((y**2).sum(-1), (x**2).sum(-1), rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shift", [1, 9, 200])
def test_products_of_queries_and_keys_depend_on_the_distance_alone(layout, shift):
    q, k = RNG.normal(size=(2, 1, 1, 16))
    near = rotated(q, np.array([7]), layout).ravel() @ rotated(k, np.array([3]), layout).ravel()
    far = (
        rotated(q, np.array([7 + shift]), layout).ravel()
        @ rotated(k, np.array([3 + shift]), layout).ravel()
    )
    np.testing.assert_allclose(near, far, atol=1e-4)
    other = rotated(q, np.array([8]), layout).ravel() @ rotated(k, np.array([3]), layout).ravel()
    assert abs(near - other) > 1e-2


def test_the_layouts_are_one_rotation_under_a_permutation_of_channels():
    x, positions = RNG.normal(size=(5, 2, 8)), np.arange(5)
    to_half = np.concatenate([np.arange(0, 8, 2), np.arange(1, 8, 2)])
    np.testing.assert_allclose(
        rotated(x[..., to_half], positions, "half"),
        rotated(x, positions, "interleaved")[..., to_half],
        atol=1e-6,
    )


def test_rows_of_a_batch_may_have_positions_of_their_own():
    x, positions = RNG.normal(size=(2, 4, 3, 8)), np.array([[0, 1, 2, 3], [5, 6, 0, 1]])
    y = rotated(x, positions, "interleaved")
    for b in range(2):
        np.testing.assert_allclose(y[b], rotated(x[b], positions[b], "interleaved"), atol=1e-6)


def test_angles_are_float32_and_tell_position_257_from_256():
    cos, sin = rope_angles(jnp.array([256, 257]), 8)
    assert cos.dtype == sin.dtype == jnp.float32
    assert abs(cos[0, 0] - cos[1, 0]) > 0.1
    x = jnp.ones((2, 1, 8), jnp.bfloat16)
    y = apply_rope(x, cos, sin)
    assert y.dtype == jnp.bfloat16
    assert not np.array_equal(y[0], y[1])


def test_half_is_the_rotation_of_hugging_face_llama():
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    q, k = RNG.normal(size=(2, 2, 3, 5, 8)).astype(np.float32)  # [B, H, S, Dh]
    frequency = 10_000.0 ** (-torch.arange(0, 8, 2) / 8)
    angles = torch.arange(5)[:, None] * frequency
    cos, sin = (torch.cat([f(angles)] * 2, dim=-1)[None] for f in (torch.cos, torch.sin))
    theirs = llama.apply_rotary_pos_emb(torch.tensor(q), torch.tensor(k), cos, sin)
    for x, expected in zip((q, k), theirs, strict=True):
        ours = rotated(x.transpose(0, 2, 1, 3), np.arange(5), "half")
        np.testing.assert_allclose(ours, expected.numpy().transpose(0, 2, 1, 3), atol=1e-6)


def test_llama_3_s_scaling_keeps_what_turns_often_and_slows_what_turns_seldom():
    """By wavelengths, in float64, as the formula is written in Meta's code."""
    head_dim, theta, factor, low, high, length = 32, 500.0, 8.0, 1.0, 4.0, 64
    want, kinds = [], set()
    for i in range(head_dim // 2):
        frequency = theta ** (-2 * i / head_dim)
        wavelength = 2 * math.pi / frequency
        if wavelength < length / high:
            kinds.add("kept")
        elif wavelength > length / low:
            frequency /= factor
            kinds.add("slowed")
        else:
            smooth = (length / wavelength - low) / (high - low)
            frequency = (1 - smooth) * frequency / factor + smooth * frequency
            kinds.add("between")
        want.append(frequency)
    assert len(kinds) == 3
    cos, sin = rope_angles(jnp.array([1]), head_dim, theta, (factor, low, high, length))
    np.testing.assert_allclose(np.arctan2(sin, cos)[0], want, rtol=1e-5)
