"""PDEBench's HDF5 files: three layouts, one view of them.

Each layout is opened by one function that returns a `RawFile`: every channel in a stated order, every physical
parameter, coordinates cut to the data, and the axis order [sample, time, x, y, z, channel]. Layouts are told apart by
their keys, never by "the largest dataset". Facts about the files: PDEBench's repository and data archive
(doi:10.18419/darus-2986).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import yaml

from ups_data.errors import UpsDataError

# Raw spelling -> the name we give it; the raw one stays in the manifest.
PARAMETER_NAMES = {
    "Nu": "viscosity",
    "NU": "viscosity",
    "beta": "advection_speed",
    "rho": "reaction_rate",
    "Rho": "reaction_rate",
    "eta": "shear_viscosity",
    "Eta": "shear_viscosity",
    "zeta": "bulk_viscosity",
    "Zeta": "bulk_viscosity",
    "M": "mach_number",
}
FIELDS = ("density", "pressure", "Vx", "Vy", "Vz")  # the several-field layout, in channel order
FIELD_NAMES = {"Vx": "velocity_x", "Vy": "velocity_y", "Vz": "velocity_z"}
# A number as the file names spell it: 0.001, 1.0, 1.e-8, 1e-08.
NAMED_PARAMETER = re.compile(r"(?<=_)(Nu|beta|Rho|Eta|Zeta|M)([0-9]+(?:\.[0-9]*)?(?:e-?[0-9]+)?)(?=_|\.h|$)")


@dataclass(frozen=True)
class RawFile:
    """One raw file as samples on a grid.

    `read(row, start, stop)` gives frames [start, stop) of one sample, float [T, X.., C]; `read_static(row)` the
    fields that do not change in time, [X.., C]. `bytes_at`, where not None, is the offset of row 0 in a file
    whose rows are the converted bytes already (float32, one channel).
    """

    path: Path
    samples: int
    frames: int
    space: tuple[int, ...]
    channels: tuple[str, ...]
    time: np.ndarray
    coordinates: dict[str, np.ndarray]
    periodic: tuple[bool, ...]
    parameters: dict[str, tuple[str, float]]  # name -> (raw name, value)
    read: Callable[[int, int, int], np.ndarray] = field(repr=False, compare=False)
    bytes_at: int | None = None
    static_channels: tuple[str, ...] = ()
    read_static: Callable[[int], np.ndarray] | None = field(default=None, repr=False, compare=False)

    def describe(self) -> dict[str, object]:
        """What siblings must share: anything that differs is refused."""
        return {
            "channels": self.channels,
            "resolution": self.space,
            "frames": self.frames,
            "parameters": sorted(self.parameters),
        }


@contextmanager
def open_raw(path: str | Path) -> Iterator[RawFile]:
    """Open a raw file of any known layout; use as `with open_raw(path) as raw:`.

    Raises UpsDataError for a file that is missing, no HDF5, truncated, or lacks a key.
    """
    path = Path(path)
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise UpsDataError(f"{path} is missing; make it with `dvc repro` or fetch it") from None
    except OSError as error:
        reason = "truncated" if "truncated" in str(error) else "not an HDF5 file or damaged"
        raise UpsDataError(f"{path} is {reason} ({str(error).splitlines()[0]}); fetch it again") from None
    with file:
        for key in _required(file):
            if key not in file:
                raise UpsDataError(
                    f"{path}: the key {key!r} is missing; got the keys {', '.join(sorted(file))}; fetch it again"
                )
        yield _layout(file)(path, file)


def _required(file: h5py.File) -> tuple[str, ...]:
    """The keys that the layout of this file must have beside the one it is told by."""
    return next((required for marks, required, _ in LAYOUTS if set(file) & set(marks)), ())


def _layout(file: h5py.File) -> Callable[[Path, h5py.File], RawFile]:
    keys = set(file)
    for marks, _, layout in LAYOUTS:
        if keys & set(marks):
            return layout
    raise UpsDataError(
        f"{file.filename}: no known layout: got the keys {', '.join(sorted(keys)) or '(none)'}, expected "
        "tensor (one array), density/pressure/Vx (several fields) or velocity (incompressible flow)"
    )


def _one_array(path: Path, file: h5py.File) -> RawFile:
    """`tensor` [N, T, X(, Y(, Z))], `x-coordinate`, `t-coordinate`: Burgers, advection, reaction-diffusion."""
    data = _dataset(path, file, "tensor", (3, 4, 5))
    samples, frames, *space = data.shape
    contiguous = data.dtype == np.dtype("<f4") and data.chunks is None
    return RawFile(
        path,
        samples,
        frames,
        tuple(space),
        ("u",),
        _time(path, file, "t-coordinate", frames),
        {axis: _coordinate(path, file, axis, n) for axis, n in zip("xyz", space, strict=False)},
        (True,) * len(space),
        _parameters(path, file.attrs),
        lambda row, start, stop: data[row, start:stop][..., None],
        data.id.get_offset() if contiguous else None,
    )


def _several_fields(path: Path, file: h5py.File) -> RawFile:
    """`density`, `pressure`, `Vx`, .. [N, T, X(, Y(, Z))] with their coordinates: compressible flow."""
    first = next(name for name in FIELDS if name in file)
    dimensions = file[first].ndim - 2
    names = FIELDS[: 2 + dimensions]
    fields = [_dataset(path, file, name, (3, 4, 5)) for name in names]
    for name, data in zip(names, fields, strict=True):
        if data.shape != fields[0].shape:
            raise UpsDataError(
                f"{path}: {name} has the shape {data.shape}, expected {fields[0].shape} as {names[0]}; fetch it again"
            )
    samples, frames, *space = fields[0].shape
    return RawFile(
        path,
        samples,
        frames,
        tuple(space),
        tuple(FIELD_NAMES.get(name, name) for name in names),
        _time(path, file, "t-coordinate", frames),
        {axis: _coordinate(path, file, axis, n) for axis, n in zip("xyz", space, strict=False)},
        ("_trans" not in path.name,) * dimensions,
        _parameters(path, file.attrs),
        lambda row, start, stop: np.stack([data[row, start:stop] for data in fields], axis=-1),
    )


def _incompressible(path: Path, file: h5py.File) -> RawFile:
    """`velocity`, `particles` [N, T, X, Y, C], `force`, `t` [N, T]: incompressible flow with a carried scalar.

    The files hold no coordinates: cell centres of the unit square are meant. The force does not change in time.
    """
    velocity = _dataset(path, file, "velocity", (5,))
    scalar, force = _dataset(path, file, "particles", (5,)), _dataset(path, file, "force", (4,))
    samples, frames, *space = velocity.shape[:4]
    for name, data, expected in (
        ("particles", scalar, (samples, frames, *space, 1)),
        ("force", force, (samples, *space, 2)),
        ("t", _dataset(path, file, "t", (2,)), (samples, frames)),
    ):
        if data.shape != expected:
            raise UpsDataError(f"{path}: {name} has the shape {data.shape}, expected {expected}; fetch it again")
    config = _config(path, file.attrs)

    def read(row: int, start: int, stop: int) -> np.ndarray:
        return np.concatenate([velocity[row, start:stop], scalar[row, start:stop]], axis=-1)

    return RawFile(
        path,
        samples,
        frames,
        tuple(space),
        ("velocity_x", "velocity_y", "scalar"),
        file["t"][0].astype(np.float64),
        {axis: (np.arange(n) + 0.5) / n for axis, n in zip("xy", space, strict=True)},
        (str(config.get("boundary", "")) == "periodic",) * 2,
        _parameters(path, {name: value for name, value in config.items() if name in PARAMETER_NAMES}),
        read,
        static_channels=("force_x", "force_y"),
        read_static=lambda row: force[row],
    )


# The keys a layout is told by, the others it needs, the function that opens it.
LAYOUTS = (
    (("tensor",), ("x-coordinate", "t-coordinate"), _one_array),
    (FIELDS, ("density", "pressure", "Vx", "x-coordinate", "t-coordinate"), _several_fields),
    (("velocity",), ("particles", "force", "t"), _incompressible),
)


def _dataset(path: Path, file: h5py.File, name: str, dimensions: tuple[int, ...]) -> h5py.Dataset:
    data = file[name]
    if not isinstance(data, h5py.Dataset) or data.dtype.kind != "f" or data.ndim not in dimensions or 0 in data.shape:
        got = f"{data.dtype} {data.shape}" if isinstance(data, h5py.Dataset) else "a group"
        expected = " or ".join(map(str, dimensions))
        raise UpsDataError(
            f"{path}: {name}: got {got}, expected a float array of {expected} dimensions; fetch it again"
        )
    return data


def _time(path: Path, file: h5py.File, name: str, frames: int) -> np.ndarray:
    """The first T points: these files hold the T + 1 edges of the solver's output intervals."""
    return _cut(path, file, name, frames, frames + 1)


