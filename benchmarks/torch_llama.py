"""The PyTorch peer: the decoder of jaxlm's defaults, written the way PyTorch users write it.

RMSNorm before each branch, interleaved RoPE, SwiGLU, no biases, a head of its own, AdamW, gradients
clipped at 1.
"""

import contextlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-5)


def rope_tables(length, head_dim, theta=10_000.0):
    frequency = theta ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.outer(torch.arange(length).float(), frequency)
    return angles.cos(), angles.sin()


def apply_rope(x, cos, sin):
    """x [B, H, S, Dh]; pairs (2i, 2i+1)."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).type_as(x)


class Block(nn.Module):
    def __init__(self, width, num_heads, hidden):
        super().__init__()
        self.num_heads = num_heads
        self.attn_norm, self.mlp_norm = RMSNorm(width), RMSNorm(width)
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.w_gate, self.w_up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.w_down = nn.Linear(hidden, width, bias=False)

    def forward(self, x, cos, sin):
        h = self.attn_norm(x)
        q, k, v = (
            w(h).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for w in (self.wq, self.wk, self.wv)
        )
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.wo(out.transpose(1, 2).flatten(-2))
        h = self.mlp_norm(x)
        return x + self.w_down(F.silu(self.w_gate(h)) * self.w_up(h))


class Decoder(nn.Module):
    def __init__(self, *, vocab_size, num_layers, width, num_heads, hidden, context_length):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(width, num_heads, hidden) for _ in range(num_layers))
        self.final_norm = RMSNorm(width)
        self.unembed = nn.Linear(width, vocab_size, bias=False)
        cos, sin = rope_tables(context_length, width // num_heads)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, tokens, targets):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.unembed(self.final_norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def load(model: Decoder, weights: dict[str, np.ndarray]) -> None:
    """Takes over jaxlm's weights, {path: array}, stored [in, out]."""

    def put(parameter, array):
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)).reshape(parameter.shape))

    with torch.no_grad():
        put(model.embed.weight, weights["embed"])
        put(model.final_norm.weight, weights["final_norm"])
        put(model.unembed.weight, weights["unembed"].T)
        for i, block in enumerate(model.blocks):
            for name in ("attn_norm", "mlp_norm"):
                put(getattr(block, name).weight, weights[f"blocks/{name}"][i])
            for name in ("wq", "wk", "wv", "w_gate", "w_up", "w_down"):
                w = weights[f"blocks/{name}"][i]
                put(getattr(block, name).weight, w.reshape(len(w), -1).T)
            wo = weights["blocks/wo"][i]
            put(block.wo.weight, wo.reshape(-1, wo.shape[-1]).T)


def make_step(model: Decoder, *, compiled: bool, device: str, bfloat16: bool, learning_rate: float):
    """`step(tokens, targets)` trains once; bfloat16 by autocast, master weights float32."""
    decays = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
    loss_of = torch.compile(model) if compiled else model

    def step(tokens, targets):
        cast = torch.autocast(device, torch.bfloat16) if bfloat16 else contextlib.nullcontext()
        with cast:
            loss = loss_of(tokens, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step
