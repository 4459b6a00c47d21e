"""Bad input: one line on standard error that names what to change, exit code 2, nothing written."""

import json
import os
import pathlib
import shutil

import pytest
from job_runs import TIMEOUT_S, assert_same_run, fingerprint, records, snapshot


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
    "d_ff=10000000000": ["--config.model.d_ff=10000000000", "below 2^31"],
    "norm_eps=1e300": ["--config.model.norm_eps=1e+300", "float32"],
    "optim.peak_lr=1e-60": ["--config.optim.peak_lr=1e-60", "float32"],
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
    "train.num_steps=1000000000000000000": ["num_steps=1000000000000000000", "below 2^31"],
    "train.profile_steps=80:160": ["profile_steps=80:160", "num_steps=48"],
    "train.sample_temperatures=1e300": ["sample_temperatures", "float32"],
    "train.sample_prompt=cat&": ["--config.train.sample_prompt", "'&'"],
    "train.sample_temperatures=0.5,-1": ["sample_temperatures", "negative"],
    "train.init_from=nowhere": ["--config.train.init_from=nowhere", "no run"],
    "train=1": ["--config.train=1", "group"],
    "seed.x=1": ["--config.seed.x=1", "no fields of its own"],
    "seed=-1": ["seed=-1"],
    "sed=1": ["--config.sed=1", "did you mean 'seed'?"],
    "lora.targets=foo": ["lora", "targets", "lora.rank"],
    "lora.rank=4": ["--config.lora.rank=4", "--config.train.init_from"],
    "mesh.tensor=2": ["tensor"],
    "data.path=nowhere.txt": ["--config.data.path=nowhere.txt: no such file"],
    "data.path=~no-such-user/x": ["--config.data.path=~no-such-user/x", "no such user"],
    "data.path=LONG": ["File name too long"],
    "tokenizer.path=LONG": ["File name too long"],
    "data.batch_size=1000000000": ["--config.data.batch_size=1000000000", "GiB"],
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
    if not field.startswith(("optim", "train", "data", "tokenizer", "loss", "lora", "mesh", "se")):
        flag = f"--config.model.{field}"
    flag = flag.replace("LONG", "x" * 300)
    outcome = launch(config, flag, f"--workdir={tmp_path}/new")
    assert_refused(outcome, FIELDS[field])
    assert snapshot(tmp_path) == {}


