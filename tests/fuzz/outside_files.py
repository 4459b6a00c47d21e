"""Valid files of every kind that jaxlm reads from outside, and the functions that read them.

`KINDS[name]` is (make, read): `make(folder)` writes valid files, `read(folder)` reads them. What a
writer seals with a hash is sealed again by `RESEAL`, so that a mutation gets past the hash.
"""

import hashlib
import json
import pathlib

import jax
import numpy as np
import pytest

from jaxlm.core import trees
from jaxlm.core.results import Results, Row
from jaxlm.data.config import DataConfig
from jaxlm.data.corpus import open_corpus
from jaxlm.data.token_file import HEADER_BYTES, MAGIC, build_token_file, open_token_file
from jaxlm.interop import gguf_files, peft_files, pretrained, safetensors_files
from jaxlm.io import checkpoints, metric_log, workdir
from jaxlm.io.results import load_results, save_results
from jaxlm.jobs.compare import read_run
from jaxlm.jobs.sources import config_of_source
from jaxlm.models import lora
from jaxlm.models.lora import LoraConfig
from jaxlm.models.transformer import TransformerConfig, param_specs
from jaxlm.reports.compare import comparison_page
from jaxlm.reports.run_report import write_run_report
from jaxlm.tokenizers import hugging_face, load_tokenizer, save_tokenizer
from jaxlm.tokenizers.bpe import bpe_tokenizer
from jaxlm.tokenizers.gpt2_files import read_gpt2_files, write_gpt2_files
from jaxlm.tokenizers.tiktoken_file import read_tiktoken_ranks, write_tiktoken_ranks
from jaxlm.train import run_files
from jaxlm.train.config import RunConfig

TOKENIZER = bpe_tokenizer([(b"t", b"h"), (b"th", b"e"), (b" ", b"the")], special_tokens=["<|end|>"])
MODEL = TransformerConfig(
    vocab_size=TOKENIZER.vocab_size,
    context_length=8,
    num_layers=2,
    d_model=8,
    num_heads=2,
    rope_layout="half",
    norm_eps=1e-6,
)
ADAPTERS = LoraConfig(rank=2, targets=("wq", "w_up"))
WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}
STATE = {"params": {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3)}, "step": np.int32(3)}


def random_params(specs: dict) -> dict:
    rng = np.random.default_rng(0)
    return trees.map_with_path(lambda _, s: rng.normal(size=s.shape).astype(np.float32), specs)


def make_token_file(folder: pathlib.Path) -> None:
    (folder / "text").write_text("the cat the dog <|end|")
    corpus = open_corpus(DataConfig(path=str(folder / "text")))
    build_token_file(
        folder / "x.tokens",
        corpus,
        lambda documents: map(TOKENIZER.encode_iterable, documents),
        vocab_size=TOKENIZER.vocab_size,
        tokenizer_fingerprint=TOKENIZER.fingerprint,
    )
    (folder / "text").unlink()


def read_token_file(folder: pathlib.Path) -> None:
    tokens = open_token_file(folder / "x.tokens", TOKENIZER.fingerprint)
    assert len(tokens[:]) == len(tokens)


def make_model(folder: pathlib.Path) -> None:
    pretrained.save_weights(folder, MODEL, random_params(param_specs(MODEL)))
    usage = {"chat_template": "{{ messages }}", "eos_token": "<|end|>"}
    hugging_face.write_tokenizer(folder, TOKENIZER, usage)


def read_model(folder: pathlib.Path) -> None:
    config_of_source(str(folder))
    pretrained.load_usage(folder)
    pretrained.load_tokenizer(folder).encode("the cat")
    pretrained.load_weights(folder)


def make_shards(folder: pathlib.Path) -> None:
    safetensors_files.write_folder(folder, WEIGHTS.items(), shard_bytes=24)


def read_shards(folder: pathlib.Path) -> None:
    for tensor in safetensors_files.open_folder(folder).values():
        assert tensor.read().shape == tensor.shape


def make_gguf(folder: pathlib.Path) -> None:
    gguf = pytest.importorskip("gguf")
    sizes = MODEL.sizes
    writer = gguf.GGUFWriter(folder / "x.gguf", "llama")
    for key, value in {
        "context_length": MODEL.context_length,
        "block_count": sizes.N,
        "embedding_length": sizes.D,
        "feed_forward_length": sizes.F,
        "attention.head_count": sizes.H,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    vocab = json.loads(json.dumps(hugging_face.tokenizer_json(TOKENIZER)))["model"]
    writer.add_token_list([name.encode() for name in vocab["vocab"]])
    writer.add_token_types([1] * (len(vocab["vocab"]) - 1) + [3])
    writer.add_token_merges([" ".join(merge) for merge in vocab["merges"]])
    writer.add_chat_template("{{ messages }}")
    specs = param_specs(MODEL)
    flat = trees.flatten(random_params(specs))
    for path, spec in trees.flatten(specs).items():
        tensor = gguf_files.TENSORS[path]
        for number in range(sizes.N if spec.stacked else 1):
            layer = flat[path][number] if spec.stacked else flat[path]
            stored = gguf_files.TENSORS[path]
            from jaxlm.interop.tensors import to_stored

            array = np.ascontiguousarray(to_stored(layer, stored, spec))
            writer.add_tensor(tensor.name.format(number), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(folder: pathlib.Path) -> None:
    path = folder / "x.gguf"
    config_of_source(str(path))
    pretrained.load_usage(path)
    pretrained.load_tokenizer(path).encode("the cat")
    pretrained.load_weights(path)


def make_adapter(folder: pathlib.Path) -> None:
    adapters = random_params(lora.adapter_specs(param_specs(MODEL), ADAPTERS))
    peft_files.save_adapters(folder, MODEL, ADAPTERS, adapters, "base")


def make_checkpoint(folder: pathlib.Path) -> None:
    with checkpoints.Checkpointer(folder, keep_last=2) as writer:
        for step in (1, 3):
            writer.save(step, STATE, metrics={"val_loss": 2.0}, extra={"corpus": "x"})


def read_checkpoint(folder: pathlib.Path) -> None:
    checkpoints.best(folder, report=lambda line: None)
    found = checkpoints.newest_good(folder, report=lambda line: None)
    if found is not None:
        target = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), STATE)
        restored = checkpoints.restore(found[0], target)
        assert restored["params"]["w"].shape == (2, 3)


