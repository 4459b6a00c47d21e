"""The sentences against a reading of their words, their counts, and their ids."""

import numpy as np
import pytest

from jaxlm.data import sentiment
from jaxlm.data.sentiment import JOINED, VOCABULARY, encode, make_sentences

DRAWN = make_sentences(0, (300, 300, 300))
POLARITY = {w: p for p, words in sentiment.POLARITIES.items() for w in words}
TURNS = ("was not", "never", "could not", "nobody", "nothing")


def clause_polarity(words):
    """By counting: each phrase of negation in the clause turns the adjective once."""
    [polarity] = [POLARITY[word] for word in words if word in POLARITY]
    text = f" {' '.join(words)} "
    turns = sum(text.count(f" {phrase} ") for phrase in TURNS)
    return polarity * (-1) ** turns, turns


def read(text):
    """(verdict, turns in its clause) of a sentence, by its words alone."""
    words = text.split()
    at = [i for i, word in enumerate(words) if word in JOINED]
    if not at:
        return clause_polarity(words)
    first, second = clause_polarity(words[: at[0]]), clause_polarity(words[at[0] + 1 :])
    if words[at[0]] == "and":
        assert first[0] == second[0]
    elif first[0] or second[0]:
        assert first[0] == -second[0]
    return second if words[at[0]] == "but" else first


def test_labels_are_what_the_words_say():
    for text, label, negated in zip(*DRAWN, strict=True):
        verdict, turns = read(text)
        assert verdict == label - 1, text
        assert bool(turns) == negated, text


def test_as_many_of_each_class_as_asked_and_a_function_of_the_seed():
    drawn = make_sentences((3, 1), (5, 0, 2))
    assert np.bincount(drawn.labels, minlength=3).tolist() == [5, 0, 2]
    assert drawn.labels.dtype == np.int32 and len(drawn.texts) == 7
    assert make_sentences((3, 1), (5, 0, 2)).texts == drawn.texts
    assert make_sentences((3, 2), (5, 0, 2)).texts != drawn.texts


def test_no_word_has_two_polarities_and_every_word_an_id():
    assert len(POLARITY) == sum(map(len, sentiment.POLARITIES.values()))
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    ids, real = encode(DRAWN.texts)
    assert ids.shape == real.shape == (900, sentiment.LONGEST)
    templates = (*sentiment.PLAIN, *sentiment.NEGATED, *sentiment.TWICE)
    clause, opener = (max(len(t.split()) for t in x) for x in (templates, sentiment.OPENERS))
    assert opener + 2 * clause + len(("and", "[CLS]", "[SEP]")) == sentiment.LONGEST
    for text, row, n in zip(DRAWN.texts, ids, real.sum(1), strict=True):
        assert " ".join(VOCABULARY[i] for i in row[:n]) == f"[CLS] {text} [SEP]"
        assert not row[n:].any()


def test_other_words_and_longer_texts_are_refused():
    with pytest.raises(ValueError, match="no word 'teapot'"):
        encode(["the teapot was fine"])
    with pytest.raises(ValueError, match="6 of 5 words"):
        encode(["the soup was fine"], length=5)
