"""Grids on disk: one HDF5 file a split, or a folder of them, readable with plain h5py.

`/data` float32 [sample, time, x(, y(, z)), channel], contiguous and uncompressed, so that its bytes stand at one
known offset: converting processes write blocks there side by side, and readers map it into memory.
Small arrays beside it: `/time` [T], `/x`, `/y`, `/z`, `/parameters` [sample, P] (all float64), `/group` [sample] (id of
the initial condition), `/source_file` and `/source_row` [sample], `/static` [sample, x.., channel] where fields do not
change in time, `/manifest` (JSON). Attributes: format, version, task, split; as JSON channels and parameter_names.
A split too large for one file (knob convert.shard_gb) is a folder `<task>_<split>.h5` of such files,
`<task>_<split>_000.h5`, .., each with some of its samples; their order and samples stand in the manifest.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from ups_data.errors import UpsDataError

FORMAT, VERSION = "ups-data/grid", 1
AXES = ("x", "y", "z")
# What HDF5, NumPy and JSON make of a description whose bytes are not those that were written.
DAMAGED = (KeyError, ValueError, OSError, RuntimeError, TypeError, AttributeError, MemoryError)
ALIGNMENT = 4096  # bytes: /data starts on a page, so that it can be mapped and copied without a bounce


def create_grid(path: str | Path, shape: Sequence[int], head: str | Path | None = None) -> int:
    """Create a file with an empty `/data` of that shape, its room reserved; return its byte offset.

    `head`: where to keep the bytes before the data, for `reset_grid`.
    """
    # The earliest format: its object headers hold no times, so equal data are equal bytes.
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_alignment(ALIGNMENT, ALIGNMENT)
    access.set_libver_bounds(h5py.h5f.LIBVER_EARLIEST, h5py.h5f.LIBVER_LATEST)
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_obj_track_times(False)
    with writing(path), h5py.File(h5py.h5f.create(str(path).encode(), h5py.h5f.ACC_TRUNC, fapl=access)) as file:
        space = h5py.h5s.create_simple(tuple(shape))
        data = h5py.h5d.create(file.id, b"data", h5py.h5t.IEEE_F32LE, space, layout)
        offset = data.get_offset()
    with open(path, "r+b") as plain:
        os.posix_fallocate(
            plain.fileno(), offset, 4 * math.prod(shape)
        )  # pages are written faster, and a disk is full now
        if head:
            Path(head).write_bytes(plain.read(offset))
    return offset


def reset_grid(path: str | Path, head: str | Path) -> None:
    """Bring a file back to where `create_grid` left it, its data kept: whatever was described is forgotten."""
    first = Path(head).read_bytes()
    with open(path, "r+b") as plain:
        plain.write(first)
    with h5py.File(path, "r") as file:
        end = len(first) + math.prod(file["data"].shape) * 4
    os.truncate(path, end)


def describe_grid(
    path: str | Path,
    *,
    arrays: Mapping[str, np.ndarray],
    task: str,
    split: str,
    channels: Sequence[str],
    parameter_names: Sequence[str],
    manifest: Mapping,
    static: Iterable[np.ndarray] = (),
) -> None:
    """Write the small arrays and the attributes into a file whose `/data` is complete.

    `static`: the fields of each sample that do not change in time, [X.., C'], taken one at a time.
    """
    with writing(path), h5py.File(path, "r+", libver=("earliest", "latest")) as file:
        for name in sorted(arrays):
            file.create_dataset(name, data=arrays[name])
        for row, values in enumerate(static):
            if row == 0:
                file.create_dataset("static", (file["data"].shape[0], *values.shape), dtype="<f4")
            file["static"][row] = values
        attributes = {
            "format": FORMAT,
            "version": VERSION,
            "task": task,
            "split": split,
            "channels": json.dumps(list(channels)),
            "parameter_names": json.dumps(list(parameter_names)),
        }
        for name, value in attributes.items():
            file.attrs[name] = value
        # A manifest can be larger than the 64 kB that an HDF5 attribute may hold.
        file.create_dataset("manifest", data=np.bytes_(json.dumps(manifest, sort_keys=True).encode()))


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """What the system refused HDF5 is an OSError with its number, which HDF5 writes into the text of its own errors."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not (said := re.search(r"errno = (\d+)", str(error))):
            raise
        number = int(said[1])
        raise OSError(number, os.strerror(number), str(path)) from error


class GridReader:
    """An open split of grids: its description, and its data mapped into memory; a folder of files is read as one.

    Opened lazily and again after a fork or unpickling, so it can be handed to any number of worker processes.
    Raises UpsDataError for a file that is missing, damaged or of another format.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._read()
        except DAMAGED as error:
            raise UpsDataError(f"{self.path} is damaged ({_first_line(error)}); fetch or convert it again") from error

    def _read(self) -> None:
        """Read all but the large arrays."""
        self.files = [_Mapped(file) for file in _files(self.path)]
        with _open(self.files[0].path) as file:
            self.task, self.split = file.attrs["task"], file.attrs["split"]
            self.channels: list[str] = json.loads(file.attrs["channels"])
            self.parameter_names: list[str] = json.loads(file.attrs["parameter_names"])
            self.manifest: dict = json.loads(file["manifest"][()])
            self.time: np.ndarray = file["time"][:]
            self.coordinates: dict[str, np.ndarray] = {name: file[name][:] for name in AXES if name in file}
        self.static_channels: list[str] = self.manifest["static_channels"]
        self._check_files()
        columns = ("parameters", "group", "source_file", "source_row")
        parts = [_columns(file.path, columns) for file in self.files]
        self.parameters, groups, self.source_file, self.source_row = map(np.concatenate, zip(*parts, strict=True))
        self.groups: list[str] = [g.decode() for g in groups]
        self.shape: tuple[int, ...] = (len(groups), *self.files[0].shape[1:])

    def _check_files(self) -> None:
        """Refuse a folder that lacks a file of the split, or has one of another conversion."""
        wanted = self.manifest["splits"].get(self.split, {}).get("shards", [])
        if self.path.is_dir() and not wanted:
            raise UpsDataError(f"{self.path} is a folder of several files, not of one split's; name a file in it")
        if self.path.is_dir() and [shard["name"] for shard in wanted] != [file.path.name for file in self.files]:
            raise UpsDataError(
                f"{self.path}: got {len(self.files)} files, expected {len(wanted)} named as in its manifest; "
                f"fetch it again or run `dvc repro convert@{self.task}`"
            )
        for other in self.files[1:]:
            with _open(other.path) as file:
                key = json.loads(file["manifest"][()])["key"]
            if key != self.manifest["key"] or other.shape[1:] != self.files[0].shape[1:]:
                raise UpsDataError(
                    f"{other.path} is of another conversion than {self.files[0].path.name}; "
                    f"fetch both again or run `dvc repro convert@{self.task}`"
                )

    @property
    def data(self) -> np.ndarray | Stacked:
        """All of `/data`, float32 [S, T, X.., C], mapped read-only: indexing reads only what is asked for."""
        return stacked([file.data for file in self.files])

    @property
    def static(self) -> np.ndarray | Stacked:
        """All of `/static`, float32 [S, X.., C'], mapped read-only; C' is 0 where every field changes in time."""
        return stacked([file.static(len(self.static_channels)) for file in self.files])

    def __len__(self) -> int:
        return self.shape[0]


class _Mapped:
    """The large arrays of one file."""

    def __init__(self, path: Path):
        self.path = path
        with _open(path) as file:
            self.shape: tuple[int, ...] = file["data"].shape
            self._offset: int = file["data"].id.get_offset()
            self._static_offset: int | None = file["static"].id.get_offset() if "static" in file else None
            task = file.attrs["task"]
        needed = self._offset + math.prod(self.shape) * 4
        if path.stat().st_size < needed:
            raise UpsDataError(
                f"{path}: truncated: got {path.stat().st_size} bytes, expected {needed} or more; "
                f"fetch it again or run `dvc repro convert@{task}`"
            )
        self._data: np.ndarray | None = None
        self._static: np.ndarray | None = None

    @property
    def data(self) -> np.ndarray:
        if self._data is None:
            self._data = np.memmap(self.path, dtype="<f4", mode="r", offset=self._offset, shape=self.shape)
        return self._data

    def static(self, channels: int) -> np.ndarray:
        if self._static is None:
            shape = (self.shape[0], *self.shape[2:-1], channels)
            where = self._static_offset
            self._static = (
                np.zeros(shape, "<f4")
                if where is None
                else np.memmap(self.path, dtype="<f4", mode="r", offset=where, shape=shape)
            )
        return self._static

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_data": None, "_static": None}


class Stacked:
    """Arrays as one, stacked along their first axis without a copy, for reading.

    The first index is a number, an array of numbers (with arrays of the same length beside it, as numpy has it), an
    array of truth values, one a sample, or the whole slice, which gives a view.
    """

    def __init__(self, parts: Sequence[np.ndarray]):
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in parts])
        self.shape: tuple[int, ...] = (int(self.ends[-1]), *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: object) -> np.ndarray | Stacked:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if isinstance(first, slice):
            if first != slice(None):
                return self[(np.arange(*first.indices(len(self))), *rest)]
            return Stacked([part[(first, *rest)] for part in self.parts])
        rows = np.asarray(first)
        if rows.dtype == bool:  # as numbers they would be the samples 0 and 1
            if rows.shape != (len(self),):
                raise IndexError(
                    f"got truth values of shape {rows.shape}, expected one for each of {len(self)} samples"
                )
            rows = np.flatnonzero(rows)
        if np.any((rows < -len(self)) | (rows >= len(self))):
            raise IndexError(f"index {first} is out of bounds for {len(self)} samples")
        rows = rows % len(self)
        part = np.searchsorted(self.ends, rows, side="right")
        if rows.ndim == 0:
            return self._read(int(part), int(rows), rest)
        found: np.ndarray | None = None
        for number in np.unique(part):
            where = np.flatnonzero(part == number)
            mine = [index[where] if isinstance(index, np.ndarray) else index for index in rest]
            values = self._read(number, rows[where], mine)
            if found is None:
                found = np.empty((len(rows), *values.shape[1:]), values.dtype)
            found[where] = values
        return found if found is not None else self.parts[0][(rows, *rest)]

    def _read(self, part: int, rows: int | np.ndarray, rest: Sequence[object]) -> np.ndarray:
        return self.parts[part][(rows - (self.ends[part] - len(self.parts[part])), *rest)]


def stacked(parts: Sequence[np.ndarray]) -> np.ndarray | Stacked:
    """One array as it is, several as one."""
    return parts[0] if len(parts) == 1 else Stacked(parts)


def _files(path: Path) -> list[Path]:
    """The files of a split, in order: the one file, or those of the folder."""
    if not path.is_dir():
        return [path]
    # By length first: as text, _1000 would come before _101.
    return sorted(path.glob("*.h5"), key=lambda file: (len(file.name), file.name)) or [path]


def _columns(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    with _open(path) as file:
        return [file[name][:] for name in names]


def _open(path: Path) -> h5py.File:
    if path.is_dir():
        raise UpsDataError(f"{path} is a folder without a file of a split; fetch or convert it again")
    if not path.is_file():
        raise UpsDataError(f"{path} is missing; make it with `dvc repro` or fetch it with `dvc pull` or hydrate")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UpsDataError(
            f"{path} is not a readable HDF5 file ({_first_line(error)}); fetch or convert it again"
        ) from None
    got = file.attrs.get("format"), file.attrs.get("version")
    if got != (FORMAT, VERSION):
        file.close()
        raise UpsDataError(
            f"{path}: got format {got[0]!r} version {got[1]}, expected {FORMAT!r} version {VERSION}; convert again"
        )
    return file


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
