"""Flash attention as Pallas kernels, for TPUs: no pass ever holds more than a block of scores.

The forward kernel sums the softmax up block by block of keys and keeps the log-sum-exp of each
query's scores. From it the backward kernels compute the weights again: one holds a block of
queries and walks over the keys (dq), one holds a block of keys and walks over the queries (dk, dv).

In the kernels a block of scores is [block_k, block_q]: keys are its rows, queries its columns. What
there is one of per query (maximum, sum, log-sum-exp, delta) is then a row, which a TPU stores
densely; a column would be padded to 128 lanes. So sums over keys (out, dq) are [Dh, block_q].

Source: Dao 2023, "FlashAttention-2", algorithms 1 and 2.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.core.arrays import Array
from jaxlm.kernels.blocks import LOWEST, pad_to_blocks

LANES = 128  # numbers side by side in a TPU's vector register


class _Layout(NamedTuple):
    """What is known before the arrays are."""

    block_q: int
    block_k: int
    num_keys: int  # without padding
    causal: bool
    window: int | None
    softcap: float | None
    in_order: bool  # positions are 0, 1, ..., so that whole blocks can be left out
    interpret: bool


def attend(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    q_segments: Array | None = None,
    kv_segments: Array | None = None,
    q_positions: Array | None = None,
    kv_positions: Array | None = None,
    block_q: int = 512,
    block_k: int = 512,
    interpret: bool | None = None,
) -> Array:
    """`jaxlm.nn.attention.attend` in float32 or bfloat16; arguments and result as there.

    Over several TPUs it must stand in a `jax.shard_map(..., check_vma=False)`.
    block_q, block_k: queries and keys of a block; on a TPU multiples of 128.
    interpret: run the kernels as ordinary JAX; by default wherever there is no TPU.
    Raises:
      ValueError: a traced softcap, since the kernels are compiled for one number; or query heads
        that do not divide among the key heads.
    """
    if isinstance(softcap, Tracer):
        raise ValueError("attention by flash takes no traced softcap; choose attention=chunked")
    S, T = q.shape[1], k.shape[1]
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads do not divide among {k.shape[2]} key heads")
    layout = _Layout(
        block_q=min(block_q, S + -S % LANES),
        block_k=min(block_k, T + -T % LANES),
        num_keys=T,
        causal=causal,
        window=window,
        softcap=None if softcap is None else float(softcap),
        in_order=q_positions is None and kv_positions is None,
        interpret=jax.default_backend() != "tpu" if interpret is None else interpret,
    )
    q_marks = _marks(q_positions, q_segments, q, layout.block_q)
    kv_marks = _marks(kv_positions, kv_segments, k, layout.block_k)
    return _attend(q, k, v, q_marks, kv_marks, layout)


def _marks(positions: Array | None, segments: Array | None, x: Array, block: int) -> Array:
    """What masks: positions and, if there are any, segments, i32[B, 1 or 2, S with padding]."""
    B, S = x.shape[:2]
    marks = [jnp.arange(S) if positions is None else positions]
    marks += [] if segments is None else [segments]
    rows = jnp.stack([jnp.broadcast_to(mark, (B, S)) for mark in marks], axis=1)
    return pad_to_blocks(rows.astype(jnp.int32), 2, block)


def _by_head(x: Array, block: int) -> Array:
    """[B, S, H, Dh] -> [B, H, S with padding, Dh]."""
    return pad_to_blocks(jnp.swapaxes(x, 1, 2), 2, block)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q, k, v, q_marks, kv_marks, layout):
    return _forward(q, k, v, q_marks, kv_marks, layout)[0]


def _forward(q, k, v, q_marks, kv_marks, layout):
    """The result [B, S, H, Dh], and what is saved, with the log-sum-exp as f32[B, H, S]."""
    out, lse = _run(
        _forward_kernel,
        [
            ("q", _by_head(q, layout.block_q)),
            ("kv", _by_head(k, layout.block_k)),
            ("kv", _by_head(v, layout.block_k)),
            ("q_marks", q_marks),
            ("kv_marks", kv_marks),
        ],
        outputs=[("q_columns", v.dtype), ("q_row", jnp.float32)],
        sums=["q_columns", "q_row", "q_row"],
        layout=layout,
    )
    S = q.shape[1]
    out = jnp.transpose(out[..., :S], (0, 3, 1, 2))
    return out, (q, k, v, q_marks, kv_marks, out, lse[:, :, 0, :S])


def _backward(layout, saved, d_out):
    q, k, v, q_marks, kv_marks, out, lse = saved
    S, T = q.shape[1], k.shape[1]
    # What a query's weights lose together, so that they go on summing to one.
    delta = jnp.einsum("bshe,bshe->bhs", out, d_out, preferred_element_type=jnp.float32)
    inputs = [
        ("q", _by_head(q, layout.block_q)),
        ("kv", _by_head(k, layout.block_k)),
        ("kv", _by_head(v, layout.block_k)),
        ("q", _by_head(d_out, layout.block_q)),
        ("q_row", pad_to_blocks(lse[:, :, None], 3, layout.block_q)),
        ("q_row", pad_to_blocks(delta[:, :, None], 3, layout.block_q)),
        ("q_marks", q_marks),
        ("kv_marks", kv_marks),
    ]
    (dq,) = _run(_dq_kernel, inputs, [("q_columns", q.dtype)], ["q_columns"], layout)
    outputs = [("kv", k.dtype), ("kv", v.dtype)]
    dk, dv = _run(_dkv_kernel, inputs, outputs, ["kv", "kv"], layout, over_queries=True)
    dq = jnp.transpose(dq[..., :S], (0, 3, 1, 2))
    dk, dv = (jnp.swapaxes(x[:, :, :T], 1, 2) for x in (dk, dv))
    return dq, dk, dv, None, None


_attend.defvjp(_forward, _backward)


def _run(kernel, inputs, outputs, sums, layout, over_queries=False):
    """Runs a kernel over a grid: batch rows, key heads, blocks held, heads of a group, blocks met.

    Args:
      inputs: names (see `blocks` below) and arrays; outputs: names and dtypes.
      sums: names of what the kernel sums up in float32 over the blocks that the held one meets.
      over_queries: a block of keys is held, and the sums go on over the heads of the group.
    """
    (_, q), (_, k), *_, (_, marks) = inputs
    (B, H, S, Dh), (K, T), M = q.shape, k.shape[1:3], marks.shape[1]
    block_q, block_k, group = layout.block_q, layout.block_k, H // K
    # How far before and after its own positions a block of queries reads.
    window = layout.window if layout.in_order else None
    before = S + T if window is None else window - 1
    after = 0 if layout.in_order and layout.causal else before
    if over_queries:
        walk = _Walk(block_k, block_q, S // block_q, after, before)
    else:
        walk = _Walk(block_q, block_k, T // block_k, before, after)

    # The shape of an array and of its blocks; and the index of the block for batch row b, query
    # head h, key head n, block i of the queries and block j of the keys.
    blocks = {
        "q": ((B, H, S, Dh), (block_q, Dh), lambda b, h, n, i, j: (b, h, i, 0)),
        "kv": ((B, K, T, Dh), (block_k, Dh), lambda b, h, n, i, j: (b, n, j, 0)),
        "q_columns": ((B, H, Dh, S), (Dh, block_q), lambda b, h, n, i, j: (b, h, 0, i)),
        "q_row": ((B, H, 1, S), (1, block_q), lambda b, h, n, i, j: (b, h, 0, i)),
        "q_marks": ((B, M, S), (M, block_q), lambda b, h, n, i, j: (b, 0, i)),
        "kv_marks": ((B, M, T), (M, block_k), lambda b, h, n, i, j: (b, 0, j)),
    }

    def spec(name):
        shape, block, index = blocks[name]

        def at(b, n, held, g, step):
            other, _ = walk.visit(held, step)
            i, j = (other, held) if over_queries else (held, other)
            return index(b, n * group + g, n, i, j)

        return pl.BlockSpec((None,) * (len(shape) - 2) + block, at)

    order: list[Any] = ["parallel"] * 3 + ["arbitrary" if over_queries else "parallel", "arbitrary"]
    return pl.pallas_call(
        functools.partial(kernel, walk=walk, layout=layout),
        grid=(B, K, T // block_k if over_queries else S // block_q, group, walk.steps),
        in_specs=[spec(name) for name, _ in inputs],
        out_specs=[spec(name) for name, _ in outputs],
        out_shape=[jax.ShapeDtypeStruct(blocks[name][0], dtype) for name, dtype in outputs],
        scratch_shapes=[pltpu.VMEM(blocks[name][1], jnp.float32) for name in sums],
        compiler_params=pltpu.CompilerParams(dimension_semantics=order),
        interpret=layout.interpret,
        name="flash_attention" + kernel.__name__.removesuffix("_kernel"),
    )(*(x for _, x in inputs))


class _Walk(NamedTuple):
    """From each block of one side over those blocks of the other side that it meets.

    A block of positions low..high meets the positions low - before..high + after.
    """

    block: int
    other: int  # positions in a block of the other side
    number: int  # blocks of the other side
    before: int
    after: int

    @property
    def steps(self) -> int:
        """The most blocks that any block meets."""
        span = self.before + self.block + self.after
        return min(self.number, -(-(span - 1) // self.other) + 1)

    def visit(self, i: Array, step: Array) -> tuple[Array, Array]:
        """Where the i-th block comes to at a step, and whether it meets that block.

        After the last one it stays there: a TPU does not load the same block again.
        """
        low, high = i * self.block - self.before, (i + 1) * self.block - 1 + self.after
        # Not `//`: its lowering asks which TPU is here, and compiling ahead there is none.
        first = jax.lax.div(jnp.maximum(low, 0), self.other)
        last = jnp.minimum(jax.lax.div(high, self.other), self.number - 1)
        return jnp.minimum(first + step, last), first + step <= last


def _forward_kernel(q, k, v, q_marks, kv_marks, out, lse, acc, top, total, *, walk, layout):
    step = pl.program_id(4)
    j, met = walk.visit(pl.program_id(2), step)

    @pl.when(step == 0)
    def start():
        acc[...] = jnp.zeros(acc.shape, jnp.float32)
        top[...] = jnp.full(top.shape, LOWEST, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)

    @pl.when(met)
    def add_keys():
        scores, keep = _scores(q, k, q_marks, kv_marks, j, layout)
        highest = jnp.max(jnp.where(keep, scores, LOWEST), axis=0, keepdims=True)
        new_top = jnp.maximum(top[...], highest)
        weights = jnp.where(keep, jnp.exp(scores - new_top), 0)
        shrink = jnp.exp(top[...] - new_top)
        acc[...] = acc[...] * shrink + _product(v[...], weights.astype(v.dtype), 0, 0)
        top[...] = new_top
        total[...] = total[...] * shrink + jnp.sum(weights, axis=0, keepdims=True)

    @pl.when(step == walk.steps - 1)
    def finish():
        some = total[...] != 0  # NaN stays NaN
        safe = jnp.where(some, total[...], 1)
        out[...] = jnp.where(some, acc[...] / safe, 0).astype(out.dtype)
        lse[...] = jnp.where(some, top[...] + jnp.log(safe), 0)


def _dq_kernel(*refs, walk, layout):
    *inputs, dq, acc = refs
    k, step = inputs[1], pl.program_id(4)
    j, met = walk.visit(pl.program_id(2), step)

    @pl.when(step == 0)
    def start():
        acc[...] = jnp.zeros(acc.shape, jnp.float32)

    @pl.when(met)
    def add_keys():
        _, d_scores = _gradients(*inputs, j=j, layout=layout)
        acc[...] += _product(k[...], d_scores.astype(k.dtype), 0, 0)

    @pl.when(step == walk.steps - 1)
    def finish():
        dq[...] = acc[...].astype(dq.dtype)


def _dkv_kernel(*refs, walk, layout):
    *inputs, dk, dv, dk_acc, dv_acc = refs
    q, d_out = inputs[0], inputs[3]
    j, g, step = (pl.program_id(axis) for axis in (2, 3, 4))
    _, met = walk.visit(j, step)

    @pl.when((g == 0) & (step == 0))
    def start():
        dk_acc[...] = jnp.zeros(dk_acc.shape, jnp.float32)
        dv_acc[...] = jnp.zeros(dv_acc.shape, jnp.float32)

    @pl.when(met)
    def add_queries():
        weights, d_scores = _gradients(*inputs, j=j, layout=layout)
        dk_acc[...] += _product(d_scores.astype(q.dtype), q[...], 1, 0)
        dv_acc[...] += _product(weights.astype(d_out.dtype), d_out[...], 1, 0)

    @pl.when((g == pl.num_programs(3) - 1) & (step == walk.steps - 1))
    def finish():
        dk[...] = dk_acc[...].astype(dk.dtype)
        dv[...] = dv_acc[...].astype(dv.dtype)


def _gradients(q, k, v, d_out, lse, delta, q_marks, kv_marks, j, layout):
    """Of two blocks the weights, and the gradient of q k^T: f32[block_k, block_q]."""
    scores, keep = _scores(q, k, q_marks, kv_marks, j, layout)
    weights = jnp.where(keep, jnp.exp(scores - lse[...]), 0)
    d_scores = weights * (_product(v[...], d_out[...], 1, 1) - delta[...])
    if layout.softcap is not None:
        d_scores *= 1 - jnp.square(scores / layout.softcap)
    return weights, d_scores * q.shape[1] ** -0.5


def _scores(q, k, q_marks, kv_marks, j, layout):
    """Capped scores f32[block_k, block_q] of two blocks, and which of them to keep.

    j: the number of the block of keys.
    """
    scores = _product(k[...], q[...], 1, 1) * q.shape[1] ** -0.5
    if layout.softcap is not None:
        scores = layout.softcap * jnp.tanh(scores / layout.softcap)
    of_q, of_k = q_marks[...], kv_marks[...].T  # positions; segments
    keep = jnp.full(scores.shape, True)
    if layout.num_keys % layout.block_k:
        index = j * layout.block_k + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        keep = index < layout.num_keys
    distance = of_q[:1] - of_k[:, :1]
    if layout.causal:
        keep &= distance >= 0
    if layout.window is not None:
        keep &= jnp.abs(distance) < layout.window
    if of_q.shape[0] == 2:
        keep &= of_q[1:] == of_k[:, 1:]
    return scores, keep


def _product(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """The matrix product that sums over these axes, in float32."""
    axes = ((axis_a,), (axis_b,)), ((), ())
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)
