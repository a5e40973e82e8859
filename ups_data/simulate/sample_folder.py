"""The folder a solver writes to: which files are its own, which are finished, which are stale.

A record under .state/simulate lists the files of a folder with the knobs they were made by. A file is listed
before it is written (without a checksum) and again when it is whole (with one), so after a kill nothing is
taken for finished that is not, and a file that somebody else put there is never overwritten or deleted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from ups_data import files
from ups_data.errors import UpsDataError

RECORDS = Path(".state/simulate")


def claim(folder: Path, made_by: Mapping[str, Mapping], size: int = 0) -> list[str]:
    """Make `folder` ready for the files named in `made_by` (name -> the knobs that determine it).

    Removes files this stage wrote with other knobs and what a killed run left. Returns the names still to
    be written, in order. Raises UpsDataError, and removes nothing, if the folder holds anything this stage
    did not write or the disk has no room for the files to be written, `size` bytes each.
    """
    record = _read(folder)
    present = _own_files(folder, record)
    keys = {name: _key(knobs) for name, knobs in made_by.items()}
    finished = {name for name, key in keys.items() if name in present and _is_finished(record[name], key)}
    unfinished = [name for name in keys if name not in finished]
    files.require_space(folder, size * len(unfinished), f"the sample in {folder}")
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in finished:
            files.remove(path)
    _write(folder, {name: record[name] if name in finished else _entry(keys[name]) for name in keys})
    return unfinished


def write_whole(folder: Path, knobs: Mapping, write: Callable[[Path], list[Path]]) -> list[Path]:
    """Fill `folder` by a solver whose file names are known only when it is done; returns the paths.

    `write` gets a folder beside `folder`, from which the files are moved; nothing is done if all the files
    are there, made by the same knobs. Raises UpsDataError like `claim`.
    """
    record = _read(folder)
    present = _own_files(folder, record)
    if record and present == set(record) and all(_is_finished(entry, _key(knobs)) for entry in record.values()):
        return [folder / name for name in sorted(record)]
    beside = folder.with_name(f".{folder.name}.simulate.tmp")
    files.remove(beside)
    beside.mkdir(parents=True)
    try:
        names = sorted(path.name for path in write(beside))
        for name in claim(folder, dict.fromkeys(names, knobs)):
            files.publish(beside / name, folder / name)
            finish(folder, name)
    finally:
        files.remove(beside)
    return [folder / name for name in names]


def finish(folder: Path, name: str) -> None:
    """Record that a claimed file is whole."""
    record = _read(folder)
    record[name] = _entry(record[name]["knobs"], folder / name)
    _write(folder, record)


def _entry(key: str, path: Path | None = None) -> dict:
    return {"knobs": key, "sha256": files.checksum(path) if path else None}


def _own_files(folder: Path, record: Mapping[str, Mapping]) -> set[str]:
    """Names of the files in `folder`, all of them written by this stage; temporary files are not counted."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    paths = [path for path in paths if not (path.name.startswith(".") and path.name.endswith(".tmp"))]
    for path in paths:
        listed = record.get(path.name)
        if not (listed and path.is_file() and listed["sha256"] in (None, files.checksum(path))):
            raise UpsDataError(
                f"{path} was not written by this stage; move it away, or choose another folder "
                "(the knob folder, or --out)"
            )
    return {path.name for path in paths}


def _is_finished(entry: Mapping, key: str) -> bool:
    return entry["sha256"] is not None and entry["knobs"] == key


def _key(knobs: Mapping) -> str:
    return hashlib.sha256(files.to_json(dict(knobs)).encode()).hexdigest()


def _record_path(folder: Path) -> Path:
    return RECORDS / f"{folder.name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}.json"


def _read(folder: Path) -> dict[str, dict]:
    path = _record_path(folder)
    return files.read_json(path) if path.exists() else {}


def _write(folder: Path, record: dict[str, dict]) -> None:
    files.write_json(_record_path(folder), record)
