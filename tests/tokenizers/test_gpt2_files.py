"""GPT-2's own files give GPT-2's own ids: against tiktoken, `tokenizers` and the merge rule."""

import json
import pathlib

import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import bpe_naive

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers import (
    load_tokenizer,
    read_gpt2_files,
    read_tiktoken_ranks,
    save_tokenizer,
    write_gpt2_files,
    write_tiktoken_ranks,
)

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"
VOCAB, MERGES, PLAYS = (
    DATA / "gpt2_vocab.json",
    DATA / "gpt2_merges.txt",
    DATA / "tinyshakespeare.txt",
)
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
VARIED = [
    "",
    "Hello, world! I'll say it's they're we've I'm you'd can't",
    "I'LL SHOUT IT'S",
    "🙂🙃 👩‍👩‍👧‍👦 🇫🇷 e\u0301 é",
    "  two   three    four\n\n\n\tfive \n \n  six   ",
    "def f(x):\n    return x ** 2  # comment\n\n\nclass A:\n\tpass\r\n",
    "日本語のテキスト、中文 한국어 العربية עברית हिन्दी ไทย Ελληνικά Русский",
    "1234567890 3.14159 1,000,000 ٣٤٥ ½ ² Ⅷ",
    "\x00\x01\x7f\x80\xa0\xad\u200b\u2028\ufeff\U0010ffff",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "SolidGoldMagikarp petertodd \u0120\u010a rawdownloadcloneembedreportprint",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ...... ------ ======",
]

pytestmark = pytest.mark.skipif(not VOCAB.exists(), reason="GPT-2's files are not here")


@pytest.fixture(scope="module")
def gpt2():
    return read_gpt2_files(VOCAB, MERGES)


