"""From forecasts to numbers: metrics.json, details.json, error_per_step.csv."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from ups_data import files
from ups_data.evaluation import metrics
from ups_data.evaluation.forecast import Forecast, Forecasts
from ups_data.evaluation.grids import grid_forecasts
from ups_data.evaluation.points import mesh_forecasts, particle_forecasts
from ups_data.evaluation.task import Evaluation
from ups_data.geometry import cell_areas
from ups_data.params import Dataset
from ups_data.training.sampling import evenly

Bands = Callable[[Forecast], np.ndarray] | None  # RMSE of the operator by band [S, T, C, 3]
VALUES = 16  # distinct values of a parameter up to which the errors are told apart by it
STEP_COLUMNS = ("operator", "baseline", "persistence", "mean", "roundtrip")

DEFINITIONS = {
    "nrmse": "PDEBench: RMSE over space / RMS of the target over space, mean over samples, steps and channels",
    "nrmse_baseline": "a plain network in physical space, trained in the same run on the same data",
    "nrmse_persistence": "the last given frame stays (particles: every velocity stays); null for static problems",
    "nrmse_mean": "the mean over train: of the channel, or of the field on the same mesh; particles: no motion",
    "nrmse_roundtrip": "the true frames through the latent cache and the decoder: the operator's floor",
    "nrmse_last_step": "nrmse of the last predicted step alone",
    "nrmse_low": "share of the operator's error in wavenumbers 0-4 a unit of length; squares of the three bands add up",
    "nrmse_mid": "the same in wavenumbers 5-12",
    "nrmse_high": "the same in wavenumbers 13 and above",
    "rmse": "RMSE over space in the fields' units, mean over samples, steps, channels",
    "cache_ratio": "bytes of the test split's latent cache / bytes of the float32 fields it stands for",
}


def mesh_bands(forecast: Forecast) -> np.ndarray:
    """The operator's error by band of the mesh's Laplacian modes: [S, T, C, 3]."""
    mesh = forecast.geometry
    nodes = len(mesh["coords"])
    parts = mesh["laplacian_data"], mesh["laplacian_indices"], mesh["laplacian_indptr"]
    laplacian = sparse.csr_array(parts, shape=(nodes, nodes)).toarray()
    vectors, bands = metrics.laplacian_modes(laplacian, float(np.abs(cell_areas(mesh["coords"], mesh["cells"])).sum()))
    return metrics.mesh_band_rmse(forecast.predictions["operator"], forecast.truth, vectors, bands)


def grid_bands(forecast: Forecast) -> np.ndarray:
    """The operator's error by band of Fourier modes: [S, T, C, 3]."""
    return metrics.band_rmse(forecast.predictions["operator"], forecast.truth)


FORECASTS = {"grid": grid_forecasts, "mesh": mesh_forecasts, "particles": particle_forecasts}
# Particles have none: at scattered places that move, waves of different lengths cannot be told apart.
BANDS: dict[str, Bands] = {"grid": grid_bands, "mesh": mesh_bands, "particles": None}


def score(forecast: Forecast, spread: np.ndarray, bands: Bands) -> dict[str, np.ndarray]:
    """All errors of a batch, each [S, T, C] (bands [S, T, C, 3]); the fields need not be kept."""
    size = metrics.root_mean_square(forecast.truth)
    scores = {"size": size}
    for name, prediction in forecast.predictions.items():
        errors = metrics.rmse(prediction, forecast.truth)
        scores |= {f"rmse.{name}": errors, name: metrics.relative(errors, size, spread)}
    if bands is not None:
        scores["bands"] = metrics.relative(bands(forecast), size, spread)
    return scores


def gather(forecasts: Forecasts, bands: Bands, keep: set[int]) -> tuple[dict[str, np.ndarray], list[Forecast]]:
    """Score every batch as it comes: errors in the order of the samples, and forecasts of the samples in `keep`."""
    order, parts, kept = [], [], []
    for forecast in forecasts.batches:
        order += forecast.samples
        parts.append(score(forecast, forecasts.spread, bands))
        kept += [forecast.only(row) for row, sample in enumerate(forecast.samples) if sample in keep]
    rows = np.argsort(order)
    return {name: np.concatenate([part[name] for part in parts])[rows] for name in parts[0]}, kept


