"""A population in one program against the same runs one after another.

    python -m benchmarks.population --lanes=32

Small models (RMSNorm, RoPE, SwiGLU, AdamW) that differ in seed and learning rate and share their
batches. Both sides are compiled once, and their time is given with and without that. The losses of
the first steps must agree; later ones drift apart as far as the rounding of a GPU's products does.
"""

import argparse
import sys
import time

from benchmarks.alternate import alternate, seconds_of


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lanes", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()

    import jax
    import numpy as np

    from jaxlm.core.config import apply_overrides
    from jaxlm.data.batches import Batch
    from jaxlm.jobs.devices import one_cpu_device_per_core
    from jaxlm.jobs.setup import backends_of
    from jaxlm.train.calls import scan_apart
    from jaxlm.train.config import RunConfig
    from jaxlm.train.population import compile_population, means, stack_hypers
    from jaxlm.train.program import hyper_values, make_program

    one_cpu_device_per_core()
    settings = {
        "model.num_layers": args.layers,
        "model.d_model": args.width,
        "model.context_length": args.context,
        "model.vocab_size": 65,
        "model.dtype": args.dtype,
        "data.batch_size": args.batch,
        "optim.schedule": "constant",
    }
    if jax.default_backend() == "cpu":
        settings["model.scan_unroll"] = args.layers
    rates = np.geomspace(1e-4, 1e-2, args.lanes)
    configs = [
        apply_overrides(RunConfig(), settings | {"optim.peak_lr": float(rate), "seed": lane})
        for lane, rate in enumerate(rates)
    ]
    chosen = backends_of(configs[0])
    program = make_program(configs[0], np.ones(65, np.int32), **chosen.options)
    size = (args.steps, args.batch, args.context + 1)
    ids = np.random.default_rng(0).integers(65, size=size).astype(np.int32)
    weights = np.ones(ids[..., 1:].shape, np.float32)
    batches = Batch(tokens=ids[..., :-1], targets=ids[..., 1:], weights=weights)
    numbers = [hyper_values(cfg) for cfg in configs]
    seeds = np.arange(args.lanes, dtype=np.int32)
    losses = {}

    # The wall clock of compiling, for each side.
    started = time.perf_counter()
    hypers = stack_hypers(numbers)
    in_lanes = jax.tree.map(lambda x: np.broadcast_to(x, (args.lanes, *x.shape)), batches)
    population = compile_population(
        program.init, program.step, num_lanes=args.lanes, hypers=hypers, xs=in_lanes
    )
    jax.block_until_ready(population.init(seeds, hypers))
    compiling = {"together": time.perf_counter() - started}

    started = time.perf_counter()
    init = jax.jit(program.init)
    state = init(seeds[0], numbers[0])
    run = jax.jit(scan_apart(program.step), donate_argnums=0).lower(state, {}, batches).compile()
    compiling["one by one"] = time.perf_counter() - started
    placed = jax.device_put(batches)

    def together():
        state = population.init(seeds, hypers)
        _, values, _ = population.run(state, {}, in_lanes, None, False)
        losses["together"] = means(values)["loss"]

    def one_by_one():
        each = []
        for seed, values in zip(seeds, numbers, strict=True):
            _, metrics = run(init(seed, values), {}, placed)
            each.append(means(metrics)["loss"])
        losses["one by one"] = np.stack(each)

    medians = alternate(
        {"together": seconds_of(together), "one by one": seconds_of(one_by_one)}, args.rounds
    )
    off = np.abs(losses["together"] - losses["one by one"]).max(axis=0)
    if not off[:5].max() < 5e-3:
        sys.exit(f"the two sides compute other losses: off by {off[:5].max():.1e} in 5 steps")
    device = jax.devices()[0].device_kind
    print(f"{device}, {args.lanes} lanes, {population.lanes_at_once} at once")
    print(f"losses differ by {off[:5].max():.1e} in the first 5 steps, by {off[-1]:.1e} at the end")
    for name, seconds in medians.items():
        print(f"{name:11} {seconds:7.2f} s, compiling {compiling[name]:.1f} s more")
    alone, with_compiling = (
        (medians["one by one"] + more * compiling["one by one"])
        / (medians["together"] + more * compiling["together"])
        for more in (0, 1)
    )
    print(f"together is {alone:.1f} times as fast, {with_compiling:.1f} times compiling included")


if __name__ == "__main__":
    main()
