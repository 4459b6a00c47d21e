"""Training steps of one architecture: jaxlm against PyTorch, eager and compiled.

    python -m benchmarks.train_step --shape=small
    python -m benchmarks.train_step --shape=gpt2 --torch_device=cuda

RMSNorm, RoPE, SwiGLU, AdamW with clipping, random tokens; the PyTorch side is
`benchmarks/torch_llama.py`, started from the same weights, and its first loss must be the same.
Each side has its own process and every core. jaxlm runs as a run does, several steps in one call.
Needs the `parity` extra.
"""

import argparse
import contextlib
import pathlib
import sys
import tempfile
from typing import NamedTuple

from benchmarks.alternate import alternate, open_worker, serve

RATE, SIDES = 1e-4, ("jaxlm", "torch", "torch compiled")


class Shape(NamedTuple):
    num_layers: int
    width: int
    num_heads: int
    context_length: int
    batch_size: int
    vocab_size: int
    dtype: str
    steps: int  # in a block


SHAPES = {
    "small": Shape(4, 128, 4, 64, 12, 65, "float32", 20),
    "large": Shape(6, 384, 6, 256, 8, 65, "float32", 6),
    "gpt2": Shape(12, 768, 12, 1024, 16, 50304, "bfloat16", 10),
}


def random_batches(shape: Shape):
    """i32[steps, B, S + 1]."""
    import numpy as np

    size = (shape.steps, shape.batch_size, shape.context_length + 1)
    return np.random.default_rng(0).integers(shape.vocab_size, size=size).astype(np.int32)


def serve_jaxlm(shape: Shape, weights: pathlib.Path, overrides: list[str]) -> None:
    import jax
    import numpy as np

    from jaxlm.analysis import flops
    from jaxlm.core import trees
    from jaxlm.core.config import apply_overrides
    from jaxlm.data.batches import Batch
    from jaxlm.jobs.setup import backends_of
    from jaxlm.train.config import RunConfig
    from jaxlm.train.program import hyper_values, make_program
    from jaxlm.train.step import compile_steps

    settings = {
        "model.num_layers": shape.num_layers,
        "model.d_model": shape.width,
        "model.num_heads": shape.num_heads,
        "model.context_length": shape.context_length,
        "model.vocab_size": shape.vocab_size,
        "model.dtype": shape.dtype,
        "data.batch_size": shape.batch_size,
        "optim.peak_lr": RATE,
        "optim.schedule": "constant",
    }
    if jax.default_backend() == "cpu":
        settings["model.scan_unroll"] = shape.num_layers
    settings |= dict(each.split("=", 1) for each in overrides)
    cfg = apply_overrides(RunConfig(), settings)
    chosen = backends_of(cfg)
    program = make_program(cfg, np.ones(shape.vocab_size, np.int32), **chosen.options)
    state = jax.jit(lambda: program.init(0, hyper_values(cfg)))()
    np.savez(weights, **{name: np.asarray(w) for name, w in trees.flatten(state.params).items()})
    ids = random_batches(shape)
    ones = np.ones(ids[..., 1:].shape, np.float32)
    batches = jax.device_put(Batch(tokens=ids[..., :-1], targets=ids[..., 1:], weights=ones))
    run = compile_steps(program.step)
    state, metrics = run(state, batches)

    def block():
        nonlocal state
        state, _ = run(state, batches)
        jax.block_until_ready(state)

    sizes = cfg.model.sizes
    cost = flops.train_flops_per_token(
        flops.matmul_params(program.specs, tied=False),
        sizes.N,
        shape.context_length,
        sizes.H,
        sizes.Dh,
    )
    device = jax.devices()[0].device_kind
    first = float(jax.tree.map(lambda x: x[0], metrics["loss"]).compute())
    about = {"device": device, "attention": chosen.attention.name, "version": jax.__version__}
    peak = flops.peak_flops(device, shape.dtype)
    serve({"loss": first, "flops": cost._asdict(), "peak": peak, **about}, block)


def serve_torch(shape: Shape, weights: pathlib.Path, compiled: bool, device: str) -> None:
    import numpy as np
    import torch

    from benchmarks import torch_llama

    torch.set_float32_matmul_precision("high")
    arrays = dict(np.load(weights))
    model = torch_llama.Decoder(
        vocab_size=shape.vocab_size,
        num_layers=shape.num_layers,
        width=shape.width,
        num_heads=shape.num_heads,
        hidden=arrays["blocks/w_up"].shape[-1],
        context_length=shape.context_length,
    )
    torch_llama.load(model, arrays)
    model = model.to(device)
    step = torch_llama.make_step(
        model,
        compiled=compiled,
        device=device,
        bfloat16=shape.dtype == "bfloat16",
        learning_rate=RATE,
    )
    ids = torch.from_numpy(random_batches(shape).astype(np.int64)).to(device)

    def block():
        for each in ids:
            step(each[:, :-1].contiguous(), each[:, 1:].contiguous())
        if device == "cuda":
            torch.cuda.synchronize()

    first = step(ids[0, :, :-1].contiguous(), ids[0, :, 1:].contiguous()).item()
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    serve({"loss": first, "device": name, "version": torch.__version__}, block)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--sides", default=",".join(SIDES), help="joined by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch_device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--set", nargs="*", default=[], help="jaxlm's, such as model.remat=full")
    parser.add_argument("--worker", choices=SIDES, help="one side, asked by this command")
    parser.add_argument("--weights", type=pathlib.Path)
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    if args.worker == "jaxlm":
        return serve_jaxlm(shape, args.weights, args.set)
    if args.worker:
        return serve_torch(shape, args.weights, args.worker == "torch compiled", args.torch_device)
    sides = args.sides.split(",")
    if sides[0] != "jaxlm" or not set(sides) <= set(SIDES):
        parser.error(f"--sides={args.sides}: expected jaxlm, then some of {', '.join(SIDES[1:])}")
    compare(sides, args, shape)
    return None


def compare(sides: list[str], args: argparse.Namespace, shape: Shape) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workers = {}
        for side in sides:  # jaxlm first: it writes the weights
            command = [f"--worker={side}", f"--shape={args.shape}"]
            command += [f"--weights={folder}/weights.npz", f"--torch_device={args.torch_device}"]
            command += ["--set", *args.set]
            workers[side] = stack.enter_context(open_worker("benchmarks.train_step", command))
        for side, worker in workers.items():
            print(f"{side:15} {worker.ready}", flush=True)
        ours = workers["jaxlm"].ready
        for side, worker in workers.items():
            off = abs(worker.ready["loss"] - ours["loss"])
            if off > (1e-4 if shape.dtype == "float32" else 2e-2):
                sys.exit(f"{side} computes another loss: off by {off:.1e}")
        medians = alternate({side: w.block for side, w in workers.items()}, args.rounds)
    tokens = shape.steps * shape.batch_size * shape.context_length
    for side, seconds in medians.items():
        line = f"{side:15} {1e3 * seconds / shape.steps:8.1f} ms a step"
        line += f" {tokens / seconds:10,.0f} tokens/s"
        if side != "jaxlm":
            line += f"   jaxlm is {seconds / medians['jaxlm']:.2f} times as fast"
        if ours["peak"]:
            shares = (cost * tokens / seconds / ours["peak"] for cost in ours["flops"].values())
            line += "   MFU {:.1%} (full), {:.1%} (causal)".format(*shares)
        print(line)


if __name__ == "__main__":
    main()
