"""tokenizer.json and GGUF's tokenizer fields against the packages tokenizers and transformers."""

import json
import unicodedata

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import bpe_naive

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers import bpe_tokenizer, byte_tokenizer, character_tokenizer
from jaxlm.tokenizers.bpe import bytes_to_readable
from jaxlm.tokenizers.hugging_face import (
    read_tokenizer_json,
    tokenizer_from_gguf,
    tokenizer_json,
    usage_from_folder,
    usage_from_gguf,
    write_tokenizer,
)
from jaxlm.tokenizers.pretokens import PATTERNS

tokenizers = pytest.importorskip("tokenizers", "0.21")  # a folder here has its name, no version

V = 600
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VARIED = [
    "",
    "Hello, world! I'll say it's they're we've I'm you'd can't",
    "I'LL SHOUT IT'S",
    "🙂🙃 👩‍👩‍👧‍👦 🇫🇷 e\u0301 é \u1100\u1161\u11a8",
    "  two   three    four\n\n\n\tfive \n \n  six   ",
    "def f(x):\n    return x ** 2  # comment\n\n\nclass A:\n\tpass\r\n",
    "日本語のテキスト、中文 한국어 العربية עברית हिन्दी ไทย Ελληνικά Русский",
    "1234567890 3.14159 1,000,000 ٣٤٥ ½ ² Ⅷ  12   34\n 5",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ...... ------ ======",
    "<|im_start|>user\nhello<|im_end|>\n<|endoftext|>",
]
# As they stand in the files of the models.
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
SMOLLM = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, GPT2 | {"use_regex": True}],
}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern):
    first = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    second = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    parts = [first | {"invert": False}, second | {"use_regex": False}]
    return {"type": "Sequence", "pretokenizers": parts}


PRE = {
    "gpt2": GPT2,
    "smollm": SMOLLM,
    "qwen2": split(LLAMA3.replace("{1,3}", "")),
    "llama3": split(LLAMA3),
}


