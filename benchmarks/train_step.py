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

from benchmarks.alternate import alternate, open_worker, serve
from benchmarks.training import RATE, SHAPES, Shape, prepare, random_tokens

SIDES = ("jaxlm", "torch", "torch compiled")


def serve_jaxlm(shape: Shape, weights: pathlib.Path, overrides: list[str]) -> None:
    import jax
    import numpy as np

    from jaxlm.analysis import flops

    training = prepare(shape, dict(each.split("=", 1) for each in overrides))
    np.savez(weights, **training.params)
    sizes = training.cfg.model.sizes
    cost = flops.train_flops_per_token(
        flops.matmul_params(training.program.specs, tied=False),
        sizes.N,
        shape.context_length,
        sizes.H,
        sizes.Dh,
    )
    device = jax.devices()[0].device_kind
    about = {
        "loss": float(training.first["loss"][0]),
        "flops": cost._asdict(),
        "peak": flops.peak_flops(device, shape.dtype),
        "device": device,
        "attention": training.attention.name,
        "version": jax.__version__,
    }
    serve(about, training.block)


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
    ids = torch.from_numpy(random_tokens(shape).astype(np.int64)).to(device)

    def block():
        for each in ids:
            step(each[:, :-1].contiguous(), each[:, 1:].contiguous())
        if device == "cuda":
            torch.cuda.synchronize()

    first = step(ids[0, :, :-1].contiguous(), ids[0, :, 1:].contiguous()).item()
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    serve({"loss": first, "device": name, "version": torch.__version__}, block)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
