"""Convolution of images, and images in patches."""

import jax

from jaxlm.core.arrays import Array


def conv2d(x: Array, w: Array, bias: Array | None = None) -> Array:
    """Convolution with zeros around, so that the size stays.

    As in torch and in most networks it is a correlation: the kernel is not turned.

    Args:
      x: [B, height, width, C]. w: [k, k, C, D], k odd. bias: [D].
    Returns:
      [B, height, width, D].
    """
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dimensions)
    return y if bias is None else y + bias


def max_pool(x: Array, size: int) -> Array:
    """The largest of each size x size square: [B, H, W, C] -> [B, H / size, W / size, C]."""
    B, height, width, C = x.shape
    if height % size or width % size:
        raise ValueError(f"{height} x {width} does not divide into parts of {size} x {size}")
    return x.reshape(B, height // size, size, width // size, size, C).max((2, 4))


def patches(x: Array, size: int) -> Array:
    """Images cut into squares, row by row: [B, H, W, C] -> [B, H W / size^2, size^2 C].

    Within a patch the order is rows, columns, channels. A linear map of the patches is the
    convolution of that kernel and stride.
    """
    B, height, width, C = x.shape
    if height % size or width % size:
        raise ValueError(f"{height} x {width} does not divide into patches of {size} x {size}")
    x = x.reshape(B, height // size, size, width // size, size, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, size * size * C)
