"""A W&B server in one process, enough of it for the real client: runs, artifacts, aliases, links, and faults on demand.

    python -m tests.wandb_backend 8080

State is in memory, blobs are files in a folder. Keys begin with `local`; any other is refused. What the client asks
for and this server does not model is listed in `Backend.unknown`; tests keep that list empty.
"""

from tests.wandb_backend.server import Backend
from tests.wandb_backend.state import ENTITY, Artifact

KEY = "local" + "0" * 35

__all__ = ["ENTITY", "KEY", "Artifact", "Backend"]
