"""The classic copy task: 32 seeds in one program of jaxlm against the plain eager PyTorch loop.

    python -m benchmarks.copy_task

The setting of `experiments/copy_task` (a): 10 symbols of which 1..9 are drawn, length 4, one
post-norm block of width 32 with 2 heads and a feed-forward of 64, batch 32, Adam at 1e-3, 500
steps, accuracy on 100 fresh sequences. jaxlm's time is given twice: of all its seeds, compiling
included (no compile cache), divided by their number; and of a further seed, from a population of
twice as many. Each side has its own process and every core. Needs the `parity` extra.
"""

import argparse
import statistics
import subprocess
import sys
import time

SYMBOLS, LENGTH, WIDTH, HEADS, HIDDEN, BATCH, STEPS = 10, 4, 32, 2, 64, 32, 500


def torch_seed(seed: int) -> float:
    """Trains one seed; returns the share of 100 fresh sequences that are right."""
    import torch
    from torch import nn

    torch.manual_seed(seed)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.symbols = nn.Embedding(SYMBOLS, WIDTH)
            self.positions = nn.Parameter(0.01 * torch.randn(LENGTH, WIDTH))
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
            self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
            self.head = nn.Linear(WIDTH, SYMBOLS)

        def forward(self, x):
            h = self.symbols(x) + self.positions
            h = self.norms[0](h + self.attention(h, h, h, need_weights=False)[0])
            h = self.norms[1](h + self.down(torch.relu(self.up(h))))
            return self.head(h)

    model = Model()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        x = torch.randint(1, SYMBOLS, (BATCH, LENGTH))
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        x = torch.randint(1, SYMBOLS, (100, LENGTH))
        return (model(x).argmax(-1) == x).all(1).float().mean().item()


def run_torch(num_seeds: int) -> tuple[float, int]:
    torch_seed(0)  # the first one also loads what PyTorch loads late
    started = time.perf_counter()
    solved = sum(torch_seed(seed) == 1 for seed in range(num_seeds))
    return time.perf_counter() - started, solved


def run_jaxlm(num_seeds: int) -> tuple[float, int]:
    from experiments.copy_task.run import train_classic
    from jaxlm.jobs.devices import one_cpu_device_per_core

    one_cpu_device_per_core()
    started = time.perf_counter()
    [(_, scores)] = train_classic(list(range(num_seeds)), STEPS).evaluations
    return time.perf_counter() - started, int((scores["exact_match"] == 1).sum())


def in_own_process(side: str, num_seeds: int) -> float:
    """Seconds of all seeds; prints what a seed took and how many were solved."""
    command = [sys.executable, "-m", "benchmarks.copy_task", f"--side={side}"]
    command += [f"--seeds={num_seeds}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    took, solved = done.stdout.split()
    each = float(took) / num_seeds
    print(f"{side:6} {each:.3f} s a seed, {solved} of {num_seeds} solved", flush=True)
    return float(took)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=32, help="of jaxlm")
    parser.add_argument("--torch_seeds", type=int, default=4)
    parser.add_argument("--side", choices=("torch", "jaxlm"), help="one side once, in this process")
    args = parser.parse_args()
    if args.side:
        print(*{"torch": run_torch, "jaxlm": run_jaxlm}[args.side](args.seeds))
        return
    torch, whole, further = [], [], []
    for _ in range(args.repeats):
        torch.append(in_own_process("torch", args.torch_seeds) / args.torch_seeds)
        once, twice = (in_own_process("jaxlm", n * args.seeds) for n in (1, 2))
        whole.append(once / args.seeds)
        further.append((twice - once) / args.seeds)
    peer = statistics.median(torch)
    for name, times in (("a seed of all, compiling included", whole), ("a further seed", further)):
        mine = statistics.median(times)
        print(f"ratio  torch / jaxlm = {peer / mine:.1f}, {name} ({peer:.3f} s and {mine:.3f} s)")


if __name__ == "__main__":
    main()
