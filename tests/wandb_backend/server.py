"""The wire: HTTP in front of the state, with the faults that are switched on."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

from tests.wandb_backend.graphql import execute
from tests.wandb_backend.mutations import Mutations
from tests.wandb_backend.state import Refused


class Backend(Mutations):
    """A server on 127.0.0.1; `start` and `stop` it."""

    def __init__(self, folder: Path, port: int = 0):
        handler = type("Handler", (_Handler,), {"backend": self})
        self.server = _Server(("127.0.0.1", port), handler)
        super().__init__(folder, f"http://127.0.0.1:{self.server.server_port}")

    def start(self) -> Backend:
        """Answer from now on, in a thread of this process."""
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Close the port."""
        self.server.shutdown()
        self.server.server_close()

    def graphql(self, body: dict) -> dict:
        """Answer a query."""
        roots = {"query": self.queries(), "mutation": self.mutations()}
        try:
            with self.lock:
                return {"data": execute(body["query"], body.get("variables") or {}, roots, self.unknown)}
        except Refused as refusal:
            return {"data": None, "errors": [{"message": str(refusal)}]}

    def stream(self, path: str, body: dict) -> None:
        """Keep the history that a run streams to /files/<entity>/<project>/<run>/file_stream."""
        entity, project, name = path.split("/")[2:5]
        lines = body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        with self.lock:
            run = self.project(entity, project).runs.get(name)
            if run:
                run.history += [json.loads(line) for line in lines]
                summary = body.get("files", {}).get("wandb-summary.json", {}).get("content", [])
                run.summary = summary[-1] if summary else run.summary


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    backend: Backend

    def log_message(self, *_: object) -> None:
        """Say nothing on standard error."""

    def answer(self, status: int, body: bytes = b"{}", headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.send_response(status)
        for name, value in (("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def authorised(self) -> bool:
        """Whether the key is one of ours: HTTP basic authentication, any user."""
        kind, _, given = self.headers.get("Authorization", "").partition(" ")
        return kind == "Basic" and base64.b64decode(given).decode().split(":", 1)[-1].startswith("local")

    def do_POST(self) -> None:
        body = self.body()
        if self.backend.faults.down:
            self.answer(503)
        elif self.path == "/graphql":
            if self.authorised():
                self.answer(200, json.dumps(self.backend.graphql(json.loads(body))).encode())
            else:
                self.answer(401, b'{"errors":[{"message":"user is not logged in"}]}')
        else:
            if self.path.endswith("/file_stream"):
                self.backend.stream(self.path, json.loads(body))
            self.answer(200)

    def do_PUT(self) -> None:
        backend, key = self.backend, unquote(self.path.removeprefix("/blob/").split("?")[0])
        body = self.body()
        of_artifact = key.startswith("art/")
        wanted = self.headers.get("Content-MD5")
        if backend.faults.down or (of_artifact and backend.faults.failing_puts > 0):
            backend.faults.failing_puts -= of_artifact
            self.answer(503)
        elif wanted and base64.b64encode(hashlib.md5(body).digest()).decode() != wanted:
            self.answer(400, b"BadDigest")
        else:
            backend.blob(key).write_bytes(body)
            if of_artifact:
                backend.uploaded.append(key)
            self.answer(200, headers=(("ETag", hashlib.md5(body).hexdigest()),))

    def do_GET(self) -> None:
        backend, path = self.backend, self.path.split("?")[0]
        parts = path.split("/")
        if path.startswith("/artifactsV2/"):  # .../<birth artifact>/<md5>/<file name>
            key = f"art/{quote(unquote(parts[-3]), safe='')}/{parts[-2]}"
        else:
            key = unquote(path.removeprefix("/blob/"))
        if backend.faults.down:
            return self.answer(503)
        if not backend.blob(key).is_file():
            return self.answer(404, b"no such blob")
        data = backend.blob(key).read_bytes()
        if key.startswith("art/"):
            backend.downloaded.append(key)
            if backend.faults.corrupt_gets:
                data = bytes([data[0] ^ 255]) + data[1:]
            if backend.faults.truncate_gets:
                data = data[: len(data) // 2]
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(asked[1]), int(asked[2] or len(data) - 1)
            headers = (("Content-Range", f"bytes {first}-{last}/{len(data)}"),)
            return self.answer(206, data[first : last + 1], headers)
        return self.answer(200, data)
