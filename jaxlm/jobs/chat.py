"""--job=chat: a conversation with a run's model, in a terminal or through a pipe."""

import codecs
import contextlib
import dataclasses
import datetime
import io
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax

from jaxlm.core.config import ConfigError
from jaxlm.core.params import count_params
from jaxlm.decode.filters import SamplingConfig
from jaxlm.decode.prompts import traced_sampling
from jaxlm.decode.stream import Streamer
from jaxlm.io import compile_cache
from jaxlm.jobs import Launch
from jaxlm.jobs.sample import weights_to_read
from jaxlm.jobs.sampling_flags import sampling_of
from jaxlm.jobs.setup import TrainedRun, check_choice, open_run, require_workdir
from jaxlm.jobs.sources import usage_of_source
from jaxlm.models import kinds
from jaxlm.models.transformer import TransformerConfig
from jaxlm.tokenizers import Tokenizer
from jaxlm.tokenizers.chat import (
    ASSISTANT,
    SYSTEM,
    USER,
    ChatFormat,
    Message,
    chat_format,
    fit,
)

COMMANDS = ("/reset", "/quit")
HELP = "/reset begins anew, /quit or Ctrl-D ends; Ctrl-C stops an answer"
# What a terminal would obey, but line feed and tab.
_CONTROLS = {n: f"\\x{n:02x}" for n in (*range(0x20), *range(0x7F, 0xA0)) if chr(n) not in "\n\t"}


def main(launch: Launch) -> int:
    flags = launch.flags
    check_choice(flags, "checkpoint", ("newest", "best"))
    sampling = sampling_of(flags)
    SamplingConfig(**{**sampling, "logit_bias": None})  # numbers out of range are refused early
    folder = require_workdir(launch, "chat")
    compile_cache.enable()
    run = open_run(folder, flags.checkpoint)
    usage = usage_of_source(str(folder))
    format = chat_format(run.tokenizer, usage, lambda f: datetime.datetime.now().strftime(f))
    context = context_of(run, usage, flags.context)
    chat = Chat(run, format, context, sampling, flags.num_tokens, flags.seed, flags.system)
    note(
        f"{folder}: {count_params(run.model.specs) / 1e6:,.1f} M parameters, a context of "
        f"{context:,} tokens, "
        + ("its own chat template" if "chat_template" in usage else "no chat template: plain lines")
    )
    if sys.stdin.isatty():
        note(HELP)
    for line in lines_of_user():
        if line in COMMANDS[:1]:
            chat.reset()
            note("a new conversation")
        elif line in COMMANDS[1:]:
            break
        elif line.startswith("/") and line[1:].isalpha():
            note(f"{line}: no such command; {HELP}")
        elif line:
            answer(chat, line)
    return 0


def context_of(run: TrainedRun, usage: dict[str, Any], given: int | None) -> int:
    """Tokens that the model can look back on: --context, else what it was made for."""
    cfg = run.cfg.model
    most = cfg.max_positions
    if most is not None and given is not None and given > most:
        raise ConfigError(f"--context={given}: the model has {most} positions")
    made_for = cfg.context_length
    if most is None:  # a run may train on shorter rows than its base
        made_for = max(made_for, usage.get("model_max_length") or 0)
    return given or made_for


