"""BLEU against sacrebleu and ROUGE against rouge-score on texts cut at spaces."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.evals.text_overlap import corpus_bleu, rouge_l, rouge_n

TEXTS = [
    ("the cat sat on the mat", ["the cat is on the mat", "there is a cat on the mat"]),
    ("a dog", ["a small dog barked at us"]),
    ("he read the book because he was interested", ["he was interested in the book"]),
    ("x y z", ["u v w"]),
    ("so it goes on and on and on", ["so it goes on and on"]),
]
SMOOTHINGS = ["none", "floor", "add-k", "exp"]


def split(texts):
    return [hypothesis.split() for hypothesis, _ in texts], [
        [reference.split() for reference in several] for _, several in texts
    ]


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], TEXTS[1:2], TEXTS[3:4], TEXTS[4:]])
@pytest.mark.parametrize("max_order", [2, 4])
def test_bleu_is_sacrebleus(texts, smoothing, max_order):
    bleu = pytest.importorskip("sacrebleu.metrics").BLEU
    most = max(len(several) for _, several in texts)
    streams = [
        [several[n] if n < len(several) else None for _, several in texts] for n in range(most)
    ]
    want = bleu(
        tokenize="none", smooth_method=smoothing, max_ngram_order=max_order, force=True
    ).corpus_score([hypothesis for hypothesis, _ in texts], streams)
    got = corpus_bleu(*split(texts), max_order=max_order, smoothing=smoothing)
    assert got.score == pytest.approx(want.score, rel=1e-12)
    assert (got.hypothesis_length, got.reference_length) == (want.sys_len, want.ref_len)
    if want.score:
        np.testing.assert_allclose(100 * np.array(got.precisions), want.precisions, rtol=1e-12)
        assert got.brevity_penalty == pytest.approx(want.bp, rel=1e-12)


def test_bleu_by_hand():
    """4 of 5 words and 2 of 4 pairs are in the reference, which is one word longer."""
    got = corpus_bleu([list("abcxd")], [[list("abcdef")]], max_order=2)
    assert got.precisions == (4 / 5, 2 / 4)
    assert got.brevity_penalty == math.exp(1 - 6 / 5)
    assert got.score == pytest.approx(100 * math.exp(-0.2) * math.sqrt(0.4))


def test_an_ngram_counts_no_more_often_than_in_one_reference():
    """The classic seven times "the", against references with it twice and once."""
    [references] = split(TEXTS[:1])[1]
    got = corpus_bleu([["the"] * 7], [references], max_order=1)
    assert got.precisions == (2 / 7,)


@pytest.fixture(scope="module")
def scorer():
    module = pytest.importorskip("rouge_score.rouge_scorer")

    class Spaces:
        def tokenize(self, text):
            return text.split()

    return module.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Spaces())


def test_rouge_is_rouge_scores(scorer):
    for hypothesis, several in [*TEXTS, ("", ["a b"]), ("a", ["a"])]:
        for reference in several:
            want = scorer.score(reference, hypothesis)
            texts = hypothesis.split(), reference.split()
            got = {"rouge1": rouge_n(*texts, 1), "rouge2": rouge_n(*texts, 2)}
            got["rougeL"] = rouge_l(*texts)
            for name, overlap in got.items():
                np.testing.assert_allclose(overlap, want[name], rtol=1e-14, err_msg=name)


tokens = st.lists(st.integers(0, 3), max_size=7)


@given(tokens, tokens)
def test_the_longest_common_sequence_is_that_of_all_subsequences(a, b):
    def subsequences(ids):
        return {
            tuple(t for i, t in enumerate(ids) if mask >> i & 1) for mask in range(2 ** len(ids))
        }

    longest = max(map(len, subsequences(a) & subsequences(b)))
    precision, recall, _ = rouge_l(a, b)
    assert precision == (longest / len(a) if a else 0)
    assert recall == (longest / len(b) if b else 0)


@given(st.lists(tokens.filter(bool), min_size=1, max_size=3))
def test_a_text_that_is_its_reference_has_everything(texts):
    got = corpus_bleu(texts, [[text] for text in texts], max_order=1)
    assert got.score == pytest.approx(100) and got.brevity_penalty == 1
    assert all(rouge_l(text, text) == (1, 1, 1) for text in texts)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: corpus_bleu([], []), "hypotheses: expected at least one"),
        (lambda: corpus_bleu([["a"]], []), "hypotheses has 1, references has 0"),
        (lambda: corpus_bleu([["a"]], [[]]), r"references\[0\]: expected at least one"),
        (lambda: corpus_bleu(["a b"], [[["a"]]]), r"hypotheses\[0\]: .*got text; split it"),
        (lambda: corpus_bleu([["a"]], ["a b"]), r"references\[0\]: .*got text; split it"),
        (lambda: corpus_bleu([["a"]], [["a b"]]), r"references\[0\]: .*got text; split it"),
        (lambda: corpus_bleu([["a"]], [[["a"]]], max_order=0), "max_order=0"),
        (lambda: corpus_bleu([["a"]], [[["a"]]], smoothing="some"), "smoothing='some'"),
        (lambda: rouge_n(["a"], ["a"], 0), "n=0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