def make_run(folder: pathlib.Path) -> None:
    cfg = RunConfig(model=MODEL)
    workdir.save_config(folder, cfg)
    save_tokenizer(TOKENIZER, folder / "tokenizer.json")
    for name, records in {
        "metrics.jsonl": [
            {"step": 1, "split": "train", "loss": 2.0, "bits_per_byte": 3.0},
            {"step": 1, "split": "validation", "loss": None, "bits_per_byte": 3.0},
        ],
        "samples.jsonl": [{"step": 1, "temperature": 0.8, "prompt": "a", "text": "b"}],
        "timings.jsonl": [{"event": "start", "step": 0}, {"step": 1, "tokens_per_s": 5.0}],
    }.items():
        with metric_log.MetricLog(folder / name) as log:
            for record in records:
                log.append(record)
    for name, content in {
        "summary.json": {"step": 1, "val_loss": 2.0, "num_params": 3, "tokens_per_s": 5.0},
        "schedule.json": [[1, 0.1], [2, 0.2]],
        "provenance.json": {"device_kind": "cpu", "packages": {"jax": "1"}},
    }.items():
        workdir.save_json(folder / name, content)


def read_run_files(folder: pathlib.Path) -> None:
    """As a launch, a comparison, and the report, which no file of a run may keep from being."""
    write_run_report(folder)
    config_of_source(str(folder))
    for name in ("metrics.jsonl", "samples.jsonl"):
        metric_log.truncate(folder / name, lambda r: r["step"] <= 1, run_files.OF_A_STEP)
    comparison_page([read_run(folder, "run")] * 2)


def make_results(folder: pathlib.Path) -> None:
    rows = tuple(Row({"rank": r}, 0, None, "loss", 1.5, "nats") for r in (1, 2))
    save_results(folder, Results(study="lora_rank", config={"scale": "small"}, rows=rows))
    (folder / "results.csv").unlink()


def make_corpus(folder: pathlib.Path) -> None:
    (folder / "a.txt").write_text("caf\u00e9 the cat")
    (folder / "b.txt").write_text("\ufeffthe dog")


def read_corpus(folder: pathlib.Path) -> None:
    for document in open_corpus(DataConfig(path=str(folder))).documents():
        "".join(document)


def make_gpt2(folder: pathlib.Path) -> None:
    write_gpt2_files(TOKENIZER, folder / "vocab.json", folder / "merges.txt")


def read_gpt2(folder: pathlib.Path) -> None:
    read_gpt2_files(folder / "vocab.json", folder / "merges.txt", special_tokens=["<|end|>"])


KINDS = {
    "token file": (make_token_file, read_token_file),
    "tokenizer.json": (
        lambda folder: save_tokenizer(TOKENIZER, folder / "tokenizer.json"),
        lambda folder: load_tokenizer(folder / "tokenizer.json").encode("the cat"),
    ),
    "tiktoken": (
        lambda folder: write_tiktoken_ranks(TOKENIZER, folder / "x.tiktoken"),
        lambda folder: read_tiktoken_ranks(folder / "x.tiktoken").encode("the cat"),
    ),
    "GPT-2 tokenizer": (make_gpt2, read_gpt2),
    "Hugging Face model": (make_model, read_model),
    "safetensors shards": (make_shards, read_shards),
    "GGUF": (make_gguf, read_gguf),
    "PEFT": (make_adapter, lambda folder: peft_files.load_adapters(folder, MODEL)),
    "checkpoint": (make_checkpoint, read_checkpoint),
    "run": (make_run, read_run_files),
    "results": (make_results, load_results),
    "corpus": (make_corpus, read_corpus),
}


def reseal_token_file(data: bytes) -> bytes:
    values = json.loads(data[len(MAGIC) : HEADER_BYTES])
    digest = hashlib.sha256(data[HEADER_BYTES:])
    digest.update(json.dumps(values | {"sha256": ""}, sort_keys=True).encode())
    text = json.dumps(values | {"sha256": digest.hexdigest()}).encode()
    return MAGIC + text.ljust(HEADER_BYTES - len(MAGIC)) + data[HEADER_BYTES:]


def reseal_manifest(data: bytes) -> bytes:
    values = json.loads(data)
    return json.dumps(values | {"sha256": checkpoints._manifest_hash(values)}).encode()


def reseal_tokenizer(data: bytes) -> bytes:
    values = json.loads(data)
    del values["sha256"], values["format"]
    text = json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    sealed = {"format": 1, "sha256": hashlib.sha256(text.encode()).hexdigest(), **values}
    return json.dumps(sealed).encode()


RESEAL = {
    "x.tokens": reseal_token_file,
    "manifest.json": reseal_manifest,
    "tokenizer.json": reseal_tokenizer,
}