def _coordinate(path: Path, file: h5py.File, axis: str, points: int) -> np.ndarray:
    return _cut(path, file, f"{axis}-coordinate", points, points)


def _cut(path: Path, file: h5py.File, name: str, wanted: int, most: int) -> np.ndarray:
    values = file[name][:].astype(np.float64)
    if values.ndim != 1 or not wanted <= len(values) <= most:
        raise UpsDataError(f"{path}: {name}: got the shape {values.shape}, expected {wanted} points; fetch it again")
    return values[:wanted]


def _config(path: Path, attributes: Mapping) -> dict:
    """The solver's configuration, plain YAML with references (`${..}`) that are left as they are."""
    text = attributes.get("config", "")
    try:
        config = yaml.safe_load(text.decode() if isinstance(text, bytes) else str(text)) or {}
    except yaml.YAMLError:
        raise UpsDataError(f"{path}: the attribute config is not YAML; fetch it again") from None
    return config if isinstance(config, dict) else {}


def _parameters(path: Path, attributes: Mapping) -> dict[str, tuple[str, float]]:
    """Physical parameters from the attributes and, where those are silent, from the file's name."""
    found: dict[str, tuple[str, float]] = {}
    for raw, text in NAMED_PARAMETER.findall(path.name):
        found[PARAMETER_NAMES[raw]] = (raw, float(text))
    for raw in sorted(attributes):
        value = np.asarray(attributes[raw])
        if raw in PARAMETER_NAMES and value.size == 1 and value.dtype.kind in "fiu":
            name, number = PARAMETER_NAMES[raw], float(value.reshape(()))
            if name in found and not np.isclose(found[name][1], number, rtol=1e-5, atol=0):
                raise UpsDataError(
                    f"{path}: {raw} is {found[name][1]:g} in the name and {number:g} in the attribute; "
                    "rename the file or fetch it again"
                )
            found.setdefault(name, (raw, number))
    return dict(sorted(found.items()))
