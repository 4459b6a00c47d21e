"""What a layer keeps, against what can be counted by hand."""

import dataclasses

import pytest

from jaxlm.analysis.memory import layer_bytes, share_of
from jaxlm.models.backends import BACKENDS
from jaxlm.models.transformer import TransformerConfig
from jaxlm.nn.linear import linear

S, D, F, H, DH = 16, 24, 40, 2, 6
BARE = TransformerConfig(
    vocab_size=8, context_length=S, num_layers=3, d_model=D, num_heads=H, head_dim=DH, d_ff=F,
    norm_placement="none", positions="none", activation="relu",
)  # fmt: skip


def bytes_of(cfg, attention="plain", segments=False):
    return layer_bytes(cfg, segments=segments, attend=BACKENDS[attention], linear=linear)


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_with_full_remat_a_layer_keeps_what_it_reads(dtype, width):
    cfg = dataclasses.replace(BARE, remat="full", dtype=dtype)
    kept, whole, _ = bytes_of(cfg)
    assert kept == width * S * D
    assert whole == bytes_of(dataclasses.replace(cfg, remat="none")).kept > kept


def test_with_dots_the_results_of_products_are_kept_besides():
    """Queries, keys, values, scores (float32), what they give and what is made of it: all of the
    products but the last, which nothing that is differentiated reads."""
    kept = bytes_of(dataclasses.replace(BARE, remat="dots")).kept
    products = 3 * H * DH * S + H * S * S + H * DH * S + D * S + F * S
    assert kept == 4 * (S * D + products)


def test_the_flash_kernel_keeps_no_attention_map():
    """What it keeps grows with the length, what the plain one keeps with its square."""
    short, long = (dataclasses.replace(BARE, context_length=length) for length in (128, 1024))
    flash, plain = (bytes_of(long, n).kept / bytes_of(short, n).kept for n in ("flash", "plain"))
    assert flash == 8 and plain > 30


def test_a_device_keeps_its_part_of_the_heads_and_of_the_feed_forward():
    share = share_of(BARE, {"heads": 2, "kv_heads": 2, "mlp": 4, "vocab": 2})
    assert (share.num_heads, share.sizes.K, share.d_ff, share.vocab_size) == (1, 1, 10, 4)
    assert share.sizes.Dh == DH
    whole, part = bytes_of(BARE).kept, bytes_of(share).kept
    stream = 4 * S * D
    assert whole / 4 < part < whole / 2 + 3 * stream


def test_dropout_keeps_its_masks():
    assert bytes_of(dataclasses.replace(BARE, dropout=0.1)).kept > bytes_of(BARE).kept


def test_packed_rows_are_traced_with_their_segments():
    assert bytes_of(BARE, "flash", segments=True).kept > bytes_of(BARE, "flash").kept
