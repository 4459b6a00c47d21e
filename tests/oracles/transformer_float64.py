"""The transformer written out in numpy float64, one layer after the other.

It takes its weights by the names of `transformer.param_specs` and shares no code with it.
"""

import numpy as np
from oracles import attention_loops


def rms(x, gain, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def layer(x, gain, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps) * gain + bias


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


GATES = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu"}


def activate(name, x):
    if name == "relu":
        return np.maximum(x, 0)
    if name == "relu_squared":
        return np.maximum(x, 0) ** 2
    if name == "silu":
        return x * sigmoid(x)
    assert name == "gelu"
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def turn(x, positions, theta, layout):
    """RoPE of x [B, S, heads, Dh] with complex numbers; positions [B, S]."""
    half = x.shape[-1] // 2
    i = np.arange(half)
    first, second = (2 * i, 2 * i + 1) if layout == "interleaved" else (i, i + half)
    angles = positions[..., None] * theta ** (-i / half)
    z = (x[..., first] + 1j * x[..., second]) * np.exp(1j * angles)[:, :, None, :]
    y = np.empty_like(x)
    y[..., first], y[..., second] = z.real, z.imag
    return y


def waves(positions, d_model):
    table = np.zeros((*positions.shape, d_model))
    for i in range(d_model // 2):
        table[..., 2 * i] = np.sin(positions / 10_000 ** (2 * i / d_model))
        table[..., 2 * i + 1] = np.cos(positions / 10_000 ** (2 * i / d_model))
    return table


def restarted(segment_ids):
    positions = np.zeros(segment_ids.shape, int)
    for b, row in enumerate(segment_ids):
        for s in range(1, len(row)):
            positions[b, s] = positions[b, s - 1] + 1 if row[s] == row[s - 1] else 0
    return positions


def forward(params, tokens, cfg, segment_ids=None):
    """(logits [B, S, V], residual streams after each layer, attention maps of each layer)."""
    params = {
        name: {n: np.asarray(w, np.float64) for n, w in value.items()}
        if isinstance(value, dict)
        else np.asarray(value, np.float64)
        for name, value in params.items()
    }
    tokens = np.asarray(tokens)
    B, S = tokens.shape
    positions = np.broadcast_to(np.arange(S), (B, S))
    if segment_ids is not None:
        positions = restarted(np.asarray(segment_ids))
    H, K = cfg.num_heads, cfg.num_kv_heads or cfg.num_heads

    def norm(x, weights, name):
        if cfg.norm == "rms":
            return rms(x, weights[name], cfg.norm_eps)
        return layer(x, weights[name], weights.get(f"{name}_bias", 0.0), cfg.norm_eps)

    def project(h, w, b, heads):
        y = h @ w.reshape(w.shape[0], -1) + (0 if b is None else b.reshape(-1))
        return y.reshape(B, S, heads, -1)

    x = params["embed"][tokens]
    if cfg.positions == "learned":
        x = x + params["positions"][positions]
    if cfg.positions == "sinusoidal":
        x = x + waves(positions, cfg.d_model)
    streams, maps = [], []
    for n in range(cfg.num_layers):
        w = {name: stack[n] for name, stack in params["blocks"].items()}

        h = norm(x, w, "attn_norm") if cfg.norm_placement == "pre" else x
        q = project(h, w["wq"], w.get("bq"), H)
        k = project(h, w["wk"], w.get("bk"), K)
        v = project(h, w["wv"], w.get("bv"), K)
        if cfg.qk_norm:
            q, k = rms(q, w["q_norm"], cfg.norm_eps), rms(k, w["k_norm"], cfg.norm_eps)
        if cfg.positions == "rope":
            q = turn(q, positions, cfg.rope_theta, cfg.rope_layout)
            k = turn(k, positions, cfg.rope_theta, cfg.rope_layout)
        out, attention = attention_loops.attend(
            q,
            k,
            v,
            causal=cfg.causal,
            window=cfg.window,
            softcap=cfg.attention_softcap,
            q_segments=segment_ids,
            kv_segments=segment_ids,
        )
        y = out.reshape(B, S, -1) @ w["wo"].reshape(-1, cfg.d_model) + w.get("bo", 0.0)
        x = cfg.residual * x + y
        if cfg.norm_placement == "post":
            x = norm(x, w, "attn_norm")

        h = norm(x, w, "mlp_norm") if cfg.norm_placement == "pre" else x
        up = h @ w["w_up"] + w.get("b_up", 0.0)
        if "w_gate" in w:
            inner = activate(GATES[cfg.activation], h @ w["w_gate"]) * up
        else:
            inner = activate(cfg.activation, up)
        x = cfg.residual * x + inner @ w["w_down"] + w.get("b_down", 0.0)
        if cfg.norm_placement == "post":
            x = norm(x, w, "mlp_norm")
        streams.append(x)
        maps.append(attention)

    if cfg.norm_placement == "pre":
        x = norm(x, params, "final_norm")
    logits = x @ (params["embed"].T if cfg.tied_head else params["unembed"])
    logits = logits + params.get("unembed_bias", 0.0)
    if cfg.logit_softcap is not None:
        logits = cfg.logit_softcap * np.tanh(logits / cfg.logit_softcap)
    return logits, np.stack(streams), np.stack(maps)