def summary(scores: dict[str, np.ndarray], cache_ratio: float) -> dict[str, float | int | None]:
    """The flat metrics of a task, the same keys for every task; null is what a task cannot have."""
    values = {
        "samples": len(scores["size"]),
        "nrmse": scores["operator"].mean(),
        "nrmse_last_step": scores["operator"][:, -1].mean(),
        "rmse": scores["rmse.operator"].mean(),
        "cache_ratio": cache_ratio,
    }
    for name in STEP_COLUMNS[1:]:
        values[f"nrmse_{name}"] = scores[name].mean() if name in scores else None
    for band, name in enumerate(metrics.BANDS):
        values[f"nrmse_{name}"] = scores["bands"][..., band].mean() if "bands" in scores else None
    return {name: _round(value) for name, value in values.items()}


def details(scores: dict[str, np.ndarray], forecasts: Forecasts, protocol: dict) -> dict:
    """What stands behind the metrics: protocol, definitions, errors by channel and by parameter, flat frames."""
    names = [name for name in STEP_COLUMNS if name in scores]
    flat = metrics.flat_frames(scores["size"], forecasts.spread)
    by_value = {}
    for column, parameter in enumerate(forecasts.parameter_names):
        own = forecasts.parameters[:, column]
        if len(np.unique(own)) > VALUES:
            continue
        by_value[parameter] = [
            {"value": float(value), "samples": int((own == value).sum())} | _means(scores, names, own == value)
            for value in np.unique(own)
        ]
    return {
        "protocol": protocol,
        "definitions": DEFINITIONS,
        "channels": {
            channel: {name: _round(scores[name][..., c].mean()) for name in names}
            | {"rmse": _round(scores["rmse.operator"][..., c].mean())}
            for c, channel in enumerate(forecasts.channels)
        },
        "parameters": by_value,
        "flat_frames": {
            "what": f"targets with an RMS below {metrics.FLAT:g} of the channel's std: nearly zero to divide by",
            "share": _round(flat.mean()),
            "nrmse_without": _round(scores["operator"][~flat].mean()) if not flat.all() else None,
        },
    }


def step_table(scores: dict[str, np.ndarray], forecasts: Forecasts, first: int) -> tuple[list[str], list[list]]:
    """Header and rows of error_per_step.csv: nRMSE of every predictor at every step, counted from frame `first`."""
    names = [name for name in STEP_COLUMNS if name in scores]
    rows = [
        [first + step, float(time), *(float(scores[name][:, step].mean()) for name in names)]
        for step, time in enumerate(forecasts.times)
    ]
    return ["step", "time", *names], rows


def _means(scores: dict[str, np.ndarray], names: list[str], rows: np.ndarray) -> dict[str, float]:
    return {name: _round(scores[name][rows].mean()) for name in names}


def _round(value: float | int | None) -> float | int | None:
    """Five significant digits: what a reader compares, and no more."""
    return value if value is None or isinstance(value, int) else float(f"{float(value):.5g}")


def write_report(folder: Path, task: str, knobs: Dataset, evaluation: Evaluation) -> dict:
    """Evaluate and write metrics.json, details.json, error_per_step.csv and rollout.png; returns the metrics."""
    from ups_data.evaluation.pictures import draw

    with torch.inference_mode():
        forecasts = FORECASTS[knobs.kind](evaluation)
        keep = set(evenly(len(forecasts.parameters), knobs.evaluate.pictures))
        scores, kept = gather(forecasts, BANDS[knobs.kind], keep)
    cache = evaluation.cache.manifest
    result = summary(scores, cache["bytes"] / cache["data_bytes"])
    static = evaluation.operator.static
    protocol = {
        "split": "test",
        "given_frames": 0 if static else knobs.evaluate.given,
        "predicted_frames": len(forecasts.times),
        "operator_sees": "the input fields"
        if static
        else f"the last {evaluation.operator.history} of the given frames",
        "view": knobs.view.model_dump(),
        "splits": {name: evaluation.manifest[name] for name in ("protocol", "seed")},
    }
    files.write_json(folder / "details.json", details(scores, forecasts, protocol))
    files.write_csv(
        folder / "error_per_step.csv", *step_table(scores, forecasts, 0 if static else knobs.evaluate.given)
    )
    draw(folder / "rollout.png", task, knobs.kind, forecasts, kept)
    files.write_json(folder / "metrics.json", result)
    return result
