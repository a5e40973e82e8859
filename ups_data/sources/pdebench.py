"""PDEBench's HDF5 files: five layouts, each opened by one function.

The readers give every channel in a stated order, coordinates cut to the data and the axis order [sample, time, x, y, z,
channel]. Facts about the files: PDEBench's repository (loaders, generators, configurations) and data archive
(doi:10.18419/darus-2986).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from ups_data.errors import UpsDataError
from ups_data.sources.hdf5_groups import look_alike
from ups_data.sources.pdebench_parameters import (
    DARCY_NAMES,
    PARAMETER_NAMES,
    REACTION_DIFFUSION_NAMES,
    config_parameters,
    named_parameters,
    read_config,
)
from ups_data.sources.raw import (
    AXES,
    Layout,
    RawFile,
    check_shape,
    constants,
    dataset,
    first_points,
    is_float64,
    open_dataset,
    other_keys,
    read_rows,
    same_points,
)
from ups_data.sources.stored import Stored, planes_of, sample_of

VELOCITIES = ("Vx", "Vy", "Vz")
FIELD_NAMES = {"Vx": "velocity_x", "Vy": "velocity_y", "Vz": "velocity_z"}
FLOW_NAMES = {"NU": "viscosity"}
COORDINATES = "[xyzt]-coordinate"
TOGETHER = 512  # samples with a group each that are looked at together


def _one_array(path: Path, file: h5py.File) -> RawFile:
    """`tensor` [N, T, X(, Y(, Z))] with its coordinates: Burgers, advection, reaction-diffusion."""
    axes = _axes(file)
    data = dataset(path, file, "tensor", (len(axes) + 1, len(axes) + 2))
    samples, frames, *space = _shape(data, axes)
    reaction = "ReacDiff" in path.name or "rho" in file.attrs
    names = REACTION_DIFFUSION_NAMES if reaction else PARAMETER_NAMES
    read = _frames(data, axes)
    return RawFile(
        path=path,
        samples=samples,
        frames=frames,
        space=tuple(space),
        channels=("u",),
        time=_time(path, file, frames),
        coordinates=_coordinates(path, file, axes, space),
        periodic=(True,) * len(axes),
        **constants(named_parameters(path, file.attrs, names)),
        read=lambda row, start, stop: read(row, start, stop)[..., None],
        is_float64=is_float64(data),
        stored=planes_of([data], samples),
        unread=lambda: other_keys(file, f"tensor|{COORDINATES}"),
    )


def _several_fields(path: Path, file: h5py.File) -> RawFile:
    """`density`, `pressure`, `Vx`, .. [N, T, X(, Y(, Z))]: compressible flow; test cases have no sample axis."""
    axes = _axes(file)
    names = ("density", "pressure", *VELOCITIES[: len(axes)])
    for name in names:
        if name not in file:
            raise UpsDataError(
                f"{path}: the key {name!r} is missing beside {len(axes)} coordinates; got the keys "
                f"{', '.join(sorted(file))}; fetch it again"
            )
    fields = [dataset(path, file, name, (len(axes) + 1, len(axes) + 2)) for name in names]
    for data in fields:
        check_shape(path, data, fields[0].shape)
    samples, frames, *space = _shape(fields[0], axes)
    reads = [_frames(data, axes) for data in fields]
    return RawFile(
        path=path,
        samples=samples,
        frames=frames,
        space=tuple(space),
        channels=tuple(FIELD_NAMES.get(name, name) for name in names),
        time=_time(path, file, frames),
        coordinates=_coordinates(path, file, axes, space),
        periodic=("periodic" in path.name,) * len(axes),
        **constants(named_parameters(path, file.attrs, PARAMETER_NAMES)),
        read=lambda row, start, stop: np.stack([read(row, start, stop) for read in reads], axis=-1),
        is_float64=is_float64(*fields),
        stored=planes_of(fields, samples),
        unread=lambda: other_keys(file, "|".join((*names, COORDINATES))),
    )


def _incompressible(path: Path, file: h5py.File) -> RawFile:
    """`velocity`, `particles` [N, T, X, Y, C], `force`, `t` [N, T]: incompressible flow with a carried scalar.

    The files hold no coordinates: cell centres of the domain are meant. The force does not change in time. Frames
    after `latestIndex` were never written.
    """
    velocity = dataset(path, file, "velocity", (5,))
    scalar, force = dataset(path, file, "particles", (5,)), dataset(path, file, "force", (4,))
    times = dataset(path, file, "t", (2,))
    samples, frames, *space = velocity.shape[:4]
    check_shape(path, velocity, (samples, frames, *space, 2))
    check_shape(path, scalar, (samples, frames, *space, 1))
    check_shape(path, force, (samples, *space, 2))
    check_shape(path, times, (samples, frames))
    written = min(frames, int(file.attrs.get("latestIndex", frames - 1)) + 1)
    time = times[:, :written].astype(np.float64)
    if written < 1 or not same_points(time, time[0]):
        raise UpsDataError(f"{path}: t: got no frame, or times that differ between trajectories; fetch it again")
    config = read_config(path, file.attrs)
    walls = {str(config.get(key, "")).lower() for key in ("boundary", "velocity_extrapolation")}
    lengths = np.broadcast_to(config.get("domain_size", 1.0), len(space)).astype(np.float64)

    def read(row: int, start: int, stop: int) -> np.ndarray:
        return np.concatenate([velocity[row, start:stop], scalar[row, start:stop]], axis=-1)

    return RawFile(
        path=path,
        samples=samples,
        frames=written,
        space=tuple(space),
        channels=("velocity_x", "velocity_y", "scalar"),
        time=time[0],
        coordinates={a: (np.arange(n) + 0.5) * w / n for a, n, w in zip("xy", space, lengths, strict=True)},
        periodic=("periodic" in walls,) * 2,
        **constants(config_parameters(config, FLOW_NAMES)),
        read=read,
        is_float64=is_float64(velocity, scalar, force),
        static_channels=("force_x", "force_y"),
        read_static=lambda row: force[row],
        unread=lambda: other_keys(file, "velocity|particles|force|t"),
    )


def _darcy(path: Path, file: h5py.File) -> RawFile:
    """`nu` [N, X, Y], the coefficient, and `tensor` [N, 1, X, Y], the solution: a static problem.

    `beta` is the strength of the source; a t-coordinate, if any, belongs to the solver's pseudo-time. The solution is
    a frame on the way to the steady state, so `residual` tells how far it got, where there is a source to compare it
    with and a point within the boundary.
    """
    coefficient, solution = dataset(path, file, "nu", (3,)), dataset(path, file, "tensor", (4,))
    samples, *space = coefficient.shape
    check_shape(path, solution, (samples, 1, *space))
    coordinates = _coordinates(path, file, "xy", space)
    found = named_parameters(path, file.attrs, DARCY_NAMES)
    source = found.get("source_strength", ("beta", 0.0))[1]
    spacing = [float(np.diff(x).mean()) for x in coordinates.values() if len(x) > 1]
    return RawFile(
        path=path,
        samples=samples,
        frames=1,
        space=tuple(space),
        channels=("permeability", "solution"),
        time=np.zeros(1),
        coordinates=coordinates,
        periodic=(False, False),
        **constants(found),
        read=lambda row, start, stop: np.stack([coefficient[row], solution[row, 0]], axis=-1)[None][start:stop],
        is_float64=is_float64(coefficient, solution),
        roles={"input": ["permeability"], "target": ["solution"]},
        unread=lambda: other_keys(file, f"nu|tensor|{COORDINATES}"),
        residual=(lambda row: darcy_residual(coefficient[row], solution[row, 0], source, spacing))
        if source and min(space) > 2
        else None,
    )


def darcy_residual(permeability: np.ndarray, solution: np.ndarray, source: float, spacing: list[float]) -> float:
    """RMS of div(a grad u) + f over the inner cells, relative to the source f; 0 for a solution of the equation.

    `permeability` a and `solution` u [X, Y]; five-point finite volumes with the mean of a on the faces, as the files'
    own solver has them.
    """
    a, u = permeability.astype(np.float64), solution.astype(np.float64)
    balance = np.full_like(u[1:-1, 1:-1], source)
    for axis, step in enumerate(spacing):
        a_along, u_along = (np.moveaxis(field, axis, 0) for field in (a, u))
        flux = 0.5 * (a_along[1:] + a_along[:-1]) * np.diff(u_along, axis=0) / step
        balance += np.moveaxis(np.diff(flux, axis=0)[:, 1:-1] / step, 0, axis)
    return float(np.sqrt(np.mean(balance**2)) / abs(source))


class Family(NamedTuple):
    """A family of the layout that has a group for every sample."""

    channels: tuple[str, ...]
    axes: str
    y_first: bool  # the data are [T, Y, X, C], else [T, X(, Y), C]
    names: dict[str, str]


FAMILIES = {
    "diff-sorp": Family(
        ("concentration",),
        "x",
        False,
        {
            "D": "diffusion_coefficient",
            "por": "porosity",
            "rho_s": "bulk_density",
            "k_f": "freundlich_coefficient",
            "n_f": "freundlich_exponent",
            "sol": "solubility",
        },
    ),
    "diff-react": Family(
        ("activator", "inhibitor"),
        "xy",
        True,
        {"Du": "activator_diffusivity", "Dv": "inhibitor_diffusivity", "k": "reaction_constant"},
    ),
    "rdb": Family(
        ("water_height",),
        "xy",
        False,
        {"gravity": "gravity", "dam_radius": "dam_radius", "inner_height": "inner_height"},
    ),
}


def _groups(path: Path, file: h5py.File) -> RawFile:
    """A group a sample, `0000`, `0001`, ..: `data` [T, .., C], `grid/{x,y,t}`, attribute `config`."""
    stat = path.stat()
    names = _sample_names(path, stat.st_size, stat.st_mtime_ns)
    first = file[names[0]]
    _check_group(path, first)
    family = _family(path, read_config(path, first.attrs))
    shape = dataset(path, first, "data", (len(family.axes) + 2,)).shape
    frames, *space = shape[:-1]
    order = (len(space) + 1, 0, *range(1, len(space) + 1)[:: -1 if family.y_first else 1])
    space = space[::-1] if family.y_first else space
    if shape[-1] != len(family.channels):
        raise UpsDataError(
            f"{path}: {names[0]}/data: got {shape[-1]} channels, expected {', '.join(family.channels)}; fetch it again"
        )
    time = first_points(path, first, "grid/t", frames)
    coordinates = {a: first_points(path, first, f"grid/{a}", n) for a, n in zip(family.axes, space, strict=True)}

    @lru_cache(1)  # opening is what takes time where a sample is small
    def data_of(row: int) -> h5py.h5d.DatasetID:
        data = open_dataset(path, file, f"{names[row]}/data")
        if data.shape != shape:
            check_shape(path, h5py.Dataset(data), shape)
        return data

    @lru_cache(1)
    def alike(part: int) -> dict[int, tuple[str, Stored | None]]:
        rows = range(part * TOGETHER, min((part + 1) * TOGETHER, len(names)))
        found = look_alike(path, file, names[0], [names[row] for row in rows], order)
        return {row: known for row, known in zip(rows, found, strict=True) if known}

    def read(row: int, start: int, stop: int) -> np.ndarray:
        values = read_rows(data_of(row), start, stop)
        return _x_first(values) if family.y_first else values

    def stored(row: int) -> Stored | None:
        known = alike(row // TOGETHER).get(row)
        return known[1] if known else sample_of(data_of(row), order)

    def values(row: int) -> tuple[float, ...]:
        known = alike(row // TOGETHER).get(row)
        if known:
            attributes = {"config": known[0]}
        else:
            group = h5py.Group(h5py.h5g.open(file.id, names[row].encode()))
            _check_group(path, group)  # asked for once, when the sample is looked at: the place to check it whole
            for axis, expected in {"t": time, **coordinates}.items():
                points = first_points(path, group, f"grid/{axis}", len(expected))
                if not (np.array_equal(points, expected) or same_points(points, expected)):
                    key = f"grid/{axis}"
                    raise UpsDataError(f"{path}: {names[row]}/{key} differs from {names[0]}/{key}; fetch it again")
            attributes = group.attrs
        found = _group_parameters(path, attributes, family)
        if sorted(found) != sorted(parameters):
            raise UpsDataError(
                f"{path}: {names[row]}: config has {', '.join(sorted(found)) or 'no parameter'}, expected "
                f"{', '.join(parameters) or 'none'} as {names[0]} has; fetch it again"
            )
        return tuple(found[name][1] for name in parameters)

    parameters = {name: raw for name, (raw, _) in sorted(_group_parameters(path, first.attrs, family).items())}
    return RawFile(
        path=path,
        samples=len(names),
        frames=frames,
        space=tuple(space),
        channels=family.channels,
        time=time,
        coordinates=coordinates,
        periodic=(False,) * len(space),
        parameters=parameters,
        values=values,
        read=read,
        is_float64=is_float64(first["data"]),
        stored=stored,
        unread=lambda: other_keys(file, "[0-9]+") + other_keys(first, "data|grid"),
    )


def _x_first(values: np.ndarray) -> np.ndarray:
    """[T, Y, X, C] as [T, X, Y, C]: the channels of a point move as one, which is four times as fast."""
    points = values.view(f"V{values.shape[-1] * values.itemsize}")
    return np.ascontiguousarray(points.swapaxes(1, 2)).view(values.dtype)


@lru_cache(4)
def _sample_names(path: Path, size: int, changed: int) -> list[str]:
    """The keys of the samples in order; read once in a process, as a file has thousands (`changed`: its time)."""
    with h5py.File(path, "r") as file:
        return sorted((key for key in file if key.isdigit()), key=int)


def _check_group(path: Path, group: h5py.Group) -> None:
    for key in ("data", "grid", "grid/x", "grid/t"):
        if not group.id.links.exists(key.encode()):
            raise UpsDataError(f"{path}: the key {group.name.lstrip('/')}/{key} is missing; fetch it again")


def _family(path: Path, config: dict) -> Family:
    text = f"{config.get('name', '')} {path.name}"
    for mark, family in FAMILIES.items():
        if mark in text:
            return family
    raise UpsDataError(
        f"{path}: neither its name nor its config (name: {config.get('name')!r}) says which family it is of; "
        f"expected one of {', '.join(FAMILIES)} in the file's name"
    )


def _group_parameters(path: Path, attributes: Mapping, family: Family) -> dict[str, tuple[str, float]]:
    config = read_config(path, attributes, "sim", family.names)
    section = config.get("sim", config)
    return config_parameters(section if isinstance(section, dict) else {}, family.names)


LAYOUTS = (
    Layout("nu", ("tensor", "x-coordinate", "y-coordinate"), _darcy),
    Layout("tensor", ("x-coordinate", "t-coordinate"), _one_array),
    Layout("density|pressure|V[xyz]", ("x-coordinate", "t-coordinate"), _several_fields),
    Layout("velocity", ("particles", "force", "t"), _incompressible),
    Layout("[0-9]{4,}", (), _groups),
)


def _axes(file: h5py.File) -> str:
    """The axes of space: as many as there are coordinates."""
    return "".join(axis for axis in AXES if f"{axis}-coordinate" in file)


def _shape(data: h5py.Dataset, axes: str) -> tuple[int, ...]:
    """Samples, frames, points: a single simulation has no sample axis."""
    return data.shape if data.ndim == len(axes) + 2 else (1, *data.shape)


def _frames(data: h5py.Dataset, axes: str) -> Callable[[int, int, int], np.ndarray]:
    if data.ndim == len(axes) + 2:
        return lambda row, start, stop: data[row, start:stop]
    return lambda row, start, stop: data[start:stop]


def _time(path: Path, file: h5py.File, frames: int) -> np.ndarray:
    """The first T points: these files hold the T + 1 edges of the solver's output intervals."""
    return first_points(path, file, "t-coordinate", frames, frames + 1)


def _coordinates(path: Path, file: h5py.File, axes: str, space: list[int]) -> dict[str, np.ndarray]:
    return {a: first_points(path, file, f"{a}-coordinate", n) for a, n in zip(axes, space, strict=True)}
