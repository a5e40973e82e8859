"""Grids on disk: one HDF5 file a split, readable with plain h5py.

`/data` float32 [sample, time, x(, y(, z)), channel], contiguous and uncompressed, so that its bytes stand at one
known offset: converting processes write blocks there side by side, and readers map it into memory.
Small arrays beside it: `/time` [T], `/x`, `/y`, `/z`, `/parameters` [sample, P] (all float64), `/group` [sample] (id of
the initial condition), `/source_file` and `/source_row` [sample], `/static` [sample, x.., channel] where fields do not
change in time, `/manifest` (JSON). Attributes: format, version, task, split; as JSON channels and parameter_names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from ups_data.errors import UpsDataError

FORMAT, VERSION = "ups-data/grid", 1
AXES = ("x", "y", "z")
ALIGNMENT = 4096  # bytes: /data starts on a page, so that it can be mapped and copied without a bounce


def create_grid(path: str | Path, shape: Sequence[int]) -> int:
    """Create a file with an empty `/data` of that shape, its room reserved; return its byte offset."""
    # The earliest format: its object headers hold no times, so equal data are equal bytes.
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_alignment(ALIGNMENT, ALIGNMENT)
    access.set_libver_bounds(h5py.h5f.LIBVER_EARLIEST, h5py.h5f.LIBVER_LATEST)
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_obj_track_times(False)
    file = h5py.File(h5py.h5f.create(str(path).encode(), h5py.h5f.ACC_TRUNC, fapl=access))
    with file:
        space = h5py.h5s.create_simple(tuple(shape))
        data = h5py.h5d.create(file.id, b"data", h5py.h5t.IEEE_F32LE, space, layout)
        offset = data.get_offset()
    with open(path, "rb") as plain:
        _head(path).write_bytes(plain.read(offset))
    return offset


def _head(path: str | Path) -> Path:
    return Path(f"{path}.head")


def reset_grid(path: str | Path) -> None:
    """Bring a file back to where `create_grid` left it, its data kept: whatever was described is forgotten."""
    head = _head(path).read_bytes()
    with open(path, "r+b") as plain:
        plain.write(head)
    with h5py.File(path, "r") as file:
        end = len(head) + int(np.prod(file["data"].shape)) * 4
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
    with h5py.File(path, "r+", libver=("earliest", "latest")) as file:
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


class GridReader:
    """An open grid file: its description, and its data mapped into memory.

    Opened lazily and again after a fork or unpickling, so it can be handed to any number of worker processes.
    Raises UpsDataError for a file that is missing, damaged or of another format.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with _open(self.path) as file:
            self.shape: tuple[int, ...] = file["data"].shape
            self._offset: int = file["data"].id.get_offset()
            self.task, self.split = file.attrs["task"], file.attrs["split"]
            self.channels: list[str] = json.loads(file.attrs["channels"])
            self.parameter_names: list[str] = json.loads(file.attrs["parameter_names"])
            self.manifest: dict = json.loads(file["manifest"][()])
            self.time: np.ndarray = file["time"][:]
            self.coordinates: dict[str, np.ndarray] = {name: file[name][:] for name in AXES if name in file}
            self.parameters: np.ndarray = file["parameters"][:]
            self.groups: list[str] = [g.decode() for g in file["group"][:]]
            self.static_channels: list[str] = self.manifest["static_channels"]
            self._static_offset: int | None = file["static"].id.get_offset() if "static" in file else None
            self.source_file, self.source_row = file["source_file"][:], file["source_row"][:]
        needed = self._offset + int(np.prod(self.shape)) * 4
        if self.path.stat().st_size < needed:
            raise UpsDataError(
                f"{self.path}: truncated: got {self.path.stat().st_size} bytes, expected {needed} or more; "
                f"fetch it again or run `dvc repro convert@{self.task}`"
            )
        self._data: np.ndarray | None = None
        self._static: np.ndarray | None = None

    @property
    def data(self) -> np.ndarray:
        """All of `/data`, float32 [S, T, X.., C], mapped read-only: indexing reads only what is asked for."""
        if self._data is None:
            self._data = np.memmap(self.path, dtype="<f4", mode="r", offset=self._offset, shape=self.shape)
        return self._data

    @property
    def static(self) -> np.ndarray:
        """All of `/static`, float32 [S, X.., C'], mapped read-only; C' is 0 where every field changes in time."""
        if self._static is None:
            shape = (self.shape[0], *self.shape[2:-1], len(self.static_channels))
            where = self._static_offset
            self._static = (
                np.zeros(shape, "<f4")
                if where is None
                else np.memmap(self.path, dtype="<f4", mode="r", offset=where, shape=shape)
            )
        return self._static

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_data": None, "_static": None}

    def __len__(self) -> int:
        return self.shape[0]


def _open(path: Path) -> h5py.File:
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
    return str(error).splitlines()[0]
