"""Serve on the port of the command line until interrupted; prints the environment that leads the client here."""

import sys
import tempfile
from pathlib import Path

from tests.wandb_backend import KEY, Backend

with tempfile.TemporaryDirectory() as folder:
    backend = Backend(Path(folder), int(sys.argv[1]))
    print(f"export WANDB_BASE_URL={backend.url} WANDB_API_KEY={KEY}", flush=True)
    try:
        backend.server.serve_forever()
    except KeyboardInterrupt:
        backend.server.server_close()
