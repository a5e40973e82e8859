"""Rollouts as numbers, reports/<task>/rollouts.npz: truth and operator of a few test trajectories, for the gallery.

Of all kinds: `samples` and the operator's `nrmse` [K], `times` [T], `parameters` [K, P], `parameter_names`, `channels`.
    grids      truth, operator [K, T, X.., C], float16 where that holds them; x, y, z: the coordinates
    particles  truth, operator float32 [K, T, P, D]: positions inside the box; box [D], 0 where it is not periodic
    meshes     for each k: coords_k [N, 2], cells_k [M, 3], given_k [N], truth_k and operator_k [N, C]; given: its name
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ups_data.evaluation.forecast import Forecast, Forecasts
from ups_data.evaluation.metrics import fold
from ups_data.files import atomic


def write_rollouts(path: Path, kind: str, forecasts: Forecasts, kept: Sequence[Forecast], nrmse: np.ndarray) -> None:
    """Write the kept forecasts (one sample each, with their errors [K]) atomically; equal forecasts are equal bytes."""
    samples = [forecast.samples[0] for forecast in kept]
    facts = {
        "samples": np.array(samples),
        "nrmse": np.asarray(nrmse, dtype=np.float64),
        "times": np.asarray(forecasts.times, dtype=np.float64),
        "parameters": np.asarray(forecasts.parameters[samples], dtype=np.float64),
        "parameter_names": np.array(forecasts.parameter_names, dtype=np.str_),
        "channels": np.array(forecasts.channels, dtype=np.str_),
    }
    arrays = {"grid": _grids, "mesh": _meshes, "particles": _particles}[kind](kept)
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **facts, **arrays)


def _grids(kept: Sequence[Forecast]) -> dict[str, np.ndarray]:
    fields = {"truth": [f.truth[0] for f in kept], "operator": [f.predictions["operator"][0] for f in kept]}
    axes = {axis: np.asarray(values) for axis, values in kept[0].geometry.items()}
    return {name: _compact(np.stack(values)) for name, values in fields.items()} | axes


def _compact(values: np.ndarray) -> np.ndarray:
    """As float16, which is enough to look at, unless they are too large or too small for it: then as float32."""
    largest = np.abs(values).max()
    return values.astype(np.float16 if 1e-2 < largest < np.finfo(np.float16).max else np.float32)


def _meshes(kept: Sequence[Forecast]) -> dict[str, np.ndarray]:
    arrays = {"given": np.array(next(iter(kept[0].known)), dtype=np.str_)}
    for k, forecast in enumerate(kept):
        arrays |= {
            f"coords_{k}": forecast.geometry["coords"].astype(np.float32),
            f"cells_{k}": forecast.geometry["cells"].astype(np.int32),
            f"given_{k}": _compact(next(iter(forecast.known.values()))[0]),
            f"truth_{k}": _compact(forecast.truth[0, 0]),
            f"operator_{k}": _compact(forecast.predictions["operator"][0, 0]),
        }
    return arrays


def _particles(kept: Sequence[Forecast]) -> dict[str, np.ndarray]:
    box = np.asarray(kept[0].geometry["box"], dtype=np.float64)

    def places(forecast: Forecast, went: np.ndarray) -> np.ndarray:
        reached = forecast.known["start"][0] + went[0, ..., : len(box)]
        return fold(reached, box).astype(np.float32)

    truth = [places(forecast, forecast.truth) for forecast in kept]
    made = [places(forecast, forecast.predictions["operator"]) for forecast in kept]
    least = min(len(went[0]) for went in truth)  # trajectories may differ in particles
    cut = [np.stack([went[:, :least] for went in paths]) for paths in (truth, made)]
    return {"truth": cut[0], "operator": cut[1], "box": box}
