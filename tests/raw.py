"""Raw files in the official layouts, small and with known values, for the tests that read them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from ups_data.params import Convert, Splits

SPLITS = Splits(protocol="grouped", seed=0, train=0.8, val=0.1, test=0.1)


def convert_knobs(root: Path, pattern: str = "*.hdf5", **more) -> Convert:
    """Knobs of a conversion of the files in `root`."""
    knobs = {"source": "pdebench", "root": str(root), "folder": ".", "pattern": pattern, "limit": None, "samples": None}
    return Convert(**(knobs | more))


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
