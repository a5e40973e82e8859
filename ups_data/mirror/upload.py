"""One artifact on W&B: recognised by its content, brought up to date, or uploaded by a run of its own."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ups_data import console, files
from ups_data.errors import UpsDataError
from ups_data.mirror.client import Place, client, run_settings, sentences
from ups_data.params import Sync

if TYPE_CHECKING:
    import wandb

KEPT = ("git_revision",)  # metadata of the first upload: later commits did not make these bytes


@dataclass(frozen=True)
class Request:
    """What an artifact shall be; `files`: path in the artifact -> file; `md5`: what is known of their content."""

    name: str
    type: str
    files: Mapping[str, Path]
    md5: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)  # of the run that uploads
    summary: Mapping[str, Any] = field(default_factory=dict)
    link: str | None = None  # a collection, e.g. wandb-registry-dataset/burgers1d_subset_v1

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files.values())


@dataclass(frozen=True)
class Mirrored:
    """Where an artifact is: entity/project/name:vN, its digest, MD5 by path; and what had to be done."""

    artifact: str
    digest: str
    md5: Mapping[str, str]
    done: str


def mirror(api: wandb.Api, where: Place, request: Request, knobs: Sync) -> Mirrored:
    """Bring W&B to what `request` says; the same content never makes a second version nor uploads a byte.

    Raises MirrorError where W&B is away, refuses, or an upload fails for good; UpsDataError where a file is not
    what `request` says.
    """
    with sentences(f"{request.name} cannot be an artifact"):
        draft = build(request)
    md5 = {path: base64.b64decode(entry.digest).hex() for path, entry in draft.manifest.entries.items()}
    for path, known in request.md5.items():
        if md5[path] != known:
            raise UpsDataError(
                f"{request.files[path]} has MD5 {md5[path]}, expected {known}: it has changed since it was registered; "
                "make it again with `dvc repro` or ask for its upload again"
            )
    with sentences(f"{request.name} cannot be mirrored"):
        entity = where.entity or api.default_entity
        found = _find(api, f"{entity}/{where.project}/{request.name}", request.type, draft.digest)
    if found is None:
        found, done = _upload(draft, request, where, knobs), f"uploaded {files.amount(request.size)}"
    else:
        with sentences(f"{request.name} cannot be brought up to date"):
            done = "there already, nothing uploaded" + (", its metadata updated" if _update(found, request) else "")
    if request.link:
        with sentences(f"{request.name} cannot be linked to {request.link}"):
            linked = found.link(request.link, aliases=list(request.aliases))
        done += f", linked as {linked.qualified_name}"
    return Mirrored(source_name(found), found.digest, md5, done)


def build(request: Request) -> wandb.Artifact:
    """The artifact with its digests, before anything is sent; the files stay where they are, uncopied."""
    artifact = client().Artifact(
        request.name, request.type, description=request.description or None, metadata=dict(request.metadata)
    )
    for name, path in sorted(request.files.items()):
        artifact.add_file(str(path), name, policy="immutable", skip_cache=True)
    return artifact


def source_name(artifact: wandb.Artifact) -> str:
    """entity/project/name:vN, whichever alias it was asked by."""
    name = artifact.source_name.split(":")[0]
    return f"{artifact.source_entity}/{artifact.source_project}/{name}:{artifact.source_version}"


def _find(api: wandb.Api, path: str, kind: str, digest: str) -> wandb.Artifact | None:
    """The newest version with this content."""
    if not api.artifact_collection_exists(path, kind):
        return None
    return next((a for a in api.artifacts(kind, path) if a.digest == digest and a.state == "COMMITTED"), None)


def _update(artifact: wandb.Artifact, request: Request) -> bool:
    """Make description, metadata and aliases what they should be; false if they were."""
    kept = {key: artifact.metadata[key] for key in KEPT if key in artifact.metadata}
    metadata = {**request.metadata, **kept}
    aliases = [alias for alias in request.aliases if alias not in artifact.aliases]
    described = (artifact.description or "") == request.description
    if artifact.metadata == metadata and described and not aliases:
        return False
    artifact.metadata = metadata
    artifact.description = request.description
    artifact.aliases = [*artifact.aliases, *aliases]
    artifact.save()
    return True


def _upload(draft: wandb.Artifact, request: Request, where: Place, knobs: Sync) -> wandb.Artifact:
    """Log the artifact from a run whose local files are thrown away; waits until it is committed."""
    console.say(f"uploading {request.name} ({files.amount(request.size)}) to W&B")
    with tempfile.TemporaryDirectory(prefix="ups-data-") as folder, sentences(f"the upload of {request.name} failed"):
        _log(draft, request, run_settings(where, knobs, knobs.minutes, root_dir=folder, mode="online"))
        return draft.wait(timeout=60)  # it was sent when the run finished: this asks for its version


def _log(draft: wandb.Artifact, request: Request, settings: wandb.Settings) -> None:
    """Log the artifact from a run of its own, which ends when all is sent."""
    run = client().init(job_type="sync", config=dict(request.config), settings=settings)
    try:
        run.log_artifact(draft, aliases=list(request.aliases))
        run.summary.update(dict(request.summary))
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def files_under(paths: list[Path]) -> dict[str, Path]:
    """Path in the artifact -> file, for files and folders; a folder keeps its name.

    Raises UpsDataError where a path is missing or empty, or two files would have one place.
    """
    found: dict[str, Path] = {}
    for top in paths:
        if not top.exists():
            raise UpsDataError(f"{top} does not exist; name the files or folders to upload")
        inside = sorted(p for p in top.rglob("*") if p.is_file()) if top.is_dir() else [top]
        for path in inside:
            name = path.relative_to(top.parent).as_posix() if top.is_dir() else path.name
            if name in found:
                raise UpsDataError(f"{path} and {found[name]} would both be {name} in the artifact; rename one")
            found[name] = path
    if not found:
        where = ", ".join(map(str, paths)) or "an empty list"
        raise UpsDataError(f"no file in {where}; name what to upload with --path")
    return found
