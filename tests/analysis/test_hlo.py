"""Collectives by hand: programs written out here, and one of XLA's own."""

import textwrap

import jax
import jax.numpy as jnp

from jaxlm.analysis.hlo import collectives

PROGRAM = textwrap.dedent("""\
    HloModule jit_run, is_scheduled=true

    %add (a: f32[], b: f32[]) -> f32[] {
      ROOT %sum = f32[] add(%a, %b)
    }

    %body.1 (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
      %p = (s32[], f32[8,4]{1,0:T(8,128)}) parameter(0)
      %part = bf16[2,4]{1,0} get-tuple-element(%p), index=1
      %all-gather.1 = bf16[16,4]{1,0:T(8,128)(2,1)} all-gather(%part), dimensions={0}
      %x = f32[8,4]{1,0} fusion(%all-gather.1), kind=kLoop, calls=%fused
      ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %x)
    }

    %fused (q: bf16[16,4]) -> f32[8,4] {
      %big = f32[64]{0} convert(%q)
      ROOT %reduce-scatter.2 = f32[8]{0} reduce-scatter(%big), dimensions={0}, to_apply=%add
    }

    %once (c: f32[3]) -> f32[3] {
      ROOT %permuted = f32[3]{0} collective-permute(%c), source_target_pairs={{0,1}}
    }

    ENTRY %main.9 (w: f32[8,4]) -> f32[8,4] {
      %w = f32[8,4]{1,0} parameter(0)
      %start = (s32[], f32[8,4]{1,0}) tuple(%zero, %w)
      %while.3 = (s32[], f32[8,4]{1,0}) while(%start), condition=%c, body=%body.1, \
    backend_config={"known_trip_count":{"n":"6"},"known_init_step":{"init":"0","step":"1"}}
      %y = f32[10]{0} constant(0)
      %all-reduce.7 = (f32[10]{0}, /*index=1*/f32[2,3]{1,0}) all-reduce(%y, %z), to_apply=%add
      %all-gather-start.1 = (f32[10]{0}, f32[40]{0}) all-gather-start(%y), dimensions={0}
      %all-gather-done.1 = f32[40]{0} all-gather-done(%all-gather-start.1)
      %cond = f32[3]{0} conditional(%flag, %u, %u), branch_computations={%once, %once}
      ROOT %out = f32[8,4]{1,0} get-tuple-element(%while.3), index=1
    }
""")


def test_a_loop_is_counted_as_often_as_it_runs_and_a_pair_of_start_and_done_once():
    """Gathers: 6 of 16 x 4 bfloat16 and one of 40 float32; scatters: 6 of the 64 that go in."""
    assert collectives(PROGRAM) == {
        "all-reduce": (1, 4 * (10 + 6)),
        "all-gather": (7, 6 * 2 * 64 + 4 * 40),
        "reduce-scatter": (6, 6 * 4 * 64),
        "collective-permute": (2, 2 * 4 * 3),
    }


TPU_PROGRAM = textwrap.dedent("""\
    %condition.4 (p: (u32[], bf16[4])) -> pred[] {
      %limit = u32[]{:T(128)} constant(8), metadata={op_name="while"}
      %p = (u32[]{:T(128)}, bf16[4]{0:T(512)}) parameter(0)
      %i = u32[]{:T(128)} get-tuple-element(%p), index=0
      ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
    }

    %body.4 (p: (u32[], bf16[4])) -> (u32[], bf16[4]) {
      %x = bf16[4]{0:T(512)} get-tuple-element(%p), index=1
      %s.1 = (bf16[4]{0:T(512)}, bf16[4]{0:T(512)}) collective-permute-start(%x), channel_id=3
      %done = bf16[4]{0:T(512)} collective-permute-done(%s.1)
    }

    %first (w: bf16[2]) -> bf16[32] {
      %g.1 = bf16[32]{0} all-gather(%w), channel_id=7, frontend_attributes={chain_id="5"}
    }

    %last (w: bf16[2]) -> bf16[32] {
      %g.2 = bf16[32]{0} all-gather(%w), channel_id=7, frontend_attributes={chain_id="5"}
    }

    %all-reduce-scatter.1.clone (w: f32[16]) -> f32[4] {
      %all-reduce.1 = f32[16]{0} all-reduce(%w), channel_id=9, to_apply=%add
    }

    ENTRY %main (w: bf16[2]) -> bf16[32] {
      %mine = f32[4]{0} fusion(%sum), kind=kCustom, calls=%all-reduce-scatter.1.clone
      %while = (u32[], bf16[4]) while(%t), condition=%condition.4, body=%body.4
      %piece.1 = bf16[32]{0} fusion(%w), kind=kOutput, calls=%first
      %piece.2 = bf16[32]{0} fusion(%w), kind=kOutput, calls=%last
    }
""")


def test_on_a_tpu_the_condition_tells_the_trips_and_the_pieces_of_a_gather_are_one():
    assert collectives(TPU_PROGRAM) == {
        "all-gather": (1, 2 * 32),
        "reduce-scatter": (1, 4 * 16),
        "collective-permute": (8, 8 * 2 * 4),
    }


def test_one_device_has_nobody_to_talk_to():
    text = jax.jit(lambda x: jnp.sum(x @ x)).lower(jnp.ones((4, 4))).compile().as_text()
    assert collectives(text) == {}
