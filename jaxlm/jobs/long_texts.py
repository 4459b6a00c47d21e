"""Long texts by all cores: pre-tokens counted and documents encoded in processes, with the results
of one process whatever their number.
"""

import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers import Tokenizer, pretokens, tokenizer_from_json

LONG_TEXT = 1 << 25  # bytes: with less, starting processes takes as long as they save
BATCH = 1 << 22  # characters handed over at once
_ENDED = (
    "a process at work on the text was ended; if memory ran out, allow fewer cores, as with: "
    "taskset -c 0 python launch.py ..."
)
_AHEAD = 2  # items that a process holds: one at work and one that waits


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

    Items are read here, two for each process ahead of the results, and no process is started
    before there is an item for it. A process ends when this generator does, or this process.

    Raises:
      ConfigError: as the function does, or a process ended before its time.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    workers: list[Any] = []  # item n goes to worker n modulo their number
    num_items = num_results = 0
    with contextlib.ExitStack() as stack:
        for item in items:
            if num_items < num_processes:
                connection, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(theirs, make, arguments), daemon=True
                )
                process.start()
                theirs.close()
                stack.callback(process.join)
                stack.callback(connection.close)  # which ends it
                workers.append(connection)
            ready = []
            if num_items == num_results + _AHEAD * num_processes:
                ready.append(_result(workers[num_results % num_processes]))
                num_results += 1
            _send(workers[num_items % num_processes], item)
            num_items += 1
            yield from ready
        for number in range(num_results, num_items):
            yield _result(workers[number % num_processes])


def _send(connection: Connection, item: Any) -> None:
    try:
        connection.send(item)
    except (BrokenPipeError, ConnectionResetError):
        raise ConfigError(_ENDED) from None


def _result(connection: Connection) -> Any:
    try:
        result = connection.recv()
    except (EOFError, ConnectionResetError):
        raise ConfigError(_ENDED) from None
    if isinstance(result, ConfigError):
        raise result
    return result


def _serve(connection: Connection, make: Callable[..., Callable], arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the process that started it
    items: queue.SimpleQueue = queue.SimpleQueue()

    def receive():  # always ready, so that the other side never waits while it sends
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                items.put([connection.recv()])
        items.put(None)

    threading.Thread(target=receive, daemon=True).start()
    function = make(*arguments)
    for [item] in iter(items.get, None):
        try:
            result = function(item)
        except ConfigError as error:
            result = error
        try:
            connection.send(result)
        except (BrokenPipeError, ConnectionResetError):
            return


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
