"""explain.html: a text as a model sees it. Loss by token, the logit lens, every attention map."""

import base64
import io
import math
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from jaxlm.reports import page
from jaxlm.reports.files import write_atomic

_INK = (36, 104, 180)  # of attention, on light and dark pages alike
_WIDE = 430  # pixels that the thumbnails of a layer take, at most
_MAP = 400  # pixels of the large map


class Explained(NamedTuple):
    """A text of S tokens through N layers, as numpy arrays.

    where: the run. tokens: [S], as a reader can see them. names: of the ids in top_ids.
    ids: i32[S]. num_bytes: of the text behind the first token.
    The others are those of `analysis.logit_lens.Explanation`.
    """

    where: str
    tokens: list[str]
    names: dict[int, str]
    ids: np.ndarray
    num_bytes: int
    attention: np.ndarray
    top_ids: np.ndarray
    top_probs: np.ndarray
    nll: np.ndarray
    ranks: np.ndarray


def write_explanation(path: str | os.PathLike, of: Explained) -> pathlib.Path:
    """Writes the page, which needs no other file; ConfigError where it cannot be written."""
    N, H = of.attention.shape[:2]
    body = [
        page.paragraph(of.where, "muted"),
        f"<h1>{len(of.tokens)} tokens through {N} layers of {H} heads</h1>",
        page.tiles(_summary(of)),
        "<h2>Loss by token</h2>",
        _losses(of),
        "<h2>What each layer would say next</h2>",
        _lens(of),
        "<h2>Attention by layer and head</h2>",
        _attention(of),
    ]
    text = page.page(f"{of.where}: explained", [f"<style>{_STYLE}</style>", *body])
    path = pathlib.Path(path)
    write_atomic(path, text)
    return path


def settled(top_ids: np.ndarray) -> np.ndarray:
    """i32[S], the layer, from 1, from which on the likeliest next token is the model's own."""
    same = top_ids[:, :, 0] == top_ids[-1, :, 0]
    stays = np.logical_and.accumulate(same[::-1])[::-1]
    return len(same) - stays.sum(0) + 1


def head_shares(attention: np.ndarray) -> dict[str, np.ndarray]:
    """{where heads look: f[N, H]}, the mean share of their weight, over all queries but the first.

    The token before the first query is the first token; it counts as that.
    """
    S = attention.shape[-1]
    rows = attention[:, :, 1:]
    at = np.arange(S - 1)
    before = rows[:, :, at, at]
    return {
        "the first token": rows[..., 0].mean(-1),
        "the token itself": rows[:, :, at, at + 1].mean(-1),
        "the token before": before[..., 1:].mean(-1) if S > 2 else 0 * before[..., 0],
    }


def _summary(of: Explained) -> list[tuple[str, str, str]]:
    loss, right = float(of.nll.mean()), int((of.ranks == 0).sum())
    layers = settled(of.top_ids)[:-1]
    bits = float(of.nll.sum()) / math.log(2) / of.num_bytes if of.num_bytes else math.nan
    worst = int(of.nll.argmax())
    return [
        ("perplexity", f"{math.exp(min(loss, 700)):.4g}", f"{loss:.3f} nats/token"),
        ("bits per byte", f"{bits:.3f}", f"{of.num_bytes} bytes behind the first token"),
        ("predicted", f"{right} of {len(of.nll)}", "tokens that were held likeliest"),
        ("settled", f"layer {np.median(layers):g}", "the median; no other guess after it"),
        ("hardest", f"{of.nll[worst]:.1f} nats", f"{_shown(of.tokens[worst + 1])}"),
    ]


def _shown(token: str) -> str:
    """A token for a place without room around it: blanks can be seen."""
    return token.replace(" ", "␣").replace("\\n", "↵").replace("\\t", "⇥") or "∅"


def _losses(of: Explained) -> str:
    top = max(float(of.nll.max()), 1e-9)
    spans = [
        f'<span class="tok none" title="nothing to predict it from">{_word(of.tokens[0])}</span>'
    ]
    for i, (token, nll, rank) in enumerate(
        zip(of.tokens[1:], of.nll.tolist(), of.ranks.tolist(), strict=True)
    ):
        title = f"{_shown(token)}: {nll:.3f} nats, probability {math.exp(-nll):.2%}, " + (
            "held likeliest" if rank == 0 else f"{rank} held likelier: {_guesses(of, -1, i)}"
        )
        spans.append(
            f'<span class="tok" style="--part: {nll / top:.3f}" title="{page.escape(title)}">'
            f"{_word(token)}</span>"
        )
    scale = "".join(f'<i style="--part: {part / 10}"></i>' for part in range(11))
    return (
        f'<p class="text">{"".join(spans)}</p><p class="scale muted">0 {scale} {top:.1f} nats; '
        "point at a token for its numbers</p>"
    )


