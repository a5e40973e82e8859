"""The folder in which files are made before they are published."""

from __future__ import annotations

import fcntl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ups_data import files

STAGING = ".upk-"  # temporary folders are .upk-<random>.tmp inside the target


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A folder inside `target` for files in the making; those of killed runs are swept away first.

    A run holds a lock inside its folder for as long as it lives, so a folder whose lock is free is dead.
    """
    for other in target.glob(f"{STAGING}*.tmp"):
        _sweep(other)
    while True:
        folder = target / f"{STAGING}{uuid.uuid4().hex[:12]}.tmp"
        folder.mkdir()
        try:
            with open(folder / "lock", "wb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                except OSError as error:  # a file system without locks: it is said where
                    raise OSError(error.errno, error.strerror, str(folder)) from None
                if folder.exists():  # else another run came before the lock, and took the folder for dead
                    (folder / "files").mkdir()
                    yield folder / "files"
                    return
        finally:
            _remove(folder)


def _sweep(folder: Path) -> None:
    try:
        with open(folder / "lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
    except OSError:
        return  # alive, just being made, or gone by now


def _remove(folder: Path) -> None:
    """Delete a folder of work, the lock last: what a kill leaves of it is swept by the next run."""
    files.remove(folder / "files")
    files.remove(folder)
