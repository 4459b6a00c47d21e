"""Attention backends: time against the plain one, and the memory of training against length.

    python -m benchmarks.attention
    python -m benchmarks.attention --figure=benchmarks/attention_memory.png

Time: values and gradients of one attention layer, all backends in turn in one process, at the
lengths where the choice between them is made. Memory: what a whole process of training a small
model (4 layers, width 128, float32, one row) needs at its peak, each in its own process; on a GPU,
what the device held. A backend whose program would need more than --limit_gib by the compiler's
account is not run.
"""

import argparse
import json
import subprocess
import sys

from benchmarks.alternate import alternate, seconds_of
from benchmarks.training import Shape, prepare
from jaxlm.reports.tables import print_table


def compare_times(args: argparse.Namespace) -> None:
    import jax

    from jaxlm.models.backends import BACKENDS

    print(f"time of one layer, {args.heads} heads of {args.head_dim}, {args.dtype}, plain = 1")
    rows = [("length", "rows", "plain, ms", *args.backends[1:])]
    for length in args.lengths:
        batch = max(1, args.tokens // length)
        keys = jax.random.split(jax.random.key(0), 4)
        size = (batch, length, args.heads, args.head_dim)
        *inputs, direction = (jax.random.normal(key, size, args.dtype) for key in keys)
        blocks = {}
        for name in args.backends:

            def value_and_gradients(*inputs, attend=BACKENDS[name], direction=direction):
                out, pull = jax.vjp(attend, *inputs)
                return out, pull(direction)

            run = jax.jit(value_and_gradients)
            blocks[name] = seconds_of(
                lambda run=run, inputs=inputs: jax.block_until_ready(run(*inputs))
            )
        medians = alternate(blocks, args.rounds)
        plain = medians[args.backends[0]]
        ratios = [f"{medians[name] / plain:.2f}" for name in args.backends[1:]]
        rows.append((str(length), str(batch), f"{1e3 * plain:.2f}", *ratios))
    print_table(rows)


def train_once(backend: str, length: int, limit_gib: float) -> None:
    """One side of the memory comparison; prints a line of JSON."""
    import jax

    shape = Shape(4, 128, 4, length, 1, 65, "float32", 1)
    training = prepare(shape, {"train.attention": backend}, limit_bytes=int(limit_gib * 2**30))
    result = {"program": training.num_bytes / 2**20}
    if training.first is not None:
        training.block()
        stats = jax.devices()[0].memory_stats() or {}
        result["peak"] = stats.get("peak_bytes_in_use", _peak_of_process()) / 2**20
        result["seconds"] = seconds_of(training.block)()
    print(json.dumps(result))


def _peak_of_process() -> int:
    """Bytes. Not by getrusage: there a process begins with what its parent held."""
    with open("/proc/self/status") as lines:
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def compare_memory(args: argparse.Namespace) -> dict[str, list[tuple[int, float]]]:
    """{backend: [(length, MiB at the peak)]}."""
    print("\npeak memory of training, MiB (the program alone, by the compiler), s a step")
    rows, found = [("length", *args.backends)], {name: [] for name in args.backends}
    for length in args.memory_lengths:
        cells = []
        for name in args.backends:
            command = [sys.executable, "-m", "benchmarks.attention", f"--side={name}"]
            command += [f"--memory_lengths={length}", f"--limit_gib={args.limit_gib}"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            result = json.loads(done.stdout.splitlines()[-1])
            if "peak" in result:
                found[name].append((length, result["peak"]))
                cells.append("{peak:,.0f} ({program:,.0f})  {seconds:.1f} s".format(**result))
            else:
                cells.append("not run ({program:,.0f})".format(**result))
        rows.append((str(length), *cells))
    print_table(rows)
    return found


def draw(found: dict[str, list[tuple[int, float]]], limit_mib: float, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, points in found.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.axhline(limit_mib, color="0.6", linestyle="--", linewidth=1, label="4 GiB")
    axes.set(xscale="log", yscale="log", xlabel="context length", ylabel="peak memory, GiB")
    lengths = sorted({length for points in found.values() for length, _ in points})
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set_yticks([1024 * gib for gib in (0.5, 1, 2, 4, 8)], ["0.5", "1", "2", "4", "8"])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", nargs="*", default=["plain", "split", "chunked"])
    parser.add_argument("--lengths", type=int, nargs="*", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--tokens", type=int, default=4096, help="of all rows, in the times")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head_dim", type=int, default=32)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--memory_lengths", type=int, nargs="*", default=[1024, 2048, 4096, 8192, 16384]
    )
    parser.add_argument("--limit_gib", type=float, default=8.0)
    parser.add_argument("--figure", help="a file for the curve of memory against length")
    parser.add_argument("--side", help="one training process, started by this command")
    args = parser.parse_args()
    if args.side:
        return train_once(args.side, *args.memory_lengths, args.limit_gib)
    if args.lengths:
        compare_times(args)
    if args.memory_lengths:
        found = compare_memory(args)
        if args.figure:
            draw(found, 4096, args.figure)
    return None


if __name__ == "__main__":
    main()
