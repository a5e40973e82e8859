"""Pictures of rollouts: truth, prediction and error of test trajectories, one PNG a task."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageChops

from ups_data.evaluation.forecast import Forecast, Forecasts
from ups_data.evaluation.metrics import fold, minimum_image, nrmse
from ups_data.evaluation.spectra import Spectrum
from ups_data.files import atomic
from ups_data.parameters import in_words

DPI = 80  # a screen's worth of detail in 50 to 350 kB
SEEN = 8  # of 255: a palette that is further off somewhere shows edges in what is smooth
TRACKS = 60  # particles drawn a panel: more cannot be told apart
FIELD, ERROR = "RdBu_r", "magma"
SMALLEST = 1e-14  # of the largest power: what is below is rounding of float32


def draw(path: Path, task: str, kind: str, forecasts: Forecasts, kept: Sequence[Forecast]) -> None:
    """Write the picture of the kept forecasts (one sample each) atomically; equal forecasts give equal bytes."""
    if kind == "grid":
        axes = kept[0].truth.ndim - 3
        panels = {1: _lines, 2: _planes}.get(axes, _planes)
    else:
        panels = {"mesh": _mesh, "particles": _particles}[kind]
    figure = panels(forecasts, kept)
    figure.suptitle(f"{task}: latent operator against truth, test split")
    _save(path, figure)


def draw_spectrum(path: Path, task: str, kind: str, spectrum: Spectrum) -> None:
    """Write the picture of truth and errors by wavenumber, both axes logarithmic; shells of nothing are left out."""
    figure, panels = _figure(1, 1, 5.0, 3.2)
    axes = panels[0, 0]
    header, rows = spectrum.table()
    columns = dict(zip(header, np.array(rows, dtype=np.float64).T, strict=True))
    k = columns.pop("wavenumber") + 0.5  # the middle of the shell, so that the first one has a place
    for name, values in columns.items():
        seen = values > SMALLEST * columns["truth"].max()
        style = {"color": "0.2", "lw": 2.0} if name == "truth" else {"lw": 1.2}
        axes.loglog(k[seen], values[seen], label=name if name == "truth" else f"error of {name}", **style)
    box = "a unit of length" if kind == "mesh" else "a box"
    axes.set(xlabel=f"wavenumber (cycles {box})", ylabel="mean square / variance of train")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.suptitle(f"{task}: truth and errors by wavenumber, test split")
    _save(path, figure)


def _save(path: Path, figure: Figure) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    plt.close(figure)
    with atomic(path) as temporary:
        compact(Image.open(buffer).convert("RGB")).save(temporary, format="PNG", optimize=True)


def compact(image: Image.Image) -> Image.Image:
    """An RGB image with a palette, a third of the size, where the eye does not see the difference; else as it is."""
    # Median cut takes its colours from where there is most of an image, and colour bars are small.
    with_palette = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    off = ImageChops.difference(image, with_palette.convert("RGB"))
    return with_palette if max(high for _, high in off.getextrema()) <= SEEN else image


def _figure(rows: int, columns: int, width: float = 3.4, height: float = 2.5) -> tuple[Figure, np.ndarray]:
    return plt.subplots(
        rows, columns, figsize=(width * columns, height * rows + 0.4), squeeze=False, layout="constrained"
    )


def _caption(forecasts: Forecasts, forecast: Forecast, channel: int) -> str:
    """The parameters of a sample and the nRMSE of the channel drawn."""
    facts = in_words(forecasts.parameter_names, forecasts.parameters[forecast.samples[0]], 3)
    errors = nrmse(forecast.predictions["operator"], forecast.truth, forecasts.spread)
    return ", ".join([*facts, f"nRMSE {errors[..., channel].mean():.3g}"])


def _triple(
    panels: Sequence[Axes], show: Callable, truth: np.ndarray, prediction: np.ndarray, name: str, labels: Sequence[str]
) -> None:
    """Truth and prediction on one scale, their difference on its own; `show(axes, values, **colours)` draws one."""
    low, high = np.percentile(truth, [0.5, 99.5])
    low, high = (low, high) if high > low else (low - 1, low + 1)
    for axes, values, label in zip(panels, (truth, prediction), labels, strict=False):
        plt.colorbar(show(axes, values, vmin=low, vmax=high, cmap=FIELD), ax=axes, label=name)
        axes.set_title(label, fontsize=9)
    error = np.abs(prediction - truth)
    colours = {"vmin": 0.0, "vmax": max(float(error.max()), 1e-12), "cmap": ERROR}
    plt.colorbar(show(panels[2], error, **colours), ax=panels[2], label=f"|error| of {name}")
    panels[2].set_title(labels[2], fontsize=9)


def _lines(forecasts: Forecasts, kept: Sequence[Forecast]) -> Figure:
    """1D grids: space to the right, time upwards, a row a trajectory."""
    figure, panels = _figure(len(kept), 3)
    times = forecasts.times
    ticks = {"yticks": times} if len(times) == 1 else {}
    for row, forecast in zip(panels, kept, strict=True):
        extent = (*_span(forecast.geometry["x"]), *_span(times))

        def show(axes: Axes, values: np.ndarray, extent: tuple = extent, **colours: object):
            axes.set(xlabel="x", ylabel="t", **ticks)
            return axes.imshow(values, origin="lower", aspect="auto", extent=extent, interpolation="nearest", **colours)

        truth, prediction = forecast.truth[0, ..., 0], forecast.predictions["operator"][0, ..., 0]
        labels = ("truth", f"operator: {_caption(forecasts, forecast, 0)}", "error")
        _triple(row, show, truth, prediction, forecasts.channels[0], labels)
    return figure


def _span(points: np.ndarray) -> tuple[float, float]:
    """From where to where the cells of evenly spaced points go; that of a single point is 1 wide."""
    half = (points[-1] - points[0]) / (len(points) - 1) / 2 if len(points) > 1 else 0.5
    return points[0] - half, points[-1] + half


def _planes(forecasts: Forecasts, kept: Sequence[Forecast]) -> Figure:
    """2D grids (3D: the middle plane): first, middle and last predicted step, a row each; one channel a trajectory."""
    steps = sorted({0, len(forecasts.times) // 2, len(forecasts.times) - 1})
    figure, panels = _figure(len(kept) * len(steps), 3, 2.9, 2.2)
    for index, forecast in enumerate(kept):
        channel = index % len(forecasts.channels)
        caption = _caption(forecasts, forecast, channel)
        for row, step in zip(panels[index * len(steps) :], steps, strict=False):
            truth, prediction = (
                plane(values[0, step, ..., channel]) for values in (forecast.truth, forecast.predictions["operator"])
            )
            labels = (f"truth, t = {forecasts.times[step]:.3g}", f"operator: {caption}", "error")
            _triple(row, _image, truth, prediction, forecasts.channels[channel], labels)
    return figure


def plane(values: np.ndarray) -> np.ndarray:
    """A field on a plane as it is, one in a box by its middle plane."""
    return values if values.ndim == 2 else values[..., values.shape[-1] // 2]


def _image(axes: Axes, values: np.ndarray, **colours: object):
    axes.set(xticks=[], yticks=[], xlabel="x", ylabel="y")
    return axes.imshow(values.T, origin="lower", interpolation="nearest", **colours)


def _mesh(forecasts: Forecasts, kept: Sequence[Forecast]) -> Figure:
    """Static meshes: the coefficient, the solution, the prediction, the error; a row a sample."""
    figure, panels = _figure(len(kept), 4, 3.0, 2.3)
    for row, forecast in zip(panels, kept, strict=True):
        (x, y), cells = forecast.geometry["coords"][:, :2].T, forecast.geometry["cells"]

        def show(axes: Axes, values: np.ndarray, mesh: tuple = (x, y, cells), **colours: object):
            axes.set(xticks=[], yticks=[], aspect="equal")
            return axes.tripcolor(*mesh, values, shading="gouraud", **colours)

        name = next(iter(forecast.known))
        plt.colorbar(show(row[0], forecast.known[name][0], cmap="viridis"), ax=row[0], label=name)
        row[0].set_title("given", fontsize=9)
        truth, prediction = forecast.truth[0, 0, :, 0], forecast.predictions["operator"][0, 0, :, 0]
        labels = ("truth", f"operator: {_caption(forecasts, forecast, 0)}", "error")
        _triple(row[1:], show, truth, prediction, forecasts.channels[0], labels)
    return figure


def _particles(forecasts: Forecasts, kept: Sequence[Forecast]) -> Figure:
    """Particles: true and predicted paths over the predicted steps, and where they end; a row a trajectory."""
    figure, panels = _figure(len(kept), 3, 3.2, 2.9)
    for row, forecast in zip(panels, kept, strict=True):
        start, box = forecast.known["start"][0], forecast.geometry["box"]
        dimension = start.shape[-1]
        true, made = (
            start + values[0, ..., :dimension] for values in (forecast.truth, forecast.predictions["operator"])
        )
        speed = np.linalg.norm(forecast.truth[0, ..., dimension:], axis=-1)
        fastest = speed.max() or 1.0  # all at rest
        for axes, paths, label in ((row[0], true, "true paths"), (row[1], made, "operator: paths")):
            for track in range(0, paths.shape[1], max(1, paths.shape[1] // TRACKS)):
                line = _wrapped(np.concatenate([start[None, track], paths[:, track]])[:, :2], box[:2])
                axes.plot(*line.T, lw=0.8, color=plt.cm.viridis(speed[:, track].mean() / fastest))
            axes.set_title(label, fontsize=9)
        off = np.linalg.norm(made[-1] - true[-1], axis=-1)
        places = fold(true[-1], box)
        points = row[2].scatter(*places[:, :2].T, c=off, s=9, cmap=ERROR, vmin=0)
        plt.colorbar(points, ax=row[2], label="error of the position at the end")
        row[2].set_title(_caption(forecasts, forecast, slice(None)), fontsize=9)
        for axes in row:
            axes.set(xlabel="x", ylabel="y", aspect="equal")
    return figure


def _wrapped(path: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A path [T, 2] inside the box, broken (by a row of NaN) where it crosses a seam."""
    inside = fold(path, box)
    jumps = np.flatnonzero(
        (np.abs(np.diff(inside, axis=0) - minimum_image(np.diff(inside, axis=0), box)) > 1e-9).any(1)
    )
    return np.insert(inside, jumps + 1, np.nan, axis=0)
