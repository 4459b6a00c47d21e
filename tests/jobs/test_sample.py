"""The ways in which --job=sample writes a text."""

import functools
import re

import pytest

from jaxlm.tokenizers import load_tokenizer


def written(launch, folder, *flags):
    """What --job=sample prints after the prompt."""
    outcome = launch("--job=sample", f"--workdir={folder}", "--prompt=the", *flags)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out.removeprefix("the").removesuffix("\n")


def test_samples_with_a_bias_a_penalty_and_an_end(launch, finished):
    text = functools.partial(written, launch, finished, "--num_tokens=60", "--temperature=0")
    tokenizer = load_tokenizer(finished / "tokenizer.json")
    plain = text()
    assert len(plain) == 60 and text("--repetition_penalty=1") == plain
    assert len(set(text("--repetition_penalty=100"))) > len(set(plain))
    [banned] = tokenizer.encode(plain[0])
    assert plain[0] not in text(f"--logit_bias={banned}:-inf")
    assert text(f"--stop={plain[5]}") == plain[: plain.index(plain[5])]


def test_a_beam_search_of_width_one_is_greedy_and_a_wider_one_finds_likelier_texts(
    launch, finished
):
    text = functools.partial(written, launch, finished, "--num_tokens=20")
    assert text("--beam_width=1") == text("--temperature=0")
    four = text("--beam_width=4", "--num_samples=4")
    scores = [float(score) for score in re.findall(r"--- sample \d, score (\S+)", four)]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True)
    one = text("--beam_width=4", "--num_samples=1")
    assert f"the{one}\n" in four


def test_a_draft_changes_the_speed_and_not_the_greedy_text(launch, config, finished, tmp_path):
    greedy = ("--num_tokens=30", "--temperature=0")
    want = written(launch, finished, *greedy)
    small = ["--config.train.num_steps=8", "--config.train.save_every=8", "--config.model.d_ff=8"]
    assert launch(config, *small, f"--workdir={tmp_path}/draft").code == 0
    sample = ("--job=sample", f"--workdir={finished}", "--prompt=the", *greedy)
    outcome = launch(*sample, f"--draft={tmp_path}/draft", "--draft_tokens=3")
    assert outcome.code == 0 and outcome.out == f"the{want}\n"
    kept, per_call = re.fullmatch(
        r"(\d+)% of the drafted tokens kept, (\S+) tokens for each call of the model\n", outcome.err
    ).groups()
    assert 0 <= int(kept) < 100 and 1 <= float(per_call) < 4
    same = launch(*sample, f"--draft={finished}")
    assert same.err.startswith("100% of the drafted tokens kept, ")


def test_a_draft_with_other_ids_is_refused(launch, config, finished, tmp_path):
    other = ["--config.train.num_steps=8", "--config.train.save_every=8"]
    other += ["--config.tokenizer.kind=bytes", f"--workdir={tmp_path}/bytes"]
    assert launch(config, *other).code == 0
    outcome = launch("--job=sample", f"--workdir={finished}", f"--draft={tmp_path}/bytes")
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "another tokenizer (256 ids)" in outcome.err and "same ids" in outcome.err


def test_texts_that_must_match(launch, finished, tmp_path):
    pytest.importorskip("llguidance")
    three = written(launch, finished, "--regex=( cat| dog){2}s", "--num_samples=3", "--seed=1")
    texts = re.findall(r"--- sample \d\nthe(.*)", three)
    assert len(texts) == 3 and all(re.fullmatch("( cat| dog){2}s", text) for text in texts)
    sample = ("--job=sample", f"--workdir={finished}", "--prompt=the")
    outcome = launch(*sample, "--regex=[a-z]{30}", "--num_tokens=20")
    assert outcome.code == 1 and len(outcome.out) == len("the") + 20 + 1
    assert outcome.err == "1 of 1 broken off before it matched\n"
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["cat", {}]}')  # the characters of the run's text have no quotes
    outcome = launch(*sample, f"--json_schema={schema}")
    assert outcome.code == 2 and "no token of this vocabulary" in outcome.err
    for flags, said in (
        (["--regex=(a"], "regex: unclosed group"),
        ([f"--json_schema={tmp_path}/none.json"], "none.json: No such file or directory\n"),
        (["--regex=a", f"--json_schema={schema}"], "--regex and --json_schema"),
    ):
        outcome = launch(*sample, *flags)
        assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1
