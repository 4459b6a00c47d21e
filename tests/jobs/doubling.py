"""Work for processes of tests; they import this file and nothing heavy."""

import os
import signal
import time

from jaxlm.core.config import ConfigError


def doubled_after(by):
    """n -> 2 n, some sooner than others; refuses 7."""

    def double(n):
        time.sleep(by * (n % 3))
        if n == 7:
            raise ConfigError("seven")
        return 2 * n

    return double


def killed_at_once():
    os.kill(os.getpid(), signal.SIGKILL)
