"""From forecasts to what is read: numbers, tables, pictures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ups_data import console, files
from ups_data.choice import evenly
from ups_data.errors import UpsDataError
from ups_data.evaluation import leaderboard, metrics
from ups_data.evaluation.forecast import Forecast, Forecasts, tell_time_step
from ups_data.evaluation.grids import grid_forecasts
from ups_data.evaluation.points import mesh_forecasts, particle_forecasts
from ups_data.evaluation.spectra import POWERS, Powers, Spectrum
from ups_data.evaluation.task import Evaluation
from ups_data.execution import signals_noted
from ups_data.models.operator import check_conditioning
from ups_data.parameters import values_of
from ups_data.params import Dataset
from ups_data.staging import staging

STEP_COLUMNS = ("operator", "baseline", "persistence", "mean", "roundtrip")
STATIC_PICTURES = 10  # samples of a static problem in its animation, which has no time to move in

DEFINITIONS = {
    "nrmse": "PDEBench: RMSE over space / RMS of the target over space, mean over samples, steps and channels",
    "nrmse_baseline": "a plain network in physical space, trained in the same run on the same data",
    "nrmse_persistence": "the last given frame stays (particles: every velocity stays); null for static problems",
    "nrmse_mean": "the mean over train: of the channel, or of the field on the same mesh; particles: no motion",
    "nrmse_roundtrip": "the true frames through the latent cache and the decoder: the operator's floor",
    "nrmse_last_step": "nrmse of the last predicted step alone",
    "nrmse_low": "nrmse of the operator's error in wavenumbers 0-4 alone: cycles a box, on meshes a unit of length",
    "nrmse_mid": "the same in wavenumbers 5-12",
    "nrmse_high": "the same in wavenumbers 13 and above; of a frame and channel, not of means, the squares add up",
    "rmse": "RMSE over space in the fields' units, mean over samples, steps, channels",
    "cache_ratio": "bytes of the test split's latent cache / bytes of the float32 fields it stands for",
}


FORECASTS = {"grid": grid_forecasts, "mesh": mesh_forecasts, "particles": particle_forecasts}
BANDED = ("grid", "mesh")  # the operator's error itself has bands; of particles only the field that carries them


class Gathered(NamedTuple):
    """What is left of the forecasts of a protocol: errors, the forecasts to be drawn, the spectrum."""

    scores: dict[int, dict[str, np.ndarray]]  # at every n-th point -> see `score`, samples in order
    kept: list[Forecast]
    spectrum: Spectrum


def score(forecast: Forecast, spread: np.ndarray, power: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """All errors of a batch, each [S, T, C]; with the `power` [S, T, C, K] of the operator's error bands [S, T, C, 3].

    The fields need not be kept.
    """
    size = metrics.root_mean_square(forecast.truth)
    scores = {"size": size}
    for name, prediction in forecast.predictions.items():
        errors = metrics.rmse(prediction, forecast.truth)
        scores |= {f"rmse.{name}": errors, name: metrics.relative(errors, size, spread)}
    if power is not None:
        scores["bands"] = metrics.relative(metrics.band_rmse(power), size, spread)
    return scores


def gather(
    forecasts: Forecasts,
    points: Sequence[int] = (1,),
    powers: Callable[[Forecast], Powers] | None = None,
    banded: bool = False,
    keep: Collection[int] = (),
    bar: console.Progress | None = None,
) -> Gathered:
    """Score every batch as it comes, at every n-th point for each n of `points`.

    Spectrum (and bands) are taken at the first of them, by `powers`. `keep`: samples whose forecasts are kept. `bar`
    goes on by the samples scored.
    """
    order, kept, spectrum = [], [], Spectrum(forecasts.spread)
    parts: dict[int, list[dict[str, np.ndarray]]] = {n: [] for n in points}
    for forecast in forecasts.batches:
        order += forecast.samples
        for n in parts:
            viewed = forecast.every(n)
            found = powers(viewed) if powers and n == points[0] else {}
            if found:
                spectrum.add(found)
            parts[n].append(score(viewed, forecasts.spread, found.get("operator") if banded else None))
        kept += [forecast.only(row) for row, sample in enumerate(forecast.samples) if sample in keep]
        if bar:
            bar.advance(len(forecast.samples))
    rows = np.argsort(order)
    scores = {
        n: {name: np.concatenate([part[name] for part in own])[rows] for name in own[0]} for n, own in parts.items()
    }
    return Gathered(scores, kept, spectrum)


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
        if len(values := values_of(own)) > leaderboard.VALUES:
            continue
        by_value[parameter] = [
            {"value": float(value), "samples": int((own == value).sum())} | _means(scores, names, own == value)
            for value in values
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
    """Evaluate under every protocol and write all that stages/evaluate.py names; returns the metrics.

    The first protocol makes everything, the others only rows of the leaderboard.
    """
    kind, points, static = knobs.kind, knobs.evaluate.points, evaluation.operator.static
    others = [] if static else knobs.evaluate.given[1:]
    forecasts = FORECASTS[kind](evaluation)
    for model in (evaluation.operator, evaluation.baseline):
        facts, parameters = model.config["conditioning"], torch.from_numpy(forecasts.parameters)
        check_conditioning(facts, parameters, forecasts.parameter_names, evaluation.test)
    if not static:
        stride, frame = evaluation.stride, evaluation.operator.config["time_step"]
        tell_time_step(f"{task}, evaluate.stride {stride}", stride * frame, frame, knobs.train.strides)
    samples = len(forecasts.parameters)
    chosen = evenly(samples, knobs.evaluate.pictures)
    keep = {*chosen, *(evenly(samples, STATIC_PICTURES) if static else [])}
    total = samples * (1 + len(others))
    with torch.inference_mode(), console.progress(f"evaluate {task}", total, "trajectories") as bar:
        found = gather(forecasts, points, POWERS[kind], kind in BANDED, keep, bar)
        board = board_rows(task, forecasts, evaluation, found)
        for given in others:
            other = replace(evaluation, given=given)
            more = FORECASTS[kind](other)
            board += board_rows(task, more, other, gather(more, points, bar=bar))
    scores, cache = found.scores[points[0]], evaluation.cache.manifest
    result = summary(scores, cache["bytes"] / cache["data_bytes"])
    folder.mkdir(parents=True, exist_ok=True)
    with staging(folder) as made:  # a run that ends before all is there changes nothing
        files.write_json(made / "details.json", details(scores, forecasts, protocol(evaluation, forecasts, points[0])))
        files.write_csv(made / "error_per_step.csv", *step_table(scores, forecasts, given_frames(evaluation)))
        files.write_csv(made / "spectrum.csv", *found.spectrum.table())
        files.write_json(made / "metrics.json", result)
        files.write_csv(made / "board.csv", leaderboard.COLUMNS, board)
        _draw(made, task, kind, forecasts, found, chosen)
        board_file, metrics_file = made / "board.csv", made / "metrics.json"
        with signals_noted():  # all or none
            for path in sorted(set(made.iterdir()) - {board_file, metrics_file}):
                files.publish(path, folder / path.name)
            files.publish(metrics_file, folder / metrics_file.name)
            files.publish(board_file, folder.parent / leaderboard.FOLDER / f"{task}.csv")
    return result


def _refuse_diverged(task: str, scores: dict[str, np.ndarray]) -> None:
    """Raise UpsDataError for a predictor that says something else than numbers: its errors have no mean."""
    for name in STEP_COLUMNS:
        if name in scores and not (finite := np.isfinite(scores[name]).all(axis=(1, 2))).all():
            stage = {"operator": "train"}.get(model := leaderboard.TRAINED.get(name, name), model)
            raise UpsDataError(
                f"{task}: {name}: its prediction is not finite in {int((~finite).sum())} of {len(finite)} test "
                f"trajectories; lower {stage}.learning_rate and run `python -m stages.{stage} {task}` again"
            )


def _draw(folder: Path, task: str, kind: str, forecasts: Forecasts, found: Gathered, chosen: Sequence[int]) -> None:
    """Everything that is looked at: the `chosen` samples, still and as numbers; all that were kept, in motion."""
    from ups_data.evaluation import animation, pictures, record

    few = [forecast for forecast in found.kept if forecast.samples[0] in chosen]
    errors = next(iter(found.scores.values()))["operator"][[forecast.samples[0] for forecast in few]]
    pictures.draw(folder / "rollout.png", task, kind, forecasts, few)
    pictures.draw_spectrum(folder / "spectrum.png", task, kind, found.spectrum)
    animation.animate(folder / "rollout.gif", kind, forecasts, found.kept)
    record.write_rollouts(folder / "rollouts.npz", kind, forecasts, few, errors.mean(axis=(1, 2)))


def given_frames(evaluation: Evaluation) -> int:
    """Frames known before the rollout: none in a static problem."""
    return 0 if evaluation.operator.static else evaluation.given


def protocol(evaluation: Evaluation, forecasts: Forecasts, points: int) -> dict:
    """How the metrics, errors at every n-th of the `points` of the view, came about: for details.json."""
    operator, seen = evaluation.operator, evaluation.seen
    return {
        "split": "test",
        "given_frames": given_frames(evaluation),
        "predicted_frames": len(forecasts.times),
        "operator_sees": "the input fields" if operator.static else f"the last {operator.history} of the given frames",
        "view": {"space_stride": seen.space_stride * points, "time_stride": seen.time_stride},
        "splits": {name: evaluation.manifest[name] for name in ("protocol", "seed")},
    }


def board_rows(task: str, forecasts: Forecasts, evaluation: Evaluation, found: Gathered) -> list[list]:
    """The rows of the leaderboard of a protocol, at each of its resolutions."""
    models = {name: getattr(evaluation, checkpoint) for name, checkpoint in leaderboard.TRAINED.items()}
    sizes = {
        name: (sum(weights.numel() for weights in model.parameters()), model.config["steps"])
        for name, model in models.items()
    }
    seen, rows = evaluation.seen, []
    for points, scores in found.scores.items():
        _refuse_diverged(task, scores)
        protocol = {
            "task": task,
            "given": given_frames(evaluation),
            "every_point": seen.space_stride * points,
            "every_frame": seen.time_stride,
        }
        parts = leaderboard.subsets(forecasts.parameters, forecasts.parameter_names)
        rows += leaderboard.rows(scores, forecasts.groups, parts, sizes, protocol)
    return rows
