import json
import re
import sys

import jax
import numpy as np
import pytest
from decode_models import transformer
from scipy import stats

from jaxlm.core.config import ConfigError
from jaxlm.decode.constrained import generate_matching
from jaxlm.decode.generate import generate
from jaxlm.tokenizers import TokenizerConfig, train_tokenizer

pytest.importorskip("llguidance")
from jaxlm.decode import grammars  # noqa: E402

TEXT = (
    'the cat is 12 or 3.5 years old {"name": "Tom", "ok": true, "n": null}, naïve 漢字 🙂 [a-z]!\n'
)
KINDS = {
    "characters": TokenizerConfig(kind="characters", unknown="unk", special_tokens=("<end>",)),
    "bytes": TokenizerConfig(kind="bytes", special_tokens=("<end>",)),
    "bpe": TokenizerConfig(kind="bpe", vocab_size=300, special_tokens=("<end>",)),
}
REGEXES = [
    "(yes|no)",
    r"[0-9]{1,3}(\.[0-9]+)?",
    "(the |cat )*is [a-z]{2,5}!",
    "[ïa]{3}🙂?漢",
]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["cat", "it is", 12]},
        "ok": {"type": "boolean"},
        "n": {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 0, "maximum": 99}]},
        "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "ok", "n"],
    "additionalProperties": False,
}


def tokenizer_of(kind):
    return train_tokenizer(KINDS[kind], [TEXT * 20])


def random_model(tokenizer):
    """Knows nothing of the grammar, and would write anything."""
    return transformer("rope", vocab_size=tokenizer.vocab_size)


def written(kind, matcher_of, seed=0, num_tokens=80, rows=8, **options):
    """(texts, whether they match) of `rows` draws after one prompt, ended by <end>."""
    tokenizer = tokenizer_of(kind)
    model, params = random_model(tokenizer)
    options.setdefault("stop_ids", [tokenizer.special_ids["<end>"]])
    got = generate_matching(
        model,
        params,
        [[b % 5 + 1] for b in range(rows)],
        jax.random.key(seed),
        matcher_of(tokenizer),
        num_tokens=num_tokens,
        **options,
    )
    texts = []
    for row, length in zip(got.tokens, got.lengths, strict=True):
        data = b"".join(tokenizer.pieces[id] for id in row[:length])
        texts.append(data.decode("utf-8", "strict" if got.matches[len(texts)] else "replace"))
    return texts, got


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", REGEXES)
def test_every_text_that_ends_matches_the_whole_pattern(kind, pattern):
    texts, got = written(kind, lambda t: grammars.match_regex(pattern, t), num_tokens=24)
    assert got.matches.any() and len(set(texts)) > 1
    for text, matches in zip(texts, got.matches, strict=True):
        assert matches == (re.fullmatch(pattern, text) is not None), text
        assert matches or len(text) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_that_ends_is_what_the_schema_accepts(kind):
    jsonschema = pytest.importorskip("jsonschema")
    texts, got = written(kind, lambda t: grammars.match_json_schema(SCHEMA, t), num_tokens=150)
    assert got.matches.sum() > 4 and len(set(texts)) > 4
    for text, matches in zip(texts, got.matches, strict=True):
        if matches:
            jsonschema.validate(json.loads(text), SCHEMA)
        else:
            with pytest.raises(json.JSONDecodeError):
                json.loads(text)


def test_a_text_without_stop_tokens_ends_where_nothing_can_follow():
    texts, got = written(
        "bytes", lambda t: grammars.match_regex("a[bc]{2}", t), stop_ids=(), num_tokens=9
    )
    assert got.matches.all() and (got.lengths == 3).all() and (got.tokens[:, 3:] == -1).all()
    texts, got = written("bytes", lambda t: grammars.match_regex("a+", t), stop_ids=(), rows=2)
    assert texts == ["a" * 80] * 2 and got.matches.all()


def test_a_text_that_is_broken_off_is_told():
    _, got = written("bytes", lambda t: grammars.match_regex("[ab]{20}", t), num_tokens=19)
    assert not got.matches.any() and (got.lengths == 19).all()


def test_where_everything_may_follow_it_is_plain_sampling():
    tokenizer = tokenizer_of("bytes")
    model, params = random_model(tokenizer)
    ascii_only = dict.fromkeys(range(128, 257), -np.inf)
    options = {"num_tokens": 12, "logit_bias": ascii_only, "top_p": 0.9, "repetition_penalty": 1.3}
    prompts, key = [[1, 2, 3], [4]], jax.random.key(3)
    want = generate(model, params, prompts, key, **options)
    matcher = grammars.match_regex(r"(?s:.)*", tokenizer)
    got = generate_matching(model, params, prompts, key, matcher, **options)
    np.testing.assert_array_equal(got.tokens, want.tokens)


def test_draws_keep_the_models_proportions_among_what_may_follow():
    tokenizer = tokenizer_of("bytes")
    model, params = random_model(tokenizer)
    logits = np.asarray(jax.jit(model.forward)(params, np.array([[7, 8]])))[0, -1]
    allowed = [ord(c) for c in "aeiou"]
    p = np.exp(logits[allowed].astype(np.float64))
    got = generate_matching(
        model,
        params,
        [[7, 8]] * 3000,
        jax.random.key(0),
        grammars.match_regex("[aeiou]", tokenizer),
        num_tokens=1,
    )
    counts = np.bincount(got.tokens[:, 0], minlength=257)[allowed]
    assert counts.sum() == 3000
    assert stats.chisquare(counts, 3000 * p / p.sum()).pvalue > 0.01


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("(", "regex: unclosed group"),
        ("[z-a]", "regex: invalid character class range"),
        (r"(a)\1", "regex: backreferences are not supported"),
        ("(?=a)b", "regex: look-around"),
    ],
)
def test_a_bad_pattern_is_refused_in_one_line(pattern, message):
    with pytest.raises(ConfigError, match=message) as refused:
        grammars.match_regex(pattern, tokenizer_of("bytes"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "schema, message",
    [
        ({"type": "objec"}, "Invalid type: objec"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ([1], "json_schema: "),
    ],
)
def test_a_bad_schema_is_refused_in_one_line(schema, message):
    with pytest.raises(ConfigError, match=message) as refused:
        grammars.match_json_schema(schema, tokenizer_of("bytes"))
    assert "\n" not in str(refused.value)


def test_a_token_that_the_bias_forbids_is_never_the_only_way_on():
    barred = {ord("b"): -np.inf}
    texts, got = written("bytes", lambda t: grammars.match_regex("a[bc]d", t), logit_bias=barred)
    assert got.matches.all() and set(texts) == {"acd"}
    texts, got = written("bytes", lambda t: grammars.match_regex("abd", t), logit_bias=barred)
    assert not got.matches.any() and set(texts) == {"a"}


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"llguidance: pip install -e '\.\[constrained\]'"):
        grammars.match_regex("a", tokenizer_of("bytes"))


def test_what_the_vocabulary_cannot_write_is_refused_or_told():
    with pytest.raises(ConfigError, match="no token of this vocabulary can begin"):
        written("characters", lambda t: grammars.match_regex("QX+", t))
    texts, got = written("characters", lambda t: grammars.match_regex("a(b|Q)?cQ", t), rows=2)
    assert not got.matches.any() and all("a".startswith(t[:1]) for t in texts)
