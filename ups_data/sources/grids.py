"""Open a raw grid file of any source: told by its keys, never by its name or "the largest dataset".

To add a source, write a reader with a tuple LAYOUTS beside `pdebench` and `the_well`, and name it here.
"""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np

from ups_data.errors import UpsDataError
from ups_data.sources import pdebench, the_well
from ups_data.sources.raw import Layout, RawFile

TELLING_KEYS = 64  # more than any layout has, but for the one with a group a sample, whose keys are all alike
# What a broken structure makes h5py raise, or whoever trusts what it says.
DAMAGE = (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
COUNTS = ("latestIndex", "n_trajectories", "n_spatial_dims", "seed")  # attributes that are never parameters
SOURCES = {"pdebench": pdebench.LAYOUTS, "the_well": the_well.LAYOUTS}


@contextmanager
def open_raw(path: str | Path, source: str | None = None) -> Iterator[RawFile]:
    """Open a raw file; use as `with open_raw(path) as raw:`. `source` (None: any) is the one it must be of.

    Raises UpsDataError for a file that is missing, no HDF5, truncated, lacks a key or is of another source.
    """
    path = Path(path)
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise UpsDataError(f"{path} is missing; make it with `dvc repro` or fetch it") from None
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EISDIR):
            raise UpsDataError(f"{path} cannot be read: {os.strerror(error.errno)}") from None
        reason = "truncated" if "truncated" in str(error) else "not an HDF5 file or damaged"
        raise UpsDataError(f"{path} is {reason} ({str(error).splitlines()[0]}); fetch it again") from None
    with file:
        try:
            raw = _opened(path, file, source)
        except DAMAGE as error:
            raise _damaged(path, error) from None
        try:
            yield raw
        except DAMAGE as error:
            # What reads the file may have faults of its own: only what HDF5 raises tells of the file.
            if not any("h5py" in frame.filename for frame in traceback.extract_tb(error.__traceback__)):
                raise
            raise _damaged(path, error) from None


def _opened(path: Path, file: h5py.File, source: str | None) -> RawFile:
    found, layout = _layout(path, file)
    if source not in (None, found):
        raise UpsDataError(f"{path}: the knob convert.source is {source}, but the file is in a layout of {found}")
    for key in layout.required:
        if key not in file:
            raise UpsDataError(f"{path}: the key {key!r} is missing; got the keys {_keys(file)}; fetch it again")
    return layout.open(path, file)


def loose_numbers(raw: RawFile) -> dict[str, float]:
    """The numbers among the attributes of a raw file that are none of its parameters: name -> value."""
    known = {name.casefold() for name in (*raw.parameters.values(), *COUNTS)}
    found = {}
    with h5py.File(raw.path, "r") as file:
        for name in file.attrs:
            with suppress(*DAMAGE):  # of an odd type: it is not read, so it does no harm
                value = file.attrs[name]
                if name.casefold() not in known and np.ndim(value) == 0 and np.asarray(value).dtype.kind in "fiu":
                    found[name] = float(value)
    return found


def _damaged(path: Path, error: Exception) -> UpsDataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UpsDataError(f"{path} is damaged ({reason}); fetch it again")


def _layout(path: Path, file: h5py.File) -> tuple[str, Layout]:
    keys = _first_keys(file)
    for source, layouts in SOURCES.items():
        for layout in layouts:
            if any(re.fullmatch(layout.mark, key) for key in keys):
                return source, layout
    raise UpsDataError(
        f"{path}: no known layout: got the keys {_keys(file)}, expected those of PDEBench (tensor; density, pressure, "
        "Vx; velocity, particles, force; nu; 0000, 0001, ..) or The Well (t0_fields, ..)"
    )


def _first_keys(file: h5py.File) -> list[str]:
    """Some keys of a file: to iterate over it would read all of them first, and there may be thousands."""
    keys: list[str] = []

    def take(name: bytes) -> bool | None:
        keys.append(name.decode(errors="replace"))
        return len(keys) == TELLING_KEYS or None

    file.id.links.iterate(take)
    return keys


def _keys(file: h5py.File) -> str:
    return ", ".join(sorted(file)[:12]) or "(none)"
