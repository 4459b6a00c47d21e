"""Training: worked tables, the tie rule, and equality with the quadratic oracle."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import bpe_naive

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers import TokenizerConfig, train_tokenizer
from jaxlm.tokenizers.bpe_train import train_merges

# The example of Sennrich et al. 2016 without its end-of-word mark, ties to the greatest pair.
LOW = (
    "low low low low low\nlower lower widest widest widest\n"
    "newest newest newest newest newest newest"
)
LOW_MERGES = [
    "s t", "e st", "o w", "l ow", "w est", "n e",
    "ne west", "w i", "wi d", "wid est", "low e", "lowe r",
]  # fmt: skip


def bpe(text, vocab_size, **fields):
    config = TokenizerConfig(kind="bpe", vocab_size=vocab_size, **fields)
    return train_tokenizer(config, [text])


def test_worked_example_of_low_lower_widest_newest():
    tokenizer = bpe(LOW, 256 + len(LOW_MERGES), pattern="whitespace")
    assert tokenizer.content["merges"] == LOW_MERGES
    assert [tokenizer.token_text(i) for i in tokenizer.encode("newest")] == ["newest"]
    six = bpe(LOW, 256 + 6, pattern="whitespace")
    assert [six.token_text(i) for i in six.encode("newest lower")] == [
        "ne", "west", " ", "low", "e", "r",
    ]  # fmt: skip
    assert six.encode("est").tolist() == [257]  # 256 bytes, then merges in order


def test_worked_example_with_overlaps():
    # "aaa" holds (a, a) twice, so it counts 4 in all; then (aa, a) ties with (a, b) and is the
    # greater pair of byte strings; at last all pairs count 1 and (d, aaab) is the greatest.
    merges = train_merges({b"aaabdaaabac": 1}, 4)
    assert merges == [(b"a", b"a"), (b"aa", b"a"), (b"aaa", b"b"), (b"d", b"aaab")]


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ({b"ab": 1, b"cd": 1}, (b"c", b"d")),
        ({b"ab": 2, b"cd": 1}, (b"a", b"b")),  # the count goes before the tie rule
        ({b"ab": 1, b"az": 1}, (b"a", b"z")),
        ({b"\xff\x00": 1, b"zz": 1}, (b"\xff", b"\x00")),  # bytes, not characters
        ({b"a": 9}, None),
        ({}, None),
    ],
)
def test_tie_rule(words, first):
    merges = train_merges(words, 1)
    assert merges == ([first] if first else [])


def test_tie_rule_where_one_token_begins_another():
    # (ab, x) and (a, y) both count 5: b"ab" > b"a" decides before b"y" > b"x" is looked at.
    words = {b"ab": 100, b"abx": 5, b"ay": 5}
    merges = train_merges(words, 2)
    assert merges == [(b"a", b"b"), (b"ab", b"x")] == bpe_naive.train(words, 2)[0]


corpora = st.one_of(
    *(
        st.dictionaries(
            st.lists(st.sampled_from(alphabet), min_size=1, max_size=12).map(bytes),
            st.integers(1, 6),
            max_size=12,
        )
        for alphabet in (b"ab", b"abc", b"a\x00\xff", b"abcdefgh")
    )
)


@given(corpora, st.integers(0, 30))
@settings(max_examples=150, deadline=None)
def test_equals_the_quadratic_trainer(words, num_merges):
    assert train_merges(words, num_merges) == bpe_naive.train(words, num_merges)[0]


def test_no_token_is_made_twice():
    # The oracle would skip and count such a pair; runs of one byte are the likeliest to hold one.
    rng = np.random.default_rng(0)
    for size in (1, 2, 3):
        for _ in range(20):
            lengths = rng.integers(2, 20, size=8)
            words = {bytes(rng.integers(97, 97 + size, size=n).tolist()): 1 for n in lengths}
            merges = train_merges(words, 60)
            assert len({left + right for left, right in merges}) == len(merges)
            assert bpe_naive.train(words, 60) == (merges, 0)


@given(st.text("ab \n'", max_size=60), st.integers(1, 7), st.sampled_from(["gpt2", "cl100k"]))
@settings(max_examples=25, deadline=None)
def test_cutting_the_corpus_into_chunks_changes_nothing(text, size, pattern):
    text = "seed text " + text
    config = TokenizerConfig(
        kind="bpe", vocab_size=263, pattern=pattern, special_tokens=("a b", "<x>")
    )
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    whole = train_tokenizer(config, [text])
    assert train_tokenizer(config, chunks).fingerprint == whole.fingerprint


def test_a_long_text_is_read_in_bounded_memory():
    words = [f"word{n}" for n in range(3000)]
    piece = " ".join(np.random.default_rng(0).choice(words, size=30_000))
    config = TokenizerConfig(kind="bpe", vocab_size=300)

    def peak(num_pieces):
        tracemalloc.start()
        train_tokenizer(config, (piece for _ in range(num_pieces)))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(12) < 1.1 * peak(3)


def test_merges_never_cross_a_pretoken_or_a_special_token():
    text = "<s>ab<s>ab<s>ab cd cd cd"
    tokenizer = bpe(text, 256 + 3 + 1, special_tokens=("<s>",))
    merged = {tokenizer.pieces[i] for i in range(256, 259)}
    assert merged == {b"ab", b"cd", b" cd"}
    assert tokenizer.special_ids == {"<s>": 259}


def test_pattern_none_merges_across_everything():
    text = "a b. " * 50
    tokenizer = bpe(text, 256 + 4, pattern="none")
    assert max(map(len, tokenizer.pieces)) > 4
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("", 300, "empty text"),
        ("abc", 300, "vocab_size=300: this text has pairs for at most 258 tokens"),
        ("a\ud800b", 257, "lone surrogate U\\+D800"),
    ],
)
def test_a_text_that_cannot_fill_the_vocabulary_is_refused(text, size, message):
    with pytest.raises(ConfigError, match=message):
        bpe(text, size)
