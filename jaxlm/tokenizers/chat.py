"""Conversations as ids, by the chat template that a model's file brings along.

A template is a program in a file of others: it runs in jinja2's sandbox, on text alone. What people
write never becomes a control token; only the template writes those.

Source of what a template may use: transformers 5, utils/chat_template_utils.py.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers.pieces import special_matcher, split_specials
from jaxlm.tokenizers.tokenizer import Tokenizer, require_unicode

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
PLAIN_NAMES = {USER: "User:", ASSISTANT: "Assistant:"}  # where a model has no template
END_OF_TEXT = "<|endoftext|>"


class Message(NamedTuple):
    """role: SYSTEM, USER or ASSISTANT. content: text, or the ids of an answer as they were made."""

    role: str
    content: str | tuple[int, ...]


class ChatFormat(NamedTuple):
    """How a model is talked to.

    encode: messages -> int32 [n], up to where the next answer begins; ConfigError where a message
      holds what the tokenizer or the template does not take.
    stop_ids: an answer ends before one of them. stop_text: and before this text; None: there is
      none.
    """

    encode: Callable[[Sequence[Message]], np.ndarray]
    stop_ids: tuple[int, ...]
    stop_text: str | None


def chat_format(
    tokenizer: Tokenizer, usage: Mapping[str, Any], strftime_now: Callable[[str], str]
) -> ChatFormat:
    """The format of a model; without a template, lines that begin with who speaks.

    Args:
      usage: its "chat_template" and "bos_token", "eos_token", ..., as far as there are any.
      strftime_now: the date in a format, for templates that write it.
    Raises:
      ConfigError: a template that is no jinja2, or jinja2 is not installed.
    """
    matcher = special_matcher(tokenizer.special_ids)
    names = list(tokenizer.special_ids)
    template = usage.get("chat_template")
    write = _plain
    if template is not None:
        named = {key: text for key, text in usage.items() if key.endswith("_token")}
        write = _compile(template, named, strftime_now)

    def written(messages: Sequence[Message], answer_next: bool) -> str:
        texts = [(m.role, _quoted(_texts(m, tokenizer), matcher, names)) for m in messages]
        return write(texts, answer_next)

    def encode(messages: Sequence[Message]) -> np.ndarray:
        parts = [np.zeros(0, np.int32)]
        for piece, is_special in split_specials(written(messages, True), matcher):
            if is_special:
                parts.append(np.array([tokenizer.special_ids[piece]], np.int32))
            else:
                parts.append(tokenizer.encode_ordinary(_unquoted(piece, names)))
        return np.concatenate(parts)

    ends = {usage.get("eos_token"), END_OF_TEXT} & tokenizer.special_ids.keys()
    if template is None:
        return ChatFormat(encode, _ids(tokenizer, ends), f"\n{PLAIN_NAMES[USER]}")
    return ChatFormat(encode, _ids(tokenizer, ends | _end_of_turn(written, matcher)), None)


def fit(
    messages: Sequence[Message], encode: Callable[[Sequence[Message]], np.ndarray], limit: int
) -> tuple[list[Message], np.ndarray]:
    """The messages without as many of the oldest turns as leave at most `limit` ids, and the ids.

    A turn is what a user wrote with its answer. The system message and the last turn always stay.

    Raises:
      ConfigError: these alone are longer.
    """
    first = 1 if messages[0].role == SYSTEM else 0
    starts = [i for i, message in enumerate(messages) if message.role == USER]
    for start in starts:
        kept = [*messages[:first], *messages[start:]]
        ids = encode(kept)
        if len(ids) <= limit:
            return kept, ids
    raise ConfigError(
        f"this message takes {len(ids)} tokens with what belongs to it, and the context has room "
        f"for {limit} beside an answer"
    )


def _texts(message: Message, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """(text, whether it is a control token) pieces of a message."""
    if isinstance(message.content, str):
        require_unicode(message.content)
        return [(message.content, False)]
    controls = {id: text for text, id in tokenizer.special_ids.items()}
    pieces: list[tuple[str, bool]] = []
    run: list[int] = []
    for id in message.content:
        if id in controls:
            pieces += [(tokenizer.decode(run), False), (controls[id], True)]
            run = []
        else:
            run.append(id)
    return [*pieces, (tokenizer.decode(run), False)]


# Special tokens that are mere text go through the template as two lone surrogates, which no text
# can hold: the template may trim and cut as it likes, and never sees or makes one of them.


def _quoted(
    pieces: Iterable[tuple[str, bool]], matcher: re.Pattern | None, names: list[str]
) -> str:
    def quote(match: re.Match) -> str:
        high, low = divmod(names.index(match.group()), 1024)
        return chr(0xD800 + high) + chr(0xDC00 + low)

    return "".join(
        text if is_control or matcher is None else matcher.sub(quote, text)
        for text, is_control in pieces
    )


def _unquoted(text: str, names: list[str]) -> str:
    def original(match: re.Match) -> str:
        high, low = (ord(c) % 1024 for c in match.group())
        return names[1024 * high + low]

    return re.sub("[\ud800-\udbff][\udc00-\udfff]", original, text)


def _plain(messages: Sequence[tuple[str, str]], answer_next: bool) -> str:
    lines = []
    for role, text in messages:
        lines.append(f"{text}\n" if role == SYSTEM else f"{PLAIN_NAMES[role]} {text.strip()}")
    return "\n".join([*lines, *[PLAIN_NAMES[ASSISTANT]][:answer_next]])


def _compile(
    template: str, named: Mapping[str, Any], strftime_now: Callable[[str], str]
) -> Callable[[Sequence[tuple[str, str]], bool], str]:
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise ConfigError(
            "the chat template needs the package jinja2: pip install 'jaxlm[chat]' (or jinja2)"
        ) from None

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    environment.globals |= {"raise_exception": refuse, "strftime_now": strftime_now}
    try:
        compiled = environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"the model's chat template, line {error.lineno}: {error}") from None

    def write(messages: Sequence[tuple[str, str]], answer_next: bool) -> str:
        values = [{"role": role, "content": text} for role, text in messages]
        try:
            return compiled.render(
                **named,
                messages=values,
                add_generation_prompt=answer_next,
                tools=None,
                documents=None,
            )
        except Exception as error:  # whatever a program of others comes to
            what = " ".join(f"{error}".split()) or type(error).__name__
            raise ConfigError(f"the model's chat template refuses: {what}") from None

    return write


def _end_of_turn(
    written: Callable[[Sequence[Message], bool], str], matcher: re.Pattern | None
) -> set[str]:
    """The special token that the template writes behind an answer, if it does."""
    answer = "jaxlm-answer"
    try:
        text = written([Message(USER, "question"), Message(ASSISTANT, answer)], False)
    except ConfigError:
        return set()
    after = text.rpartition(answer)[2].lstrip()
    found = matcher.match(after) if matcher else None
    return {found.group()} if found else set()


def _ids(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[int, ...]:
    return tuple(sorted(tokenizer.special_ids[text] for text in texts))
