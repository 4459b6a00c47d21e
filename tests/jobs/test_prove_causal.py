"""--job=prove_causal: the verdict, the exit code and the figure."""

import pytest

from jaxlm.io import compile_cache
from jaxlm.jobs import Launch, prove_causal
from jaxlm.models import backends
from jaxlm.nn import attention

TINY = {
    "model.context_length": "8",
    "model.num_layers": "2",
    "model.d_model": "8",
    "model.num_heads": "2",
    "data.mask_documents": "true",
}


@pytest.fixture
def prove(config, monkeypatch):
    monkeypatch.setattr(compile_cache, "enable", lambda: None)

    def run(overrides, workdir=None):
        path = config.removeprefix("--config=")
        return prove_causal.main(Launch(path, TINY | overrides, workdir, "", None))

    return run


def test_a_config_is_proved_and_drawn(prove, tmp_path, capsys):
    assert prove({"model.window": "3"}, tmp_path / "new") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["config", *["proved"] * 4, "figure"]
    assert "of 64 derivatives" in lines[1] and "as in training" in lines[1]
    assert "cached decoding" in lines[2] and "of the forward pass" in lines[2]
    names = {p.name for p in (tmp_path / "new").iterdir()}
    assert names == {"prove_causal.svg", "prove_causal.png"}


def test_the_attention_of_the_run_is_on_trial(prove, monkeypatch, capsys):
    def leaky(*args, **kinds):
        return attention.attend(*args, **kinds | {"causal": False})

    monkeypatch.setitem(backends.BACKENDS, "chunked", leaky)
    assert prove({"train.attention": "chunked", "data.mask_documents": "false"}) == 1
    *verdicts, figure = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in verdicts] == ["disproved", "proved", "proved"] * 2
    assert figure == "figure    none; --workdir=FOLDER draws the matrices"
    assert "(t, s) = (0, 1): logits[0] depend" in verdicts[0]


def test_a_cache_of_another_model_is_disproved(prove, monkeypatch, capsys):
    """Wrong positions leave the dependences as they are, and the logits not."""
    init_cache = prove_causal.transformer.init_cache
    monkeypatch.setattr(
        prove_causal.transformer,
        "init_cache",
        lambda cfg, b, n: init_cache(cfg, b, n + 1).replace(
            length=1 + 0 * init_cache(cfg, b, n).length
        ),
    )
    assert prove({"model.num_layers": "1", "data.mask_documents": "false"}) == 1
    assert "logits differ from those of the forward pass" in capsys.readouterr().out
