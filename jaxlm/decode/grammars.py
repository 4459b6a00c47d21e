"""Which tokens may follow in a text that must match a regular expression or a JSON schema.

The matching is llguidance's (`pip install -e '.[constrained]'`), told the bytes of each token.
"""

import json
from typing import Any

import numpy as np

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers import Tokenizer

# One way to write a JSON text, that of Python's json.dumps: free whitespace could go on for ever.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Matcher:
    """One text in the making, changed by `read`: what may follow, and whether it may end here."""

    def __init__(self, state: Any, num_ids: int, unwritten: np.ndarray):
        self._state, self._num_ids, self._unwritten = state, num_ids, unwritten

    def allowed(self) -> np.ndarray:
        """bool[V], tokens after which the text can still come to match; none where it must end."""
        if self._state.is_stopped():
            return np.zeros(self._num_ids, bool)
        mask = np.frombuffer(self._state.compute_bitmask(), np.uint8)
        mask = np.unpackbits(mask, bitorder="little")[: self._num_ids].astype(bool)
        return mask & ~self._unwritten

    def may_end(self) -> bool:
        """Whether the text matches as it is."""
        return self._state.is_accepting()

    def read(self, id: int) -> None:
        """Appends a token, one of `allowed`."""
        if not self._state.consume_token(int(id)):
            raise ValueError(f"token {id} may not follow: {self._state.get_error()}")

    def copy(self) -> "Matcher":
        return Matcher(self._state.deep_copy(), self._num_ids, self._unwritten)


def match_regex(pattern: str, tokenizer: Tokenizer) -> Matcher:
    """A matcher of texts that match the whole pattern, in the syntax of Rust's crate `regex`.

    Raises:
      ConfigError: the pattern is wrong, or needs look-around or backreferences, which it has not.
    """
    return _matcher(_library().LLMatcher.grammar_from_regex(pattern), tokenizer, "regex")


def match_json_schema(schema: dict[str, Any], tokenizer: Tokenizer) -> Matcher:
    """A matcher of JSON texts that a schema accepts, spaced as by json.dumps.

    Raises:
      ConfigError: it is no schema, nothing satisfies it, or it uses what llguidance has not.
    """
    try:
        grammar = _library().LLMatcher.grammar_from_json_schema(
            json.dumps(schema), overrides=JSON_STYLE
        )
    except ValueError as error:
        raise ConfigError(f"json_schema: {_one_line(str(error))}") from None
    return _matcher(grammar, tokenizer, "json_schema")


def _matcher(grammar: str, tokenizer: Tokenizer, name: str) -> Matcher:
    library, vocabulary = _library(), _Vocabulary(tokenizer)
    bytes_of_tokens = library.LLTokenizer(vocabulary)
    wrong = library.LLMatcher.validate_grammar(grammar, bytes_of_tokens)
    if wrong and not wrong.startswith("WARNING"):
        raise ConfigError(f"{name}: {_one_line(wrong)}")
    unwritten = np.zeros(tokenizer.vocab_size, bool)
    unwritten[vocabulary.special_token_ids[:-1]] = True
    state = library.LLMatcher(bytes_of_tokens, grammar, log_level=0)
    return Matcher(state, tokenizer.vocab_size, unwritten)


class _Vocabulary:
    """A tokenizer as llguidance reads one, with an id of its own, V, for the end of a text."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer):
        no_text = np.flatnonzero(tokenizer.token_bytes == 0).tolist()
        self.eos_token_id = tokenizer.vocab_size
        self.tokens = [*tokenizer.pieces, b"<end>"]
        self.special_token_ids = [*no_text, self.eos_token_id]
        self._encode = tokenizer.encode_ordinary

    def __call__(self, text: str) -> list[int]:
        """How a text that is sure to follow is written; [] where the tokenizer cannot."""
        try:
            return self._encode(text).tolist()
        except ConfigError:
            return []


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ConfigError(
            "a text that must match needs the package llguidance: pip install -e '.[constrained]'"
        ) from None
    return llguidance


def _one_line(message: str) -> str:
    """The sentence of a message of several lines that says what is wrong."""
    lines = [line.strip() for line in message.splitlines()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines)[0]
