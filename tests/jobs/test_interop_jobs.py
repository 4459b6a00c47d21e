"""--job=import and --job=export: models of transformers as runs, and runs as its models."""

import dataclasses
import json
import shutil
import struct

import numpy as np
import pytest
from job_runs import records, snapshot
from safetensors.numpy import load_file

from jaxlm.core import trees
from jaxlm.interop.pretrained import load_weights
from jaxlm.jobs.setup import open_run
from jaxlm.jobs.sources import prompt_ids
from jaxlm.tokenizers import bpe_tokenizer
from jaxlm.tokenizers.hugging_face import write_tokenizer

SPECIALS = ["<|endoftext|>"]
MERGES = [(b"t", b"h"), (b"th", b"e"), (b" ", b"the"), (b" ", b"c"), (b"a", b"t")]
V = 256 + len(MERGES) + len(SPECIALS)
USAGE = {"eos_token": "<|endoftext|>", "chat_template": "{{ messages }}"}


@pytest.fixture(scope="module")
def tokenizer():
    return bpe_tokenizer(MERGES, pattern="smollm", special_tokens=SPECIALS)


@pytest.fixture(scope="module")
def peers():
    return pytest.importorskip("torch"), pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def source(peers, tokenizer, tmp_path_factory):
    """A folder as transformers saves it, and its tokenizer beside it."""
    torch, transformers = peers
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": V}
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**settings, max_position_embeddings=32, tie_word_embeddings=True)
    )
    with torch.no_grad():
        for w in model.parameters():
            w.add_(0.2 * torch.randn_like(w))
    folder = tmp_path_factory.mktemp("source") / "tiny"
    model.save_pretrained(folder)
    write_tokenizer(folder, tokenizer, USAGE)
    return folder