@pytest.fixture(scope="module")
def documents():
    """{pattern: the tokenizer.json that the package tokenizers trains}."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = {}
    for name, pre in PRE.items():
        trained = Tokenizer(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trained.decoder = decoders.ByteLevel()
        document = json.loads(trained.to_str()) | {"pre_tokenizer": pre}
        if name == "qwen2":
            document["normalizer"] = {"type": "NFC"}
        trained = Tokenizer.from_str(json.dumps(document))
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=V, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
        )
        words = [f"{word} {word}" for text in VARIED for word in text.split()]
        trained.train_from_iterator([*VARIED[:-1], *words, PARAGRAPH], trainer)
        made[name] = json.loads(trained.to_str())
    made["llama3"] = all_pairs(made["llama3"])
    return made


PARAGRAPH = (
    "The first of them was written in the spring of 1836, and the others followed, though not "
    "without hesitation, through the summer; they're still the best that we have. " * 3
)


def all_pairs(document):
    """As transformers makes Llama 3's: every pair that joins to a token, and whole ones first."""
    model = document["model"]
    vocab, merges = model["vocab"], []
    for left, right in model["merges"]:
        token = left + right
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    changed = model | {"merges": merges, "ignore_merges": True}
    bos = {"SpecialToken": {"id": SPECIALS[0], "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
    }
    template |= {"pair": template["single"], "special_tokens": {}}
    template["special_tokens"] = {
        SPECIALS[0]: {"id": SPECIALS[0], "ids": [vocab[SPECIALS[0]]], "tokens": [SPECIALS[0]]}
    }
    return document | {"model": changed, "post_processor": template}


@pytest.fixture(scope="module")
def pairs(documents, tmp_path_factory):
    """{pattern: (ours, theirs)}."""
    made = {}
    for name, document in documents.items():
        path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        made[name] = read_tokenizer_json(path.parent, V), tokenizers.Tokenizer.from_file(str(path))
    return made


every_pattern = pytest.mark.parametrize("pattern", PRE)


def their_ids(theirs, text):
    return theirs.encode(text, add_special_tokens=False).ids


@every_pattern
def test_ids_are_those_of_tokenizers(pattern, pairs):
    ours, theirs = pairs[pattern]
    assert ours.content["pattern"] == pattern
    for text in VARIED:
        assert ours.encode(text, allow_special=True).tolist() == their_ids(theirs, text), text
        assert ours.decode(their_ids(theirs, text)) == (
            unicodedata.normalize("NFC", text) if pattern == "qwen2" else text
        )
    assert ours.special_ids == {text: theirs.token_to_id(text) for text in SPECIALS}


@every_pattern
@given(text=st.text(st.one_of(st.characters(), st.sampled_from(" \n'sté1½\u0301<|")), max_size=40))
@settings(deadline=None, max_examples=150)
def test_any_text_is_encoded_as_tokenizers_does(pattern, text, pairs):
    # Its regex engines and ours carry different versions of Unicode.
    assigned = "".join(c for c in text if unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Cs"))
    ours, theirs = pairs[pattern]
    # A special token is a string of our sources, which hypothesis has tried as well.
    assert ours.encode(assigned, allow_special=True).tolist() == their_ids(theirs, assigned)


@every_pattern
def test_text_is_encoded_as_the_merges_in_order_say(pattern, pairs):
    ours, _ = pairs[pattern]
    ranks = [tuple(line.split(" ")) for line in ours.content["merges"]]
    for text in VARIED[:-1]:
        normal = unicodedata.normalize("NFC", text) if pattern == "qwen2" else text
        expected = []
        for word in regex.findall(PATTERNS[pattern], normal):
            readable = {tuple(p): rank for rank, p in enumerate(ranks)}
            expected += by_merges(bytes_to_readable(word.encode()), readable)
        assert [bytes_to_readable(ours.pieces[id]) for id in ours.encode(text)] == expected


def by_merges(word, ranks):
    parts = list(word)
    while pairs := [p for p in zip(parts, parts[1:], strict=False) if p in ranks]:
        parts = bpe_naive.merge_pair(parts, min(pairs, key=ranks.__getitem__))
    return parts


@every_pattern
def test_out_and_in_again_it_is_the_same(pattern, pairs, tmp_path):
    ours, theirs = pairs[pattern]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(ours)), encoding="utf-8")
    assert read_tokenizer_json(path.parent, V).fingerprint == ours.fingerprint
    peer = tokenizers.Tokenizer.from_file(str(path))
    for text in VARIED:
        assert peer.encode(text).ids == their_ids(theirs, text)
        assert peer.decode(peer.encode(text).ids, skip_special_tokens=False) == theirs.decode(
            their_ids(theirs, text), skip_special_tokens=False
        )


@pytest.mark.parametrize("pattern", PATTERNS)
def test_our_own_leave_with_any_pattern(pattern):
    merges = [(b"t", b"h"), (b"th", b"e"), (b" ", b"the"), (b" ", b" "), (b"1", b"2")]
    ours = bpe_tokenizer(merges, pattern=pattern, special_tokens=["<|endoftext|>"])
    peer = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(ours)))
    for text in VARIED[:-1]:
        assert peer.encode(text).ids == ours.encode(text).tolist()


def test_bytes_leave_too_and_characters_do_not():
    ours = byte_tokenizer(special_tokens=["<s>"])
    peer = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(ours)))
    assert peer.encode("aé<s>").ids == ours.encode("aé<s>", allow_special=True).tolist()
    merges = [(b"<", b"s"), (b"<s", b">")]
    with pytest.raises(ConfigError, match="'<s>' is an ordinary one too, of id 257"):
        tokenizer_json(bpe_tokenizer(merges, special_tokens=["<s>"]))
    with pytest.raises(ConfigError, match="a tokenizer of characters has no tokenizer.json"):
        tokenizer_json(character_tokenizer("abc"))


def without_bytes(document, *missing):
    """The same vocabulary without some bytes, the ids close up."""
    model = document["model"]
    gone = {bytes_to_readable(bytes([b])) for b in missing}
    kept = sorted(model["vocab"].items(), key=lambda item: item[1])
    kept = [token for token, _ in kept if token not in gone]
    vocab = {token: id for id, token in enumerate(kept)}
    merges = [m for m in model["merges"] if not gone & set("".join(m))]
    return document | {"model": model | {"vocab": vocab, "merges": merges}}


