"""DataConfig refuses what cannot be used, and names the field."""

import pytest

from jaxlm.core.config import ConfigError, apply_overrides
from jaxlm.data.config import DataConfig


@pytest.mark.parametrize(
    "field, value",
    [
        ("path", " "),
        ("batch_size", 0),
        ("val_fraction", 0.0),
        ("val_fraction", 1.0),
        ("val_fraction", float("nan")),
        ("split", "head"),
        ("document_separator", ""),
        ("order", "sorted"),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        DataConfig(**{field: value})


def test_fields_are_set_from_text():
    cfg = apply_overrides(
        DataConfig(),
        {"path": "x.txt", "split": "document", "mask_documents": "true", "batch_size": "8"},
    )
    assert cfg == DataConfig(path="x.txt", split="document", mask_documents=True, batch_size=8)
    with pytest.raises(ConfigError, match="tail, document"):
        apply_overrides(cfg, {"split": "head"})
