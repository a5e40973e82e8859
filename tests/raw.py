"""Raw files in the official layouts, small and with known values, for the tests that read them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from ups_data.conversion.grid import convert_grid
from ups_data.params import Convert, Splits
from ups_data.sources.raw import RawFile
from ups_data.stores.grid import GridReader

RNG = np.random.default_rng(3)
SPLITS = Splits(protocol="grouped", seed=0, train=0.8, val=0.1, test=0.1)


def convert_knobs(root: Path, pattern: str = "*.hdf5", **more) -> Convert:
    """Knobs of a conversion of the files in `root`."""
    knobs = {"source": "pdebench", "root": str(root), "folder": ".", "pattern": pattern}
    return Convert(**(knobs | {"limit": None, "samples": None, "float64": "round"} | more))


def write_one_array(path: Path, values: np.ndarray, attributes: dict[str, float] | None = None) -> Path:
    """The layout of Burgers and advection: `tensor` [N, T, X], coordinates, one time point too many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, frames, points = values.shape
    with h5py.File(path, "w") as file:
        file["tensor"] = values
        file["x-coordinate"] = ((np.arange(points) + 0.5) / points).astype(np.float32)
        file["t-coordinate"] = (0.01 * np.arange(frames + 1)).astype(np.float32)
        for name, value in (attributes or {}).items():
            file.attrs[name] = value
    return path


def line_values(samples: int, frames: int = 6, points: int = 16, decay: float = 1.0) -> np.ndarray:
    """float32 [N, T, X]: the same starts whatever the decay, as the official files have them."""
    start = np.random.default_rng(7).normal(size=(samples, 1, points))
    return (start * np.exp(-decay * np.arange(frames) / frames)[None, :, None]).astype(np.float32)


def write_burgers(root: Path, samples: int = 20, values: tuple[float, ...] = (0.001, 0.1, 1.0), **shape: int) -> Path:
    """Several viscosities of one set of initial conditions."""
    for nu in values:
        array = line_values(samples, decay=nu, **shape)
        write_one_array(root / f"1D_Burgers_Sols_Nu{nu}.hdf5", array, {"Nu": nu})
    return root


def write_fields(path: Path, fields: dict[str, np.ndarray], attributes: dict[str, float] | None = None) -> Path:
    """The layout of compressible flow: a dataset a field, [N, T, X(, Y(, Z))] or without N in the test cases."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = next(iter(fields.values())).shape
    dimensions = sum(name.startswith("V") for name in fields)
    with h5py.File(path, "w") as file:
        for name, values in fields.items():
            file[name] = values
        for axis, points in zip("xyz", shape[len(shape) - dimensions :], strict=False):
            file[f"{axis}-coordinate"] = np.linspace(-1, 1, points, dtype=np.float32)
        file["t-coordinate"] = 0.5 * np.arange(shape[len(shape) - dimensions - 1] + 1, dtype=np.float32)
        for name, value in (attributes or {}).items():
            file.attrs[name] = value
    return path


def write_groups(
    path: Path, samples: list[np.ndarray], configs: list[str], axes: str, compression: str | None = "lzf", **layout
) -> Path:
    """A group a sample: `data` with the axes [T, .., C] in the order of `axes`, `grid/..`, the attribute config."""
    with h5py.File(path, "w") as file:
        for i, (values, config) in enumerate(zip(samples, configs, strict=True)):
            group = file.create_group(f"{i:04d}")
            group.create_dataset("data", data=values, compression=compression, **layout)
            group.create_dataset("grid/t", data=0.05 * np.arange(values.shape[0], dtype=np.float32), compression="lzf")
            for axis, points in zip(axes, values.shape[1:-1], strict=True):
                group[f"grid/{axis}"] = np.linspace(-1, 1, points, dtype=np.float32)
            group.attrs["config"] = config
    return path


def write_darcy(path: Path, permeability: np.ndarray, solution: np.ndarray, beta: float) -> Path:
    """`nu` [N, X, Y], `tensor` [N, 1, X, Y], cell centres of the unit square, a stray time axis."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["nu"], file["tensor"] = permeability.astype(np.float32), solution[:, None].astype(np.float32)
        for axis, points in zip("xy", permeability.shape[1:], strict=True):
            file[f"{axis}-coordinate"] = ((np.arange(points) + 0.5) / points).astype(np.float32)
        file["t-coordinate"] = np.arange(10, dtype=np.float32)
        file.attrs["beta"] = beta
    return path


def write_flow(path: Path, velocity: np.ndarray, times: np.ndarray, config: str) -> Path:
    """The layout of NS_incom: `velocity` [N, T, X, Y, 2], a carried scalar, a force, `t` [N, T]; config as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples, frames, *space = velocity.shape[:-1]
    packed = {"compression": "lzf", "shuffle": True}
    with h5py.File(path, "w") as file:
        file.create_dataset("velocity", data=velocity.astype(np.float32), chunks=(1, 1, *space, 2), **packed)
        file.create_dataset("particles", data=velocity[..., :1].astype(np.float32) ** 2, **packed)
        file.create_dataset("force", data=velocity[:, 0].astype(np.float32) / 2, **packed)
        file["t"] = np.tile(times, (samples, 1)).astype(np.float32)
        file.attrs["config"], file.attrs["latestIndex"] = config, frames - 1
    return path


def converted(root: Path, pattern: str, out: Path, task: str = "task", **more) -> tuple[dict, dict]:
    """Convert; the fields and parameters of every sample by its file's name and its row, and the manifest."""
    manifest = convert_grid(task, convert_knobs(root, pattern, **more), SPLITS, out, workers=1)
    samples = {}
    for split in manifest["splits"]:
        reader = GridReader(out / f"{task}_{split}.h5")
        for i in range(len(reader)):
            key = manifest["source"]["files"][reader.source_file[i]]["name"], int(reader.source_row[i])
            samples[key] = reader.data[i], dict(zip(reader.parameter_names, reader.parameters[i], strict=True))
    return samples, manifest


def random(*shape: int) -> np.ndarray:
    """float32 numbers of that shape, others on every call."""
    return RNG.normal(size=shape).astype(np.float32)


def parameters(raw: RawFile, row: int = 0) -> dict[str, tuple[str, float]]:
    """The parameters of a sample: name -> (its spelling in the file, value)."""
    return {n: (r, v) for (n, r), v in zip(raw.parameters.items(), raw.values(row), strict=True)}