def test_a_byte_without_an_id_is_refused_in_text_and_others_are_not(documents, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(without_bytes(documents["gpt2"], 0x04, 0xC0)), encoding="utf-8")
    ours, theirs = (
        read_tokenizer_json(path.parent, V - 2),
        tokenizers.Tokenizer.from_file(str(path)),
    )
    assert ours.vocab_size == V - 2
    for text in VARIED:
        assert ours.encode(text, allow_special=True).tolist() == their_ids(theirs, text)
    assert len(their_ids(theirs, "a\x04b")) == 2  # lost without a word
    with pytest.raises(ConfigError, match="the byte 0x04, for which this tokenizer has no id"):
        ours.encode("a\x04b")


def test_rows_beyond_the_ids_become_special_tokens_that_no_text_holds(documents, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(documents["gpt2"]), encoding="utf-8")
    ours = read_tokenizer_json(path.parent, V + 3)
    assert ours.vocab_size == V + 3
    assert list(ours.special_ids) == [*SPECIALS, *(f"<|unused_{V + i}|>" for i in range(3))]
    assert (
        ours.encode(VARIED[1]).tolist()
        == read_tokenizer_json(path.parent, V).encode(VARIED[1]).tolist()
    )
    for rows in (V - 1, V + 2000):
        with pytest.raises(ConfigError, match=f"{V} ids and the weights {rows} rows"):
            read_tokenizer_json(path.parent, rows)


def replaced(document, path, value):
    """A copy with `value` at "a.b.c"."""
    head, _, rest = path.partition(".")
    return document | {head: replaced(document[head], rest, value) if rest else value}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.type", "WordPiece", "model.type=WordPiece"),
        ("model.byte_fallback", True, "model.byte_fallback=True"),
        ("model.dropout", 0.1, "model.dropout=0.1"),
        ("model.end_of_word_suffix", "</w>", "end_of_word_suffix=</w>"),
        ("normalizer", {"type": "NFKC"}, "normalizer={'type': 'NFKC'}"),
        ("decoder", None, "decoder=None"),
        ("pre_tokenizer", None, "a pre_tokenizer that jaxlm does not have: None"),
        ("pre_tokenizer", GPT2 | {"add_prefix_space": True}, "'add_prefix_space': True"),
        ("pre_tokenizer", {"type": "Whitespace"}, "'Whitespace'"),
        ("added_tokens", [{"content": "<m>", "id": 3, "lstrip": True}], "'<m>' has lstrip"),
        ("added_tokens", [{"id": 3}], "malformed"),
        ("model.merges", [["a", "b"], ["a", "\u0489"]], "merge 2: expected two byte-level tokens"),
        ("model.merges", ["a b c"], "merge 1: expected two byte-level tokens"),
        ("model.merges", [["Q", "Z"]], "its merges make 'QZ', which has no id"),
        ("model.merges", [], "no merge makes "),
        ("model.vocab", {}, "has no id"),
        ("model", 3, "malformed"),
    ],
)
def test_what_cannot_be_encoded_alike_is_refused_by_name(path, value, message, documents, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(replaced(documents["gpt2"], path, value)), encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        read_tokenizer_json(tmp_path, V)
    assert message in str(refused.value) and str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_token_that_its_merges_do_not_build_is_refused(tmp_path):
    # "abc" is made of a + bc, but ab is joined before bc can be.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {bytes_to_readable(bytes([b])): b for b in range(256)}
    vocab |= {"ab": 256, "bc": 257, "abc": 258}
    theirs = Tokenizer(models.BPE(vocab, [("a", "b"), ("b", "c"), ("a", "bc")]))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert theirs.encode("abc").tokens == ["ab", "c"]
    with pytest.raises(ConfigError, match=r"make 'ab c' of the token 'abc'.*tiktoken"):
        read_tokenizer_json(tmp_path, 259)


def gguf_fields(document, pre):
    vocab = document["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIALS else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in document["model"]["merges"]],
    }


@pytest.mark.parametrize(
    ("pre", "pattern"),
    [("gpt-2", "gpt2"), ("smollm", "smollm"), ("qwen2", "qwen2"), ("llama-bpe", "llama3")],
)
def test_fields_of_gguf_give_the_same_tokenizer(pre, pattern, documents, pairs):
    ours = tokenizer_from_gguf(gguf_fields(documents[pattern], pre), V, "x.gguf")
    assert ours.fingerprint == pairs[pattern][0].fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model='llama': only gpt2"),
        ({"pre": "falcon"}, "tokenizer.ggml.pre='falcon': expected one of gpt-2, smollm"),
        ({"pre": []}, "tokenizer.ggml.pre=[]"),
        ({"token_type": [1]}, "do not belong together"),
        ({"merges": None}, "do not belong together"),
        ({"merges": [1]}, "malformed"),
        ({"merges": ["a"]}, "merge 1: expected two"),
    ],
)
def test_fields_that_make_no_tokenizer_are_refused(changes, message, documents):
    fields = gguf_fields(documents["gpt2"], "gpt-2")
    fields |= {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(ConfigError) as refused:
        tokenizer_from_gguf(fields, V, "x.gguf")
    assert message in str(refused.value) and "x.gguf" in str(refused.value)


@pytest.mark.parametrize("nested", [True, False])
def test_the_token_before_every_text_is_told_of_and_written_out_again(nested, documents, tmp_path):
    transformers = pytest.importorskip("transformers")
    bos = SPECIALS[1]
    id = documents["gpt2"]["model"]["vocab"].get(bos, V - 2)
    first = tokenizers.processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, id)])
    theirs = tokenizers.Tokenizer.from_str(json.dumps(documents["gpt2"]))
    byte_level = tokenizers.processors.ByteLevel(trim_offsets=False)
    theirs.post_processor = tokenizers.processors.Sequence([byte_level, first]) if nested else first
    theirs.save(str(tmp_path / "tokenizer.json"))
    usage = usage_from_folder(tmp_path)
    assert usage == {"bos_token": bos, "add_bos_token": True}
    ours = read_tokenizer_json(tmp_path)
    write_tokenizer(tmp_path / "out", ours, usage)
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    for text in VARIED[1:4]:
        want = theirs.encode(text).ids
        assert want == [ours.special_ids[bos], *ours.encode(text)]
        assert peer(text)["input_ids"] == want
    assert usage_from_folder(tmp_path / "out") == usage


