"""Pre-tokens: the published patterns, fast counting, and cuts that change nothing."""

import functools
import itertools
import unicodedata
from collections import Counter

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.tokenizers.pretokens import PATTERNS, count_pretokens, safe_cut

# As published with GPT-2; ours is the faster form that tiktoken states.
GPT2_PUBLISHED = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
HOSTILE = " \n\r\t\x1c\x85\u00a0\u3000'sltreSſa1٣é\u0301漢🙂.-<|>\ufdd0\ufdd1\ufdd2"
texts = st.one_of(st.text(HOSTILE, max_size=25), st.text(max_size=25))
patterns = pytest.mark.parametrize("pattern", PATTERNS)


@given(texts)
@settings(deadline=None)
def test_gpt2_pattern_is_the_published_one(text):
    assert regex.findall(PATTERNS["gpt2"], text) == regex.findall(GPT2_PUBLISHED, text)


@given(texts)
@settings(deadline=None)
def test_smollm_pattern_is_gpt2_between_single_digits(text):
    parts = [part for part in regex.split(r"(\p{N})", text) if part]
    expected = [token for part in parts for token in regex.findall(GPT2_PUBLISHED, part)]
    assert regex.findall(PATTERNS["smollm"], text) == expected


@given(texts)
@settings(deadline=None)
def test_a_safe_cut_is_one_of_the_normal_form_too(text):
    cut = safe_cut("qwen2", nfc=True)
    nfc = functools.partial(unicodedata.normalize, "NFC")
    whole = regex.findall(PATTERNS["qwen2"], nfc(text))
    for q in {cut(text, 0, limit) for limit in range(1, len(text))} - {0}:
        parts = [regex.findall(PATTERNS["qwen2"], nfc(part)) for part in (text[:q], text[q:])]
        assert parts[0] + parts[1] == whole, (text, q)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("gpt2", ["I", "'ll", " pay", " 12345", "!!", "\n", "\n", "Now", " "]),
        ("cl100k", ["I", "'ll", " pay", " ", "123", "45", "!!\n\n", "Now", " "]),
        ("llama3", ["I", "'ll", " pay", " ", "123", "45", "!!\n\n", "Now", " "]),
        ("qwen2", ["I", "'ll", " pay", " ", "1", "2", "3", "4", "5", "!!\n\n", "Now", " "]),
        (
            "smollm",
            ["I", "'ll", " pay", " ", "1", "2", "3", "4", "5", "!!", "\n", "\n", "Now", " "],
        ),
        ("whitespace", ["I'll", " ", "pay", " ", "12345!!", "\n\n", "Now", " "]),
        ("none", ["I'll pay 12345!!\n\nNow "]),
    ],
)
def test_patterns_by_example(pattern, expected):
    assert regex.findall(PATTERNS[pattern], "I'll pay 12345!!\n\nNow ") == expected


@patterns
@given(text=texts)
@settings(deadline=None)
def test_patterns_cover_every_character(pattern, text):
    assert "".join(regex.findall(PATTERNS[pattern], text)) == text


@patterns
@given(parts=st.lists(texts, max_size=3))
@settings(deadline=None, max_examples=100)
def test_counting_equals_the_plain_regex(pattern, parts):
    expected = Counter(token for part in parts for token in regex.findall(PATTERNS[pattern], part))
    assert count_pretokens(pattern, parts) == expected


@patterns
def test_counting_equals_the_plain_regex_for_every_short_text(pattern):
    find = regex.compile(PATTERNS[pattern]).findall
    for text in map("".join, itertools.product("a \n\t.", repeat=5)):
        assert count_pretokens(pattern, [text]) == Counter(find(text)), text


def cuts(pattern, text):
    """All places that the pattern calls safe, found with every limit."""
    cut = safe_cut(pattern)
    return {cut(text, 0, limit) for limit in range(1, len(text))} - {0}


def assert_cuts_are_borders(pattern, text):
    find = regex.compile(PATTERNS[pattern]).findall
    whole = find(text)
    for q in cuts(pattern, text):
        assert find(text[:q]) + find(text[q:]) == whole, (text, q)


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "none"])
def test_cuts_are_borders_in_every_short_text(pattern):
    for text in itertools.product("a1 \n.'", repeat=5):
        assert_cuts_are_borders(pattern, "".join(text))


@patterns
@given(text=texts)
@settings(deadline=None, max_examples=100)
def test_cuts_are_borders(pattern, text):
    assert_cuts_are_borders(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("gpt2", "ab cd\nef, 12", {2, 5, 8, 9}),
        ("cl100k", "ab cd\nef, 12", {2, 5, 6, 8, 9}),
        ("llama3", "漢字。か", {2}),
        ("whitespace", "ab, cd", {3, 4}),
        ("none", "ab, cd\n\nef", set()),
        # Where the rest may join: a letter, a digit, a line end after punctuation, an unknown.
        ("cl100k", "ab12", {2}),
        ("cl100k", ".\n", set()),
        ("gpt2", "a\u0378", set()),
        ("gpt2", "a\ua4d0.", set()),  # a letter since Unicode 5.2 only
        ("gpt2", "a🥐", {1}),  # newer than that, and no letter in any version
    ],
)
def test_ordinary_text_has_cuts(pattern, text, expected):
    assert cuts(pattern, text) == expected
