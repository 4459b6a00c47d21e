"""explain.html holds the numbers it was given, and nothing from elsewhere."""

import base64
import io
import math
import re

import numpy as np
import pytest
from html_reader import Reader

from jaxlm.core.config import ConfigError
from jaxlm.reports import explanation
from jaxlm.reports.explanation import Explained, head_shares, settled, write_explanation

N, H, S, K, V = 3, 2, 6, 3, 11
TOKENS = [" <b>", "a", "\\n", "&", " ", "end"]


def example():
    rng = np.random.default_rng(0)
    attention = np.tril(rng.random((N, H, S, S))).astype(np.float32)
    probs = np.sort(rng.random((N, S, K)) / K, axis=-1)[..., ::-1]
    return Explained(
        where="runs/<a>",
        tokens=TOKENS,
        names={id: f"<{id}>" for id in range(V)},
        ids=np.arange(S),
        num_bytes=8,
        attention=attention / attention.sum(-1, keepdims=True),
        top_ids=rng.integers(V, size=(N, S, K)),
        top_probs=probs.astype(np.float32),
        nll=rng.gamma(2.0, size=S - 1).astype(np.float32),
        ranks=np.array([0, 3, 0, 1, 9]),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("explained") / "new" / "explain.html"
    assert write_explanation(path, example()) == path
    return path.read_text()


def test_every_map_is_there_and_its_weights_can_be_read_back(written):
    from matplotlib.image import imread

    of = example()
    thumbs = re.findall(r'<button.*?title="(.*?)".*?src="data:image/png;base64,(.*?)"', written)
    assert len(thumbs) == N * H
    for place, (title, data) in enumerate(thumbs):
        n, h = divmod(place, H)
        assert title.startswith(f"layer {n + 1}, head {h + 1}: ")
        alpha = imread(io.BytesIO(base64.b64decode(data)))[..., 3]
        np.testing.assert_allclose(alpha**2, of.attention[n, h], atol=2 * 0.5 / 255 + 1e-5)


def test_it_shows_the_losses_and_the_guesses(written):
    of = example()
    loss = float(of.nll.mean())
    assert f"{math.exp(loss):.4g}" in written and f"{loss:.3f} nats/token" in written
    assert f"{of.nll.sum() / math.log(2) / 8:.3f}" in written
    for nll in of.nll:
        assert f"{nll:.3f} nats, probability {math.exp(-nll):.2%}" in written
    assert "2 of 5" in written  # ranks of 0
    guesses = ", ".join(
        f"&lt;{id}&gt; {prob:.1%}"
        for id, prob in zip(of.top_ids[1, 2], of.top_probs[1, 2], strict=True)
    )
    assert f'title="layer 2: {guesses}"' in written
    rows = re.findall(r"<tr><th>layer \d+</th>(.*?)</tr>", written)
    assert [row.count("<td") for row in rows] == [S] * N
    right = sum((of.top_ids[:, :-1, 0] == of.ids[1:]).ravel())
    assert written.count("class=right") == right


def test_what_came_from_outside_is_text(written):
    page = Reader(written)
    assert "runs/<a>" in page.text and page.headings[0] == "Loss by token"
    assert "<b> " not in written and "&lt;b&gt;" in written and "runs/&lt;a&gt;" in written
    assert not re.search(r'(src|href)="(?!data:)', written)
    assert "http" not in written.replace("http-equiv", "")


def test_it_takes_one_layer_one_head_and_two_tokens(tmp_path):
    of = example()
    one = of._replace(
        tokens=["a", "b"],
        ids=np.arange(2),
        attention=np.array([[[[1, 0], [0.25, 0.75]]]], np.float32),
        top_ids=of.top_ids[:1, :2],
        top_probs=of.top_probs[:1, :2],
        nll=of.nll[:1],
        ranks=of.ranks[:1],
        num_bytes=0,
    )
    text = write_explanation(tmp_path / "x.html", one).read_text()
    assert "2 tokens through 1 layers of 1 heads" in text
    assert "layer 1, head 1: 25% on the first token, 75% on the token itself" in text


def test_a_folder_in_its_place_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        write_explanation(tmp_path, example())


def test_a_layer_settles_where_no_later_one_says_otherwise():
    top_ids = np.array([[1, 2, 3, 3], [5, 2, 3, 4], [1, 2, 7, 3], [1, 2, 3, 3]])[..., None]
    assert settled(top_ids).tolist() == [3, 1, 4, 3]


def test_shares_are_means_over_the_queries():
    of = example()
    for n in range(N):
        for h in range(H):
            a = of.attention[n, h]
            first = np.mean([a[q, 0] for q in range(1, S)])
            itself = np.mean([a[q, q] for q in range(1, S)])
            before = np.mean([a[q, q - 1] for q in range(2, S)])
            got = [share[n, h] for share in head_shares(of.attention).values()]
            np.testing.assert_allclose(got, [first, itself, before], rtol=1e-5)


def test_tokens_of_blanks_can_be_seen():
    assert [explanation._shown(t) for t in ("  a", "\\n", "")] == ["␣␣a", "↵", "∅"]