FLAGS = {
    "--num_layers=3": ["--num_layers", "--config.model.num_layers?"],
    "--model.num_layers=3": ["--model.num_layers", "--config.model.num_layers?"],
    "--dropuot=3": ["--dropuot: no such flag"],
    "--config=/": ["--config=/: a folder without a run"],
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
    "--job=chat --temperature=0.5 --num_tokens=9 --seed=1": ["--workdir"],
    "--regex=a": ["--regex=a", "only --job=sample reads it"],
    "--job=evaluate --beam_width=2": ["--beam_width=2", "only --job=sample reads it"],
    "--job=evaluate": ["--workdir"],
    "--job=inspect": ["--workdir"],
    "--job=export": ["--workdir"],
    "--job=import": ["--workdir"],
    "--job=compare": ["--runs"],
    "--job=compare --runs=,": ["--runs"],
    "--job=compare --runs=nowhere": ["--runs=nowhere", "no run"],
    "--job=compare --output=xml --runs=x": ["--output=xml", "text, json"],
    "--job=compare --runs=x --config.seed=1": ["--config.seed", "--runs"],
    "--job=doctor --config.seed=1": ["--job=doctor", "--config"],
    "--job=compile --topology=v9": ["--topology=v9", "v5e:4x4"],
    "--job=verify_resume --steps=12": ["--steps=12", "8"],
    "--job=import --workdir=x --source=nowhere": ["--source=nowhere", "GGUF"],
    "--job=import --workdir=x --source=": ["--source="],
    "--job=tokenizer --config.seed=1": ["--config.seed", "data and tokenizer"],
    "--job=tokenizer --config.tokenizer.vocab_size=300 --config.data.path=nowhere": [
        "--config.data.path=nowhere",
        "no such file",
    ],
    "--job=prove_causal --config.model.num_heads=3": ["num_heads=3"],
    "--job=prove_causal --config.model.context_length=9999999": ["context_length", "GiB"],
    "--job=compile --config.model.num_heads=3": ["num_heads=3"],
    "--temperature=0.5": ["--temperature=0.5", "--job=sample"],
    "--job=sample --temperature=1e300": ["temperature", "1e+300"],
    "--job=sample --num_samples=1000000000": ["num_samples", "1000000000"],
    "--gpus=1": ["--gpus=1", "--launcher"],
    "--sweep_index=1": ["--sweep_index=1", "--sweep"],
    "--experiment=copy": ["--experiment=copy", "did you mean 'copy_task'?"],
    "--experiment=": ["--experiment="],
    "--experiment=warmup --job=train": ["--job", "--experiment"],
    "--experiment=warmup --config.scale=huge": ["--config.scale=huge", "small"],
    "--experiment=warmup --config.clip_norm=-1": ["clip_norm=-1", "above 0"],
    "--experiment=copy_task --config.peak_lr=0": ["peak_lr=0", "above 0"],
    "--experiment=copy_task --config.num_layers=0": [
        "--config.num_layers=0: num_layers=0 must be at least 1"
    ],
    "--experiment=lora_rank --config.alpha=0": ["alpha=0", "above 0"],
    "--experiment=lora_rank --config.full_lr=1e300": ["full_lr", "float32"],
    "--experiment=grad_norm_depth --config.adam_b2=1": ["adam_b2=1", "below 1"],
    "--experiment=warmup --config=x.json": ["x.json", "No such file"],
    "--experiment=all --config.seed=1": ["--experiment=all", "scale"],
    "--sweep=nowhere.py": ["--sweep=nowhere.py", "get_sweep"],
    "--launcher=ssh --workdir=x": ["--launcher=ssh", "slurm, local"],
    "--launcher=local": ["--launcher=local", "--workdir"],
    "--launcher=local --workdir=x --job=sample": ["--launcher=local", "--job=sample"],
    "--launcher=local --workdir=x --experiment=warmup --config.nothing=1": ["nothing", "no field"],
    "--coordinator=x": ["--coordinator=x", "--num_processes", "--process_id"],
    "--coordinator=x:y --num_processes=2 --process_id=1": ["--coordinator=x:y", "HOST:PORT"],
    "--coordinator=x:1 --num_processes=2 --process_id=2": ["--process_id=2", "--num_processes=2"],
    "--process_id=0": ["--process_id=0", "--coordinator"],
    "--workdir=a --workdir=b": ["--workdir", "twice"],
    "--workdir=\udcff": ["--workdir=\\udcff", "UTF-8"],
    "--config=LONG.py": ["File name too long"],
    "--job=sample --workdir=LONG": ["File name too long"],
}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_that_cannot_be_used(launch, flag):
    before = snapshot(launch.cwd)
    flags = [part.replace("LONG", "x" * 300) for part in flag.split(" ")]
    said = [f.replace("mean --config", "mean 'config'") for f in FLAGS[flag]]
    assert_refused(launch(*flags), said)
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
    "nothing.py": ("x = 1\n", ["the file has no get_config()"]),
    "other.py": ("def get_config():\n    return 7\n", ["int", "RunConfig"]),
    "types.py": (
        "from jaxlm.train.config import RunConfig, TrainConfig\n"
        "def get_config():\n    return RunConfig(seed=1.5)\n",
        ["seed", "int"],
    ),
    "numbers.py": (
        "import numpy as np\nfrom jaxlm.train.config import RunConfig\n"
        "def get_config():\n    return RunConfig(seed=np.int64(1))\n",
        ["seed", "int"],
    ),
    "deep.json": ("[" * 100_000, ["JSON"]),
    "half.json": (
        r'{"format_version": 1, "config": {"data": {"path": "\ud800"}}}',
        ["path", "text"],
    ),
    "object.json": (
        '{"format_version": 1, "config": {"lora": {"targets": {"wq": 1}}}}',
        ["targets", "joined by commas"],
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
    "metrics of something else": (
        lambda folder: (unfinished(folder), put(folder / "metrics.jsonl", '{"a": 1}\n')),
        [],
        ["metrics.jsonl", "line 1"],
    ),
    "a summary of something else": (
        lambda folder: put(folder / "summary.json", "[]"),
        [],
        ["summary.json", "object"],
    ),
    "a file for checkpoints": (
        lambda folder: (shutil.rmtree(folder / "checkpoints"), put(folder / "checkpoints", "")),
        ["--job=evaluate"],
        ["checkpoints", "Not a directory"],
    ),
    "export nowhere": (nothing, ["--job=export"], ["--target"]),
    "export over a file": (nothing, ["--job=export", "--target=/dev/null"], ["--target=/dev/null"]),
    "export below a file": (nothing, ["--job=export", "--target=/dev/null/x"], ["Not a directory"]),
    "export to nothing": (nothing, ["--job=export", "--target="], ["--target="]),
    "export no adapters": (
        nothing,
        ["--job=export", "--target=x", "--format=peft"],
        ["--format=peft", "adapters"],
    ),
    "export as a GGUF": (
        nothing,
        ["--job=export", "--target=x", "--format=gguf"],
        ["--format=gguf", "safetensors, peft"],
    ),
    "import into a run": (
        lambda folder: None,
        ["--job=import", "--source=FOLDER"],
        ["--workdir", "holds a run already"],
    ),
    "a tokenizer beside a run": (
        nothing,
        ["--job=tokenizer", "--config.tokenizer.vocab_size=300"],
        ["--workdir", "config.json"],
    ),
    "all studies in a run": (nothing, ["--experiment=all"], ["holds a run", "all studies"]),
    "a study in a run": (nothing, ["--experiment=warmup"], ["not a config of --experiment=warmup"]),
    "a sweep in a run": (
        lambda folder: put(
            folder.parent / "s.py",
            "from jaxlm.core.sweep import axis\ndef get_sweep(): return axis('optim.b1', 0.8)",
        ),
        ["--sweep=FOLDER/../s.py"],
        ["--workdir", "holds a run"],
    ),
    "sample that reads a flag of another": (
        nothing,
        ["--job=sample", "--output=json"],
        ["--output=json", "--job=evaluate"],
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
    flags = [flag.replace("FOLDER", str(folder)) for flag in flags]
    assert_refused(launch(*flags, f"--workdir={folder}"), fragments)
    left = snapshot(folder)
    left.pop("lock", None), before.pop("lock", None)  # of the lock the empty file may stay
    assert left == before


SWEEPS = {
    "nothing": ("x = 1", ["get_sweep"]),
    "a number": ("def get_sweep(): return 3", ["list of points"]),
    "no points": ("def get_sweep(): return []", ["no points"]),
    "tuples": ("def get_sweep(): return [('seed', 1)]", ["list of points"]),
    "a number for a name": ("def get_sweep(): return [{1: 2}]", ["list of points"]),
    "no such field": ("def get_sweep(): return axis('sed', 1, 2)", ["point 0", "'seed'"]),
    "a list for a number": ("def get_sweep(): return [{'seed': [1]}]", ["point 0", "expected int"]),
    "an object": ("def get_sweep(): return [{'seed': object()}]", ["point 0", "expected int"]),
    "not a number": (
        "def get_sweep(): return axis('optim.peak_lr', float('nan'))",
        ["point 0", "expected float"],
    ),
    "a value twice": ("def get_sweep(): return axis('seed', 1, 1)", ["seed", "twice"]),
    "a mesh": ("def get_sweep(): return axis('mesh.data', 1)", ["point 0", "mesh"]),
    "no end": ("def get_sweep(): return get_sweep()", ["RecursionError"]),
    "an exit": ("def get_sweep(): raise SystemExit(4)", ["SystemExit"]),
    "another text": ("def get_sweep(): return axis('data.path', 'nowhere')", ["nowhere"]),
    "rollback": ("def get_sweep(): return axis('train.on_nonfinite', 'rollback')", ["rollback"]),
    "spikes": ("def get_sweep(): return axis('train.spike_sigmas', 5.0)", ["spike_sigmas", "skip"]),
    "a tracker": ("def get_sweep(): return axis('train.trackers', ('wandb',))", ["trackers"]),
    "a profile": ("def get_sweep(): return axis('train.profile_steps', '0:8')", ["profile_steps"]),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_that_cannot_be_used(launch, config, tmp_path, name):
    body, fragments = SWEEPS[name]
    path = put(tmp_path / "s.py", f"from jaxlm.core.sweep import axis\n{body}\n")
    before = snapshot(tmp_path)
    outcome = launch(config, f"--sweep={path}", f"--workdir={tmp_path}/new")
    assert_refused(outcome, fragments)
    assert snapshot(tmp_path) == before


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
        out, err = process.communicate(timeout=TIMEOUT_S)
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
