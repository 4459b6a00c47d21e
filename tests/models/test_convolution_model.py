"""Temporal convolutions against torch's, and how far they read."""

import numpy as np
import pytest
from compiling import quick_jit
from drawn import draw_params

from jaxlm.models import convolution
from jaxlm.models.convolution import ConvolutionConfig
from jaxlm.nn.windows import append, windows

V, D, N, K, B, S = 7, 5, 3, 2, 2, 20
IDS = np.random.default_rng(0).integers(V, size=(B, S))


def draw(gate):
    cfg = ConvolutionConfig(vocab_size=V, d_model=D, num_layers=N, kernel_size=K, gate=gate)
    model = convolution.build(cfg)
    return cfg, model, draw_params(model.specs)


@pytest.mark.parametrize("gate", ["relu", "wavenet"])
def test_layers_are_dilated_causal_convolutions_of_torch(gate):
    torch = pytest.importorskip("torch")
    cfg, model, params = draw(gate)
    w = {name: torch.tensor(np.asarray(x, np.float64)) for name, x in params["blocks"].items()}

    def convolve(x, weight, bias, dilation):  # x [B, D, S]; weight [K, D, out], oldest tap first
        x = torch.nn.functional.pad(x, ((K - 1) * dilation, 0))
        return torch.nn.functional.conv1d(x, weight.permute(2, 1, 0), bias, dilation=dilation)

    x = torch.tensor(np.asarray(params["embed"], np.float64))[torch.tensor(IDS)].transpose(1, 2)
    for n in range(N):
        if gate == "relu":
            y = torch.relu(convolve(x, w["w_first"][n], w["b_first"][n], 2**n))
            y = torch.relu(convolve(y, w["w_second"][n], w["b_second"][n], 2**n))
            x = torch.relu(x + y)
        else:
            kernel, bias = w["w_gates"][n], w["b_gates"][n]
            tanh, gates = (convolve(x, kernel[:, :, i], bias[i], 2**n) for i in (0, 1))
            y = torch.tanh(tanh) * torch.sigmoid(gates)
            x = x + torch.einsum("bds,de->bes", y, w["w_out"][n]) + w["b_out"][n][:, None]
    head = {name: np.asarray(params[name], np.float64) for name in ("unembed", "unembed_bias")}
    want = x.transpose(1, 2).numpy() @ head["unembed"] + head["unembed_bias"]
    np.testing.assert_allclose(quick_jit(model.forward)(params, IDS), want, atol=1e-5)


@pytest.mark.parametrize(("gate", "reach"), [("relu", 14), ("wavenet", 7)])
def test_it_reads_as_far_as_it_says(gate, reach):
    """2 (K - 1) (1 + 2 + 4) and half of it; the derivative itself is tested for every kind."""
    cfg, model, params = draw(gate)
    assert cfg.reach == reach
    forward = quick_jit(model.forward)
    other = IDS.copy()
    other[:, 2] = (other[:, 2] + 1) % V
    changed = np.abs(forward(params, other) - forward(params, IDS)).max((0, 2)) > 1e-6
    assert changed[2] and not changed[:2].any()
    assert changed[2 + reach] or gate == "relu"  # a ReLU may be dead there
    assert not changed[3 + reach :].any()


def test_windows_are_those_of_a_loop():
    x = np.random.default_rng(0).normal(size=(B, 6, 3)).astype(np.float32)
    segments = np.array([[1, 1, 1, 2, 2, 2], [1, 2, 2, 2, 3, 3]])
    got = windows(x, 3, 2, fill=-1.0, segment_ids=segments)
    for b in range(B):
        for t in range(6):
            for j in range(3):
                s = t - 2 * (2 - j)
                here = s >= 0 and segments[b, s] == segments[b, t]
                np.testing.assert_array_equal(got[b, t, j], x[b, s] if here else [-1.0] * 3)
    before = np.random.default_rng(1).normal(size=(B, 4, 3)).astype(np.float32)
    whole = windows(np.concatenate([before, x], axis=1), 3, 2)[:, 4:]
    np.testing.assert_array_equal(windows(x, 3, 2, before=before), whole)
    np.testing.assert_array_equal(append(before, x), x[:, 2:])
    some = append(before, x, np.array([0, 5]))
    np.testing.assert_array_equal(some[0], before[0])
    np.testing.assert_array_equal(some[1], x[1, 1:5])
