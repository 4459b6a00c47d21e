import signal
import subprocess
import sys
import time

import pytest
from job_runs import TIMEOUT_S

from jaxlm.jobs.signals import stop_requests

# The main thread is inside one call of C, which gives up the lock but runs no signal handler.
BLOCKED = """
import hashlib
from jaxlm.jobs.signals import stop_requests
with stop_requests(lambda text: print(text, flush=True)):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
"""


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_the_second_signal_ends_a_blocked_process(name, code):
    with subprocess.Popen([sys.executable, "-c", BLOCKED], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(getattr(signal, name))
        assert process.stdout.readline().startswith(f"{name}: finishing".encode())
        process.send_signal(getattr(signal, name))
        assert process.wait(timeout=TIMEOUT_S) == code


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        with stop_requests(lambda text: None) as came:
            assert signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN
            signal.raise_signal(signal.SIGUSR2)
            signal.sigtimedwait([], 0.05)
            assert came() is None
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_the_first_is_told_and_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_requests(lambda text: None) as came:
        assert came() is None
        signal.raise_signal(signal.SIGTERM)
        deadline = time.monotonic() + TIMEOUT_S
        while not came():
            assert time.monotonic() < deadline
            signal.sigtimedwait([], 0.005)
        assert came() is signal.SIGTERM
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert signal.set_wakeup_fd(-1) == -1
