"""What every kind of tokenizer promises: round trips, streams, special tokens, bytes per id."""

import functools

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import bpe_naive

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers import (
    TokenizerConfig,
    bpe_tokenizer,
    byte_tokenizer,
    character_tokenizer,
    pieces,
    train_tokenizer,
)
from jaxlm.tokenizers.pretokens import PATTERNS

SPECIALS = ("<|end|>", "<|end|>x", "<|", "é1")
HOSTILE = " \n\r\t\x1c\x85\u3000'sltrea1é\u0301漢🙂.-<|>xnd"
hostile = st.one_of(
    st.text(HOSTILE, max_size=30),
    st.lists(st.sampled_from([*SPECIALS, *"<|end x\n.'s1"]), max_size=12).map("".join),
)
# Every pair of neighbours in this text is met often, so that merges reach wherever they may.
_RNG = np.random.default_rng(7)
TRAINING = "".join(_RNG.choice(list(HOSTILE), size=6000))


@functools.cache
def make(name, special_tokens=SPECIALS):
    """ "characters", "bytes", or the pattern of a BPE tokenizer."""
    if name == "characters":
        return character_tokenizer(HOSTILE, special_tokens=special_tokens)
    if name == "bytes":
        return byte_tokenizer(special_tokens=special_tokens)
    config = TokenizerConfig(
        kind="bpe", vocab_size=900, pattern=name, special_tokens=special_tokens
    )
    return train_tokenizer(config, [TRAINING])


@pytest.fixture(scope="module", params=["characters", "bytes", *PATTERNS])
def tokenizer(request):
    return make(request.param)


@pytest.fixture(scope="module", params=["bytes", *PATTERNS])
def plain(request):
    """A tokenizer that knows all text and has no special tokens."""
    return make(request.param, ())


