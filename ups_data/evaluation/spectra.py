"""The truth and the errors by wavenumber: mean squares over space in the shells floor(|k|).

Grids have Fourier modes, k in cycles a box; meshes the modes of their Laplacian, k in cycles a unit of length.
Particles stand at scattered places that move: there it is the velocity field on a regular grid, truth being what the
latents of the true frames decode to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

from ups_data.evaluation import metrics
from ups_data.evaluation.forecast import Forecast
from ups_data.geometry import cell_areas

Powers = dict[str, np.ndarray]  # of the truth, and of each predictor's error: [S, T, C, K]


def grid_powers(forecast: Forecast) -> Powers:
    """The powers of a batch of grids."""
    return _powers(forecast.truth, forecast.predictions, metrics.shell_power)


def mesh_powers(forecast: Forecast) -> Powers:
    """The powers of a batch of samples on one mesh."""
    mesh = forecast.geometry
    nodes = len(mesh["coords"])
    parts = mesh["laplacian_data"], mesh["laplacian_indices"], mesh["laplacian_indptr"]
    laplacian = sparse.csr_array(parts, shape=(nodes, nodes)).toarray()
    area = float(np.abs(cell_areas(mesh["coords"], mesh["cells"])).sum())
    modes = metrics.laplacian_modes(laplacian, area)
    return _powers(forecast.truth, forecast.predictions, lambda fields: metrics.mesh_shell_power(fields, *modes))


def particle_powers(forecast: Forecast) -> Powers:
    """The powers of the velocity field that carries a batch of particles."""
    waves = dict(forecast.waves)
    return _powers(waves.pop("truth"), waves, metrics.shell_power)


POWERS = {"grid": grid_powers, "mesh": mesh_powers, "particles": particle_powers}


def _powers(truth: np.ndarray, predictions: dict[str, np.ndarray], power: Callable[[np.ndarray], np.ndarray]) -> Powers:
    errors = {name: power(np.asarray(values, np.float64) - truth) for name, values in predictions.items()}
    return {"truth": power(truth), **errors}


class Spectrum:
    """Sums of powers over samples, steps and channels; batches may have different numbers of shells."""

    def __init__(self, spread: Sequence[float]):
        self.spread = np.asarray(spread, np.float64)  # [C] train's std
        self.sums: dict[str, np.ndarray] = {}
        self.count = 0  # of samples, steps and channels

    def add(self, powers: Powers) -> None:
        """Add a batch, each channel in units of its variance over train."""
        variance = np.square(self.spread[-powers["truth"].shape[2] :])  # particles: the velocities come last
        variance = np.where(variance > 0, variance, 1.0)[:, None]
        for name, power in powers.items():
            total, known = (power / variance).sum(axis=(0, 1, 2)), self.sums.get(name, np.zeros(0))
            shells = max(len(total), len(known))
            self.sums[name] = np.pad(total, (0, shells - len(total))) + np.pad(known, (0, shells - len(known)))
        self.count += int(np.prod(powers["truth"].shape[:3]))

    def table(self) -> tuple[list[str], list[list]]:
        """Header and rows of spectrum.csv."""
        means = {name: total / self.count for name, total in self.sums.items()}
        columns = zip(*means.values(), strict=True)
        return ["wavenumber", *means], [[k, *map(float, row)] for k, row in enumerate(columns)]
