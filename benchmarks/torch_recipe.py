"""The PyTorch peer of `time_to_loss`: the usual small CPU recipe for a character model, eager.

GPT-2 style (learned positions, LayerNorm, GELU, tied head), 4 layers, 4 heads, width 128, context
64, batch 12; AdamW with betas 0.9 and 0.99, decay 0.1 on matrices, cosine from 1e-3 to 1e-4 after
100 steps of warmup, clip at 1; 2,000 steps. Prints the loss over the full validation tail.

    python -m benchmarks.torch_recipe --data=FILE
"""

import argparse
import json
import math
import time

STARTED = time.perf_counter()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12
STEPS, WARMUP, PEAK, LOWEST = 2000, 100, 1e-3, 1e-4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, bias=False)
        self.norm2 = nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        B, S, D = x.shape
        heads = self.qkv(self.norm1(x)).view(B, S, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*heads.unbind(0), is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, S, D))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                scale = (2 * LAYERS) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1
                nn.init.normal_(p, std=0.02 * scale)

    def forward(self, x):
        h = self.tokens(x) + self.positions.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        return F.linear(self.norm(h), self.tokens.weight)


def learning_rate(step):
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return LOWEST + 0.5 * (1 + math.cos(math.pi * progress)) * (PEAK - LOWEST)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer only times the steps")
    args = parser.parse_args()
    torch.manual_seed(0)
    with open(args.data, encoding="utf-8") as file:
        text = file.read()
    chars = sorted(set(text))
    index = {c: i for i, c in enumerate(chars)}
    ids = torch.from_numpy(np.array([index[c] for c in text], np.int64))
    train, validation = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]

    model = Model(len(chars))
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99))
    for step in range(args.steps):
        starts = torch.randint(len(train) - CONTEXT, (BATCH, 1))
        window = train[starts + torch.arange(CONTEXT + 1)]
        logits = model(window[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
    trained = time.perf_counter() - STARTED

    with torch.no_grad():
        n = (len(validation) - 1) // CONTEXT * CONTEXT
        inputs, targets = validation[:n].view(-1, CONTEXT), validation[1 : n + 1].view(-1, CONTEXT)
        total = sum(
            F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item()
            for x, y in zip(inputs.split(128), targets.split(128), strict=True)
        )
    result = {
        "val_loss": total / n,
        "num_params": sum(p.numel() for p in model.parameters()),
        "steps": args.steps,
        "seconds_trained": trained,
        "seconds": time.perf_counter() - STARTED,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