@pytest.fixture(scope="module", autouse=True)
def _small_blocks():
    """Cuts are looked for after every few characters, not only in long streams."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "BLOCK", 5)
        yield


@given(text=st.one_of(st.text(), st.text(HOSTILE)))
@settings(deadline=None)
def test_any_text_survives(plain, text):
    ids = plain.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert plain.decode(ids) == text
    assert int(plain.token_bytes[ids].sum()) == len(text.encode())


@given(text=hostile)
@settings(deadline=None)
def test_text_with_specials_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True)) == text


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_any_ids_decode(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    joined = b"".join(tokenizer.pieces[i] for i in ids)
    assert tokenizer.decode(ids) == joined.decode("utf-8", "replace")


@given(text=hostile, data=st.data())
@settings(deadline=None, max_examples=80)
def test_a_stream_encodes_alike_however_it_is_cut(tokenizer, text, data):
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    chunks = [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]
    parts = list(tokenizer.encode_iterable(chunks, allow_special=True))
    expected = tokenizer.encode(text, allow_special=True).tolist()
    assert [i for part in parts for i in part.tolist()] == expected


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p != "none"])
def test_a_stream_is_read_in_bounded_memory(pattern):
    tokenizer, read = make(pattern), 0

    def chunks():
        nonlocal read
        for _ in range(1000):
            read += 1
            yield "trees, sand\n"

    stream = tokenizer.encode_iterable(chunks())
    next(stream)
    assert read < 5
    assert 1000 * 12 > sum(part.size for part in stream) > 900
    assert read == 1000


def test_a_stream_without_a_cut_is_not_rescanned_for_every_chunk(monkeypatch):
    scanned = 0

    def never(text, start, limit):
        nonlocal scanned
        scanned += limit - start
        return start

    found = list(pieces.split_stream(["a"] * 4000, (), never))
    assert found == [("a" * 4000, False)]
    assert scanned < 3 * 4000


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=st.text(HOSTILE, max_size=20))
@settings(deadline=None, max_examples=40)
def test_bpe_equals_the_rank_rule_written_out(pattern, text):
    tokenizer = make(pattern, ())
    ranks = {piece: i for i, piece in enumerate(tokenizer.pieces)}
    words = regex.findall(PATTERNS[pattern], text)
    expected = [ranks[t] for w in words for t in bpe_naive.encode_by_ranks(w.encode(), ranks)]
    assert tokenizer.encode(text).tolist() == expected


@given(text=hostile)
@settings(deadline=None, max_examples=40)
def test_a_single_special_token_is_treated_as_tiktoken_does(text):
    tokenizer = make("gpt2", ("<|end|>",))
    special_id = tokenizer.special_ids["<|end|>"]
    encoding = tiktoken.Encoding(
        "peer",
        pat_str=PATTERNS["gpt2"],
        mergeable_ranks={p: i for i, p in enumerate(tokenizer.pieces) if i != special_id},
        special_tokens={"<|end|>": special_id},
    )
    expected = encoding.encode(text, allowed_special="all")
    assert tokenizer.encode(text, allow_special=True).tolist() == expected
    if "<|end|>" in text:
        with pytest.raises(ValueError):
            encoding.encode(text)
        with pytest.raises(ConfigError):
            tokenizer.encode(text)
    else:
        assert tokenizer.encode(text).tolist() == expected


@pytest.mark.parametrize("order", [SPECIALS, SPECIALS[::-1]])
def test_the_longest_special_token_wins(tokenizer, order):
    if tokenizer.kind == "bytes":
        tokenizer = byte_tokenizer(special_tokens=order)
    ids = tokenizer.special_ids
    found = tokenizer.encode("<|end|>x<|end|><|", allow_special=True).tolist()
    assert found == [ids["<|end|>x"], ids["<|end|>"], ids["<|"]]


def test_special_tokens_in_ordinary_text_are_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"special token '<\|end\|>' at character 3"):
        tokenizer.encode("end<|end|>")
    with pytest.raises(ConfigError, match=r"special token '<\|end\|>x' at character 7"):
        list(tokenizer.encode_iterable(["a and s", "<|e", "nd|", ">x"]))


def test_special_tokens_come_last_and_stand_for_no_bytes(tokenizer):
    first = tokenizer.vocab_size - len(SPECIALS)
    assert tokenizer.special_ids == {s: first + i for i, s in enumerate(SPECIALS)}
    assert tokenizer.token_bytes.dtype == np.int32
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
    assert (tokenizer.token_bytes[first:] == 0).all() and (tokenizer.token_bytes[:first] > 0).all()


@pytest.mark.parametrize("ids", [[-1], [0, 10**6]])
def test_ids_outside_the_vocabulary_are_refused(tokenizer, ids):
    with pytest.raises(ConfigError, match=f"id {ids[-1]} is outside the vocabulary"):
        tokenizer.decode(ids)


def test_lone_surrogates_are_refused(plain):
    with pytest.raises(ConfigError, match=r"U\+DC80 at character 2"):
        plain.encode("ab\udc80")


def test_characters_are_sorted_and_numbered_from_zero():
    tokenizer = train_tokenizer(TokenizerConfig(), ["hel", "lo é"])
    assert tokenizer.content["characters"] == " ehloé"
    assert tokenizer.encode("hello").tolist() == [2, 1, 3, 3, 4]
    assert tokenizer.token_bytes.tolist() == [1, 1, 1, 1, 1, 2]


def test_unknown_characters_are_an_error_that_shows_them():
    tokenizer = character_tokenizer("abc")
    with pytest.raises(ConfigError) as error:
        tokenizer.encode("a😀b\x00Z😀")
    assert "know 3 of the characters" in str(error.value)
    assert "'😀' (U+1F600) 2x" in str(error.value)
    assert "'\\x00' (U+0000) 1x, 'Z' (U+005A) 1x" in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_characters_become_unk_by_choice():
    config = TokenizerConfig(unknown="unk", special_tokens=("<s>",))
    tokenizer = train_tokenizer(config, ["ab<s>a"])
    assert tokenizer.vocab_size == 4 and tokenizer.unk_id == 2
    ids = tokenizer.encode("a😀b\x00<s>c", allow_special=True)
    assert ids.tolist() == [0, 2, 1, 2, 3, 2]
    assert tokenizer.decode(ids) == "a\ufffdb\ufffd<s>\ufffd"
    assert tokenizer.token_bytes.tolist() == [1, 1, 0, 0]
    assert tokenizer.token_text(2) == "<unk>"


@pytest.mark.parametrize(
    ("made", "id", "text"),
    [
        (lambda: character_tokenizer("\n é"), 0, r"\n"),
        (lambda: character_tokenizer("\n é"), 1, " "),
        (lambda: character_tokenizer("\n é"), 2, "é"),
        (byte_tokenizer, 0xC3, r"\xc3"),
        (byte_tokenizer, 0, r"\x00"),
        (lambda: bpe_tokenizer([(b"\xc3", b"\xa9")]), 256, "é"),
    ],
)
def test_token_text_shows_one_id(made, id, text):
    assert made().token_text(id) == text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: character_tokenizer(""), "at least one character"),
        (lambda: character_tokenizer(["ab"]), "expected single characters, got 'ab'"),
        (lambda: character_tokenizer("a\ud800"), r"U\+D800"),
        (lambda: character_tokenizer("a", unknown="drop"), "expected error or unk"),
        (
            lambda: character_tokenizer("a", unknown="unk", special_tokens=["<unk>"]),
            "already adds",
        ),
        (lambda: byte_tokenizer(special_tokens=["x", "x"]), "'x' is repeated"),
        (lambda: byte_tokenizer(special_tokens=[""]), "'' is empty"),
        (lambda: byte_tokenizer(special_tokens=["\ud800"]), r"U\+D800"),
        (lambda: bpe_tokenizer([], pattern="gtp2"), "pattern='gtp2': expected one of gpt2"),
        (lambda: bpe_tokenizer([(b"ab", b"c")]), "merge 1 .*'ab' is no byte and no earlier"),
        (lambda: bpe_tokenizer([(b"a", b"b"), (b"a", b"b")]), "merge 2 .*cannot represent"),
        (lambda: bpe_tokenizer([], ids=range(255)), "expected 256 ids"),
        (lambda: bpe_tokenizer([], ids=[*range(255), 0]), "id 0 is given twice"),
        (lambda: bpe_tokenizer([], ids=[*range(255), 256]), "id 255 is missing"),
        (
            lambda: bpe_tokenizer([], ids=[*range(255), -2]),
            "id 255 is missing, and id -2 is outside",
        ),
        (lambda: bpe_tokenizer([], ids=[*range(255), "a"]), "integer id, got 'a'"),
        (
            lambda: bpe_tokenizer([], special_tokens={"<s>": 300}),
            "id 256 is missing, and id 300 is outside",
        ),
        (lambda: bpe_tokenizer([], special_tokens={"<s>": 7}), "id 7 is given twice"),
        (lambda: byte_tokenizer().decode([0.5]), "expects integers"),
        (lambda: byte_tokenizer().decode([[1], [2]]), r"\[2, 1\]"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ConfigError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_an_endless_run_of_blanks_is_refused_by_one_line():
    tokenizer = make("gpt2", ())
    with pytest.raises(ConfigError, match="shorten its longest run of white space"):
        tokenizer.encode(" " * 3_000_000 + "a")
