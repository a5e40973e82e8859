"""What the server holds: projects, runs, collections of artifact versions, blobs, and the faults switched on."""

from __future__ import annotations

import base64
import itertools
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

ENTITY = "local"
TIME = "2025-01-01T00:00:00"


class Refused(Exception):
    """An answer in GraphQL's `errors`."""


@dataclass
class Faults:
    """What goes wrong, until it is set back."""

    failing_puts: int = 0  # so many uploads of artifact files get 503
    corrupt_gets: bool = False  # the first byte of every artifact file is flipped
    truncate_gets: bool = False  # half of every artifact file is sent, as if it were the whole
    down: bool = False  # every request gets 503


@dataclass
class Collection:
    """The versions of one artifact name, or of a link target."""

    id: str
    name: str
    type: str
    project: Project
    linked: bool = False
    members: dict[str, int] = field(default_factory=dict)  # artifact id -> version
    aliases: dict[str, str] = field(default_factory=dict)  # alias -> artifact id


@dataclass
class Project:
    """Runs and collections."""

    id: str
    number: int
    entity: str
    name: str
    collections: dict[str, Collection] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)


@dataclass
class Run:
    """What a run said of itself."""

    id: str
    name: str
    project: Project
    config: str = "{}"
    summary: str = "{}"
    job_type: str | None = None
    history: list[dict] = field(default_factory=list)


@dataclass
class Artifact:
    """One version."""

    id: str
    collection: Collection
    run: str
    digest: str
    aliases: list[str]
    description: str | None
    metadata: str | None
    state: str = "PENDING"
    manifest: str = ""
    used_by: list[Run] = field(default_factory=list)

    def meta(self) -> dict:
        """Its metadata, parsed."""
        return json.loads(self.metadata or "{}")


def connection(nodes: list[dict]) -> dict:
    """A page that holds everything."""
    edges = [{"node": node, "cursor": str(at)} for at, node in enumerate(nodes)]
    page = {"__typename": "PageInfo", "hasNextPage": False, "endCursor": None}
    return {"edges": edges, "pageInfo": page, "totalCount": len(nodes)}


class State:
    """All that the server remembers; blobs are files in `folder`, reached under `url`."""

    def __init__(self, folder: Path, url: str):
        self.url = url
        self.lock = threading.RLock()
        self.reset(folder)

    def reset(self, folder: Path) -> None:
        """Forget everything; blobs go to `folder` from now on."""
        self.folder = folder
        self.faults = Faults()
        self.unknown: set[str] = set()  # what was asked for and is not modelled
        self.uploaded: list[str] = []  # the blobs of artifact files that arrived
        self.downloaded: list[str] = []  # those that were asked for
        self.projects: dict[tuple[str, str], Project] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.clients: dict[str, str] = {}  # the client's own id of an artifact -> ours
        self.uploads: dict[str, str] = {}  # multipart upload -> blob
        self.numbers = itertools.count(1)

    # --- what tests look at ----------------------------------------------------------------------

    def versions(self, name: str, project: str = "ups-data", entity: str = ENTITY) -> list[Artifact]:
        """The finished versions of an artifact, oldest first."""
        collection = self.project(entity, project).collections.get(name)
        return self.members(collection) if collection else []

    def runs(self, project: str = "ups-data", entity: str = ENTITY) -> list[Run]:
        """The runs of a project, oldest first."""
        return list(self.project(entity, project).runs.values())

    def files_of(self, artifact: Artifact) -> dict[str, bytes]:
        """Path in the artifact -> bytes."""
        return {
            name: self.blob(self.key(entry["birthArtifactID"], entry["digest"])).read_bytes()
            for name, entry in self.entries(artifact).items()
        }

    # --- state -----------------------------------------------------------------------------------

    def identifier(self, kind: str) -> str:
        return base64.b64encode(f"{kind}:{next(self.numbers)}".encode()).decode()

    def project(self, entity: str | None, name: str) -> Project:
        key = (entity or ENTITY, name)
        if key not in self.projects:
            self.projects[key] = Project(self.identifier("Project"), next(self.numbers), *key)
        return self.projects[key]

    def collection(self, project: Project, name: str, kind: str) -> Collection:
        if name not in project.collections:
            identifier = self.identifier("ArtifactCollection")
            project.collections[name] = Collection(identifier, name, kind, project)
        found = project.collections[name]
        if found.type != kind:
            raise Refused(f"artifact collection {name} already exists with type {found.type!r}")
        return found

    def blob(self, key: str) -> Path:
        return self.folder / quote(key, safe="")

    def address(self, key: str) -> str:
        return f"{self.url}/blob/{quote(key, safe='')}"

    def members(self, collection: Collection) -> list[Artifact]:
        found = [self.artifacts[identifier] for identifier in collection.members]
        return [artifact for artifact in found if artifact.state == "COMMITTED"]

    def find(self, collection: Collection | None, alias: str) -> Artifact | None:
        if collection is None:
            return None
        members = {f"v{collection.members[a.id]}": a for a in self.members(collection)}
        return members.get(alias) or next(
            (a for a in members.values() if alias == a.digest or collection.aliases.get(alias) == a.id), None
        )

    def entries(self, artifact: Artifact) -> dict[str, dict]:
        path = self.blob(artifact.manifest)
        return json.loads(path.read_text())["contents"] if artifact.manifest and path.exists() else {}

    def key(self, birth: str, digest: str) -> str:
        return f"art/{quote(birth, safe='')}/{base64.b64decode(digest).hex()}"
