"""The ways in which --job=sample writes a text."""

from jaxlm.tokenizers import load_tokenizer


def test_samples_with_a_bias_a_penalty_and_an_end(launch, finished):
    def text(*flags):
        flags = ("--prompt=the", "--num_tokens=60", "--temperature=0", *flags)
        outcome = launch("--job=sample", f"--workdir={finished}", *flags)
        assert (outcome.code, outcome.err) == (0, "")
        return outcome.out.removeprefix("the").removesuffix("\n")

    tokenizer = load_tokenizer(finished / "tokenizer.json")
    plain = text()
    assert len(plain) == 60 and text("--repetition_penalty=1") == plain
    assert len(set(text("--repetition_penalty=100"))) > len(set(plain))
    [banned] = tokenizer.encode(plain[0])
    assert plain[0] not in text(f"--logit_bias={banned}:-inf")
    assert text(f"--stop={plain[5]}") == plain[: plain.index(plain[5])]
