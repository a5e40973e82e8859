"""A dataset released: a git tag NAME@vX.Y.Z on a commit whose data anyone with the remote can have."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ups_data import console, files, registry
from ups_data.dvc_files import command, locked_outputs, what_failed
from ups_data.dvc_repository import dvc_repository
from ups_data.errors import UpsDataError

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo

VERSION = re.compile(r"v(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)")
NAMED = 5  # files or stages that a sentence names before it says how many more there are


def release(name: str, version: str, repository: Path = Path(), remote: str | None = None) -> str:
    """Tag HEAD as `name@version`, as GTO does, if everything the tag promises holds; returns a sentence.

    `name` is an artifact of dvc.yaml (burgers1d-subset), `remote` the DVC remote to look at (its default).
    Every unmet condition is said with the command that mends it. Raises UpsDataError then, and for a name that
    dvc.yaml does not declare or a version that is none or is taken.
    """
    if not VERSION.fullmatch(version):
        raise UpsDataError(f"got version {version!r}, expected vMAJOR.MINOR.PATCH such as v1.0.0")
    with dvc_repository(repository) as repo:
        path = _declared(repo, name)
        _require_new(f"{name}@{version}", repository)
        unmet = [*_not_committed(repository), *_not_reproduced(repo), *_not_registered(path, repository)]
        if not unmet:
            unmet = list(_not_pushed(repo, _recorded(path, repository), remote))
    if unmet:
        raise UpsDataError("\n- ".join([f"{name}@{version} is not tagged:", *unmet]))
    packed = _recorded(path, repository)
    _tag(name, version, f"{path}: {packed.size} bytes, SHA-256 {packed.sha256}", repository)
    size = files.amount(packed.size)
    return f"tagged {name}@{version} ({path}, {size}); `git push origin {name}@{version}` publishes it"


def stale_stages(repository: Path = Path()) -> list[str]:
    """The stages that `dvc repro` would run because code, knobs or data at hand differ from dvc.lock.

    Data that is absent counts as what dvc.lock records, so that a clone without any data can be checked; so does a
    folder that lacks files of it, such as a `dvc pull` leaves that found not all of them.
    """
    with dvc_repository(repository) as repo:
        return _stale(repo)


def _declared(repo: Repo, name: str) -> str:
    """The path of an artifact that dvc.yaml declares."""
    declared = repo.artifacts.read().get("dvc.yaml", {})
    if name not in declared:
        raise UpsDataError(
            f"dvc.yaml declares no artifact {name!r}; it has {', '.join(sorted(declared)) or 'none'}: "
            "add it to the section `artifacts`"
        )
    return declared[name].path


def _require_new(tag: str, repository: Path) -> None:
    shown = command(["git", "rev-parse", "-q", "--short", "--verify", f"refs/tags/{tag}^{{commit}}"], repository)
    if shown.returncode == 0:
        raise UpsDataError(f"{tag} exists already, at commit {shown.stdout.strip()}; choose the next version")


# --- what a tag promises -------------------------------------------------------------------------


def _not_committed(repository: Path) -> Iterator[str]:
    """Git's workspace must be clean: what a tag names is what was looked at."""
    asked = command(["git", "status", "--porcelain"], repository)
    if asked.returncode:
        raise UpsDataError(f"git does not work in {repository.absolute()}: {what_failed(asked.stderr)}")
    if changed := [line[3:] for line in asked.stdout.splitlines()]:
        yield f"not committed: {some(changed)}; run `git add` and `git commit`"


def _not_reproduced(repo: Repo) -> Iterator[str]:
    if stale := _stale(repo):
        yield f"dvc.lock does not match for {some(stale)}; run `dvc repro` (`dvc status` says why) and commit"


