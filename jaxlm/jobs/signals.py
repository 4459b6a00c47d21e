"""Signals that end a run: the first asks for an orderly end, the second ends at once.

Ctrl-C, SIGTERM (of SLURM, of a TPU that is taken away, of a shutdown), and SIGUSR1 and SIGUSR2, by
which `sbatch --signal` warns before the time is up. One that was ignored when the process began,
as nohup and a job's own launcher have it, stays so. A notice that the machine will be taken away
(`preemption`) counts as SIGTERM.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

from jaxlm.jobs import preemption

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_SHOW_CURSOR = "\x1b[?25h"


@contextlib.contextmanager
def stop_requests(note: Callable[[str], None]) -> Iterator[Callable[[], signal.Signals | None]]:
    """Within this context a signal ends nothing; the function it gives tells which one came.

    A second signal ends the process with exit code 128 + its number. A thread sees to that: the
    main thread may be inside a compilation or a long compiled call, where Python runs no handler
    and two signals of one kind become one.

    Args:
      note: shows a line; called from the thread when the first signal comes.
    """
    came: list[signal.Signals] = []
    # Apart from those that came: the shutdown's own SIGTERM follows, and is no second request.
    noticed: list[signal.Signals] = []

    def watch():
        with ours:
            while number := ours.recv(1):  # nothing once the other end is closed
                if number[0] not in SIGNALS:
                    continue
                if came:
                    if sys.stdout.isatty():
                        os.write(sys.stdout.fileno(), _SHOW_CURSOR.encode())
                    os._exit(128 + number[0])
                came.append(signal.Signals(number[0]))
                note(f"{came[0].name}: finishing this call and saving; once more ends it at once")

    def notice(words):
        if not noticed:
            noticed.append(signal.SIGTERM)
            note(f"the machine is taken away ({words}): finishing this call and saving")

    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    threading.Thread(target=watch, daemon=True).start()
    with contextlib.ExitStack() as stack:
        stack.callback(theirs.close)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(theirs.fileno()))
        for number in SIGNALS:
            if signal.getsignal(number) == signal.SIG_IGN:
                continue
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: None))
        stack.enter_context(preemption.watched(notice))
        yield lambda: next(iter(came + noticed), None)
