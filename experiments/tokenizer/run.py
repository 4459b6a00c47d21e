"""Trains the tokenizers and the models, and measures both on text that neither has seen."""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

from experiments import library
from experiments.language import validation_scores
from experiments.texts import Text
from experiments.tokenizer import BYTES
from experiments.tokenizer.article import ARTICLE
from jaxlm.analysis import flops
from jaxlm.core.config import apply_overrides
from jaxlm.core.results import Row
from jaxlm.data.batches import split_from_array
from jaxlm.data.config import DataConfig
from jaxlm.data.corpus import open_corpus
from jaxlm.models import transformer
from jaxlm.models.transformer import TransformerConfig
from jaxlm.tokenizers import bpe_tokenizer
from jaxlm.tokenizers.bpe_train import train_merges
from jaxlm.tokenizers.pretokens import count_pretokens
from jaxlm.train.config import RunConfig

HELD_OUT = 0.1

resolve = library.resolve


def run_cell(cell: dict[str, Any]) -> list[Row]:
    match cell["part"]:
        case "compression":
            return compression_rows(cell)
        case "encoding":
            return encoding_rows(cell)
    return model_rows(cell)


@functools.cache
def plays() -> tuple[str, str]:
    """(text to train on, held-out text)"""
    documents = open_corpus(DataConfig()).documents()
    return _cut("\n".join("".join(pieces) for pieces in documents))


def python(cell: dict[str, Any]) -> tuple[str, str]:
    texts = library.read_modules(cell["modules"])
    library.check_fingerprint(texts, cell["corpus_sha256"])
    return _cut("".join(texts))


def _cut(text: str) -> tuple[str, str]:
    cut = int(len(text) * (1 - HELD_OUT))
    return text[:cut], text[cut:]


def parts_of(text: str, num_parts: int) -> list[str]:
    """`text` in equal parts, but for a rest of a few characters."""
    size = len(text) // num_parts
    return [text[i * size : (i + 1) * size] for i in range(num_parts)]


def merges_of(counts: Mapping[str, int], num_merges: int, encoding: str = "utf-8"):
    return train_merges({word.encode(encoding): n for word, n in counts.items()}, num_merges)


def compression_rows(cell: dict[str, Any]) -> list[Row]:
    corpora = {"plays": plays(), "python": python(cell)}
    counts = count_pretokens("gpt2", [corpora[cell["trained_on"]][0]])
    merges, rows = merges_of(counts, cell["vocab_sizes"][-1] - BYTES), []
    for size in cell["vocab_sizes"]:
        encode = bpe_tokenizer(merges[: size - BYTES]).encode
        made = {"trained_on": cell["trained_on"], "vocab_size": size}
        for name, (_, held_out) in corpora.items():
            for i, part in enumerate(parts_of(held_out, cell["num_parts"])):
                length = len(part.encode()) / len(encode(part))
                fields = {**made, "text": name}
                rows.append(Row(fields, i, None, "bytes_per_token", length, "bytes/token"))
        for language, text in ARTICLE.items():
            tokens = len(encode(text)) / len(text)
            fields = {**made, "language": language}
            rows.append(Row(fields, None, None, "tokens_per_character", tokens, "tokens/character"))
    return rows


def encoding_rows(cell: dict[str, Any]) -> list[Row]:
    train, held_out = plays()
    encoding, rows = cell["encoding"], []
    merges = merges_of(count_pretokens("gpt2", [train]), cell["vocab_sizes"][-1] - BYTES, encoding)
    parts = [count_pretokens("gpt2", [part]) for part in parts_of(held_out, cell["num_parts"])]
    for size in cell["vocab_sizes"]:
        ranks = {left + right: n for n, (left, right) in enumerate(merges[: size - BYTES])}
        fields = {"encoding": encoding, "vocab_size": size}
        lengths: dict[str, int] = {}
        for i, counts in enumerate(parts):
            total = 0
            for word, n in counts.items():
                if word not in lengths:
                    lengths[word] = num_tokens(word.encode(encoding), ranks)
                total += n * lengths[word]
            tokens = total / sum(len(word) * n for word, n in counts.items())
            rows.append(Row(fields, i, None, "tokens_per_character", tokens, "tokens/character"))
    for language, text in ARTICLE.items():
        length = len(text.encode(encoding)) / len(text)
        fields = {"encoding": encoding, "language": language}
        rows.append(Row(fields, None, None, "bytes_per_character", length, "bytes/character"))
    return rows


def num_tokens(word: bytes, ranks: Mapping[bytes, int]) -> int:
    """Of any bytes, while tiktoken takes text: the pair of lowest rank is joined first."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 1:
        joined = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        lowest = min(joined)
        if lowest == len(ranks):
            break
        i = joined.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return len(parts)


def model_rows(cell: dict[str, Any]) -> list[Row]:
    size, held_out = cell["vocab_size"], plays()[1].encode()[: cell["eval_bytes"]].decode()
    text = text_of(size, held_out)
    steps = num_updates(cell)
    lanes = list(itertools.product(cell["peak_lrs"], range(cell["num_seeds"])))
    configs = [run_config(cell, steps, *lane) for lane in lanes]
    scores = validation_scores(text, configs, text.validation.num_tokens)[steps]
    made = {"vocab_size": size}
    length = len(held_out.encode()) / text.validation.num_tokens
    rows = [
        Row(made, None, None, "updates", float(steps), "updates"),
        Row(made, None, None, "bytes_per_token_of_model", length, "bytes/token"),
    ]
    for place, (peak_lr, seed) in enumerate(lanes):
        bits = float(scores["bits_per_byte"][place])
        fields = {**made, "peak_lr": peak_lr}
        rows.append(Row(fields, seed, steps, "bits_per_byte", bits, "bits/byte"))
    return rows


@functools.cache
def text_of(vocab_size: int, held_out: str) -> Text:
    """The plays by an encoding that was trained on their first part; 256: by single bytes."""
    train, _ = plays()
    merges = merges_of(count_pretokens("gpt2", [train]), vocab_size - BYTES)
    tokenizer = bpe_tokenizer(merges)
    splits = (split_from_array(tokenizer.encode(text)) for text in (train, held_out))
    return Text(tokenizer, *splits, fingerprint=tokenizer.fingerprint)


def num_updates(cell: dict[str, Any]) -> int:
    """As many as the FLOPs of `num_steps` updates of the model of single bytes allow."""

    def cost(vocab_size: int) -> float:
        model = TransformerConfig(**cell["model"], vocab_size=vocab_size)
        return flops.of_model(model, transformer.build(model)).causal

    return max(1, round(cell["num_steps"] * cost(BYTES) / cost(cell["vocab_size"])))


def run_config(cell: dict[str, Any], steps: int, peak_lr: float, seed: int) -> RunConfig:
    return apply_overrides(
        RunConfig(),
        {
            "seed": seed,
            "model.vocab_size": cell["vocab_size"],
            **{f"model.{name}": value for name, value in cell["model"].items()},
            "data.batch_size": cell["batch_size"],
            "optim.schedule": "warmup_cosine",
            "optim.peak_lr": peak_lr,
            "optim.warmup_steps": max(1, round(cell["warmup_steps"] * steps / cell["num_steps"])),
            **{f"train.{name}": steps for name in ("num_steps", "steps_per_call", "eval_every")},
            "train.save_every": steps,
        },
    )
