"""What DVC keeps on disk: the outputs in dvc.lock, the objects in its cache, how it names a folder."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ups_data import files
from ups_data.errors import UpsDataError

READ_ONLY = 0o444  # the mode of DVC's objects: an output linked to one must not be written in place


@dataclass(frozen=True)
class Output:
    """An output that dvc.lock records; `md5` of a folder ends in `.dir`."""

    path: str
    md5: str


def locked_outputs(lock: Path) -> list[Output]:
    """The outputs in dvc.lock, sorted by path."""
    try:
        tree = yaml.safe_load(lock.read_text(encoding="utf-8")) or {}
        outputs = [Output(o["path"], o["md5"]) for stage in tree["stages"].values() for o in stage.get("outs", [])]
    except FileNotFoundError:
        raise UpsDataError(f"{lock} is missing; run this in a clone of the project, after `dvc repro`") from None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UpsDataError(f"{lock} is not a lock of DVC ({error}); restore it with `git checkout {lock}`") from None
    return sorted(outputs, key=lambda output: output.path)


def cache_folder(repository: Path) -> Path:
    """Where DVC's cache is; UpsDataError outside a DVC repository."""
    asked = dvc(["cache", "dir"], repository)
    if asked.returncode:
        raise UpsDataError(f"DVC does not work here ({what_failed(asked.stderr)}); run this in a clone of the project")
    return repository / asked.stdout.strip()


def cache_object(cache: Path, md5: str) -> Path:
    """Where DVC's cache keeps the object with this MD5."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def folder_listing(md5: Mapping[str, str]) -> bytes:
    """DVC's record of a folder (path in it -> MD5); the MD5 of these bytes and `.dir` name it."""
    rows = [{"md5": digest, "relpath": path} for path, digest in sorted(md5.items())]
    return json.dumps(rows, sort_keys=True).encode()


def folder_md5(md5: Mapping[str, str]) -> str:
    """The name DVC gives a folder with these files."""
    return hashlib.md5(folder_listing(md5)).hexdigest() + ".dir"


def add_to_cache(output: Output, path: Path, md5: Mapping[str, str], cache: Path) -> bool:
    """Link a restored output into DVC's cache, so that DVC knows it; false if it is not what dvc.lock records.

    `md5`: MD5 of every file, by its path in the folder, or by "" where the output is a file. The bytes stay
    where they are and become read-only, as DVC's own links are.
    """
    if (md5.get("") or folder_md5(md5)) != output.md5:
        return False
    for inside, digest in md5.items():
        _link(path / inside if inside else path, cache_object(cache, digest))
    if "" not in md5:
        listing = cache_object(cache, output.md5)
        if not listing.exists() and all(cache_object(cache, digest).exists() for digest in md5.values()):
            with files.atomic(listing) as temporary:
                temporary.write_bytes(folder_listing(md5))
                temporary.chmod(READ_ONLY)
    return True


def _link(path: Path, entry: Path) -> None:
    if path.is_symlink() or entry.exists():
        return  # a link to elsewhere: the cache holds bytes, and a file outside of the project stays as it is
    temporary = entry.with_name(f".{uuid.uuid4().hex[:8]}.tmp")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, temporary)
    except OSError:
        return  # another disk, or a cache of others: DVC hashes the file itself when it is asked to commit
    path.chmod(READ_ONLY)
    temporary.rename(entry)


# --- the commands --------------------------------------------------------------------------------


def dvc(arguments: Sequence[str], repository: Path) -> subprocess.CompletedProcess[str]:
    """Run DVC in a repository; its output is text."""
    return command([sys.executable, "-m", "dvc", *arguments], repository)


def command(words: Sequence[str], repository: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a repository; its output is text."""
    try:
        return subprocess.run(words, cwd=repository, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UpsDataError(f"{words[0]} or the folder {repository} is not there; it is needed here") from None


def what_failed(text: str) -> str:
    """The line of a program's standard error that says what went wrong.

    DVC ends with a count ("1 files failed to download"); the reason is the error that it named first.
    """
    lines: Iterator[str] = (line for line in reversed(text.splitlines()) if line.strip())
    errors = [line for line in text.splitlines() if line.startswith("ERROR: ")]
    return errors[0].removeprefix("ERROR: ") if errors else next(lines, "it gave no reason")
