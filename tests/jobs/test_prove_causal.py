"""--job=prove_causal: the verdict, the exit code and the figure."""

import pytest

from jaxlm.io import compile_cache
from jaxlm.jobs import Launch, prove_causal
from jaxlm.models import backends
from jaxlm.nn import attention

TINY = {
    "model.context_length": "4",
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
    assert "of 16 derivatives" in lines[1] and "as in training" in lines[1]
    assert "cached decoding" in lines[2] and "of the forward pass" in lines[2]
    names = {p.name for p in (tmp_path / "new").iterdir()}
    assert names == {"prove_causal.svg", "prove_causal.png"}


def test_the_attention_of_the_run_and_its_cache_are_on_trial(prove, monkeypatch, capsys):
    """Positions from a wrong length leave the dependences as they are, and the logits not."""

    def leaky(*args, **kinds):
        return attention.attend(*args, **kinds | {"causal": False})

    def ahead(cfg, batch_size, num_tokens):
        cache = init_cache(cfg, batch_size, num_tokens + 1)
        return cache.replace(length=cache.length + 1)

    init_cache = prove_causal.transformer.init_cache
    monkeypatch.setitem(backends.BACKENDS, "chunked", leaky)
    monkeypatch.setattr(prove_causal.transformer, "init_cache", ahead)
    assert prove({"train.attention": "chunked", "data.mask_documents": "false"}) == 1
    *verdicts, figure = capsys.readouterr().out.splitlines()[1:]
    words = [line.split()[0] for line in verdicts]
    assert words == ["disproved", "proved", "disproved"] * 2
    assert figure == "figure    none; --workdir=FOLDER draws the matrices"
    assert "(t, s) = (0, 1): logits[0] depend" in verdicts[0]
    assert "logits differ from those of the forward pass" in verdicts[2]