class Chat:
    """A conversation: its messages, and the model that has read them."""

    def __init__(
        self,
        run: TrainedRun,
        format: ChatFormat,
        context: int,
        sampling: dict[str, Any],
        num_tokens: int,
        seed: int,
        system: str | None,
    ):
        cfg = run.cfg.model
        if isinstance(cfg, TransformerConfig) and cfg.max_positions is None:
            cfg = dataclasses.replace(cfg, context_length=context)
        model = kinds.build(cfg)  # no text grows past the context
        self.streamer = Streamer(model, weights_to_read(model, run.settled))
        self.tokenizer, self.format = run.tokenizer, format
        self.sampling = traced_sampling(model, **sampling)
        self.context, self.num_tokens = context, num_tokens
        self.key = jax.random.key(seed)
        self.start = [] if system is None else [Message(SYSTEM, system)]
        self.reset()

    def reset(self) -> None:
        self.messages = list(self.start)
        self.num_dropped, self.num_read, self.cut = 0, 0, False

    def reply(self, text: str) -> Generator[str]:
        """Yields the text that each id of the answer adds, whole characters and perhaps none.

        When it is closed before the end, what came so far stays as the answer.

        Raises:
          ConfigError: the message cannot be read; the conversation is as it was before.
        """
        asked = [*self.messages, Message(USER, text)]
        room = max(1, min(self.num_tokens, self.context // 4))
        self.messages, ids = fit(asked, self.format.encode, self.context - room)
        self.num_dropped += len(asked) - len(self.messages)
        most = min(self.num_tokens, self.context - len(ids))
        stream = self.streamer.stream(ids, self.key, num_tokens=most, sampling=self.sampling)
        made: list[int] = []
        shown: list[str] = []
        try:
            for piece in pieces_until_stop(_collected(stream, made), self.tokenizer, self.format):
                shown.append(piece)
                yield piece
        finally:
            stopped = made and made[-1] in self.format.stop_ids
            self.cut = len(made) == most and not stopped
            self.num_read = len(ids) + len(made)
            plain = self.format.stop_text is not None
            answer = "".join(shown) if plain else tuple(made[:-1] if stopped else made)
            self.messages.append(Message(ASSISTANT, answer))


def _collected(ids: Iterator[int], into: list[int]) -> Iterator[int]:
    for id in ids:
        into.append(id)
        yield id


def pieces_until_stop(
    ids: Iterator[int], tokenizer: Tokenizer, format: ChatFormat
) -> Iterator[str]:
    """The text that each id adds, up to a stop: whole characters, and no part of a stop text."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, done = "", 0
    for id in ids:
        if id in format.stop_ids:
            break
        text += decoder.decode(tokenizer.pieces[id])
        stop = format.stop_text
        if stop is None:
            sure = len(text)
        else:
            if not done:
                text = text.lstrip()
            if (end := text.find(stop)) >= 0:
                yield text[done:end]
                return
            sure = len(text) - max(n for n in range(len(stop)) if text.endswith(stop[:n]))
        yield text[done:sure]
        done = sure
    yield text[done:]


def answer(chat: Chat, text: str) -> None:
    """Shows the answer as it is made, and what it took."""
    count, started, first = 0, time.perf_counter(), 0.0
    terminal = sys.stdout.isatty()
    with interrupts() as interrupted:
        pieces = chat.reply(text)
        try:
            for piece in pieces:
                first = first or time.perf_counter() - started
                count += 1
                print(piece.translate(_CONTROLS) if terminal else piece, end="", flush=True)
                if interrupted():
                    pieces.close()
        except ConfigError as error:
            note(str(error))
            return
    print(flush=True)
    seconds = time.perf_counter() - started - first
    speed = f", then {(count - 1) / seconds:.1f} tokens/s" if count > 1 else ""
    told = [f"first token after {first:.1f} s{speed}"]
    told.append(f"{chat.num_read:,} of {chat.context:,} tokens")
    if chat.num_dropped:
        told.append(f"{chat.num_dropped} oldest messages dropped")
    if interrupted():
        told.append("stopped")
    elif chat.cut:
        told.append("cut by --num_tokens or the context")
    note("; ".join(told))


def lines_of_user() -> Iterator[str]:
    """What is typed, or comes through a pipe, a message a line."""
    if isinstance(sys.stdin, io.TextIOWrapper):  # and not what a test has put there
        sys.stdin.reconfigure(errors="replace")
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, gives `input` its editing and its history
    while True:
        try:
            yield input("\n> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            note(HELP)


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Within it the first Ctrl-C of a terminal only makes the function it gives say so."""
    came: list[int] = []

    def handle(number: int, _: Any) -> None:
        if came or not sys.stdin.isatty():
            raise KeyboardInterrupt
        came.append(number)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)


def note(text: str) -> None:
    """Something that is no part of an answer."""
    dim = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    print(text.join(dim), file=sys.stderr, flush=True)
