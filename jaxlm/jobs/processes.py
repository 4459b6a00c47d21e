"""Long texts by all cores: pre-tokens counted and documents encoded in processes, with the results
of one process whatever their number.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers import Tokenizer, pretokens, tokenizer_from_json

LONG_TEXT = 1 << 25  # bytes: with less, starting processes takes as long as they save
BATCH = 1 << 21  # characters handed over at once


def num_cores() -> int:
    """Those that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(usable(0)) if usable else os.cpu_count() or 1


def map_in_order(
    make: Callable[..., Callable[[Any], Any]],
    arguments: tuple,
    items: Iterable[Any],
    num_processes: int,
) -> Iterator[Any]:
    """`make(*arguments)`, made once in each of new processes, of every item, in order.

    Items are read here, one for each process ahead of the results, and no process is started
    before there is an item for it. A process ends when this generator does, or this process.

    Raises:
      ConfigError: as the function does, or a process ended before its time.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    waiting: deque[Connection] = deque()  # longest at work first
    with contextlib.ExitStack() as stack:
        for num_started, item in enumerate(items):
            if num_started < num_processes:
                connection, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(theirs, make, arguments), daemon=True
                )
                process.start()
                theirs.close()
                stack.callback(process.join)
                stack.callback(connection.close)  # which ends it
                connection.send(item)
                waiting.append(connection)
                continue
            connection = waiting.popleft()
            result = _result(connection)
            connection.send(item)
            waiting.append(connection)
            yield result
        while waiting:
            yield _result(waiting.popleft())


def _result(connection: Connection) -> Any:
    try:
        result = connection.recv()
    except (EOFError, ConnectionResetError):
        raise ConfigError(
            "a process at work on the text was ended; if memory ran out, allow fewer cores, as "
            "with: taskset -c 0 python launch.py ..."
        ) from None
    if isinstance(result, ConfigError):
        raise result
    return result


def _serve(connection: Connection, make: Callable[..., Callable], arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the process that started it
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        function = make(*arguments)
        while True:
            item = connection.recv()
            try:
                result = function(item)
            except ConfigError as error:
                result = error
            connection.send(result)


def count_pretokens(
    pattern: str, texts: Iterable[str], num_processes: int | None = None
) -> Counter[str]:
    """`pretokens.count_pretokens`, by all cores unless told how many."""
    batches = _batches(((text, len(text)) for text in texts), BATCH)
    work = (partial, (pretokens.count_pretokens, pattern))
    counts: Counter[str] = Counter()
    for counted in map_in_order(*work, batches, num_processes or num_cores()):
        counts.update(counted)
    return counts


def encode_documents(
    tokenizer: Tokenizer, documents: Iterable[Iterable[str]], num_processes: int | None = None
) -> Iterator[Iterator[np.ndarray]]:
    """`map(tokenizer.encode_iterable, documents)`, by all cores unless told how many.

    The ids of a document are to be read before the next one is asked for.
    """
    pieces = (
        ((number, piece), len(piece))
        for number, document in enumerate(documents)
        for piece in tokenizer.ordinary_pieces(document)
    )
    work = (_encoder, (tokenizer.to_json(),))
    encoded = map_in_order(*work, _batches(pieces, BATCH), num_processes or num_cores())
    parts = itertools.chain.from_iterable(encoded)
    for _, document in itertools.groupby(parts, key=lambda part: part[0]):
        yield (ids for _, ids in document)


def _encoder(saved: str) -> Callable[[list[tuple[int, str]]], list[tuple[int, np.ndarray]]]:
    encode = tokenizer_from_json(saved).encode_ordinary
    return lambda pieces: [(number, encode(piece)) for number, piece in pieces]


def _batches(sized: Iterable[tuple[Any, int]], size: int) -> Iterator[list[Any]]:
    """(value, size) pairs as lists of values whose sizes add up to `size` or more."""
    batch, total = [], 0
    for value, n in sized:
        batch.append(value)
        total += n
        if total >= size:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
