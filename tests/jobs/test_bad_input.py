"""Bad input: one line on standard error that names what to change, exit code 2, nothing written."""

import json
import os
import pathlib
import shutil

import pytest
from job_runs import assert_same_run, fingerprint, records, snapshot


def edit(path: pathlib.Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def put(path: pathlib.Path, content: str | bytes) -> pathlib.Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def assert_refused(outcome, fragments) -> None:
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("launch.py: ") and outcome.err.endswith("\n"), outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    for fragment in fragments:
        assert fragment in outcome.err
    assert "Traceback" not in outcome.out


# --config.FIELD=VALUE in a new run, and what the line must say.
FIELDS = {
    "num_layer=4": ["--config.model.num_layer=4", "did you mean 'num_layers'?"],
    "num_layers=four": ["num_layers=four", "expected int"],
    "num_layers=2.0": ["num_layers=2.0", "expected int"],
    "num_layers=0": ["num_layers=0", "at least 1"],
    "num_layers=-1": ["num_layers=-1", "at least 1"],
    "num_layers=": ["num_layers=", "expected int"],
    "dropout=half": ["dropout=half", "expected float"],
    "dropout=nan": ["dropout=nan", "expected float"],
    "dropout=1.5": ["dropout=1.5", "[0, 1)"],
    "tied_head=yes": ["tied_head=yes", "expected true or false"],
    "norm=rsm": ["norm=rsm", "rms, layer"],
    "num_heads=3": ["d_model=16", "num_heads=3"],
    "num_kv_heads=3": ["num_heads=2", "num_kv_heads=3"],
    "head_dim=3": ["head_dim=3", "even"],
    "vocab_size=99": ["--config.model.vocab_size=99", "17"],
    "causal=false": ["causal=false"],
    "optim.peak_lr=0": ["--config.optim.peak_lr=0", "greater than 0"],
    "optim.peak_lr=inf": ["--config.optim.peak_lr=inf", "float"],
    "optim.name=adamv": ["--config.optim.name=adamv", "adamw"],
    "optim.warmup_steps=49": ["--config.optim.warmup_steps=49", "48 steps"],
    "optim.clip_norm=-1": ["clip_norm=-1", "greater than 0"],
    "train.steps_per_call=7": ["num_steps=48", "steps_per_call=7"],
    "train.eval_every=12": ["eval_every=12", "steps_per_call=8"],
    "train.num_steps=0": ["num_steps=0", "at least 1"],
    "train.on_nonfinite=rolback": ["on_nonfinite=rolback", "stop, skip, rollback"],
    "train.rollback_steps=0": ["rollback_steps=0", "at least 1"],
    "train.spike_sigmas=0": ["spike_sigmas=0", "greater than 0"],
    "train.num_microbatches=3": ["batch_size=4", "num_microbatches=3"],
    "train.sample_prompt=cat&": ["--config.train.sample_prompt", "'&'"],
    "train.sample_temperatures=0.5,-1": ["sample_temperatures", "negative"],
    "train.init_from=nowhere": ["--config.train.init_from=nowhere", "no run"],
    "train=1": ["--config.train=1", "group"],
    "seed.x=1": ["--config.seed.x=1", "no fields of its own"],
    "seed=-1": ["seed=-1"],
    "sed=1": ["--config.sed=1", "did you mean 'seed'?"],
    "data.path=": ["--config.data.path="],
    "data.val_fraction=1": ["val_fraction=1"],
    "data.batch_size=-4": ["batch_size=-4", "at least 1"],
    "tokenizer.kind=bpe": ["kind=bpe", "vocab_size"],
    "tokenizer.path=nowhere.json": ["nowhere.json"],
    "loss.z_loss=-1": ["z_loss=-1"],
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_cannot_be_used(launch, config, tmp_path, field):
    flag = f"--config.{field}"
    if not field.startswith(("optim", "train", "data", "tokenizer", "loss", "se")):
        flag = f"--config.model.{field}"
    outcome = launch(config, flag, f"--workdir={tmp_path}/new")
    assert_refused(outcome, FIELDS[field])
    assert snapshot(tmp_path) == {}


FLAGS = {
    "--confg=x.py": ["--confg", "did you mean --config"],
    "--job=trian": ["--job=trian", "did you mean 'train'?"],
    "--job=": ["--job="],
    "--config=nowhere.py": ["--config=nowhere.py", "no such file"],
    "--config=": ["--config="],
    "--workdir=": ["--workdir="],
    "--num_tokens=many": ["num_tokens", "many"],
    "--num_tokens=0": ["num_tokens", "0"],
    "--temperature=-1": ["temperature", "-1"],
    "--config.seed": ["--config.seed", "FIELD=VALUE"],
    "train": ["train", "expected only flags"],
    "--job=sample": ["--workdir"],
    "--job=evaluate": ["--workdir"],
}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_that_cannot_be_used(launch, flag):
    before = snapshot(launch.cwd)
    assert_refused(launch(flag), [f.replace("mean --config", "mean 'config'") for f in FLAGS[flag]])
    assert snapshot(launch.cwd) == before


def test_a_field_given_twice(launch, config, tmp_path):
    outcome = launch(config, "--config.seed=1", "--config.seed=2", f"--workdir={tmp_path}/new")
    assert_refused(outcome, ["--config.seed", "twice"])


TEXTS = {
    "missing": (None, ["no such file"]),
    "empty": (b"", ["empty"]),
    "shorter than the context": (b"abcdefgh", ["--config.model.context_length", "16"]),
    "validation part too short": (b"the cat sat on a mat. " * 5, ["validation", "16"]),
    "not UTF-8": (b"caf\xe9 " * 500, ["0xe9", "offset 3", "UTF-8", "invalid_utf8=replace"]),
    "a folder without text": ("folder", ["no text"]),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_cannot_be_read(launch, config, tmp_path, name):
    content, fragments = TEXTS[name]
    path = tmp_path / "text"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    before = snapshot(tmp_path)
    outcome = launch(config, f"--config.data.path={path}", f"--workdir={tmp_path}/new")
    assert_refused(outcome, [*fragments])
    assert snapshot(tmp_path) == before


CONFIGS = {
    "fails.py": ("def get_config():\n    return 1 / 0\n", ["ZeroDivisionError"]),
    "lines.py": ("raise ValueError('one\\ntwo')\n", ["one two"]),
    "exits.py": ("import sys\nsys.exit(3)\n", ["SystemExit"]),
    "syntax.py": ("def get_config(:\n", ["SyntaxError"]),
    "nothing.py": ("x = 1\n", ["get_config"]),
    "other.py": ("def get_config():\n    return 7\n", ["int", "RunConfig"]),
    "types.py": (
        "from jaxlm.train.config import RunConfig, TrainConfig\n"
        "def get_config():\n    return RunConfig(seed=1.5)\n",
        ["seed", "int"],
    ),
    "config.yaml": ("seed: 1\n", [".py", "config.json"]),
    "damaged.json": ('{"format_version": 1, "conf', ["JSON"]),
    "newer.json": ('{"format_version": 99, "config": {}}', ["99"]),
    "list.json": ("[]", ["format_version"]),
    "field.json": ('{"format_version": 1, "config": {"sede": 1}}', ["sede", "'seed'"]),
    "type.json": ('{"format_version": 1, "config": {"seed": "1.5"}}', ["seed", "int"]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_file_that_cannot_be_used(launch, tmp_path, name):
    content, fragments = CONFIGS[name]
    path = put(tmp_path / name, content)
    outcome = launch(f"--config={path}", f"--workdir={tmp_path}/new")
    assert_refused(outcome, [str(path), *fragments])
    assert not (tmp_path / "new").exists()


# What is done to a copy of the finished run, the flags of the launch, what the line must say.
def nothing(folder):
    pass


def other_text(folder):
    text = json.loads((folder / "config.json").read_text())["config"]["data"]["path"]
    path = put(folder.parent / "text", pathlib.Path(text).read_text() + "the cat sat on a mat. ")
    edit(folder / "config.json", text, str(path))


def other_tokenizer(folder):
    from jaxlm.tokenizers import save_tokenizer
    from jaxlm.tokenizers.characters import character_tokenizer

    save_tokenizer(character_tokenizer("abcdefghijklmnopqrst .\n"[-17:]), folder / "tokenizer.json")


def unfinished(folder):
    (folder / "summary.json").unlink()


RUNS = {
    "another seed": (nothing, ["--config.seed=1"], ["seed: 0 -> 1", "--workdir"]),
    "another model": (
        nothing,
        ["--config.model.num_layers=2", "--config.optim.b1=0.8"],
        ["model.num_layers: 1 -> 2", "optim.b1: 0.9 -> 0.8"],
    ),
    "already further": (nothing, ["--config.train.num_steps=40"], ["num_steps=40", "step 48"]),
    "another text": (
        lambda folder: (unfinished(folder), other_text(folder)),
        [],
        ["--config.data.path", "changed"],
    ),
    "another tokenizer": (
        lambda folder: (unfinished(folder), other_tokenizer(folder)),
        [],
        ["tokenizer"],
    ),
    "a tokenizer with another letter": (
        lambda folder: edit(folder / "tokenizer.json", 'st"', 'sz"'),
        [],
        ["tokenizer.json", "changed since it was saved"],
    ),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        [],
        ["tokenizer.json", "No such file"],
    ),
    "a damaged config": (
        lambda folder: edit(folder / "config.json", "{", ""),
        [],
        ["config.json", "not valid JSON"],
    ),
    "a config of a newer version": (
        lambda folder: edit(folder / "config.json", '"format_version": 1', '"format_version": 2'),
        [],
        ["config.json", "2"],
    ),
    "evaluate with a config": (
        nothing,
        ["--job=evaluate", "--config=configs/plays.py"],
        ["--config", "--job=evaluate"],
    ),
    "evaluate with a field": (
        nothing,
        ["--job=evaluate", "--config.seed=1"],
        ["--config.seed", "--job=evaluate"],
    ),
    "evaluate another text": (other_text, ["--job=evaluate"], ["--config.data.path", "changed"]),
    "evaluate as xml": (nothing, ["--job=evaluate", "--output=xml"], ["--output=xml", "json"]),
    "evaluate some checkpoint": (
        nothing,
        ["--job=evaluate", "--checkpoint=last"],
        ["--checkpoint=last", "newest, best"],
    ),
    "evaluate without a checkpoint": (
        lambda folder: shutil.rmtree(folder / "checkpoints"),
        ["--job=evaluate"],
        ["--workdir", "checkpoint"],
    ),
    "sample of other characters": (nothing, ["--job=sample", "--prompt=a%"], ["--prompt", "'%'"]),
    "sample of nothing": (nothing, ["--job=sample", "--prompt="], ["--prompt="]),
    "sample with top_p": (nothing, ["--job=sample", "--top_p=1.5"], ["--top_p=1.5", "(0, 1]"]),
    "sample at nan": (nothing, ["--job=sample", "--temperature=nan"], ["temperature"]),
    "sample with half a bias": (
        nothing,
        ["--job=sample", "--logit_bias=5"],
        ["--logit_bias=5", "ID:BIAS"],
    ),
    "sample with a bias of nothing": (nothing, ["--job=sample", "--logit_bias=999:1"], ["999"]),
    "sample without repeating": (
        nothing,
        ["--job=sample", "--repetition_penalty=0"],
        ["repetition_penalty=0", "above 0"],
    ),
    "sample to a word": (nothing, ["--job=sample", "--stop=the"], ["--stop=the", "3 tokens"]),
    "sample to what it never saw": (nothing, ["--job=sample", "--stop=%"], ["--stop", "'%'"]),
    "sample a beam that draws": (
        nothing,
        ["--job=sample", "--beam_width=2", "--temperature=0.5"],
        ["--temperature=0.5", "--beam_width"],
    ),
    "sample more than the beam": (
        nothing,
        ["--job=sample", "--beam_width=2", "--num_samples=3"],
        ["--num_samples=3", "--beam_width=2"],
    ),
    "sample with a penalty alone": (
        nothing,
        ["--job=sample", "--length_penalty=2"],
        ["--length_penalty=2", "--beam_width"],
    ),
    "sample with half its layers": (
        nothing,
        ["--job=sample", "--draft_layers=1"],
        ["--draft_layers=1", "1 layers"],
    ),
    "sample with no draft": (nothing, ["--job=sample", "--draft=nowhere"], ["--draft=nowhere"]),
    "sample drafts of nothing": (
        nothing,
        ["--job=sample", "--draft_tokens=3"],
        ["--draft_tokens=3", "--draft"],
    ),
    "sample a drafted beam": (
        nothing,
        ["--job=sample", "--draft_layers=1", "--beam_width=2"],
        ["--beam_width", "--draft_layers"],
    ),
    "sample with a large seed": (nothing, ["--job=sample", f"--seed={2**70}"], ["seed"]),
    "sample too many tokens": (nothing, ["--job=sample", f"--num_tokens={2**40}"], ["num_tokens"]),
    "sample with another tokenizer": (other_tokenizer, ["--job=sample"], ["tokenizer"]),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_cannot_be_used_so(launch, finished, tmp_path, name):
    change, flags, fragments = RUNS[name]
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    change(folder)
    before = snapshot(folder)
    assert_refused(launch(*flags, f"--workdir={folder}"), fragments)
    assert snapshot(folder) == before


@pytest.mark.parametrize("job", ["sample", "evaluate"])
def test_a_workdir_without_a_run(launch, tmp_path, job):
    assert_refused(launch(f"--job={job}", f"--workdir={tmp_path}"), [str(tmp_path), "no run"])
    assert_refused(launch(f"--job={job}", f"--workdir={tmp_path}/x"), [str(tmp_path), "no run"])
    assert snapshot(tmp_path) == {}


def test_a_workdir_that_cannot_be_made(launch, config, tmp_path):
    """Below a regular file, where no one can write, not even the superuser."""
    put(tmp_path / "file", "")
    outcome = launch(config, f"--workdir={tmp_path}/file/run")
    assert_refused(outcome, [f"--workdir={tmp_path}/file/run", "Not a directory"])
    outcome = launch(config, f"--workdir={tmp_path}/file")
    assert_refused(outcome, [f"--workdir={tmp_path}/file"])
    assert snapshot(tmp_path) == {"file": b""}


def test_weights_of_another_shape(launch, config, finished, tmp_path):
    outcome = launch(
        config,
        f"--config.train.init_from={finished}",
        "--config.model.d_ff=24",
        f"--workdir={tmp_path}/new",
    )
    assert_refused(outcome, ["--config.train.init_from", "blocks/w_", "24"])
    assert snapshot(tmp_path) == {}


def test_weights_of_a_run_without_a_checkpoint(launch, config, finished, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(finished, base, ignore=shutil.ignore_patterns("checkpoints"))
    flag = f"--config.train.init_from={base}"
    outcome = launch(config, flag, f"--workdir={tmp_path}/new")
    assert_refused(outcome, [flag, "checkpoint"])
    assert not (tmp_path / "new").exists()


def damage(checkpoint: pathlib.Path) -> None:
    largest = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(launch, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    unfinished(folder)
    damage(folder / "checkpoints" / "step_00000048")
    outcome = launch(f"--workdir={folder}")
    assert outcome.code == 0
    assert outcome.err.count("\n") == 1
    assert "step_00000048" in outcome.err and "passed over" in outcome.err
    assert "resumed   at step 32" in outcome.out
    assert_same_run(folder, fingerprint(finished))


def test_a_full_disk_leaves_the_earlier_checkpoint_good(launch, config, finished, tmp_path):
    """A file size limit stands for the disk: the second checkpoint's arrays do not fit."""
    import resource

    folder = tmp_path / "run"
    outcome = launch(config, f"--workdir={folder}", crash=("save", 32, False))
    assert outcome.code == "crash"
    before = snapshot(folder / "checkpoints")
    arrays = [p for p in (folder / "checkpoints").rglob("*") if p.is_file()]
    limit = max(p.stat().st_size for p in arrays) // 2
    assert limit > (folder / "metrics.jsonl").stat().st_size
    with launch.start(f"--workdir={folder}") as process:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        out, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert err.count("\n") == 1 and err.startswith("launch.py: "), err
    assert "not written" in err and "step_00000032" in err
    assert snapshot(folder / "checkpoints") == before
    assert launch(f"--workdir={folder}").code == 0
    assert_same_run(folder, fingerprint(finished))


def test_learned_positions_bound_a_sample(launch, config, tmp_path):
    folder = tmp_path / "run"
    small = ["num_steps=8", "save_every=8", "sample_every=none"]
    outcome = launch(
        config,
        *(f"--config.train.{field}" for field in small),
        "--config.model.positions=learned",
        f"--workdir={folder}",
    )
    assert outcome.code == 0, outcome.err
    assert len(records(folder / "samples.jsonl")[0]["text"]) == 8
    outcome = launch("--job=sample", f"--workdir={folder}", "--prompt=cat", "--num_tokens=15")
    assert_refused(outcome, ["num_tokens=15", "16"])
    outcome = launch("--job=sample", f"--workdir={folder}", "--prompt=cat", "--num_tokens=14")
    assert outcome.code == 0 and len(outcome.out) == len("cat") + 14 + 1


REAL = {
    "--config.model.num_layer=4": "did you mean 'num_layers'?",
    "--config.data.path=nowhere.txt": "--config.data.path=nowhere.txt: no such file",
    "--workdir=file/run": "--workdir=file/run: Not a directory",
}


@pytest.mark.parametrize("flag", REAL)
def test_the_real_command_refuses_in_one_line(launch, config, flag):
    put(launch.cwd / "file", "")
    before = snapshot(launch.cwd)
    outcome = launch.command(config, flag)
    assert_refused(outcome, [REAL[flag]])
    assert outcome.out == ""
    assert {k: v for k, v in snapshot(launch.cwd).items() if k in before} == before
    assert "runs" not in os.listdir(launch.cwd)
