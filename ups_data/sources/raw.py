"""What every reader of raw grid files gives: one view of a file, whatever its layout.

A source is a module with a tuple LAYOUTS; `grids` tries them. The helpers here check what HDF5 files hold, so that a
damaged or strange one is a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from ups_data.errors import UpsDataError
from ups_data.sources.stored import Stored

AXES = "xyz"
UNEVEN = 0.01  # of a time step: more than equal steps differ by when their times are rounded to a few digits


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """One raw file as samples on a grid.

    `read(row, start, stop)` gives frames [start, stop) of one sample, float [T, X.., C]; `read_static(row)` the
    fields that do not change in time, [X.., C']; `values(row)` its physical parameters in the order of `parameters`.
    `stored(row)` is where its numbers stand in the file, for who reads them without HDF5; None where they do not
    stand there as they are.
    """

    path: Path
    samples: int
    frames: int
    space: tuple[int, ...]
    channels: tuple[str, ...]
    time: np.ndarray  # float64 [T]
    coordinates: dict[str, np.ndarray]  # x, y, z -> float64
    periodic: tuple[bool, ...]
    parameters: dict[str, str]  # name -> its spelling in the file
    values: Callable[[int], tuple[float, ...]] = field(repr=False, compare=False)
    read: Callable[[int, int, int], np.ndarray] = field(repr=False, compare=False)
    is_float64: bool = False  # some field is, and is rounded when it is converted
    stored: Callable[[int], Stored | None] | None = field(default=None, repr=False, compare=False)
    static_channels: tuple[str, ...] = ()
    read_static: Callable[[int], np.ndarray] | None = field(default=None, repr=False, compare=False)
    roles: Mapping[str, list[str]] = field(default_factory=dict)  # of a static problem: input and target channels
    residual: Callable[[int], float] | None = field(default=None, repr=False, compare=False)  # of its equation
    axis_names: tuple[str, ...] = ()  # where the file's axes are not called x, y, z
    unread: Callable[[], list[str]] = field(default=list, repr=False, compare=False)  # keys that are left behind

    def describe(self) -> dict[str, object]:
        """What siblings must share: anything that differs is refused."""
        return {
            "channels": self.channels,
            "static channels": self.static_channels,
            "roles": dict(self.roles),
            "axes": self.axis_names or tuple(self.coordinates),
            "resolution": self.space,
            "frames": self.frames,
            "parameters": sorted(self.parameters),
            "periodic": self.periodic,
        }

    def constant_parameters(self) -> dict[str, tuple[str, float]]:
        """The physical parameters where all samples share them: name -> (raw name, value)."""
        return {n: (raw, v) for (n, raw), v in zip(self.parameters.items(), self.values(0), strict=True)}

    @property
    def grouped_by(self) -> list[str]:
        """The channels of the first frame that make an initial condition; of a static problem, its inputs."""
        return list(self.roles.get("input", self.channels))


class Layout(NamedTuple):
    """How the keys of a file tell its layout, and what opens it."""

    mark: str  # a pattern that some key of the file matches
    required: tuple[str, ...]  # the other keys it must have
    open: Callable[[Path, h5py.File], RawFile]


def check_axes(raw: RawFile) -> None:
    """Refuse times that do not ascend and coordinates that are no numbers: whatever is computed from them is wrong.

    Not when a file is opened, so that one can be looked at.
    """
    for name, points in {"time": raw.time, **raw.coordinates}.items():
        if not np.isfinite(points).all():
            at = int(np.argmin(np.isfinite(points)))
            raise UpsDataError(f"{raw.path}: {name}: point {at} is {points[at]}, expected a number; fetch it again")
    steps = np.diff(raw.time)
    if (steps <= 0).any():
        at = int(np.argmax(steps <= 0))
        raise UpsDataError(
            f"{raw.path}: time: got {raw.time[at + 1]:g} after {raw.time[at]:g} in frame {at + 1}, expected times that "
            "ascend; fetch it again"
        )


def other_keys(group: h5py.Group, taken: str) -> list[str]:
    """The keys of a group that do not match the pattern of those that are read or belong to the layout."""
    names = (key if isinstance(key, str) else key.decode(errors="replace") for key in group)  # h5py: bytes if damaged
    return [f"{group.name}/{name}".lstrip("/") for name in names if not re.fullmatch(taken, name)]


def left_out(keys: Sequence[str]) -> str:
    """The remark about keys that no reader takes: at most eight are named."""
    more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
    return f"not read, since the layout has no place for them: {', '.join(keys[:8])}{more}"


def uneven_step(time: np.ndarray) -> str | None:
    """Which step between ascending times is unlike the others, by more than rounding to three digits or float32."""
    steps = np.diff(time)
    if len(steps) < 2:
        return None
    usual = float(np.median(steps))
    off = np.abs(steps - usual)
    at = int(np.argmax(off))
    if off[at] <= UNEVEN * usual + 2 * np.finfo(np.float32).eps * np.abs(time).max():
        return None
    return f"the step to frame {at + 1} is {steps[at]:g}, expected {usual:g} as between other frames"


def same_points(points: np.ndarray, expected: np.ndarray) -> bool:
    """Whether as many times or coordinates are the same but for rounding: 1e-4 of each, 1e-6 of all they span."""
    return np.allclose(points, expected, rtol=1e-4, atol=1e-6 * float(np.ptp(expected)))


def rounded(exact: np.ndarray) -> tuple[np.ndarray, float]:
    """Numbers as float32, and the greatest relative loss of one (of the least normal one, if it is below that)."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinite and NaN are for whoever checks the numbers
        values = exact.astype(np.float32, copy=False)
        if values.dtype == exact.dtype or not exact.size:
            return values, 0.0
        lost = np.abs(exact - values) / np.maximum(np.abs(exact), np.finfo(np.float32).tiny)
    return values, float(lost.max())


def constants(found: Mapping[str, tuple[str, float]]) -> dict[str, object]:
    """The fields `parameters` and `values` of a file whose samples share them: name -> (raw name, value)."""
    ordered = sorted(found.items())
    shared = tuple(value for _, (_, value) in ordered)
    return {"parameters": {name: raw for name, (raw, _) in ordered}, "values": lambda row: shared}


def _read_once() -> h5py.h5p.PropDAID:
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(1, 0, 1.0)
    return access


READ_ONCE = _read_once()  # unpacked chunks are not kept for a second reading


def open_dataset(path: Path, group: h5py.Group, name: str) -> h5py.h5d.DatasetID:
    """A dataset that is read once; `group[name]` takes twice as long, which tells where samples are small."""
    try:
        return h5py.h5d.open(group.id, name.encode(), READ_ONCE)
    except KeyError:
        full = f"{group.name}/{name}".lstrip("/")
        raise UpsDataError(f"{path}: the key {full} is missing; fetch it again") from None


def read_rows(data: h5py.h5d.DatasetID, start: int, stop: int) -> np.ndarray:
    """`data[start:stop]`, without what h5py does to make sense of an index."""
    shape = data.shape
    values, place = np.empty((stop - start, *shape[1:]), data.dtype), h5py.h5s.ALL
    wanted = place
    if (start, stop) != (0, shape[0]):
        wanted, place = data.get_space(), h5py.h5s.create_simple(values.shape)
        wanted.select_hyperslab((start, *[0] * (len(shape) - 1)), values.shape)
    data.read(place, wanted, values)
    return values


def dataset(path: Path, group: h5py.Group, name: str, dimensions: tuple[int, ...]) -> h5py.Dataset:
    """A dataset of floats with one of those numbers of dimensions; anything else is refused."""
    data = group[name]
    if not isinstance(data, h5py.Dataset) or data.dtype.kind != "f" or data.ndim not in dimensions or 0 in data.shape:
        got = f"{data.dtype} {data.shape}" if isinstance(data, h5py.Dataset) else "a group"
        expected = " or ".join(map(str, dimensions))
        raise UpsDataError(
            f"{path}: {name}: got {got}, expected a float array of {expected} dimensions; fetch it again"
        )
    return data


def check_shape(path: Path, data: h5py.Dataset, expected: tuple[int, ...]) -> None:
    """Refuse a dataset of another shape than the others in its file imply."""
    if data.shape != expected:
        name = data.name.lstrip("/")
        raise UpsDataError(f"{path}: {name} has the shape {data.shape}, expected {expected}; fetch it again")


def first_points(path: Path, group: h5py.Group, name: str, wanted: int, most: int | None = None) -> np.ndarray:
    """The first `wanted` of at most `most` coordinates of an axis, float64."""
    data = open_dataset(path, group, name)
    if data.rank != 1 or not wanted <= data.shape[0] <= (most or wanted):
        raise UpsDataError(f"{path}: {name}: got the shape {data.shape}, expected {wanted} points; fetch it again")
    return read_rows(data, 0, data.shape[0])[:wanted].astype(np.float64)


def is_float64(*fields: h5py.Dataset) -> bool:
    """Whether some field has more digits than the float32 that it is converted to."""
    return any(data.dtype.itemsize > 4 for data in fields)
