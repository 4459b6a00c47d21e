"""--job=explain on a run, and what it refuses."""

import numpy as np
import pytest
from job_runs import snapshot

from jaxlm.jobs.explain import MOST_WEIGHTS
from jaxlm.jobs.setup import open_run


def test_it_writes_a_page_with_the_run_s_own_loss(launch, finished, tmp_path):
    before = snapshot(finished)
    page = tmp_path / "page.html"
    prompt = "the cat sat on a mat."
    args = [f"--workdir={finished}", f"--prompt={prompt}", f"--target={page}"]
    outcome = launch("--job=explain", *args[:2], f"--target={page}")
    assert outcome.code == 0, outcome.err
    assert f"page      {page}" in outcome.out
    run = open_run(finished)
    ids = run.tokenizer.encode(prompt)
    logits = np.asarray(run.model.forward(run.params, ids[None]))[0].astype(np.float64)
    nll = np.log(np.exp(logits).sum(-1))[:-1] - logits[np.arange(len(ids) - 1), ids[1:]]
    assert f"loss      {nll.mean():.4f} nats/token over {len(ids) - 1} tokens" in outcome.out
    assert f"{nll.mean():.3f} nats/token" in page.read_text()
    assert snapshot(finished) == before


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--workdir={run}"], "--prompt: is not given; expected a text of 2 to"),
        (
            ["--workdir={run}", "--prompt=a"],
            "--prompt: has 1 tokens; expected a text of 2 to",
        ),
        (
            ["--workdir={run}", "--prompt=" + "the cat " * 600],
            "; expected a text of 2 to {most} tokens",
        ),
        (["--workdir={run}", "--prompt=ÄÄÄ"], "--prompt: "),
        (["--prompt=the cat"], "--job=explain needs --workdir"),
        (["--workdir={run}", "--prompt=the", "--target={run}"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line(args, part, launch, finished):
    outcome = launch("--job=explain", *(arg.format(run=finished) for arg in args))
    model = open_run(finished).cfg.model
    most = int((MOST_WEIGHTS / model.num_layers / model.num_heads) ** 0.5)
    assert outcome.code == 2 and part.format(most=most) in outcome.err, outcome.err
    assert outcome.err.count("\n") == 1
