"""A published dataset back on this machine: found, verified, unpacked, published."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ups_data import archive, console, execution, files, registry
from ups_data.dvc_files import add_to_cache, cache_folder, cache_object, command, dvc, locked_outputs, what_failed
from ups_data.errors import UpsDataError
from ups_data.files import locked
from ups_data.manifest import check_split, read_manifest
from ups_data.mirror.fetch import fetch_archive
from ups_data.packaging import item as item_of

ABSENT = "neither locally nor on remote"  # what `dvc fetch` warns of, and ends with 0; of a damaged object it does not
CHECK_REMOTE = "check the remote (`dvc remote list`) and that it was pushed (`make push`)"
Source = Literal["dvc", "wandb"]  # whom to ask for an archive


@dataclass(frozen=True)
class Places:
    """Where things are on this machine: the converted data, two folders of archives, the repository."""

    root: Path = Path("data/pdebench")
    cache: Path = Path("artifacts/cache")
    artifacts: Path = Path("artifacts")
    repository: Path = Path()


def hydrate(
    name: str,
    splits: tuple[str, ...] = (),
    places: Places = Places(),
    version: str | None = None,
    remote: str | None = None,
    source: Source = "dvc",
) -> str:
    """Restore the splits of a published dataset and its manifest into `places.root`; all splits if none is named.

    The registry is that of the workspace or, with `version`, of the dataset's git tag. What is there already
    and has its checksum stays; `source` is asked for an archive that is not at hand. Returns a sentence for
    the person. Raises UpsDataError for an unknown name, an archive that is nowhere to be had, damaged or
    hostile, or a disk without room.
    """
    if source not in get_args(Source):
        raise UpsDataError(f"source: got {source!r}, expected {' or '.join(get_args(Source))}")
    entry, tag = find_version(name, version, places.repository)
    if unknown := [s for s in splits if s not in entry.splits]:
        raise UpsDataError(f"{name} has no split {unknown[0]!r}; it has {', '.join(entry.splits)}")
    items = entry.items(splits)
    with locked(places.root, f"another process hydrates into {places.root}"):
        started = time.monotonic()
        missing = [item for item in items if not _is_there(places.root, item)]
        if not missing:
            _tell_dvc(items, {}, places)
            size = sum(item.size for item in items)
            return f"{name}: already in {places.root}, {_at(size, started)} verified"
        for item in missing:
            if (places.root / item.path).exists():
                console.say(f"{places.root / item.path} differs from the published one and is replaced")
        size = sum(item.size for item in missing)
        files.require_space(places.root, size, f"hydrating {name}")
        packed = find_archive(entry, tag, places, remote, source)
        started = time.monotonic()
        with console.progress(f"hydrate {name}", size, "B") as bar:
            restored = archive.extract(
                packed,
                places.root,
                only=[item.path for item in missing],
                advance=bar.advance,
                accept=lambda members: _agree(members, missing, packed),
            )
        done = _at(size, started)
        if left := list(_left_behind(entry, missing, places.root)):
            console.say(
                f"{', '.join(left)} in {places.root}: of another version than {entry.manifest.path}, which was "
                f"replaced; hydrate all splits of {name} to have one version"
            )
        _tell_dvc(items, {member.path: member.md5 for member in restored}, places)
    return f"{name}: {', '.join(item.path for item in missing)} in {places.root}, {done}"


def _left_behind(entry: registry.Entry, restored: Sequence[registry.Item], root: Path) -> Iterator[str]:
    """The splits that stand beside a manifest just restored and are not those it speaks of, by what they say."""
    if entry.manifest not in restored:
        return
    manifest = read_manifest(root, entry.task)
    for split, item in entry.splits.items():
        if item not in restored and (root / item.path).exists():
            try:
                check_split(manifest, root / item.path, split)
            except UpsDataError:
                yield item.path


def _at(size: int, started: float) -> str:
    return f"{files.amount(size)} at {files.rate(size, started)}"


def _agree(members: Sequence[archive.Member], items: Sequence[registry.Item], packed: Path) -> None:
    """Refuse an archive whose members are not those the registry lists."""
    for item in items:
        if (found := item_of(item.path, members)) != _plain(item):
            raise UpsDataError(
                f"{packed}: {item.path} has {found.size} bytes and SHA-256 {found.sha256}, "
                f"the registry says {item.size} and {item.sha256}; nothing was restored"
            )


def _plain(item: registry.Item) -> registry.Item:
    return registry.Item(path=item.path, files=item.files, size=item.size, sha256=item.sha256)


def _is_there(root: Path, item: registry.Item) -> bool:
    """Whether the file or folder stands in `root` and has its checksum, by reading every byte."""
    try:
        return item_on_disk(root, item.path) == _plain(item)
    except OSError:
        return False


def item_on_disk(root: Path, path: str) -> registry.Item:
    """The size and checksum of a file or folder under `root`, by reading every byte; OSError if there is none."""
    top = root / path
    if not top.is_dir():
        return registry.Item(path=path, files=1, size=top.stat().st_size, sha256=files.checksum(top))
    found = sorted(p for p in top.rglob("*") if not p.is_dir())
    with ThreadPoolExecutor(execution.cores()) as pool:
        digests = list(pool.map(files.checksum, found))
    listing = {p.relative_to(top).as_posix(): digest for p, digest in zip(found, digests, strict=True)}
    size = sum(p.stat().st_size for p in found)
    return registry.Item(path=path, files=len(found), size=size, sha256=registry.tree_digest(listing))


def _tell_dvc(items: Sequence[registry.Item], known: dict[str, str], places: Places) -> None:
    """Link what was restored into DVC's cache where dvc.lock records just that: `dvc status` is clean then.

    `known`: MD5s that need no second reading, by path under the root.
    """
    root, repository = places.root.resolve(), places.repository.resolve()
    if not (repository / "dvc.lock").is_file() or not root.is_relative_to(repository):
        return
    recorded = {output.path: output for output in locked_outputs(repository / "dvc.lock")}
    paths = {(root / item.path).relative_to(repository).as_posix(): item.path for item in items}
    if not paths.keys() & recorded.keys():
        return
    cache = cache_folder(repository)
    for path, inside in paths.items():
        if path in recorded and not cache_object(cache, recorded[path].md5).exists():
            add_to_cache(recorded[path], root / inside, _md5s(root, inside, known), cache)


def _md5s(root: Path, path: str, known: dict[str, str]) -> dict[str, str]:
    top = root / path
    found = [p for p in top.rglob("*") if p.is_file()] if top.is_dir() else [top]
    names = [p.relative_to(root).as_posix() for p in found]
    digests = [known.get(name) or files.checksum(root / name, "md5") for name in names]
    return {name.removeprefix(path).lstrip("/"): digest for name, digest in zip(names, digests, strict=True)}


# --- which dataset -------------------------------------------------------------------------------


def find_tag(name: str, version: str, repository: Path) -> str:
    """The git tag of a dataset's version: burgers1d_subset_v1, v1.0.0 -> burgers1d-subset-v1@v1.0.0.

    The name without its `_v1` is taken too: burgers1d-subset@v1.0.0.
    """
    stems = registry.tag_stems(name)
    for stem in stems:
        tag = f"{stem}@{version}"
        if command(["git", "rev-parse", "-q", "--verify", f"refs/tags/{tag}^{{commit}}"], repository).returncode == 0:
            return tag
    known = command(["git", "tag", "--list", *(f"{stem}@*" for stem in stems)], repository).stdout.split()
    raise UpsDataError(
        f"{name} has no version {version!r} here; it has {', '.join(known) or 'no tags'}; "
        "`git fetch --tags` gets new ones"
    )


def find_version(name: str, version: str | None, repository: Path) -> tuple[registry.Entry, str | None]:
    """The entry of a published dataset, and the git tag of the version that is asked for; of the workspace if none."""
    tag = find_tag(name, version, repository) if version else None
    return find_entry(name, tag, repository), tag


def find_entry(name: str, tag: str | None, repository: Path) -> registry.Entry:
    """The entry of a published dataset in the registry of the workspace, or of that git tag."""
    if tag is None:
        path = repository / registry.REGISTRY
        return registry.find(registry.read_registry(path), name, str(path))
    where = f"{tag}:{registry.REGISTRY}"
    shown = command(["git", "show", where], repository)
    if shown.returncode:
        raise UpsDataError(f"{where} cannot be read: {what_failed(shown.stderr)}")
    return registry.find(registry.parse_registry(shown.stdout, where), name, where)


# --- its archive ---------------------------------------------------------------------------------


def find_archive(
    entry: registry.Entry, tag: str | None, places: Places, remote: str | None = None, source: Source = "dvc"
) -> Path:
    """A verified copy of the entry's archive: the workspace's, the cache's, DVC's, or one fetched by DVC or from W&B.

    Raises UpsDataError when it is nowhere to be had, or when what DVC fetched is not what the registry says.
    """
    packed = entry.archive
    for candidate in (places.artifacts / packed.file, places.cache / packed.file):
        if _is_archive(candidate, packed):
            return candidate
    if source == "wandb":
        with locked(places.cache, f"another process fetches into {places.cache}"):
            at_hand = places.cache / packed.file  # the other process may have brought it
            return at_hand if _is_archive(at_hand, packed) else fetch_archive(entry, places.cache)
    repository = places.repository
    try:
        cached = cache_object(cache_folder(repository), packed.md5)
    except UpsDataError as error:
        raise UpsDataError(f"{packed.file} is neither in {places.artifacts} nor in {places.cache}: {error}") from None
    with locked(places.cache, f"another process fetches into {places.cache}"):
        if _is_archive(cached, packed):
            return cached
        if cached.is_file() and files.checksum(cached, "md5") != packed.md5:
            cached.unlink()  # DVC trusts what its cache holds: a damaged object would never be fetched again
        files.require_space(places.cache, packed.size, f"fetching {packed.file}")
        console.say(f"fetching {packed.file} ({files.amount(packed.size)}) from the DVC remote {remote or '(default)'}")
        started = time.monotonic()
        if tag:
            fetched = _get(packed, tag, places, remote)
        else:
            _fetch(packed, repository, remote)
            fetched = cached
        if not _is_archive(fetched, packed):
            fetched.unlink(missing_ok=True)
            raise UpsDataError(
                f"what DVC fetched as {packed.file} is not the archive of the registry (SHA-256 {packed.sha256}): the "
                "remote's copy is damaged, or dvc.lock and the registry disagree; push it again from where it was made"
            )
    console.say(f"fetched {_at(packed.size, started)}")
    return fetched


def _is_archive(path: Path, packed: registry.Archive) -> bool:
    if not path.is_file():
        return False
    if path.stat().st_size == packed.size and files.checksum(path) == packed.sha256:
        return True
    console.say(f"{path} is not the archive of the registry (SHA-256 {packed.sha256[:12]}..); looking elsewhere")
    return False


def _fetch(packed: registry.Archive, repository: Path, remote: str | None) -> None:
    """Have DVC bring the object of this commit's dvc.lock into its cache; the workspace stays as it is."""
    fetched = dvc(["fetch", f"artifacts/{packed.file}", *(["--remote", remote] if remote else [])], repository)
    if fetched.returncode:
        raise UpsDataError(
            f"DVC could not fetch artifacts/{packed.file}: {what_failed(fetched.stderr)}; {CHECK_REMOTE}"
        )
    if ABSENT in fetched.stderr:
        remote = remote or "(the default one)"
        raise UpsDataError(f"the DVC remote {remote} has no archive {packed.file}; {CHECK_REMOTE}")


def _get(packed: registry.Archive, tag: str, places: Places, remote: str | None) -> Path:
    target = (places.cache / packed.file).absolute()
    with files.atomic(target) as temporary:
        flags = ["--rev", tag, "--out", str(temporary), *(["--remote", remote] if remote else [])]
        got = dvc(["get", ".", f"artifacts/{packed.file}", *flags], places.repository)
        if got.returncode or not temporary.is_file():
            raise UpsDataError(
                f"DVC could not get artifacts/{packed.file} at {tag}: {what_failed(got.stderr)}; {CHECK_REMOTE}"
            )
    return target
