"""The Well's HDF5 files, as its data-format page describes them (polymathic-ai.org/the_well, docs/data_format.md).

Groups `dimensions`, `boundary_conditions`, `scalars`, and `t0_fields`, `t1_fields`, `t2_fields` (scalars, vectors and
tensors on the grid). A dataset lacks the axes that its attributes sample_varying, time_varying and dim_varying say it
does not vary along; it is repeated along them here. Components become channels, named after the axes of space.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import h5py
import numpy as np

from ups_data.errors import UpsDataError
from ups_data.sources.raw import AXES, Layout, RawFile, check_shape, is_float64, other_keys

FIELDS = ("t0_fields", "t1_fields", "t2_fields")


@dataclass(frozen=True)
class Field:
    """A dataset and the axes it has; `names` are its channels."""

    data: h5py.Dataset
    names: list[str]
    by_sample: bool
    by_time: bool
    by_axis: list[bool]
    space: tuple[int, ...]

    def read(self, row: int, start: int, stop: int) -> np.ndarray:
        """Frames start..stop of a sample, repeated along the axes the dataset lacks: [t, X.., C]."""
        index = ((row,) if self.by_sample else ()) + ((slice(start, stop),) if self.by_time else ())
        values = self.data[index] if self.by_time else self.data[index][None]
        points = [n if varies else 1 for n, varies in zip(self.space, self.by_axis, strict=True)]
        values = values.reshape(len(values), *points, len(self.names))
        return np.broadcast_to(values, (stop - start, *self.space, len(self.names)))


def _well(path: Path, file: h5py.File) -> RawFile:
    """Fields that vary in time are channels, the others and inner boundaries static channels."""
    dimensions = file["dimensions"]
    names = _texts(path, dimensions, "spatial_dims")
    samples = int(_attribute(path, file, "n_trajectories"))
    coordinates = {axis: _shared(path, _child(path, dimensions, name)) for axis, name in zip(AXES, names, strict=False)}
    time = _shared(path, _child(path, dimensions, "time"))
    space = tuple(len(points) for points in coordinates.values())
    fields = _fields(path, file, names, (samples, len(time), *space))
    moving = [field for field in fields if field.by_time]
    static = [field for field in fields if not field.by_time]
    if not moving:
        raise UpsDataError(f"{path}: no field varies in time; a file without a trajectory cannot be converted")
    parameters = _parameters(path, file, samples)
    return RawFile(
        path=path,
        samples=samples,
        frames=len(time),
        space=space,
        channels=_channels(moving),
        time=time,
        coordinates=coordinates,
        periodic=_periodic(path, file, names),
        parameters={name: raw for name, (raw, _) in parameters.items()},
        values=lambda row: tuple(float(values[row]) for _, values in parameters.values()),
        read=lambda row, start, stop: np.concatenate([f.read(row, start, stop) for f in moving], axis=-1),
        is_float64=is_float64(*(field.data for field in fields)),
        static_channels=_channels(static),
        read_static=(lambda row: np.concatenate([f.read(row, 0, 1)[0] for f in static], -1)) if static else None,
        axis_names=tuple(names) if names != list(AXES[: len(names)]) else (),
        unread=lambda: _unread(path, file),
    )


def _unread(path: Path, file: h5py.File) -> list[str]:
    """The keys of no group of the layout, and the arrays that a group of fields does not list."""
    groups = [file[key] for key in (*FIELDS, "scalars") if key in file]
    listed = [(group, "|".join(map(re.escape, _texts(path, group, "field_names")))) for group in groups]
    own = other_keys(file, "|".join((*FIELDS, "dimensions", "boundary_conditions", "scalars")))
    return own + [key for group, names in listed for key in other_keys(group, names)]


def _fields(path: Path, file: h5py.File, axes: list[str], shape: tuple[int, ...]) -> list[Field]:
    """All fields in the order of the file, the scalars that vary in time and the masks of inner boundaries."""
    found = []
    for order, key in enumerate(FIELDS):
        group = file.get(key)
        suffixes = ["".join(f"_{axis}" for axis in combined) for combined in product(axes, repeat=order)]
        for name in _texts(path, group, "field_names") if group is not None else []:
            channels = [f"{name}{suffix}" for suffix in suffixes]
            data = _child(path, group, name)
            varying = [bool(v) for v in _attribute(path, data, "dim_varying")]
            found.append(_field(path, data, channels, varying, shape))
    scalars = file.get("scalars", {})
    for name in _texts(path, scalars, "field_names") if scalars else []:
        data = _child(path, scalars, name)
        if _attribute(path, data, "time_varying"):
            found.append(_field(path, data, [name], [False] * len(axes), shape))
    for name, boundary in sorted(file.get("boundary_conditions", {}).items()):
        # A mask over all axes marks a boundary within the domain; one over a single axis marks its ends.
        if len(axes) > 1 and _texts(path, boundary, "associated_dims") == axes and "mask" in boundary:
            by_sample = bool(_attribute(path, boundary, "sample_varying"))
            found.append(Field(boundary["mask"], [f"mask_{name}"], by_sample, False, [True] * len(axes), shape[2:]))
    names = [name for field in found for name in field.names]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UpsDataError(f"{path}: two fields have the channel {twice[0]!r}, a component counted; rename one of them")
    return found


def _field(path: Path, data: h5py.Dataset, channels: list[str], varying: list[bool], shape: tuple[int, ...]) -> Field:
    samples, frames, *space = shape
    by_sample, by_time = (bool(_attribute(path, data, f"{axis}_varying")) for axis in ("sample", "time"))
    leading = [samples] * by_sample + [frames] * by_time + [n for n, v in zip(space, varying, strict=True) if v]
    components = data.shape[len(leading) :]
    if list(data.shape[: len(leading)]) != leading or np.prod(components, dtype=int) != len(channels):
        check_shape(path, data, (*leading, *([len(channels)] if len(channels) > 1 else [])))
    return Field(data, channels, by_sample, by_time, varying, tuple(space))


def _parameters(path: Path, file: h5py.File, samples: int) -> dict[str, tuple[str, np.ndarray]]:
    """Scalars that do not vary in time, then the simulation's other attributes: name -> (raw name, value a sample)."""
    found: dict[str, tuple[str, np.ndarray]] = {}
    scalars = file.get("scalars", {})
    for raw in _texts(path, scalars, "field_names") if scalars else []:
        data = _child(path, scalars, raw)
        if not _attribute(path, data, "time_varying"):
            wanted = (samples,) if _attribute(path, data, "sample_varying") else (1,)
            if data.size != wanted[0]:
                check_shape(path, data, wanted)
            _refuse_alike(path, found, raw)
            found[_plain(raw)] = (raw, np.broadcast_to(data[()].reshape(-1).astype(np.float64), (samples,)))
    for raw in _texts(path, file, "simulation_parameters") if "simulation_parameters" in file.attrs else []:
        value = np.asarray(file.attrs.get(raw, ""))
        if value.size == 1 and value.dtype.kind in "fiu":
            _refuse_alike(path, found, raw)
            found.setdefault(_plain(raw), (raw, np.full(samples, float(value.reshape(())))))
    return dict(sorted(found.items()))


