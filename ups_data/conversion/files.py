"""Which raw files a conversion takes."""

from __future__ import annotations

import filecmp
import re
from collections.abc import Mapping
from pathlib import Path

from ups_data.errors import UpsDataError
from ups_data.params import Convert


def natural_key(name: str) -> list[tuple[int, float, str]]:
    """Sort numbers in names by value: beta0.2 before beta10.0, file 9 before file 10, 1.e-8 before 0.1."""
    parts = re.split(r"([0-9]+(?:\.[0-9]*)?(?:e[-+]?[0-9]+)?)", name)
    return [(1, float(part), "") if i % 2 else (0, 0.0, part) for i, part in enumerate(parts)]


def find_files(pattern: str, limit: int | None) -> list[Path]:
    """The files matching a glob in natural order, at most `limit`; none at all is an error."""
    paths = sorted((p for p in _matches(pattern) if p.is_file()), key=lambda p: natural_key(str(p)))[:limit]
    if not paths:
        raise UpsDataError(
            f"no file matches {pattern}; make the sample with `dvc repro`, fetch the files, "
            "or correct --root or --pattern"
        )
    return paths


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    anchor = Path(path.anchor) if path.is_absolute() else Path()
    return list(anchor.glob(str(path.relative_to(path.anchor) if path.is_absolute() else path)))


def raw_files(knobs: Convert) -> tuple[Path, list[Path]]:
    """The root that names are relative to, and the files.

    A root that is the folder itself, or that has the one such folder somewhere below it, is understood too.
    """
    root = Path(knobs.root)
    folder = root / knobs.folder
    if not folder.exists():
        if any(_matches(str(root / knobs.pattern))):
            folder = root
        elif len(below := [path for path in root.glob(f"**/{knobs.folder}") if path.is_dir()]) == 1:
            folder = below[0]
    return root, find_files(str(folder / knobs.pattern), knobs.limit)


def find_twin(path: Path, facts: object, kept: Mapping[Path, object]) -> Path | None:
    """The file among those kept that `path` is a copy of, byte for byte; files of equal size and facts are read."""
    size = path.stat().st_size
    for other, known in kept.items():
        if known == facts and other.stat().st_size == size and filecmp.cmp(path, other, shallow=False):
            return other
    return None
