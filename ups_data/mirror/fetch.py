"""A published archive down from W&B: every digest checked here, since the client checks none."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ups_data import console, files, registry
from ups_data.errors import UpsDataError
from ups_data.mirror.client import WHY_OFF, Place, client, connect, mode, sentences
from ups_data.staging import staging

if TYPE_CHECKING:
    import wandb


def fetch_archive(entry: registry.Entry, folder: Path) -> Path:
    """Download the entry's archive from its W&B artifact into `folder`, verified before it appears there.

    The client gets a cache of its own in `folder`, thrown away afterwards: what another process left in the
    shared one is never read. A run that is active records that it used the artifact. Raises UpsDataError
    where W&B is off, the registry knows no copy, or what came is not the archive of the registry.
    """
    packed = entry.archive
    if entry.wandb is None or entry.wandb.dataset is None:
        raise UpsDataError(
            f"the registry knows no W&B artifact of {packed.file}; mirror it where it was made "
            "(`make sync`) or take it from the DVC remote (--from dvc)"
        )
    if (state := mode()) != "online":
        raise UpsDataError(
            f"{packed.file} cannot come from W&B: {WHY_OFF[state]}; take it from the DVC remote (--from dvc)"
        )
    copy = entry.wandb.dataset
    artifact = _find(copy, packed)
    files.require_space(folder, 2 * packed.size, f"fetching {packed.file} from W&B")  # its cache, then the file
    folder.mkdir(parents=True, exist_ok=True)
    console.say(f"fetching {packed.file} ({files.amount(packed.size)}) from W&B: {copy.artifact}")
    started = time.monotonic()
    with staging(folder) as temporary:
        with sentences(f"{copy.artifact} cannot be downloaded"), _own_cache(temporary / "cache"):
            artifact.download(str(temporary / "data"), path_prefix=packed.file)
        found = temporary / "data" / packed.file
        _check(found, packed, copy.artifact)
        files.publish(found, folder / packed.file)
    console.say(f"fetched at {files.rate(packed.size, started)}")
    _record_use(artifact)
    return folder / packed.file


def _find(copy: registry.Copy, packed: registry.Archive) -> wandb.Artifact:
    """The artifact of the record; it must still say the digests that were recorded."""
    entity, project, _ = copy.artifact.split("/")
    api = connect(Place(entity, project))
    with sentences(f"{copy.artifact} is not to be had on W&B"):
        artifact = api.artifact(copy.artifact, type="dataset")
        digest, listed = artifact.digest, artifact.manifest.entries.get(packed.file)
    if digest != copy.digest or listed is None or base64.b64decode(listed.digest).hex() != packed.md5:
        raise UpsDataError(
            f"{copy.artifact} holds something else than the registry says (digest {digest}, expected {copy.digest}); "
            "nothing was downloaded: mirror the dataset again (`make sync`) or take it from the DVC remote (--from dvc)"
        )
    return artifact


def _check(path: Path, packed: registry.Archive, source: str) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size != packed.size:
        raise UpsDataError(
            f"{source} came as {size} bytes, the registry says {packed.size}: the download broke off or the copy is "
            "truncated; nothing was published, try again or take it from the DVC remote (--from dvc)"
        )
    if (sha256 := files.checksum(path)) != packed.sha256:
        raise UpsDataError(
            f"{source} came with SHA-256 {sha256}, the registry says {packed.sha256}: it was damaged on its way or on "
            "W&B; nothing was published, try again or take it from the DVC remote (--from dvc)"
        )


@contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    """Have the client keep its files in `folder`; it looks the place up at every download."""
    before = os.environ.get("WANDB_CACHE_DIR")
    os.environ["WANDB_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_CACHE_DIR"]
        else:
            os.environ["WANDB_CACHE_DIR"] = before


def _record_use(artifact: wandb.Artifact) -> None:
    """Lineage: the run that is active, if any, used this artifact."""
    if run := client().run:
        with sentences(f"the use of {artifact.name} cannot be recorded"):
            run.use_artifact(artifact)
