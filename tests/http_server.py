"""A local file server with the faults of real ones: what it sends and how is set for each path."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """One path: its bytes, and how the server misbehaves over them. Counts go down with every request that used one."""

    body: bytes
    etag: str = '"one"'
    ranges: bool = True  # false: `Range` is ignored, every answer is 200 and whole
    length: bool = True  # false: no Content-Length, the end of the connection is the end of the body
    status: int = 0  # answer with this status instead, `times` times
    times: int = 10**9
    headers: dict[str, str] = field(default_factory=dict)
    page: bytes = b"<html><title>Maintenance</title></html>"
    cut_after: int = 0  # close the connection after that many bytes, `cuts` times
    cuts: int = 0
    wrong: int = 0  # so many answers have a flipped byte
    redirect: str = ""


class Server(ThreadingHTTPServer):
    """Serves `files` (name -> Served); keeps the requests it saw as (name, Range header)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.seen: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.busy = self.most_busy = 0

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the tests: nothing is printed."""

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def ranges_of(self, name: str) -> list[str]:
        """The Range headers that were sent for a file."""
        return [wanted for seen, wanted in self.seen if seen == name]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, name = self.server, self.path.rpartition("/")[2]
        with server.lock:
            server.seen.append((name, self.headers.get("Range", "")))
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
        try:
            self._answer(server.files.get(name))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with server.lock:
                server.busy -= 1

    def _take(self, served, counter):
        with self.server.lock:
            left = getattr(served, counter)
            setattr(served, counter, max(0, left - 1))
            return left > 0

    def _answer(self, served):
        if served is None:
            return self._page(404, b"<html>no such file</html>", {})
        if served.redirect:
            return self._page(302, b"", {"Location": served.redirect})
        if served.status and self._take(served, "times"):
            return self._page(served.status, served.page, served.headers)
        body, first, last = served.body, 0, len(served.body) - 1
        wanted = self.headers.get("Range", "")
        fresh = self.headers.get("If-Range") in (None, served.etag)
        ranged = served.ranges and wanted.startswith("bytes=") and fresh
        if ranged:
            low, _, high = wanted.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high) if high else last, last)
            if first > last:
                return self._page(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        piece = body[first : last + 1]
        if self._take(served, "wrong"):
            piece = bytes([piece[0] ^ 1]) + piece[1:]
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("ETag", served.etag)
        if ranged:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
        if served.length:
            self.send_header("Content-Length", str(len(piece)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if len(piece) > served.cut_after > 0 and self._take(served, "cuts"):
            piece, self.close_connection = piece[: served.cut_after], True
        self.wfile.write(piece)
        self.wfile.flush()
        return None

    def _page(self, status, page, headers):
        self.send_response(status)
        for name, value in ({"Content-Type": "text/html; charset=utf-8"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port of this machine, for the time of the block."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def md5(body: bytes) -> str:
    """The MD5 of bytes, in hex."""
    return hashlib.md5(body).hexdigest()
