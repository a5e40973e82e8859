"""What of the official files is where: workspace, DVC cache, under way, DVC remote; and the tables that show it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from ups_data import files
from ups_data.catalogue import CATALOGUE, ROOT, Entry, twins
from ups_data.download import STATE
from ups_data.dvc_files import cache_folder, cache_object, dvc, what_failed
from ups_data.errors import UpsDataError
from ups_data.parts import bytes_there


@dataclass(frozen=True)
class Holding:
    """An official file and where it is. Nothing is read for it: `here` goes by name and size."""

    path: str
    family: str
    md5: str
    size: int | None  # bytes; None where neither the catalogue nor this machine knows
    url: str
    workspace: bool
    cache: bool
    under_way: int  # bytes of an unfinished download
    remote: bool | None  # None: it was not asked
    twin_of: str  # the file with the same body that stands for both; "" for none
    archive_only: bool

    @property
    def here(self) -> bool:
        """Whether this machine has the file."""
        return self.workspace or self.cache

    def as_dict(self) -> dict:
        """The row as JSON shows it."""
        return asdict(self)


def survey(entries: Sequence[Entry], repository: Path = Path(), remote: str | None = None) -> list[Holding]:
    """Where each file of the catalogue is; `remote` names a DVC remote to ask too ("" for the default one)."""
    cache = cache_folder(repository)
    first = {md5: group[0].path for md5, group in twins(entries).items()}
    absent = None if remote is None else _not_in_remote(sorted({e.family for e in entries}), repository, remote)
    return [_holding(entry, cache, repository, first.get(entry.md5, ""), absent) for entry in entries]


def _holding(entry: Entry, cache: Path, repository: Path, first: str, absent: set[str] | None) -> Holding:
    place, cached = repository / ROOT / entry.path, cache_object(cache, entry.md5)
    found = [path.stat().st_size for path in (place, cached) if path.exists()]
    size = entry.size if entry.size is not None else (found[0] if found else None)
    return Holding(
        path=entry.path,
        family=entry.family,
        md5=entry.md5,
        size=size,
        url=entry.url,
        workspace=place.exists() and place.stat().st_size == size,
        cache=cached.exists() and cached.stat().st_size == size,
        under_way=bytes_there(repository / STATE / entry.md5),
        remote=None if absent is None else (ROOT / entry.path).as_posix() not in absent,
        twin_of=first if first != entry.path else "",
        archive_only=entry.archive_only,
    )


def _not_in_remote(families: Sequence[str], repository: Path, remote: str) -> set[str]:
    """Workspace paths of the files that the remote does not have, as DVC sees it."""
    targets = [(CATALOGUE / f"{family}.dvc").as_posix() for family in families]
    asked = dvc(["status", "--cloud", "--json", *(["--remote", remote] if remote else []), *targets], repository)
    if asked.returncode:
        raise UpsDataError(f"the DVC remote {remote or '(default)'} cannot be asked: {what_failed(asked.stderr)}")
    return {path for path, state in json.loads(asked.stdout).items() if state in ("new", "missing")}


# --- the tables ----------------------------------------------------------------------------------


def family_table(rows: Sequence[Holding]) -> str:
    """A line a family."""
    asked = rows[0].remote is not None
    head = ["family", "files", "size", "here", "size here", *(["in remote"] if asked else []), "twins", "archive only"]
    lines = []
    for family, members in groupby(rows, key=lambda row: row.family):
        lines.append([family, *_counts(list(members), asked)])
    lines.append(["all", *_counts(rows, asked)])
    return _table(head, lines)


def _counts(rows: Sequence[Holding], asked: bool) -> list[str]:
    here = [row for row in rows if row.here]
    unknown = any(row.size is None for row in rows)
    remote = [str(sum(row.remote is True for row in rows) or "-")] if asked else []
    return [
        str(len(rows)),
        _bytes(sum(row.size or 0 for row in rows)) + (" +" if unknown else ""),
        str(len(here) or "-"),
        _bytes(sum(row.size or 0 for row in here if not row.twin_of)) if here else "-",
        *remote,
        str(sum(bool(row.twin_of) for row in rows) or "-"),
        str(sum(row.archive_only for row in rows) or "-"),
    ]


def file_table(rows: Sequence[Holding]) -> str:
    """A line a file."""
    return _table(
        ["file", "size", "where", "note"], [[row.path, _bytes(row.size), _where(row), _note(row)] for row in rows]
    )


def _where(row: Holding) -> str:
    places = [name for name in ("workspace", "cache", "remote") if getattr(row, name)]
    if row.under_way and not row.here:
        share = f"{row.under_way / row.size:.0%}" if row.size else _bytes(row.under_way)
        places.append(f"{share} fetched")
    return ", ".join(places) or "archive"


def _note(row: Holding) -> str:
    notes = [f"twin of {Path(row.twin_of).name}"] if row.twin_of else []
    notes += ["not in the official list"] if row.archive_only else []
    return "; ".join(notes)


def summary(rows: Sequence[Holding]) -> str:
    """How much there is in all, and what the mark of unknown sizes means."""
    bodies = {row.md5: row for row in rows}.values()
    size, unknown = sum(row.size or 0 for row in bodies), sum(row.size is None for row in bodies)
    plus = f" and {unknown} of unknown size (+)" if unknown else ""
    return f"{len(rows)} files, {len(bodies)} different: {_bytes(size)}{plus}"


def _bytes(size: int | None) -> str:
    return "?" if size is None else files.amount(size)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    right = {i for i, name in enumerate(head) if name not in ("family", "file", "where", "note")}
    rows = [
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in (head, ["-" * w for w in widths], *lines)
    ]
    return "\n".join(row.rstrip() for row in rows)
