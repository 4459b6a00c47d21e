"""Level 1: text to token ids and back.

    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=8192), texts)
    ids = tokenizer.encode("to be")          # int32 [n]
    tokenizer.decode(ids)                    # "to be"
    save_tokenizer(tokenizer, "tokenizer.json")

Characters, bytes and byte-pair encoding share one `Tokenizer`; a kind is a function that makes one.
"""

from jaxlm.tokenizers.bpe import bpe_tokenizer
from jaxlm.tokenizers.bytes import byte_tokenizer
from jaxlm.tokenizers.characters import character_tokenizer
from jaxlm.tokenizers.config import TokenizerConfig
from jaxlm.tokenizers.gpt2_files import read_gpt2_files, write_gpt2_files
from jaxlm.tokenizers.saved import load_tokenizer, save_tokenizer, tokenizer_from_json
from jaxlm.tokenizers.tiktoken_file import read_tiktoken_ranks, write_tiktoken_ranks
from jaxlm.tokenizers.tokenizer import Tokenizer
from jaxlm.tokenizers.train import train_tokenizer

__all__ = [
    "Tokenizer",
    "TokenizerConfig",
    "bpe_tokenizer",
    "byte_tokenizer",
    "character_tokenizer",
    "load_tokenizer",
    "read_gpt2_files",
    "read_tiktoken_ranks",
    "save_tokenizer",
    "tokenizer_from_json",
    "train_tokenizer",
    "write_gpt2_files",
    "write_tiktoken_ranks",
]