@pytest.fixture(scope="module")
def imported(launch, source, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "run"
    more = [f"--config.data.path={text}", "--config.model.context_length=16"]
    outcome = launch("--job=import", f"--source={source}", f"--workdir={folder}", *more)
    assert outcome.code == 0, outcome.err
    assert "imported  8," in outcome.out and "context 16" in outcome.out
    return folder


def assert_refused(outcome, *parts):
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1 and outcome.err.startswith("launch.py: ")
    for part in parts:
        assert part in outcome.err


def assert_same(got, want):
    got, want = trees.flatten(got), trees.flatten(want)
    assert got.keys() == want.keys()
    for path in want:
        np.testing.assert_array_equal(got[path], want[path], strict=True)


def test_an_imported_run_holds_the_weights_and_the_tokenizer(imported, source, tokenizer):
    run = open_run(imported)
    assert_same(
        trees.map_with_path(lambda _, x: np.asarray(x), run.params), load_weights(source)[1]
    )
    assert run.tokenizer.fingerprint == tokenizer.fingerprint
    usage = json.loads((imported / "tokenizer_config.json").read_text())
    assert usage == {**USAGE, "model_max_length": 32}
    assert (run.step, run.corpus) == (0, None)


def test_a_prompt_begins_as_the_source_s_texts_do(tokenizer):
    first = tokenizer.special_ids[SPECIALS[0]]
    usage = {"bos_token": SPECIALS[0], "add_bos_token": True}
    ids = tokenizer.encode("the cat").tolist()
    assert prompt_ids("the cat", tokenizer, usage).tolist() == [first, *ids]
    assert prompt_ids(f"{SPECIALS[0]}the cat", tokenizer, usage).tolist() == [first, *ids]
    for other in ({}, {"bos_token": SPECIALS[0]}, {"add_bos_token": True}):
        assert prompt_ids("the cat", tokenizer, other).tolist() == ids


def test_the_other_jobs_take_it(launch, imported, finished):
    outcome = launch("--job=evaluate", f"--workdir={imported}", "--output=json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["num_tokens"] > 100
    outcome = launch("--job=sample", f"--workdir={imported}", "--prompt=the cat", "--num_tokens=9")
    assert outcome.code == 0 and outcome.out.startswith("the cat"), outcome.err
    outcome = launch("--job=compare", f"--runs={imported},{finished}", "--output=json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)[0]["corpus"] is None
    outcome = launch("--job=inspect", f"--workdir={imported}")
    assert outcome.code == 0 and "blocks/wq" in outcome.out, outcome.err


def test_it_is_no_run_to_go_on_with(launch, imported):
    before = snapshot(imported)
    assert_refused(launch(f"--workdir={imported}"), f"--config.train.init_from={imported}")
    assert snapshot(imported) == before


SHORT = [
    "--config.train.num_steps=10",
    "--config.train.eval_every=10",
    "--config.train.save_every=10",
    "--config.train.sample_tokens=4",
    "--config.optim.warmup_steps=2",
    "--config.data.batch_size=4",
]


@pytest.fixture(scope="module")
def tuned(launch, imported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "run"
    outcome = launch(f"--config.train.init_from={imported}", *SHORT, f"--workdir={folder}")
    assert outcome.code == 0, outcome.err
    return folder


def exported(launch, folder, target, *more):
    outcome = launch("--job=export", f"--workdir={folder}", f"--target={target}", *more)
    assert outcome.code == 0, outcome.err
    assert f"folder    {target}" in outcome.out
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    return target


def assert_transformers_agrees(peers, folder, run):
    torch, transformers = peers
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    tokens = np.random.default_rng(0).integers(V, size=(2, 12))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    ours = run.model.forward(run.params, tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    for line in ("the cat sat on  12 mats\n", "<|endoftext|>the"):
        assert peer(line)["input_ids"] == run.tokenizer.encode(line, allow_special=True).tolist()
    assert (peer.eos_token, peer.chat_template) == tuple(USAGE.values())
    assert model.generation_config.eos_token_id == peer.eos_token_id
    assert model.generation_config.bos_token_id is None


def test_out_again_it_is_what_came_in(launch, imported, source, tmp_path, peers):
    target = exported(launch, imported, tmp_path / "out")
    before, after = (load_file(f / "model.safetensors") for f in (source, target))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], strict=True)
    assert_transformers_agrees(peers, target, open_run(imported))


def test_a_tuned_model_leaves_with_other_weights(launch, tuned, source, tmp_path, peers):
    assert records(tuned / "metrics.jsonl")[-1]["step"] == 10
    target = exported(launch, tuned, tmp_path / "out", "--checkpoint=best")
    assert_transformers_agrees(peers, target, open_run(tuned))
    before, after = (load_file(f / "model.safetensors") for f in (source, target))
    assert not np.array_equal(before["model.norm.weight"], after["model.norm.weight"])


def test_training_starts_from_the_files_themselves_too(launch, source, text, tuned, tmp_path):
    args = [f"--config.data.path={text}", "--config.model.context_length=16", *SHORT]
    outcome = launch(f"--config.train.init_from={source}", *args, f"--workdir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.err
    got, want = (
        [r["loss"] for r in records(folder / "metrics.jsonl")]
        for folder in (tmp_path / "run", tuned)
    )
    assert got == want


@pytest.fixture(scope="module")
def adapted(launch, imported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted") / "run"
    more = ["--config.lora.rank=2", "--config.lora.targets=wq,wo", *SHORT]
    outcome = launch(f"--config.train.init_from={imported}", *more, f"--workdir={folder}")
    assert outcome.code == 0, outcome.err
    return folder


def test_adapters_are_merged_where_they_leave(launch, adapted, tmp_path, peers):
    target = exported(launch, adapted, tmp_path / "out")
    assert_transformers_agrees(peers, target, open_run(adapted))


def test_adapters_alone_leave_and_come_back(launch, adapted, source, text, tmp_path):
    target = exported(launch, adapted, tmp_path / "out", "--format=peft")
    assert {p.name for p in target.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    folder = tmp_path / "back" / "run"
    args = [f"--source={target}", f"--config.train.init_from={source}", f"--workdir={folder}"]
    outcome = launch("--job=import", *args, f"--config.data.path={text}")
    assert outcome.code == 0, outcome.err
    assert "adapters  rank 2 on wo, wq" in outcome.out
    got, want = open_run(folder), open_run(adapted)
    assert got.cfg.lora == dataclasses.replace(want.cfg.lora, targets=("wo", "wq"))
    for mine, theirs in ((got.adapters, want.adapters), (got.params, want.params)):
        assert_same(*(trees.map_with_path(lambda _, x: np.asarray(x), t) for t in (mine, theirs)))
    outcome = launch("--job=sample", f"--workdir={folder}", "--prompt=the", "--num_tokens=3")
    assert outcome.code == 0, outcome.err
    assert_refused(launch(f"--workdir={folder}"), "holds imported weights")


def test_characters_stay_at_home(launch, finished, tmp_path):
    target = tmp_path / "out"
    outcome = launch("--job=export", f"--workdir={finished}", f"--target={target}")
    assert_refused(outcome, "has this model's activation=relu (nearest: llama)")
    assert not target.exists() and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([], ["--job=import needs --source"]),
        (["{config}"], ["--job=import needs --source"]),
        (["--source={source}", "{config}"], ["another model", "blocks/"]),
        (["--source={adapter}"], ["--job=import needs --source", "its base"]),
        (["--source=nowhere"], ["--source=nowhere: is no Hugging Face folder"]),
        (["--source={source}", "--config.model.rope_theta=5"], ["rope_theta: 10000.0 -> 5.0"]),
        (
            ["--source={source}", "--config.model.d_model=32"],
            ["another model: ", "shape (2, 16), expected (2, 32)"],
        ),
        (["--source={source}", "--config.model.vocab_size=9"], ["expected (9, 16)"]),
        (["--source={source}", "--config=configs/none.py"], ["--config=configs/none.py: no such"]),
    ],
)
def test_what_cannot_be_imported_is_refused_before_a_folder_is_made(
    args, parts, launch, source, config, tmp_path
):
    (tmp_path / "adapter_config.json").write_text("{}")
    args = [arg.format(source=source, adapter=tmp_path, config=config) for arg in args]
    outcome = launch("--job=import", *args, f"--workdir={tmp_path / 'run'}")
    assert_refused(outcome, *parts)
    assert not (tmp_path / "run").exists()


def break_header(folder):
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 10**9) + file.read_bytes()[8:])


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def smaller_vocabulary(folder):
    write_tokenizer(folder, bpe_tokenizer([(b"a", b"b")], pattern="gpt2"), {})
    document = json.loads((folder / "tokenizer.json").read_text())
    extra = {f"<{i}>": 257 + i for i in range(9)}
    tokens = [{"id": id, "content": text} for text, id in extra.items()]
    (folder / "tokenizer.json").write_text(json.dumps(document | {"added_tokens": tokens}))


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_header, "not a whole safetensors file"),
        (cut, "truncated"),
        (smaller_vocabulary, f"this tokenizer has 266 ids and the weights {V} rows"),
        (pickled, "pytorch_model.bin is a pickle"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer.json"),
    ],
)
def test_damaged_files_are_refused(damage, message, launch, source, tmp_path):
    shutil.copytree(source, tmp_path / "damaged")
    damage(tmp_path / "damaged")
    args = [f"--source={tmp_path / 'damaged'}", f"--workdir={tmp_path / 'run'}"]
    assert_refused(launch("--job=import", *args), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--workdir={imported}"], "--job=export needs --target"),
        (["--target={tmp}/new"], "--job=export needs --workdir"),
        (["--workdir={imported}", "--target={imported}"], "is there already"),
        (
            ["--workdir={imported}", "--target={tmp}/new", "--format=onnx"],
            "--format=onnx: expected",
        ),
        (["--workdir={imported}", "--target={tmp}/new", "--config.seed=1"], "--config.seed"),
    ],
)
def test_an_export_that_cannot_be_is_refused(args, part, launch, imported, tmp_path):
    args = [arg.format(imported=imported, tmp=tmp_path) for arg in args]
    assert_refused(launch("--job=export", *args), part)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_a_run_is_not_imported_into(launch, imported, source):
    before = snapshot(imported)
    outcome = launch("--job=import", f"--source={source}", f"--workdir={imported}")
    assert_refused(outcome, "holds a run already")
    assert snapshot(imported) == before