def _word(token: str) -> str:
    """A token in running text; a line break ends its line."""
    text = page.escape(token).replace("\\n", "↵<br>").replace("\\t", "⇥")
    return text.replace(" ", " <wbr>") if text.strip() else text.replace(" ", "&nbsp;")


def _guesses(of: Explained, layer: int, place: int) -> str:
    pairs = zip(of.top_ids[layer, place].tolist(), of.top_probs[layer, place].tolist(), strict=True)
    return ", ".join(f"{_shown(of.names[id])} {prob:.1%}" for id, prob in pairs)


def _lens(of: Explained) -> str:
    N, S = of.top_ids.shape[:2]
    heads = "".join(f"<th>{page.escape(_shown(token))}</th>" for token in of.tokens)
    lines = [f'<tr class="read"><th>reads</th>{heads}</tr>']
    for layer in range(N):
        cells = []
        for s in range(S):
            id, prob = int(of.top_ids[layer, s, 0]), float(of.top_probs[layer, s, 0])
            right = s + 1 < S and id == of.ids[s + 1]
            title = page.escape(f"layer {layer + 1}: {_guesses(of, layer, s)}")
            cells.append(
                f'<td{" class=right" if right else ""} style="--part: {prob:.3f}" title="{title}">'
                f"{page.escape(_shown(of.names[id]))}</td>"
            )
        lines.append(f"<tr><th>layer {layer + 1}</th>{''.join(cells)}</tr>")
    follows = "".join(f"<th>{page.escape(_shown(token))}</th>" for token in of.tokens[1:])
    lines.append(f'<tr class="read"><th>follows</th>{follows}<th></th></tr>')
    told = (
        "The final norm and the head applied to the residual stream after each layer: the "
        "likeliest next token, the darker the more probable, underlined where it is the one that "
        "follows. Point at a cell for the five likeliest. The last layer is the model itself."
    )
    return page.paragraph(told, "muted") + (
        f'<div class="scroll"><table class="lens">{"".join(lines)}</table></div>'
    )


