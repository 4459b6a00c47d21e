"""Convolution, pooling and patches against torch and against loops."""

import numpy as np
import pytest

from jaxlm.nn.convolution import conv2d, max_pool, patches

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 6, 8, 3)).astype(np.float32)


def to_torch(torch, x):
    return torch.tensor(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def from_torch(y):
    return np.moveaxis(y.numpy(), 1, -1)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_convolution_is_torchs(size):
    torch = pytest.importorskip("torch")
    w = RNG.normal(size=(size, size, 3, 4)).astype(np.float32)
    bias = RNG.normal(size=4).astype(np.float32)
    their_w = torch.tensor(np.ascontiguousarray(w.transpose(3, 2, 0, 1)))
    x = to_torch(torch, X)
    theirs = torch.nn.functional.conv2d(x, their_w, torch.tensor(bias), padding="same")
    np.testing.assert_allclose(conv2d(X, w, bias), from_torch(theirs), atol=1e-4)
    without = torch.nn.functional.conv2d(x, their_w, padding="same")
    np.testing.assert_allclose(conv2d(X, w), from_torch(without), atol=1e-4)


def test_convolution_is_the_loop():
    w = RNG.normal(size=(3, 3, 3, 4)).astype(np.float32)
    padded = np.pad(X.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((2, 6, 8, 4))
    for i in range(6):
        for j in range(8):
            expected[:, i, j] = np.einsum("bhwc,hwcd->bd", padded[:, i : i + 3, j : j + 3], w)
    np.testing.assert_allclose(conv2d(X, w), expected, atol=1e-5)


def test_the_largest_of_each_part_is_torchs():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.max_pool2d(to_torch(torch, X), 2)
    np.testing.assert_array_equal(max_pool(X, 2), from_torch(theirs))


def test_patches_are_squares_row_by_row_and_with_a_matrix_a_strided_convolution():
    found = patches(X, 2)
    assert found.shape == (2, 12, 12)
    np.testing.assert_array_equal(found[1, 5], X[1, 2:4, 2:4].ravel())  # second row, second column
    torch = pytest.importorskip("torch")
    w = RNG.normal(size=(12, 5)).astype(np.float32)
    kernel = torch.tensor(np.ascontiguousarray(w.reshape(2, 2, 3, 5).transpose(3, 2, 0, 1)))
    theirs = from_torch(torch.nn.functional.conv2d(to_torch(torch, X), kernel, stride=2))
    np.testing.assert_allclose(found @ w, theirs.reshape(2, 12, 5), atol=1e-5)


@pytest.mark.parametrize("cut", [max_pool, patches])
def test_parts_that_do_not_fit_are_refused(cut):
    with pytest.raises(ValueError, match="6 x 8 does not divide"):
        cut(X, 4)
