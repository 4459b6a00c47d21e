"""Byte-pair encodings by size and by the text they were trained on.

Two corpora: the bundled plays, and source text of the Python library; the last tenth of each is
held out. Equal compute: a model of a larger vocabulary is trained for fewer updates, so that all
are given the same FLOPs; width, layers and context in tokens are the same.
"""

import dataclasses
from typing import Any, Literal

from experiments.checks import check_not_empty, check_positive, check_rising
from experiments.comparing import band, band_by, by_seed, difference, lowest_mean
from experiments.library import MODULES
from jaxlm.analysis.claims import Claim, all_of, evidence, judge, weigh
from jaxlm.analysis.statistics import Interval, brief, mean_interval, paired_interval
from jaxlm.core.config import as_typed
from jaxlm.core.results import Results
from jaxlm.reports.figures import Figure, grid, lines
from jaxlm.reports.study_report import Table

QUESTION = "How large a vocabulary, trained on which text and on which bytes, is worth it?"

CORPORA = ("plays", "python")
ENCODINGS = ("utf-8", "utf-16-le", "utf-32-le")
BYTES = 256  # the vocabulary of single bytes
DOMAIN_RATIO = 1.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The tokenizers, the models, and how much of the text they are tested on.

    vocab_sizes: rising; of the tokenizers whose compression is measured.
    model_vocab_sizes: rising; 256 is single bytes, and has `num_steps` updates.
    num_parts: equal parts of a held-out text, over which intervals of compression are taken.
    eval_bytes: of the held-out plays, for the models.
    peak_lrs: rising; of them each vocabulary has its best.
    modules: files of the Python library. corpus_sha256: of their text; None: filled in.
    """

    scale: Literal["small", "default", "full"] = "default"
    vocab_sizes: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    num_parts: int = 8
    model_vocab_sizes: tuple[int, ...] = (BYTES, 512, 1024, 2048, 4096)
    peak_lrs: tuple[float, ...] = (5e-3, 1.5e-2)
    num_seeds: int = 5
    num_layers: int = 3
    d_model: int = 48
    num_heads: int = 2
    context_length: int = 32
    batch_size: int = 16
    num_steps: int = 400
    warmup_steps: int = 40
    eval_bytes: int = 65_536
    modules: tuple[str, ...] = MODULES
    corpus_sha256: str | None = None

    def __post_init__(self):
        check_not_empty(self)
        check_positive(self)
        for name in ("vocab_sizes", "model_vocab_sizes", "peak_lrs"):
            check_rising(self, name)
        if self.vocab_sizes[0] <= BYTES or len(self.vocab_sizes) < 3:
            sizes = as_typed(self.vocab_sizes)
            raise ValueError(f"vocab_sizes={sizes}: expected three or more above 256")
        if self.model_vocab_sizes[0] != BYTES or len(self.model_vocab_sizes) < 3:
            raise ValueError(
                f"model_vocab_sizes={self.model_vocab_sizes}: expected 256 and two more"
            )
        if self.num_parts < 2:
            raise ValueError(f"num_parts={self.num_parts} must be at least 2")


SCALES: dict[str, dict[str, Any]] = {
    "small": {
        "vocab_sizes": (512, 2048, 8192),
        "model_vocab_sizes": (BYTES, 1024, 4096),
        "peak_lrs": (1.5e-2,),
        "num_seeds": 3,
        "num_layers": 2,
        "d_model": 32,
        "num_steps": 300,
        "warmup_steps": 30,
        "eval_bytes": 32_768,
    },
    "full": {
        "vocab_sizes": (512, 1024, 2048, 4096, 8192, 16384),
        "model_vocab_sizes": (BYTES, 512, 1024, 2048, 4096, 8192),
        "peak_lrs": (1e-3, 3e-3, 1e-2),
        "num_layers": 6,
        "d_model": 384,
        "num_heads": 6,
        "context_length": 256,
        "batch_size": 32,
        "num_steps": 8000,
        "warmup_steps": 400,
        "eval_bytes": 400_000,
    },
}

NOTES = [
    "Compression varies over parts of the held-out text and not over seeds: training a tokenizer "
    "draws nothing at random. The parts are neighbours in one text, so the intervals say how even "
    "it is, and not what another text would give.",
    "FLOPs are 6 a parameter that is multiplied with, the head included, and half of attention's "
    "12 N S H Dh. A larger vocabulary has a larger head, so fewer updates; its context of equally "
    "many tokens holds more text. In a small model the head is a large part of all, so the best "
    "vocabulary here is no guide to that of a large one: it grows with the model (Tao et al. 2024, "
    '"Scaling Laws with Vocabulary").',
    "The claims were written before the first run, which was of the small scale and supported "
    "them; after it only the default width was lowered, for time.",
    "Bytes of UTF-16 and UTF-32 are little-endian without a mark. Their encodings are trained on "
    "the same pre-tokens of the plays, cut by GPT-2's pattern as text.",
    "The languages: article 1 of the Universal Declaration of Human Rights (United Nations, 1948).",
]


def cells(cfg: Config) -> list[dict[str, Any]]:
    """One for each corpus, one for each way to write a character, and one for each model."""
    sizes = {"vocab_sizes": list(cfg.vocab_sizes), "num_parts": cfg.num_parts}
    text = {"modules": list(cfg.modules), "corpus_sha256": cfg.corpus_sha256}
    model = ("num_layers", "d_model", "num_heads", "context_length")
    run = ("batch_size", "num_steps", "warmup_steps", "num_seeds", "eval_bytes")
    return [
        *({"part": "compression", "trained_on": name, **sizes, **text} for name in CORPORA),
        *({"part": "encoding", "encoding": name, **sizes} for name in ENCODINGS),
        *(
            {
                "part": "model",
                "vocab_size": size,
                "model": {name: getattr(cfg, name) for name in model},
                "peak_lrs": list(cfg.peak_lrs),
                **{name: getattr(cfg, name) for name in run},
            }
            for size in cfg.model_vocab_sizes
        ),
    ]


def compression(results: Results, trained_on: str, text: str, vocab_size: int) -> list[float]:
    """Bytes a token, of each part of a held-out text."""
    fields = {"trained_on": trained_on, "text": text, "vocab_size": vocab_size}
    return list(by_seed(results.select("bytes_per_token", **fields)).values())


def at_best(results: Results, vocab_size: int) -> Results:
    """Bits a byte of the models of a vocabulary at the rate of lowest mean: a row for each seed."""
    bits = results.select("bits_per_byte", vocab_size=vocab_size)
    [peak_lr] = lowest_mean(bits, "peak_lr")
    return bits.select(peak_lr=peak_lr)


def claims(results: Results) -> list[Claim]:
    return [
        _own_domain(results),
        _falling_gains(results),
        _utf8(results),
        *_models(results),
    ]


def _joined(text: str, parts: list[tuple[str, Interval]], unit: str, **threshold: float) -> Claim:
    words = [f"{name}: {evidence(interval, **threshold)}" for name, interval in parts]
    verdict = all_of(judge(interval, **threshold) for _, interval in parts)
    return Claim(text, verdict, f"{unit}. " + ". ".join(words))


def _own_domain(results: Results) -> Claim:
    size, parts = results.config["vocab_sizes"][-1], []
    for own, other in (CORPORA, CORPORA[::-1]):
        a, b = compression(results, own, own, size), compression(results, other, own, size)
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        parts.append((own, mean_interval(ratios, over="parts of the text")))
    return _joined(
        f"With {size:,} tokens, an encoding trained on text of the same kind makes tokens more "
        f"than {DOMAIN_RATIO:g} times as long as one trained on the other kind",
        parts,
        "Bytes a token, own over other",
        above=DOMAIN_RATIO,
    )


def _falling_gains(results: Results) -> Claim:
    sizes, parts = results.config["vocab_sizes"], []
    for name in CORPORA:
        (a, b), (c, d) = (
            [compression(results, name, name, size) for size in pair]
            for pair in (sizes[:2], sizes[-2:])
        )
        first = [y / x for x, y in zip(a, b, strict=True)]
        last = [y / x for x, y in zip(c, d, strict=True)]
        parts.append((name, paired_interval(first, last, over="parts of the text")))
    return _joined(
        f"From {sizes[0]:,} to {sizes[1]:,} tokens, text becomes shorter by a larger factor than "
        f"from {sizes[-2]:,} to {sizes[-1]:,}",
        parts,
        "First factor minus last",
        above=0.0,
    )


def _utf8(results: Results) -> Claim:
    size = results.config["vocab_sizes"][-1]
    tokens = {
        name: list(
            by_seed(results.select("tokens_per_character", encoding=name, vocab_size=size)).values()
        )
        for name in ENCODINGS
    }
    return _joined(
        f"With {size:,} tokens, plays written in UTF-16 or UTF-32 take more tokens than in UTF-8",
        [
            (name, paired_interval(tokens[name], tokens["utf-8"], over="parts of the text"))
            for name in ENCODINGS[1:]
        ],
        "Tokens a character, minus those of UTF-8",
        above=0.0,
    )


def _models(results: Results) -> list[Claim]:
    _, *middle, largest = results.config["model_vocab_sizes"]
    middle = middle[len(middle) // 2]
    bits = {size: at_best(results, size) for size in (BYTES, middle, largest)}
    found = [
        weigh(
            f"At equal compute, a vocabulary of {middle:,} ends with fewer bits a byte than single "
            "bytes",
            difference(bits[BYTES], bits[middle]),
            above=0.0,
        ),
        weigh(
            f"At equal compute, in a model this small, a vocabulary of {largest:,} ends with more "
            f"bits a byte than one of {middle:,}",
            difference(bits[largest], bits[middle]),
            above=0.0,
        ),
    ]
    return [claim._replace(evidence=f"Bits/byte: {claim.evidence}") for claim in found]


def plot(results: Results) -> list[Figure]:
    return [_compression_figure(results), _bits_figure(results), _encoding_figure(results)]


def _compression_figure(results: Results) -> Figure:
    rows = results.select("bytes_per_token")
    panels = []
    for text in CORPORA:
        series = [
            band_by(f"trained on {name}", rows.select(text=text, trained_on=name), "vocab_size")
            for name in CORPORA
        ]
        panels.append((f"held-out {text}", series))
    return grid(
        panels,
        name="compression",
        title="Bytes a token by size of the vocabulary",
        caption=f"Means with 95% t intervals over {results.config['num_parts']} parts of the "
        "held-out text. Each panel is one text; the lines are encodings trained on text of the "
        "same kind and of the other.",
        x_label="vocabulary",
        y_label="bytes a token",
        log_x=True,
        x_ticks=results.config["vocab_sizes"],
    )


def _bits_figure(results: Results) -> Figure:
    sizes = results.config["model_vocab_sizes"]
    return lines(
        [band("at its best rate", ((size, at_best(results, size)) for size in sizes))],
        name="bits_per_byte",
        title="Bits a byte of models of equal compute, by vocabulary",
        caption=f"Held-out plays; means with 95% t intervals over {results.config['num_seeds']} "
        f"seeds. {BYTES} is single bytes, with {results.config['num_steps']} updates; the others "
        "have as many as the same FLOPs allow.",
        x_label="vocabulary",
        y_label="bits a byte",
        log_x=True,
        x_ticks=sizes,
    )


def _encoding_figure(results: Results) -> Figure:
    rows = results.select("tokens_per_character")
    return lines(
        [band_by(name.upper(), rows.select(encoding=name), "vocab_size") for name in ENCODINGS],
        name="tokens_by_encoding",
        title="Tokens a character of the plays, by what their bytes are",
        caption="Merges begin with the bytes of each encoding. In UTF-16 and UTF-32 the first ones "
        "join zeros; ends of tokens can fall inside a character.",
        x_label="vocabulary",
        y_label="tokens a character",
        log_x=True,
        x_ticks=results.config["vocab_sizes"],
    )


def tables(results: Results) -> list[Table]:
    return [_model_table(results), _language_table(results)]


def _model_table(results: Results) -> Table:
    rows = []
    for size in results.config["model_vocab_sizes"]:
        best = at_best(results, size)
        [updates] = results.select("updates", vocab_size=size).values()
        [length] = results.select("bytes_per_token_of_model", vocab_size=size).values()
        rate = f"{best.rows[0].fields['peak_lr']:g}"
        bits = brief(mean_interval(list(by_seed(best).values())))
        rows.append([size, int(updates), length, rate, bits])
    header = ["vocabulary", "updates", "bytes a token", "best rate", "bits a byte"]
    title = f"Models of equal compute, over {results.config['num_seeds']} seeds"
    return Table(title, header, rows)


def _language_table(results: Results) -> Table:
    """How long each language is in bytes of three encodings, and in tokens of both corpora."""
    size, rows = results.config["vocab_sizes"][-1], []
    lengths = results.select("bytes_per_character")
    for (language,), group in lengths.by("language").items():
        tokens = [
            results.select(
                "tokens_per_character", language=language, trained_on=name, vocab_size=size
            ).values()[0]
            for name in CORPORA
        ]
        by_encoding = [group.select(encoding=name).values()[0] for name in ENCODINGS]
        rows.append([language, *by_encoding, *tokens])
    return Table(
        "A character of each language: its bytes, and its tokens by encodings of "
        f"{size:,} tokens trained on the plays and on Python's library",
        ["language", *(name.upper() for name in ENCODINGS), "tokens, plays", "tokens, python"],
        rows,
    )
