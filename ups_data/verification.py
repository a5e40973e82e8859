"""Rehash what DVC and the registry vouch for: DVC trusts its cache once filled, this does not."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ups_data import execution, files, registry
from ups_data.dvc_files import Output, cache_object, folder_md5, locked_outputs


@dataclass(frozen=True)
class Finding:
    """Something that was looked at; `problem` and `remedy` (a command) are empty where all is well."""

    what: str
    size: int = 0
    problem: str = ""
    remedy: str = ""


def verify(repository: Path, cache: Path) -> Iterator[Finding]:
    """Rehash the cache entries of dvc.lock's outputs, those outputs in the workspace, and the archives.

    What is absent is not broken: it has yet to be pulled or made.
    """
    outputs = locked_outputs(repository / "dvc.lock")
    with ThreadPoolExecutor(execution.cores()) as pool:
        for output in outputs:
            yield from _check_cache(output, cache, pool)
        for output in outputs:
            if (repository / output.path).exists():
                yield _check_workspace(output, repository, pool)
    if (repository / registry.REGISTRY).exists():
        recorded = {output.path: output.md5 for output in outputs}
        for name, entry in registry.read_registry(repository / registry.REGISTRY).items():
            yield from _check_archive(name, entry, repository, recorded)


def bytes_to_read(repository: Path, cache: Path) -> int:
    """How many bytes `verify` reads."""
    outputs = locked_outputs(repository / "dvc.lock")
    places = [place for output in outputs for place, _ in _objects(output, cache)]
    places += [repository / output.path for output in outputs]
    if (repository / registry.REGISTRY).exists():
        entries = registry.read_registry(repository / registry.REGISTRY).values()
        places += [repository / "artifacts" / entry.archive.file for entry in entries]
    return sum(_size(place) for place in places if place.exists())


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _md5(path: Path) -> str:
    return files.checksum(path, "md5")


def _folder_md5(folder: Path, pool: ThreadPoolExecutor) -> str:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in paths]
    return folder_md5(dict(zip(names, pool.map(_md5, paths), strict=True)))


def _objects(output: Output, cache: Path) -> list[tuple[Path, str]]:
    """What the cache has of an output, each object with its MD5: a file, or a folder's listing and its files."""
    objects = [(entry := cache_object(cache, output.md5), output.md5.removesuffix(".dir"))]
    if output.md5.endswith(".dir") and entry.exists():
        with suppress(ValueError, KeyError, TypeError):  # the listing's checksum is wrong then, which will be said
            objects += [(cache_object(cache, row["md5"]), row["md5"]) for row in json.loads(entry.read_bytes())]
    return [row for row in objects if row[0].exists()]


def _check_cache(output: Output, cache: Path, pool: ThreadPoolExecutor) -> Iterator[Finding]:
    yield from pool.map(lambda row: _check_object(*row, output.path), _objects(output, cache))


def _check_object(entry: Path, md5: str, path: str) -> Finding:
    size = entry.stat().st_size
    if (found := _md5(entry)) == md5:
        return Finding(f"cache of {path}", size)
    target = shlex.quote(path)
    remedy = f"rm -f {shlex.quote(str(entry))} && dvc fetch {target} && dvc checkout --force {target}"
    return Finding(f"cache of {path}", size, f"{entry} has MD5 {found}, dvc.lock says {md5}", remedy)


def _check_workspace(output: Output, repository: Path, pool: ThreadPoolExecutor) -> Finding:
    path = repository / output.path
    size = _size(path)
    found = _folder_md5(path, pool) if path.is_dir() else _md5(path)
    if found == output.md5:
        return Finding(output.path, size)
    remedy = f"dvc checkout --force {output.path} (the recorded one) or dvc repro (made anew)"
    return Finding(output.path, size, f"has MD5 {found}, dvc.lock says {output.md5}", remedy)


def _check_archive(name: str, entry: registry.Entry, repository: Path, recorded: dict[str, str]) -> Iterator[Finding]:
    packed, path = entry.archive, f"artifacts/{entry.archive.file}"
    if path in recorded and recorded[path] != packed.md5:
        problem = f"the registry says MD5 {packed.md5}, dvc.lock says {recorded[path]}"
        yield Finding(f"registry of {name}", 0, problem, "dvc repro")
    if (repository / path).exists():
        size, found = (repository / path).stat().st_size, files.checksum(repository / path)
        if found == packed.sha256:
            yield Finding(f"archive of {name}", size)
        else:
            problem = f"{path} has SHA-256 {found}, the registry says {packed.sha256}"
            yield Finding(f"archive of {name}", size, problem, f"dvc checkout --force {path} or dvc repro")