@pytest.fixture(scope="module")
def readable():
    """GPT-2's byte alphabet as its paper's code states it, written out again here."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    shown += range(ord("®"), ord("ÿ") + 1)
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}


@pytest.fixture(scope="module")
def peer(readable):
    """tiktoken over the ids of vocab.json; merges.txt plays no part in it."""
    vocab = json.loads(VOCAB.read_text(encoding="utf-8"))
    special = {"<|endoftext|>": vocab.pop("<|endoftext|>")}
    ranks = {bytes(readable[c] for c in token): id for token, id in vocab.items()}
    return tiktoken.Encoding(
        "gpt2-peer", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )


def test_ids_are_those_of_the_vocabulary(gpt2, peer):
    assert gpt2.vocab_size == peer.n_vocab == 50257
    assert gpt2.special_ids == {"<|endoftext|>": 50256}
    for id in range(50256):
        assert gpt2.pieces[id] == peer.decode_single_token_bytes(id)
    # Ids that the model's users know by heart.
    assert gpt2.encode("Hello world").tolist() == [15496, 995]


@pytest.mark.parametrize("text", VARIED)
def test_varied_text_is_encoded_as_tiktoken_does(gpt2, peer, text):
    ids = gpt2.encode(text)
    assert ids.tolist() == peer.encode(text)
    assert gpt2.decode(ids) == text


@given(st.text())
@settings(deadline=None)
def test_any_text_is_encoded_as_tiktoken_does(gpt2, peer, text):
    assert gpt2.encode(text).tolist() == peer.encode_ordinary(text)


@pytest.mark.skipif(not PLAYS.exists(), reason="the plays are not here")
def test_the_plays_are_encoded_as_tiktoken_does(gpt2, peer):
    text = PLAYS.read_text(encoding="utf-8")
    expected = peer.encode_ordinary(text)
    assert gpt2.encode(text).tolist() == expected
    streamed = gpt2.encode_iterable(text[i : i + 1013] for i in range(0, len(text), 1013))
    assert [id for part in streamed for id in part.tolist()] == expected


def test_text_is_encoded_as_the_tokenizers_package_does(gpt2):
    models = pytest.importorskip("tokenizers.models")
    from tokenizers import Tokenizer, pre_tokenizers

    peer = Tokenizer(models.BPE.from_file(str(VOCAB), str(MERGES)))
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = VARIED + ([PLAYS.read_text(encoding="utf-8")[:200_000]] if PLAYS.exists() else [])
    for text in texts:
        assert gpt2.encode(text).tolist() == peer.encode(text).ids


@pytest.mark.parametrize("text", VARIED)
def test_text_is_encoded_as_the_merges_in_order_say(gpt2, readable, text):
    lines = MERGES.read_text(encoding="utf-8").splitlines()
    pairs = (line.split(" ") for line in lines)
    ranks = {
        tuple(bytes(readable[c] for c in part) for part in pair): rank
        for rank, pair in enumerate(pairs)
    }
    words = regex.findall(GPT2_PATTERN, text)
    expected = [t for word in words for t in bpe_naive.encode_by_merges(word.encode(), ranks)]
    assert [gpt2.pieces[id] for id in gpt2.encode(text)] == expected


@given(st.lists(st.integers(0, 50256), max_size=20))
@settings(deadline=None)
def test_any_ids_decode_as_tiktoken_does(gpt2, peer, ids):
    assert gpt2.decode(ids) == peer.decode(ids)


def test_saved_and_loaded_it_is_the_same(gpt2, tmp_path):
    save_tokenizer(gpt2, tmp_path / "gpt2.json")
    loaded = load_tokenizer(tmp_path / "gpt2.json")
    assert loaded.fingerprint == gpt2.fingerprint and loaded.pieces == gpt2.pieces
    assert loaded.encode(VARIED[1]).tolist() == gpt2.encode(VARIED[1]).tolist()


def test_written_again_they_are_the_same_files(gpt2, tmp_path):
    paths = (tmp_path / "vocab.json", tmp_path / "merges.txt")
    write_gpt2_files(gpt2, *paths)
    assert json.loads(paths[0].read_text("utf-8")) == json.loads(VOCAB.read_text("utf-8"))
    assert paths[1].read_text("utf-8").splitlines()[1:] == MERGES.read_text("utf-8").splitlines()


def test_the_ranks_alone_give_back_every_merge(gpt2, tmp_path):
    write_tiktoken_ranks(gpt2, tmp_path / "gpt2.tiktoken")
    again = read_tiktoken_ranks(tmp_path / "gpt2.tiktoken", special_tokens=["<|endoftext|>"])
    assert again.content == gpt2.content


def alphabet():
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in shown] + [chr(256 + n) for n in range(256 - len(shown))]


def write_files(folder, merges, tokens):
    vocab = {token: id for id, token in enumerate([*alphabet(), *tokens])}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    return folder / "vocab.json", folder / "merges.txt"


@pytest.mark.parametrize("version", ["", "#version: 0.2\n"])
def test_a_version_line_is_no_merge(tmp_path, version):
    paths = write_files(tmp_path, f"{version}# #\nt h\n", ["##", "th", "<|endoftext|>"])
    assert read_gpt2_files(*paths).encode("##th").tolist() == [256, 257]


@pytest.mark.parametrize(
    ("merges", "tokens", "message"),
    [
        ("t h\n", ["<|endoftext|>"], "vocab.json: token 'th' has no id"),
        ("t h\n", ["th"], "vocab.json: token '<|endoftext|>' has no id"),
        ("t h\n", ["th", "e", "<|endoftext|>", "zz"], "vocab.json: no merge makes 'zz'"),
        ("t h\nx\n", ["th", "<|endoftext|>"], "merges.txt line 2: expected two byte-level"),
        ("t \u0489\n", ["<|endoftext|>"], "merges.txt line 1: expected two byte-level"),
        ("t h\nt h\n", ["th", "<|endoftext|>"], "cannot represent"),
        ("th e\n", ["the", "<|endoftext|>"], "'th' is no byte and no earlier merge"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path, merges, tokens, message):
    with pytest.raises(ConfigError) as error:
        read_gpt2_files(*write_files(tmp_path, merges, tokens))
    assert message in str(error.value) and "\n" not in str(error.value)
