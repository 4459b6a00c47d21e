"""The handwritten digits that scikit-learn ships: 1,797 images of 8 x 8.

Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI; the test set of
43 writers that scikit-learn has of it.
"""

import functools

import numpy as np

from jaxlm.core.config import MissingPackage

NUM = 1797


@functools.cache
def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images f32[1797, 8, 8, 1], from 0 to 1, and labels i32[1797].

    Raises:
      MissingPackage: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingPackage(
            "the handwritten digits come with the package scikit-learn: "
            "pip install 'jaxlm[digits]' (or scikit-learn)"
        ) from None
    found = load_digits()
    images, labels = (np.asarray(getattr(found, name)) for name in ("images", "target"))
    return (images[..., None] / 16).astype(np.float32), labels.astype(np.int32)