def _refuse_alike(path: Path, found: dict[str, tuple[str, np.ndarray]], raw: str) -> None:
    """Refuse a parameter whose name becomes that of another one, which would be lost."""
    other = found.get(_plain(raw), (raw,))[0]
    if other != raw:
        raise UpsDataError(
            f"{path}: the parameters {other!r} and {raw!r} would both be called {_plain(raw)!r}; rename one of them"
        )


def _periodic(path: Path, file: h5py.File, axes: list[str]) -> tuple[bool, ...]:
    wrapped: set[str] = set()
    for boundary in file.get("boundary_conditions", {}).values():
        if str(_text(_attribute(path, boundary, "bc_type"))).upper() == "PERIODIC":
            wrapped |= set(_texts(path, boundary, "associated_dims"))
    return tuple(axis in wrapped for axis in axes)


def _shared(path: Path, data: h5py.Dataset) -> np.ndarray:
    """Coordinates that all samples share, float64."""
    values = data[()].astype(np.float64)
    if bool(data.attrs.get("sample_varying", False)):
        if not np.array_equal(values, np.broadcast_to(values[:1], values.shape)):
            raise UpsDataError(f"{path}: {data.name} differs between samples; convert such files one grid at a time")
        values = values[0]
    if values.ndim != 1 or not len(values):
        raise UpsDataError(f"{path}: {data.name}: got the shape {data.shape}, expected one axis; fetch it again")
    return values


def _channels(fields: Sequence[Field]) -> tuple[str, ...]:
    return tuple(name for field in fields for name in field.names)


def _child(path: Path, group: h5py.Group, name: str) -> h5py.Dataset:
    if name not in group or group[name].dtype.kind not in "fiu":
        raise UpsDataError(f"{path}: {group.name}/{name} is missing or holds no numbers; fetch it again")
    return group[name]


def _attribute(path: Path, node: h5py.Group | h5py.Dataset, name: str) -> object:
    if name not in node.attrs:
        raise UpsDataError(f"{path}: {node.name} lacks the attribute {name!r} of The Well's format; fetch it again")
    return node.attrs[name]


def _texts(path: Path, node: h5py.Group, name: str) -> list[str]:
    return [_text(item) for item in np.atleast_1d(_attribute(path, node, name))]


def _text(item: object) -> str:
    return item.decode() if isinstance(item, bytes) else str(item)


def _plain(raw: str) -> str:
    return raw.strip().lower().replace(" ", "_").replace("-", "_")


LAYOUTS = (Layout("t[012]_fields", ("dimensions",), _well),)
