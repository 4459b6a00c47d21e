"""A metadata server such as Google's machines have, on this one: real HTTP with its long poll."""

import contextlib
import http.server
import threading
import urllib.parse


class MetadataServer:
    """`host` for GCE_METADATA_HOST; `server["preempted"] = "TRUE"` answers those who wait.

    broken: what it does in place of an answer: a status, or "silent", "foreign", "garbage".
    """

    def __init__(self):
        self.values = {"preempted": "FALSE", "maintenance-event": "NONE"}
        self.broken, self.asked = None, []
        self._versions = dict.fromkeys(self.values, 1)
        self._changed = threading.Condition()

    def __setitem__(self, key: str, value: str) -> None:
        with self._changed:
            self.values[key] = value
            self._versions[key] += 1
            self._changed.notify_all()

    def answer(self, key: str, query: dict[str, str]) -> tuple[str, str]:
        """(value, tag), once its tag is not `last_etag`, or after `timeout_sec`."""

        def tag() -> str:
            return f"{self._versions[key]:016x}"

        with self._changed:
            self.asked.append(key)
            if query.get("wait_for_change") == "true":
                new = lambda: tag() != query["last_etag"]  # noqa: E731
                self._changed.wait_for(new, timeout=float(query["timeout_sec"]))
            return self.values[key], tag()


@contextlib.contextmanager
def metadata_server():
    state = MetadataServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            url = urllib.parse.urlsplit(self.path)
            key = url.path.removeprefix("/computeMetadata/v1/instance/")
            broken = state.broken
            if isinstance(broken, int) or key not in state.values:
                return self.send_error(broken or 404)
            if self.headers["Metadata-Flavor"] != "Google":
                return self.send_error(403)
            if broken == "silent":
                return None
            if broken == "garbage":
                return self.wfile.write(b"\x00\xff" * 99)
            value, tag = state.answer(key, dict(urllib.parse.parse_qsl(url.query)))
            self.send_response(200)
            self.send_header("ETag", tag)
            if broken != "foreign":
                self.send_header("Metadata-Flavor", "Google")
            self.end_headers()
            return self.wfile.write(value.encode())

        def log_message(self, *args):
            pass

        def handle(self):
            with contextlib.suppress(ConnectionError):  # who asked is gone
                super().handle()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.host = f"127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield state
        finally:
            state["preempted"] = "over"  # for those who still wait
            state["maintenance-event"] = "over"
            server.shutdown()
