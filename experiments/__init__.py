"""Studies: each asks a question about language models and answers it with intervals and figures.

A study is a package `experiments/<name>/`, and a line in STUDIES below. The shortest to copy is
`ablations`: variants of a model at rates of their own, over seeds. `__init__.py` needs no JAX, so
that figures, tables and verdicts can be made again from `results.json` alone, anywhere:

  QUESTION: one sentence.
  Config: a frozen dataclass of plain values; `scale` is small, default or full.
  SCALES: {"small": {field: value}, "full": {...}}, what a scale sets unless it is given.
  cells(cfg) -> list of dicts of plain values: the parts that are run, and kept, one by one. A cell
    holds everything that its rows are a function of.
  claims(results) -> list of Claim. plot(results) -> list of Figure.
  tables(results) -> list of Table.

Its `run.py` holds what needs JAX:

  run_cell(cell) -> list of Row, a pure function: no clock, no files but those of the texts.
  PROGRAMS: names of the functions whose compiled programs are counted (default: the population).
  resolve(cfg) -> cfg, where there is something to find and fix before the start (a text's hash).
  measure(cfg) -> list of dicts, where a claim is about time; runs after the cells, kept apart.
"""

STUDIES = {
    "char_models": "what gates, convolutions and attention buy a character model of one size",
    "initialisation": "what initial weights and batch norm decide before the first step",
    "copy_task": "how transformers learn to copy, and how far beyond their training lengths",
    "lora_rank": "which LoRA rank, in which matrices, carries a model to another domain",
    "domain_shift": "what fine-tuning on another domain costs on the old one, and what keeps it",
    "warmup": "which learning-rate schedule needs how much warmup, before pre-norm and post-norm",
    "ablations": "which parts of a small decoder its loss depends on",
    "tokenizer": "how large a vocabulary is worth it, trained on which text and which bytes",
    "accumulation": "what a batch in parts must divide by, and what the mean of means costs",
    "classifier": "what class weights, pretraining and a teacher do for a small classifier",
    "heads": "what many attention heads buy at equal width, and what it costs to lose one",
    "positions": "what each kind of position buys, and how far beyond its training it goes",
    "digits": "how many images a transformer over patches needs, beside a convolution",
    "grad_norm_depth": "how gradients fare in deep transformers, by residuals, norms and scales",
}
