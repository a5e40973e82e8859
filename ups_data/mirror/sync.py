"""Mirroring the project: datasets and models now or later, files asked for by hand, runs that were logged offline."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ups_data import files, registry
from ups_data.errors import UpsDataError
from ups_data.mirror.client import WHY_OFF, MirrorError, Place, connect, mode, without_secrets
from ups_data.mirror.subjects import dataset_request, model_requests
from ups_data.mirror.upload import Mirrored, Request, mirror
from ups_data.params import Params, Sync

WAITING = Path(".state/sync")  # uploads asked for by hand while W&B was off, one file each
ARTIFACT = re.compile(r"[A-Za-z0-9_.-]{1,128}")  # the names that W&B takes


@dataclass(frozen=True)
class Folders:
    """Where things are in the project."""

    artifacts: Path = Path("artifacts")
    models: Path = Path("models")
    reports: Path = Path("reports")
    records: Path = Path(registry.MIRROR)


def sync_dataset(
    name: str, entry: registry.Entry, params: Params, where: Place, folders: Folders = Folders(), or_later: bool = False
) -> str:
    """Mirror a published dataset, with the knob `models` its task's models too; record where they are.

    With W&B off nothing is sent and the record keeps what still holds; `or_later` treats a W&B that is away
    or refuses likewise, where MirrorError is raised otherwise. Returns a sentence for the person.
    """
    why = WHY_OFF.get(mode())
    if why is None:
        try:
            return _mirror_all(name, entry, params, where, folders)
        except MirrorError as error:
            if not or_later:
                raise
            why = str(error)
    old = registry.read_mirror(folders.records, name)
    if registry.holds(old, entry):
        return f"{name}: {why}; still {old.dataset.artifact}"
    registry.write_mirror(folders.records, name, registry.Mirror(dataset=None, models={}))
    return f"{name}: {why}; not mirrored yet, `make sync` uploads it"


def _mirror_all(name: str, entry: registry.Entry, params: Params, where: Place, folders: Folders) -> str:
    """Mirror the dataset, then the models where the knob asks for them, and record them."""
    request = dataset_request(name, entry, params, folders.artifacts, folders.reports)
    models = model_requests(entry.task, params, folders.models, folders.reports) if params.sync.models else {}
    api = connect(where)
    dataset = mirror(api, where, request, params.sync)
    others = {model: mirror(api, where, wanted, params.sync) for model, wanted in models.items()}
    copies = {model: _copy(mirrored) for model, mirrored in others.items()}
    registry.write_mirror(folders.records, name, registry.Mirror(dataset=_copy(dataset), models=copies))
    return "; ".join(f"{mirrored.artifact}: {mirrored.done}" for mirrored in (dataset, *others.values()))


def _copy(mirrored: Mirrored) -> registry.Copy:
    (md5,) = mirrored.md5.values()
    return registry.Copy(artifact=mirrored.artifact, digest=mirrored.digest, md5=md5)


def unmirrored(entries: dict[str, registry.Entry], records: Path) -> dict[str, registry.Entry]:
    """The datasets whose archive no record leads to."""
    return {
        name: entry for name, entry in entries.items() if not registry.holds(registry.read_mirror(records, name), entry)
    }


# --- asked for by hand ---------------------------------------------------------------------------


def sync_files(request: Request, where: Place, knobs: Sync) -> str:
    """Mirror any files; with W&B off the wish is kept in WAITING and `sync_waiting` fulfils it.

    Returns a sentence for the person. Raises MirrorError where W&B is away or refuses.
    """
    state = mode()
    if state == "disabled":
        return f"{request.name}: {WHY_OFF[state]}; nothing uploaded"
    if state != "online":
        _check_wish(request)
        known = {name: files.checksum(path, "md5") for name, path in request.files.items()}
        paths = {name: str(path.absolute()) for name, path in request.files.items()}
        wish = {**asdict(request), "files": paths, "md5": known, "where": asdict(where)}
        files.write_json(WAITING / f"{request.name}.json", wish)
        return f"{request.name}: {WHY_OFF[state]}; `make sync` uploads it, keep its files until then"
    mirrored = mirror(connect(where), where, request, knobs)
    return f"{mirrored.artifact}: {mirrored.done}"


def _check_wish(request: Request) -> None:
    """Refuse now what W&B would refuse when it is asked: a wish that waits would hold up all that wait behind it.

    The client is not asked: it need not be here. A name is that of the waiting file too.
    """
    if not ARTIFACT.fullmatch(request.name):
        raise UpsDataError(
            f"--name: got {request.name!r}, expected letters, digits, dots, dashes and _, at most 128 of them"
        )
    if wrong := [alias for alias in request.aliases if not alias or set(alias) & set("/:")]:
        raise UpsDataError(f"--alias: got {wrong[0]!r}, expected a word without '/' and ':'")
    try:
        files.to_json(request.metadata)
    except ValueError as error:
        raise UpsDataError(f"{request.name} cannot be an artifact: its metadata: {error}") from None


def sync_waiting(knobs: Sync) -> Iterator[str]:
    """Upload what was asked for by hand, then the runs logged offline; a sentence for each.

    Raises UpsDataError where a file has changed since it was asked for.
    """
    for path in sorted(WAITING.glob("*.json")):
        wish = files.read_json(path)
        try:
            where = Place(**wish.pop("where"))
            lists = {"aliases": tuple(wish["aliases"]), "files": {name: Path(p) for name, p in wish["files"].items()}}
            request = Request(**wish | lists)
        except (KeyError, TypeError, AttributeError):
            raise UpsDataError(f"{path} is not an upload that waits; delete it and ask for the upload again") from None
        if gone := [file for file in request.files.values() if not file.is_file()]:
            raise UpsDataError(
                f"{gone[0]}, waiting to be uploaded in {request.name}, is gone; delete {path} or restore it"
            )
        mirrored = mirror(connect(where), where, request, knobs)
        path.unlink()
        yield f"{mirrored.artifact}: {mirrored.done}"
    if runs := offline_runs():
        connect()
        _upload_runs(runs, knobs)
        yield f"uploaded {len(runs)} runs that were logged offline"


def offline_runs() -> list[Path]:
    """The folders of runs that were logged offline and not uploaded since; the client marks those that were."""
    top = Path(os.environ.get("WANDB_DIR") or ".") / "wandb"
    return [folder for folder in sorted(top.glob("offline-run-*")) if not list(folder.glob("*.synced"))]


def _upload_runs(runs: list[Path], knobs: Sync) -> None:
    """`wandb sync` them: it says success whatever happened and tries without end, so look at its marks and bound it."""
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    command = [sys.executable, "-m", "wandb", "sync", "--yes", *map(str, runs)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60 * knobs.minutes, check=False
        )
    except subprocess.TimeoutExpired:
        raise MirrorError(f"uploading {len(runs)} offline runs took over {knobs.minutes} min; try again") from None
    if done.returncode or any(not list(folder.glob("*.synced")) for folder in runs):
        said = without_secrets(" ".join(done.stderr.split()))[-300:]
        raise MirrorError(f"the offline runs in {runs[0].parent} were not all uploaded: {said}")
