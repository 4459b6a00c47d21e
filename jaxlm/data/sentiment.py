"""Sentences that judge something, built from templates with negation: a task made of a seed.

A clause says an adjective of a noun: plainly ("the soup was fine"), negated, which turns its
polarity ("nobody would call the soup fine"), or negated twice. Words of negation also stand where
they negate nothing ("no doubt the soup was fine"). Of two clauses joined by "but" the second is the
verdict, with "although" the first; "and" joins two of one polarity. So a label hangs on words far
apart, and counting words does not give it. Negated or not, a neutral adjective is neutral; there
are many of them, of which a few sentences show but some.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CLASSES = ("negative", "neutral", "positive")  # polarity -1, 0, 1
PAD, CLS, SEP, MASK = range(4)
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


POSITIVE = _words(
    "good great fine lovely superb pleasant charming excellent brilliant wonderful perfect elegant "
    "clever friendly generous splendid"
)
NEGATIVE = _words(
    "bad awful poor dreadful terrible horrible nasty dull boring clumsy cruel dirty faulty rude "
    "shabby tedious"
)
NEUTRAL = _words(
    "red blue round square wooden local annual digital central foreign oval rural iron hourly "
    "urban tall paper plastic printed striped northern southern weekly external internal "
    "metal woollen coastal double portable regional foldable grey green yellow brown vertical "
    "narrow low flat monthly inland steel glass electric manual leather silver"
)
NOUNS = _words(
    "soup room film book service meal music staff story garden hotel lecture phone bag coffee wine"
)
POLARITIES = {1: POSITIVE, 0: NEUTRAL, -1: NEGATIVE}

OPENERS = ("honestly", "last week", "this time", "as expected")
PLAIN = (
    "the N was A",
    "the N was very A",
    "i found the N A",
    "everybody called the N A",
    "no doubt the N was A",
    "not only once was the N A",
)
NEGATED = (
    "the N was not A",
    "the N was never A",
    "i could not find the N A",
    "nobody would call the N A",
    "there was nothing A about the N",
)
TWICE = ("nobody would say the N was not A", "i never said the N was not A")
KINDS = (PLAIN, NEGATED, TWICE)
KIND_SHARES = (0.6, 0.3, 0.1)
JOINED = ("and", "but", "although")

VOCABULARY = (
    *SPECIAL,
    *sorted(
        {word for text in (*OPENERS, *PLAIN, *NEGATED, *TWICE, *JOINED) for word in text.split()}
        - {"N", "A"}
        | {*POSITIVE, *NEGATIVE, *NEUTRAL, *NOUNS}
    ),
)
LONGEST = 21  # words of the longest sentence, [CLS] and [SEP] with them
_IDS = {word: i for i, word in enumerate(VOCABULARY)}


class Sentences(NamedTuple):
    """texts: without [CLS] and [SEP]. labels: i32[n], places in CLASSES. negated: bool[n], whether
    the clause that holds the verdict has a negation in it that turns the polarity, once or twice.
    """

    texts: list[str]
    labels: np.ndarray
    negated: np.ndarray


def make_sentences(seed: int | Sequence[int], counts: Sequence[int]) -> Sentences:
    """As many sentences of each class as `counts` says, class by class, drawn one by one.

    A pure function of its arguments; seed: of numpy's default_rng.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(CLASSES), dtype=np.int32), counts)
    drawn = [_sentence(rng, int(label) - 1) for label in labels]
    texts = [text for text, _ in drawn]
    return Sentences(texts, labels, np.array([negated for _, negated in drawn], bool))


def _sentence(rng: np.random.Generator, polarity: int) -> tuple[str, bool]:
    verdict, negated = _clause(rng, polarity)
    parts = [verdict]
    if rng.random() < 0.4:
        joined = "and" if polarity == 0 else _choose(rng, JOINED)
        other, _ = _clause(rng, polarity if joined == "and" else -polarity)
        parts = [other, joined, verdict] if joined == "but" else [verdict, joined, other]
    if rng.random() < 0.3:
        parts = [_choose(rng, OPENERS), *parts]
    return " ".join(parts), negated


def _clause(rng: np.random.Generator, polarity: int) -> tuple[str, bool]:
    kind = rng.choice(len(KINDS), p=KIND_SHARES)
    template = _choose(rng, KINDS[kind])
    adjective = _choose(rng, POLARITIES[-polarity if kind == 1 else polarity])
    words = {"N": _choose(rng, NOUNS), "A": adjective}
    return " ".join(words.get(word, word) for word in template.split()), kind > 0


def _choose(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def encode(texts: Sequence[str], length: int = LONGEST) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] words [SEP] and padding: ids i32[n, length], and 1 where there is no padding, i32.

    Raises:
      ValueError: a word that is not in VOCABULARY, or a text that is too long.
    """
    ids = np.full((len(texts), length), PAD, np.int32)
    for row, text in zip(ids, texts, strict=True):
        words = ["[CLS]", *text.split(), "[SEP]"]
        unknown = [word for word in words if word not in _IDS]
        if unknown or len(words) > length:
            why = f"no word {unknown[0]!r}" if unknown else f"{len(words)} of {length} words"
            raise ValueError(f"{text!r}: {why}")
        row[: len(words)] = [_IDS[word] for word in words]
    return ids, (ids != PAD).astype(np.int32)