def test_without_such_a_token_there_is_no_word_of_it(documents, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(documents["gpt2"]))
    assert usage_from_folder(tmp_path) == {}


@pytest.mark.parametrize("adds", [True, False])
def test_gguf_tells_of_it_too(adds, documents):
    fields = gguf_fields(documents["gpt2"], "gpt-2") | {"tokenizer.ggml.bos_token_id": 5}
    usage = usage_from_gguf(fields | {"tokenizer.ggml.add_bos_token": adds})
    assert usage.pop("add_bos_token", False) is adds
    assert usage == {"bos_token": fields["tokenizer.ggml.tokens"][5]}


def test_a_token_that_is_no_text_is_no_token(documents, tmp_path):
    for tokens in (5, [0] * 9):
        fields = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.bos_token_id": 5}
        assert usage_from_gguf(fields) == {}
    first = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": ["<s>"]}}]}
    text = json.dumps(documents["gpt2"] | {"post_processor": first})
    (tmp_path / "tokenizer.json").write_text(text)
    assert usage_from_folder(tmp_path) == {}


@pytest.mark.parametrize("rows", [V - 1, V + 2000])
def test_fields_of_other_weights_are_refused(rows, documents):
    fields = gguf_fields(documents["gpt2"], "gpt-2")
    with pytest.raises(ConfigError, match=f"x.gguf: .*{V} ids and the weights {rows} rows"):
        tokenizer_from_gguf(fields, rows, "x.gguf")


def test_a_stream_of_text_in_another_normal_form_is_encoded_as_the_whole(pairs):
    ours, _ = pairs["qwen2"]
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(list("e\u0301\u0323 1.\n\u1100\u1161\u11a8a'"), size=3000))
    parts = ours.encode_iterable(text[i : i + 7] for i in range(0, len(text), 7))
    assert np.concatenate(list(parts)).tolist() == ours.encode(text).tolist()