def _attention(of: Explained) -> str:
    N, H, S = of.attention.shape[:3]
    shares = head_shares(of.attention)
    size = max(26, min(96, _WIDE // H - 4))
    chosen = divmod(int(np.argmin(shares["the first token"] + shares["the token itself"])), H)
    images = [[_image(of.attention[n, h]) for h in range(H)] for n in range(N)]

    def title(n: int, h: int) -> str:
        parts = ", ".join(f"{share[n, h]:.0%} on {name}" for name, share in shares.items())
        return f"layer {n + 1}, head {h + 1}: {parts}"

    rows = ["<tr><th></th>" + "".join(f"<th>{h + 1}</th>" for h in range(H)) + "</tr>"]
    for n in range(N):
        cells = [
            f'<td><button type="button" title="{page.escape(title(n, h))}"'
            f"{' class=chosen' if (n, h) == chosen else ''}>"
            f'<img src="{images[n][h]}" width="{size}" height="{size}" alt=""></button></td>'
            for h in range(H)
        ]
        rows.append(f"<tr><th>{n + 1}</th>{''.join(cells)}</tr>")
    cell = max(_MAP / S, 3.0)
    every = max(1, math.ceil(11 / cell))  # labels need 11 pixels
    names = [page.escape(_shown(t)) if i % every == 0 else "" for i, t in enumerate(of.tokens)]
    labels = "".join(f"<span>{name}</span>" for name in names)
    told = (
        "A row of a map is a token that reads, a column one that is read; every row sums to 1. The "
        "ink is the square root of the weight, so that faint ones show. Rows of the table are "
        "layers, columns heads. Click a map to see it large; point at it for its numbers. "
        + _standing_out(shares)
    )
    large = (
        f'<div class="large" style="--cell: {cell:.3f}px"><h3>{page.escape(title(*chosen))}</h3>'
        f'<div class="map"><div class="from">{labels}</div>'
        f'<img src="{images[chosen[0]][chosen[1]]}" width="{cell * S:.0f}" '
        f'height="{cell * S:.0f}" alt="the attention map of this head"><div></div>'
        f'<div class="to">{labels}</div></div><p class="muted said">&nbsp;</p></div>'
    )
    words = "".join(f"<b>{page.escape(_shown(token))}</b>" for token in of.tokens)
    return (
        page.paragraph(told, "muted")
        + f'<div class="maps"><table class="thumbs">{"".join(rows)}</table>{large}</div>'
        + f'<div id="tokens" hidden>{words}</div><script>{_SCRIPT}</script>'
    )


def _standing_out(shares: dict[str, np.ndarray]) -> str:
    parts = []
    for name, share in shares.items():
        n, h = divmod(int(share.argmax()), share.shape[1])
        parts.append(f"{name}: head {h + 1} of layer {n + 1} ({share[n, h]:.0%})")
    return f"Most weight on {'; on '.join(parts)}."


def _image(weights: np.ndarray) -> str:
    """A PNG in which the root of a weight is the opacity: what the script reads back."""
    from matplotlib.image import imsave

    pixels = np.empty((*weights.shape, 4), np.uint8)
    pixels[..., :3] = _INK
    pixels[..., 3] = np.rint(255 * np.sqrt(np.clip(weights, 0, 1)))
    file = io.BytesIO()
    left_out: dict[str, Any] = {"Software": None}
    imsave(file, pixels, format="png", metadata=left_out)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


_STYLE = """
.text { font: 15px/2 ui-monospace, monospace; background: var(--card); border-radius: 10px;
  padding: 12px 16px; white-space: pre-wrap; overflow-wrap: anywhere; }
.tok { background: color-mix(in srgb, var(--second) calc(var(--part, 0) * 75%), transparent);
  border-radius: 3px; padding: 2px 0; box-shadow: inset -1px 0 var(--page); }
.tok.none { color: var(--muted); }
.scale i { display: inline-block; width: 18px; height: 12px; vertical-align: -1px;
  background: color-mix(in srgb, var(--second) calc(var(--part) * 75%), transparent); }
.scroll { max-width: 100%; }
.lens { border-collapse: separate; border-spacing: 1px; width: auto; font-size: 12px; }
.lens td, .lens th { padding: 1px 5px; white-space: nowrap; max-width: 92px; overflow: hidden;
  text-overflow: ellipsis; text-align: center; font-weight: 400; }
.lens td { background: color-mix(in srgb, var(--first) calc(var(--part) * 70%), var(--card)); }
.lens td.right { text-decoration: underline 2px; font-weight: 650; }
.lens .read th { font-weight: 650; }
.lens th:first-child { position: sticky; left: 0; background: var(--page); color: var(--muted);
  text-align: right; font-weight: 400; }
.maps { display: flex; gap: 20px; align-items: flex-start; }
.thumbs { width: auto; }
.thumbs th { font-weight: 400; color: var(--muted); font-size: 11px; text-align: center;
  vertical-align: middle; padding: 0 4px; }
.thumbs td { padding: 1px; line-height: 0; }
.thumbs button { border: 1px solid var(--grid); background: var(--card); padding: 0;
  cursor: pointer; border-radius: 2px; line-height: 0; }
.thumbs button.chosen, .thumbs button:focus-visible { outline: 2px solid var(--second); }
.maps img { image-rendering: pixelated; display: block; }
.large { position: sticky; top: 16px; min-width: 0; }
.map { display: grid; grid-template-columns: auto auto; justify-content: start; gap: 4px; }
.map > img { background: var(--card); border: 1px solid var(--grid); cursor: crosshair; }
.from span, .to span { font-size: 10px; white-space: nowrap; overflow: hidden; display: block;
  text-overflow: ellipsis; color: var(--muted); }
.from span { height: var(--cell); line-height: var(--cell); text-align: right; max-width: 84px;
  overflow: visible; margin-left: auto; }
.to { display: flex; }
.to span { width: var(--cell); line-height: var(--cell); writing-mode: vertical-rl;
  max-height: 84px; overflow: visible; }
.said { min-height: 3em; margin-top: 8px; max-width: 500px; }
@media (max-width: 960px) { .maps { flex-wrap: wrap; } .large { position: static; } }
"""

_SCRIPT = """
const large = document.querySelector('.large'), map = large.querySelector('img');
const words = [...document.querySelectorAll('#tokens b')].map(b => b.textContent);
const said = large.querySelector('.said'), canvas = document.createElement('canvas');
let pixels = null;
function read() {
  canvas.width = canvas.height = words.length;
  const context = canvas.getContext('2d', {willReadFrequently: true});
  context.drawImage(map, 0, 0, words.length, words.length);
  pixels = context.getImageData(0, 0, words.length, words.length).data;
}
document.querySelector('.thumbs').addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button) return;
  document.querySelector('.chosen').classList.remove('chosen');
  button.classList.add('chosen');
  map.src = button.firstChild.src;
  large.querySelector('h3').textContent = button.title;
  pixels = null;
});
map.addEventListener('mousemove', event => {
  if (!pixels) read();
  const box = map.getBoundingClientRect(), last = words.length - 1;
  const at = part => Math.max(0, Math.min(last, Math.floor(part * words.length)));
  const row = at((event.clientY - box.top) / box.height);
  const column = at((event.clientX - box.left) / box.width);
  const weight = (pixels[4 * (row * words.length + column) + 3] / 255) ** 2;
  said.textContent = `${words[row]} (token ${row + 1}) reads ${words[column]} ` +
    `(token ${column + 1}): ${weight.toFixed(3)}`;
});
"""
