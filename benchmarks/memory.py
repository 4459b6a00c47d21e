"""What mixed precision, rematerialisation and a loss in parts do to a training step.

    python -m benchmarks.memory --shape=large --vocab_size=8192

Memory is the compiler's account of the step's program, its arguments included; the float32 master
weights and the optimizer's state are the same in every row. All programs take turns in one process.
"""

import argparse
import itertools
import sys

from benchmarks.alternate import alternate, seconds_of
from benchmarks.training import SHAPES, prepare
from jaxlm.reports.tables import print_table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="large")
    parser.add_argument("--vocab_size", type=int, help="in place of the shape's")
    parser.add_argument("--batch_size", type=int, help="in place of the shape's")
    parser.add_argument("--vocab_chunk", type=int, default=1024)
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--remat", nargs="*", default=["none", "dots", "full"])
    parser.add_argument("--rounds", type=int, default=5, help="0: memory alone, nothing is run")
    parser.add_argument("--set", nargs="*", default=[], help="such as train.attention=plain")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    given = {name: getattr(args, name) for name in ("vocab_size", "batch_size")}
    shape = shape._replace(**{name: value for name, value in given.items() if value})
    common = dict(each.split("=", 1) for each in args.set)
    sides = {}
    for dtype, remat, chunk in itertools.product(args.dtypes, args.remat, (None, args.vocab_chunk)):
        options = {"model.dtype": dtype, "model.remat": remat, "train.vocab_chunk": chunk}
        name = (dtype, remat, "whole" if chunk is None else f"{chunk} ids")
        limit_bytes = None if args.rounds else 0
        sides[name] = prepare(shape, common | options, limit_bytes)
        print("ready", *name, file=sys.stderr, flush=True)
    if args.rounds:
        blocks = {name: seconds_of(side.block) for name, side in sides.items()}
        medians = alternate(blocks, args.rounds)
    first = next(iter(sides))
    titles = ("dtype", "remat", "logits", "MiB", "of the first")
    rows = [(*titles, "ms a step", "of the first", "loss") if args.rounds else titles]
    for name, side in sides.items():
        mebibytes = f"{side.num_bytes / 2**20:,.0f}"
        row = (*name, mebibytes, f"{side.num_bytes / sides[first].num_bytes:.2f}")
        if args.rounds:
            row += (
                f"{1e3 * medians[name] / shape.steps:.1f}",
                f"{medians[name] / medians[first]:.2f}",
                f"{side.first['loss'][-1]:.4f}",
            )
        rows.append(row)
    print_table(rows)


if __name__ == "__main__":
    main()
