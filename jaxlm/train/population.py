"""Many runs of one structure trained by one program: P lanes, one for each set of numbers.

Everything that differs between lanes is an array with a leading P axis; what they share (the frozen
weights, the text they are evaluated on) is not copied.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.analysis.hlo import compiled_bytes
from jaxlm.core.arrays import Params
from jaxlm.core.config import ConfigError
from jaxlm.train.calls import scan_apart
from jaxlm.train.state import TrainState, jit_init

LANES = "lanes"


class Population(NamedTuple):
    """A compiled population.

    init: i32[P] seeds, {name: f32[P]} -> TrainState of leading P, without its frozen part.
    run: (state, frozen, xs, shared, evaluates) -> (state, metrics [P, steps], evaluation [P]).
      xs: pytree [P, steps, ...], what a step reads. shared: given to the evaluation of every lane.
      evaluates: bool; where it is False the evaluation is all zeros and costs nothing.
    lanes_at_once: how many lanes of a device are computed side by side; the others wait.
    bytes_needed: of device memory, by the compiler's own account.
    """

    init: Callable[..., TrainState]
    run: Callable[..., tuple[TrainState, Any, Any]]
    lanes_at_once: int
    bytes_needed: int


def compile_population(
    init: Callable[..., TrainState],
    step: Callable[[TrainState, Any], tuple[TrainState, Any]],
    *,
    num_lanes: int,
    hypers: dict[str, np.ndarray],
    xs: Any,
    frozen: Params | None = None,
    evaluate: Callable[[TrainState, Any], Any] | None = None,
    shared: Any = None,
    bytes_free: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Population:
    """Compiles one program that trains `num_lanes` lanes for as many steps as `xs` has.

    Lanes are spread evenly over the devices. On each, as many run side by side as fit: that is read
    from the compiled program before it is run, which is compiled again for fewer at once where they
    do not.

    Args:
      init, step: as of a `Program`.
      hypers: f32[P] each; xs: as for `Population.run`. Only shapes and dtypes are read.
      evaluate: (state with its frozen part, shared) -> pytree of arrays, for one lane.
      bytes_free: of memory on each device; None: what the device says, and no bound where it
        does not say.
    Raises:
      ConfigError: not even one lane fits.
    """
    devices = list(devices or jax.devices())
    devices = devices[: _largest_divisor(num_lanes, len(devices))]
    mesh = Mesh(np.array(devices), (LANES,))
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec(LANES), PartitionSpec()))
    frozen = {} if frozen is None else frozen

    init_all = jit_init(jax.vmap(init), devices[0].platform, out_shardings=split)
    seeds = np.zeros(num_lanes, np.int32)
    state = jax.eval_shape(init_all, seeds, _abstract(hypers))

    def lane(moving, xs, frozen, shared, evaluates):
        moving, metrics = scan_apart(step)(moving, frozen, xs)
        if evaluate is None:
            return moving, metrics, None
        score = functools.partial(evaluate, moving.replace(frozen=frozen), shared)
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(score))
        return moving, metrics, jax.lax.cond(evaluates, score, lambda: nothing)

    def run_all(at_once):
        def population(moving, frozen, xs, shared, evaluates):
            return jax.lax.map(
                lambda each: lane(*each, frozen=frozen, shared=shared, evaluates=evaluates),
                (moving, xs),
                batch_size=min(at_once, num_lanes // len(devices)),
            )

        lanes, same = PartitionSpec(LANES), PartitionSpec()
        parts = jax.shard_map(
            population,
            mesh=mesh,
            in_specs=(lanes, same, lanes, same, same),
            out_specs=lanes,
            check_vma=False,
        )
        return jax.jit(
            functools.wraps(population)(parts),  # by its name programs are counted
            donate_argnums=0,
            in_shardings=(split, whole, split, whole, whole),
            out_shardings=split,
        )

    stats = devices[0].memory_stats() or {}
    if bytes_free is None and "bytes_limit" in stats:
        bytes_free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    arguments = (state, *map(_abstract, (frozen, xs, shared)), jax.ShapeDtypeStruct((), bool))
    at_once = num_lanes // len(devices)
    while True:
        compiled = run_all(at_once).lower(*arguments).compile()
        needed = compiled_bytes(compiled.memory_analysis())
        if bytes_free is None or needed <= bytes_free:
            break
        if at_once == 1:
            raise ConfigError(
                f"one of {num_lanes} lanes at a time needs {needed / 2**30:.2f} GiB, "
                f"{bytes_free / 2**30:.2f} are free; make the model, the batch or the sweep smaller"
            )
        at_once = max(1, min(at_once - 1, int(at_once * bytes_free / needed)))

    def run(state, frozen, xs, shared, evaluates):
        # Placed by hand: a compiled program does not move its arguments.
        state, xs = jax.device_put((state, xs), split)
        frozen, shared = (jax.device_put(x, whole) for x in (frozen, shared))
        return compiled(state, frozen, xs, shared, jax.device_put(np.bool_(evaluates), whole))

    return Population(init_all, run, at_once, needed)


class Trained(NamedTuple):
    """What became of a population.

    metrics: {name: f32[P, steps]}. evaluations: [(step, pytree of numpy arrays of leading P)].
    """

    state: TrainState
    metrics: dict[str, np.ndarray]
    evaluations: list[tuple[int, Any]]


def train_population(
    init: Callable[..., TrainState],
    step: Callable[[TrainState, Any], tuple[TrainState, Any]],
    *,
    seeds: Sequence[int],
    hypers: dict[str, np.ndarray],
    inputs: Callable[[int, int], Any],
    num_steps: int,
    eval_every: int | None = None,
    steps_per_call: int | None = None,
    start: Params | None = None,
    frozen: Params | None = None,
    evaluate: Callable[[TrainState, Any], Any] | None = None,
    shared: Any = None,
    bytes_free: int | None = None,
) -> Trained:
    """Trains P lanes from their beginning to their end.

    Args:
      inputs: (first step, last step + 1) -> xs [P, steps, ...], what the steps read.
      eval_every: steps between evaluations; None: at the end only. It divides num_steps.
      steps_per_call: steps in one call of the program; None: eval_every. It divides both.
      start: weights that every lane starts from; None: each from those that `init` draws.
      evaluate, shared, frozen, bytes_free: as for `compile_population`.
    """
    eval_every = eval_every or num_steps
    per_call = steps_per_call or eval_every
    if num_steps % eval_every or eval_every % per_call:
        raise ValueError(f"{per_call} must divide {eval_every}, and that {num_steps}")
    frozen, xs = {} if frozen is None else frozen, inputs(0, per_call)
    population = compile_population(
        init,
        step,
        num_lanes=len(seeds),
        hypers=hypers,
        xs=xs,
        frozen=frozen,
        evaluate=evaluate,
        shared=shared,
        bytes_free=bytes_free,
    )
    state = population.init(np.asarray(seeds, np.int32), hypers)
    if start is not None:
        state = start_all_from(state, start)
    metrics, evaluations = [], []
    for done in range(per_call, num_steps + 1, per_call):
        due = done % eval_every == 0
        state, values, scores = population.run(state, frozen, xs, shared, due)
        if done < num_steps:
            xs = inputs(done, done + per_call)
        metrics.append(means(values))
        if due and evaluate is not None:
            evaluations.append((done, jax.device_get(scores)))
    joined = {name: np.concatenate([m[name] for m in metrics], axis=1) for name in metrics[0]}
    return Trained(state, joined, evaluations)


def means(values: dict[str, Any]) -> dict[str, np.ndarray]:
    """Metrics of the device as arrays of numbers."""
    return {name: np.asarray(mean.compute()) for name, mean in jax.device_get(values).items()}


def stack_hypers(each: Iterable[dict[str, float]]) -> dict[str, np.ndarray]:
    """{name: f32[P]} of the numbers of P runs, which all have the same names."""
    each = list(each)
    return {name: np.array([values[name] for values in each], np.float32) for name in each[0]}


def start_all_from(state: TrainState, params: Params) -> TrainState:
    """The population's state with these weights in every lane, where its own were."""

    def in_every_lane(x, like):
        return jax.device_put(jnp.broadcast_to(x, like.shape), like.sharding)

    return state.replace(params=jax.tree.map(in_every_lane, params, state.params))


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.result_type(x)), tree
    )


def _largest_divisor(number: int, at_most: int) -> int:
    return max(d for d in range(1, min(number, at_most) + 1) if number % d == 0)
