"""The digits are scikit-learn's, and without it one line says what to install."""

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxlm.core.config import MissingPackage
from jaxlm.data.digits import NUM, read_digits


def test_images_are_scikit_learns_from_0_to_1():
    images, labels = read_digits()
    assert images.shape == (NUM, 8, 8, 1) and images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1) and labels.dtype == np.int32
    np.testing.assert_array_equal(images[3].reshape(-1) * 16, load_digits().data[3])
    np.testing.assert_array_equal(labels, load_digits().target)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    read_digits.cache_clear()
    with pytest.raises(MissingPackage, match="package scikit-learn: pip install"):
        read_digits()
    read_digits.cache_clear()
