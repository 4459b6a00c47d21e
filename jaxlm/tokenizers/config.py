"""Which tokenizer a run uses."""

import dataclasses
from typing import Literal

from jaxlm.core.config import check_choices


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer to train on the corpus, or one to read from a file.

    Attributes:
      kind: what an id stands for.
      vocab_size: bpe only; the total, 256 bytes and the special tokens included.
      unknown: characters only; what a character that training never saw becomes.
      pattern: bpe only; how text is cut into pre-tokens, which merges never cross.
      special_tokens: strings that are always one id and take part in no merge.
      path: a saved tokenizer, ranks of tiktoken (the name ends in .tiktoken), or a folder with a
        Hugging Face tokenizer.json or with vocab.json and merges.txt; nothing is trained, and what
        is set above must agree with it.
    """

    kind: Literal["characters", "bytes", "bpe"] = "characters"
    vocab_size: int | None = None
    unknown: Literal["error", "unk"] = "error"
    pattern: Literal["gpt2", "cl100k", "llama3", "qwen2", "smollm", "whitespace", "none"] = "gpt2"
    special_tokens: tuple[str, ...] = ()
    path: str | None = None

    def __post_init__(self):
        check_choices(self)
        specials = list(self.special_tokens)
        if "" in specials:
            raise ValueError("special_tokens: a special token cannot be empty")
        repeated = sorted({s for s in specials if specials.count(s) > 1})
        if repeated:
            raise ValueError(f"special_tokens: {repeated[0]!r} is listed more than once")
        if self.unknown == "unk" and self.kind != "characters":
            raise ValueError(f"unknown=unk needs kind=characters; kind={self.kind} knows all text")
        if self.unknown == "unk" and "<unk>" in specials:
            raise ValueError("special_tokens: unknown=unk already adds '<unk>'")
        if self.path == "":
            raise ValueError("path: expected a file name or none, got an empty text")
        if self.kind != "bpe" and self.vocab_size is not None:
            raise ValueError(
                f"vocab_size={self.vocab_size} needs kind=bpe; kind={self.kind} takes its size "
                "from the text"
            )
        if self.kind == "bpe" and self.vocab_size is None and self.path is None:
            raise ValueError("kind=bpe needs vocab_size (to train one) or path (to read one)")
        if self.vocab_size is not None and self.vocab_size < 256 + len(specials):
            raise ValueError(
                f"vocab_size={self.vocab_size} is below {256 + len(specials)}: 256 bytes and "
                f"{len(specials)} special_tokens"
            )
