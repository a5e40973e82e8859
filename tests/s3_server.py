"""A real S3 server (SeaweedFS) on free ports of this machine, and a relay that ends it in the middle of a transfer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HOST = "127.0.0.1"
GRPC = 10_000  # each service listens on its port and, for gRPC, on that plus 10000
START_LIMIT = 60.0  # seconds a start may take on a busy machine
KEYS = {"rw": ("writerkey", "writersecret-0123456789"), "ro": ("readerkey", "readersecret-0123456789")}
ACTIONS = {"rw": ["Admin", "Read", "Write", "List", "Tagging"], "ro": ["Read", "List"]}


def credentials(who: str) -> dict[str, str]:
    """Environment variables that make a program `rw`, `ro`, or `wrong`: a right key id with a wrong secret."""
    key, secret = KEYS[who] if who in KEYS else (KEYS["rw"][0], "not-the-secret-9876543210")
    return {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_MAX_ATTEMPTS": "1"}


@dataclass
class S3Server:
    """One server with its data in `folder`; it can be killed and started again on the same ports and data."""

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://{HOST}:{self.ports['s3']}"

    def start(self) -> None:
        """Start, anew if it runs, and wait until an object can be written."""
        self.kill()
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        identities = [
            {"name": who, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": ACTIONS[who]}
            for who, (key, secret) in KEYS.items()
        ]
        (self.folder / "config.json").write_text(json.dumps({"identities": identities}))
        self.ports = self.ports or free_ports("s3", "master", "volume", "filer", "admin")
        command = [Path(sys.executable).with_name("weed"), "mini", "-dir=data", f"-ip={HOST}", f"-ip.bind={HOST}"]
        command += [f"-{service}.port={port}" for service, port in self.ports.items()]
        command += [
            "-s3.config=config.json",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
        ]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        self._wait_until_writable()

    def _wait_until_writable(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        while True:
            with contextlib.suppress(OSError):
                self.files().makedirs("probe", exist_ok=True)
                self.files().pipe("probe/probe", b"probe")
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                log = (self.folder / "log").read_text(errors="replace")[-2000:]
                self.kill()
                raise RuntimeError(f"the S3 server did not start: {log}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it as a power cut does; what was written stays."""
        if self.process and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def files(self, who: str = "rw"):
        """The server's objects as a file system, nothing cached."""
        import s3fs

        key, secret = KEYS[who]
        return s3fs.S3FileSystem(
            key=key, secret=secret, endpoint_url=self.url, use_listings_cache=False, skip_instance_cache=True
        )

    def objects(self, bucket: str) -> dict[str, int]:
        """Path -> size of every object in a bucket."""
        return {path: about["size"] for path, about in self.files().find(bucket, detail=True).items()}


def free_ports(*names: str) -> dict[str, int]:
    """A port for every name, free now, as its gRPC twin is."""
    found: dict[str, int] = {}
    port = 20_000 + os.getpid() * 7 % 10_000  # test runs side by side start at different places
    while len(found) < len(names):
        port = port + 1 if port < 32_000 else 20_000
        if _is_free(port) and _is_free(port + GRPC):
            found[names[len(found)]] = port
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[S3Server]:
    """A running server for the time of the block."""
    server = S3Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


class Relay:
    """Passes connections on to a port, counts bytes, and calls `at_limit` once when `limit` bytes have passed."""

    def __init__(self, port: int, limit: float = float("inf"), at_limit: Callable[[], None] = lambda: None):
        self.port, self.limit, self.at_limit = port, limit, at_limit
        self.passed, self.lock = 0, threading.Lock()
        self.listener = socket.create_server((HOST, 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """The endpoint to give to a client."""
        return f"http://{HOST}:{self.listener.getsockname()[1]}"

    def close(self) -> None:
        """Accept nothing more."""
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self.listener.accept()
                try:
                    server = socket.create_connection((HOST, self.port))
                except OSError:
                    client.close()
                    continue
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._count(len(data))
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _count(self, size: int) -> None:
        with self.lock:
            self.passed += size
            due = self.passed >= self.limit
            if due:
                self.limit = float("inf")
                self.at_limit()