def _stale(repo: Repo) -> list[str]:
    from dvc.repo import lock_repo

    stages = repo.index.stages
    made = [Path(out.fs_path) for stage in stages for out in stage.outs]
    for path in [path for stage in stages for path in (*stage.deps, *stage.outs) if _lacks_files(path, made)]:
        path.workspace_status = lambda path=path: {str(path): "deleted"}  # what DVC says of an absent one
    with lock_repo(repo):  # not `dvc repro --dry`: it ends at the first changed stage whose data is absent
        return sorted(stage.addressing for stage in stages if stage.changed(allow_missing=True, upstream=stages))


def _lacks_files(path: Output, made: list[Path]) -> bool:
    """Whether it is a folder of what stages make, not of code, with no files or fewer than dvc.lock records."""
    folder = Path(path.fs_path)
    if not folder.is_dir() or not any(output.is_relative_to(folder) for output in made):
        return False
    return sum(file.is_file() for file in folder.rglob("*")) < (path.meta.nfiles or 1)


def _not_registered(path: str, repository: Path) -> Iterator[str]:
    """The registry must hold the very archive that dvc.lock records."""
    locked = {output.path: output.md5 for output in locked_outputs(repository / "dvc.lock")}
    if path not in locked:
        yield f"dvc.lock records no {path}; run `dvc repro` and commit dvc.lock"
        return
    try:
        packed = _recorded(path, repository)
    except UpsDataError as error:
        yield str(error)
        return
    if packed.md5 != locked[path]:
        yield (
            f"{registry.REGISTRY} says MD5 {packed.md5} for {path}, dvc.lock says {locked[path]}; "
            "run `dvc repro` and commit both"
        )


def _recorded(path: str, repository: Path) -> registry.Archive:
    """The archive as its entry in the registry describes it."""
    for entry in registry.read_registry(repository / registry.REGISTRY).values():
        if entry.archive.file == Path(path).name:
            return entry.archive
    raise UpsDataError(f"{registry.REGISTRY} has no entry for {path}; run `dvc repro` and commit the registry")


def _not_pushed(repo: Repo, packed: registry.Archive, remote: str | None) -> Iterator[str]:
    """The remote must hold the archive with its size and MD5, by reading every byte of it there."""
    path, where = f"artifacts/{packed.file}", f"the remote {remote or repo.config['core'].get('remote', '(none set)')}"
    push = f"`dvc push {f'--remote {remote} ' if remote else ''}{path}`"
    store = repo.cloud.get_remote_odb(remote, "release", hash_name="md5")
    place = store.oid_to_path(packed.md5)
    try:
        size = store.fs.size(place)
        md5 = _remote_md5(store.fs, place, size, path) if size == packed.size else None
    except FileNotFoundError:
        yield f"{where} has no {path}; run {push}"
        return
    except Exception as error:  # every kind of storage has exceptions of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        yield f"{where} cannot be read ({reason}); docs/remotes.md says where its keys belong"
        return
    if md5 != packed.md5:
        found = f"{size} bytes" if md5 is None else f"MD5 {md5}"
        expected = f"{packed.size} bytes" if md5 is None else packed.md5
        yield (
            f"{where} has a damaged {path} ({found}, expected {expected}); "
            f"delete {store.fs.unstrip_protocol(place)} and run {push}"
        )


def _remote_md5(fs: object, place: str, size: int, path: str) -> str:
    digest = hashlib.md5()
    with console.progress(f"check {path} on the remote", size, "B") as bar, fs.open(place, "rb") as file:
        while block := file.read(files.HASH_BLOCK):
            digest.update(block)
            bar.advance(len(block))
    return digest.hexdigest()


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _tag(name: str, version: str, message: str, repository: Path) -> None:
    from gto.api import register
    from gto.exceptions import GTOException
    from scmrepo.exceptions import SCMError

    try:
        register(str(repository.absolute()), name, "HEAD", version, message=message)
    except (GTOException, SCMError) as error:  # the latter of git itself: nobody told it who tags
        raise UpsDataError(f"GTO could not tag {name}@{version}: {' '.join(str(error).split())}") from None
