"""The notice by which Google Compute Engine takes a machine away, a TPU VM among them.

The machine's metadata server says `instance/preempted` TRUE some 30 s before, and
`instance/maintenance-event` TERMINATE_ON_HOST_MAINTENANCE a minute before (an hour with a GPU); the
signal of the shutdown itself comes later, or too late.
Source: Compute Engine's pages "Create and use preemptible VMs", "Query metadata server for
maintenance event notices" and "View and query VM metadata" (wait_for_change and last_etag).
"""

import contextlib
import http.client
import logging
import os
import pathlib
import threading
import urllib.parse
from collections.abc import Callable, Iterator

HOST = "GCE_METADATA_HOST"
PRODUCT = pathlib.Path("/sys/class/dmi/id/product_name")
WAIT_S, AGAIN_S = 60, 5  # of one question, and until the next after one that failed
_NOTICES = {"preempted": "TRUE", "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}
_FLAVOR = {"Metadata-Flavor": "Google"}
_LOG = logging.getLogger(__name__)


def metadata_host() -> str | None:
    """The metadata server of this machine; None where it is not Google's, or SLURM's to take away.

    SLURM warns of a preemption itself, and requeues only what it ended itself.
    """
    if "SLURM_JOB_ID" in os.environ:
        return None
    if host := os.environ.get(HOST):
        return host
    try:
        is_google = PRODUCT.read_text().startswith("Google")
    except OSError:
        return None
    return "metadata.google.internal" if is_google else None


@contextlib.contextmanager
def watched(tell: Callable[[str], None]) -> Iterator[None]:
    """Within this context `tell` is called, from a thread, with the words of a notice that comes.

    Elsewhere than on Google's machines nothing is asked and no thread started.
    """
    host, over = metadata_host(), threading.Event()
    if host is not None:
        for key in _NOTICES:
            threading.Thread(target=_watch, args=(host, key, tell, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()  # a question that waits for its answer ends with the process, or in WAIT_S


def _watch(host: str, key: str, tell: Callable[[str], None], over: threading.Event) -> None:
    etag, asked = "0", False  # no version has this tag: the first answer comes at once
    while not over.is_set():
        try:
            value, etag = _ask(host, key, etag)
        except (OSError, ValueError, http.client.HTTPException) as error:
            _LOG.debug("%s: instance/%s: %s", host, key, error)
            over.wait(AGAIN_S)
            continue
        # Maintenance that was announced before this run began has ended the one before it; ended
        # by it too, no run would get beyond its first step.
        is_news = asked or key == "preempted"
        asked = True
        if value == _NOTICES[key] and is_news and not over.is_set():
            tell(f"{key} {value}")
            return
        over.wait(1)  # of a server that answers without waiting no more is asked than this


def _ask(host: str, key: str, etag: str) -> tuple[str, str]:
    """(value, its tag) of a key, once it has another tag or WAIT_S are over.

    Raises:
      OSError, ValueError, HTTPException: there is no answer, or none of such a server.
    """
    query = {"wait_for_change": "true", "last_etag": etag, "timeout_sec": WAIT_S}
    path = f"/computeMetadata/v1/instance/{key}?{urllib.parse.urlencode(query)}"
    with contextlib.closing(http.client.HTTPConnection(host, timeout=WAIT_S + 10)) as connection:
        connection.request("GET", path, headers=_FLAVOR)
        answer = connection.getresponse()
        if answer.status != 200 or answer.getheader("Metadata-Flavor") != "Google":
            raise ConnectionError(f"status {answer.status}")
        return answer.read(1000).decode().strip(), answer.getheader("ETag", "0")
