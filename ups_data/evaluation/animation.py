"""Rollouts in motion, reports/<task>/rollout.gif: the same panels as rollout.png, frame after frame.

A static problem has no time to move in: there every frame is another test sample. Equal forecasts give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ups_data.choice import evenly
from ups_data.evaluation.forecast import Forecast, Forecasts
from ups_data.evaluation.metrics import fold, nrmse
from ups_data.evaluation.pictures import ERROR, FIELD, plane
from ups_data.files import atomic
from ups_data.parameters import in_words

FRAMES = 16  # drawn at most: of the 31 predicted steps of the sample every second one
STRIP = 18  # pixels above each trajectory for the captions
GAP = 6  # pixels between panels
DURATION = 180, 1200  # milliseconds of a frame, of time and of samples
COLOURS = {"curves": 20, "areas": 48}
DPI = 100

Show = Callable[[int], None]  # draws frame k into its panel


class Scene(NamedTuple):
    """A trajectory to be drawn: panel name -> what draws into its axes; the text above each panel."""

    style: str  # what there is of COLOURS
    panels: dict[str, Callable[[Axes], Show]]
    size: tuple[int, int]  # pixels of a panel
    captions: Callable[[int], dict[str, str]]  # panel name -> text above it in frame k


def animate(path: Path, kind: str, forecasts: Forecasts, kept: Sequence[Forecast]) -> None:
    """Write the animation of the kept forecasts (one sample each) atomically."""
    steps = evenly(len(forecasts.times), FRAMES)
    static = kind == "mesh"
    if kind == "grid" and kept[0].truth.ndim == 4:
        scenes = [_lines(forecasts, forecast, steps) for forecast in kept]
    elif static:
        scenes = [_mesh(forecasts, kept)]
    else:
        shown = kept[len(kept) // 2]
        scenes = [(_plane if kind == "grid" else _particles)(forecasts, shown, steps)]
    frames = _render(scenes, len(kept) if static else len(steps))
    # Quantised as one picture: the frames share their colours.
    tall = Image.fromarray(frames.reshape(-1, *frames.shape[2:])).quantize(
        COLOURS[scenes[0].style], dither=Image.Dither.NONE
    )
    height = frames.shape[1]
    images = [tall.crop((0, k * height, tall.width, (k + 1) * height)) for k in range(len(frames))]
    options = {"save_all": True, "append_images": images[1:], "duration": DURATION[static], "loop": 0}
    with atomic(path) as temporary:
        images[0].save(temporary, format="GIF", optimize=False, **options)


# --- what is drawn ---------------------------------------------------------------------------------


def _lines(forecasts: Forecasts, forecast: Forecast, steps: Sequence[int]) -> Scene:
    """A trajectory on a line: the curve, the operator's on top of it, the difference."""
    x = forecast.geometry["x"]
    truth, made = (values[0, steps, :, 0] for values in (forecast.truth, forecast.predictions["operator"]))
    error = made - truth
    low, high = _range(truth, 0.15)
    most = max(float(np.abs(error).max()), 1e-12)

    def curves(limits: tuple[float, float], *drawn: tuple[np.ndarray, str, float]) -> Callable[[Axes], Show]:
        def start(axes: Axes) -> Show:
            axes.set(xlim=(x[0], x[-1]), ylim=limits)
            lines = [axes.plot(x, values[0], color=colour, lw=width)[0] for values, colour, width in drawn]
            return lambda k: [line.set_ydata(values[k]) for line, (values, _, _) in zip(lines, drawn, strict=True)]

        return start

    panels = {
        "truth": curves((low, high), (truth, "#333333", 1.4)),
        "operator": curves((low, high), (truth, "#bbbbbb", 2.6), (made, "#c0392b", 1.2)),
        "error": curves((-most, most), (np.zeros_like(error), "#bbbbbb", 0.8), (error, "#7d3c98", 1.2)),
    }
    return _scene("curves", panels, (208, 88), forecasts, forecast, steps, most)


def _plane(forecasts: Forecasts, forecast: Forecast, steps: Sequence[int]) -> Scene:
    """A trajectory on a plane (of a box the middle one): the first channel as colours."""
    truth, made = (
        np.stack([plane(values[0, step, ..., 0]).T for step in steps])
        for values in (forecast.truth, forecast.predictions["operator"])
    )
    error = np.abs(made - truth)
    field, most = _range(truth, 0.0), max(float(error.max()), 1e-12)

    def colours(values: np.ndarray, cmap: str, limits: tuple[float, float]) -> Callable[[Axes], Show]:
        def start(axes: Axes) -> Show:
            image = axes.imshow(
                values[0], origin="lower", aspect="auto", interpolation="nearest", cmap=cmap, clim=limits
            )
            return lambda k: image.set_data(values[k])

        return start

    panels = {
        "truth": colours(truth, FIELD, field),
        "operator": colours(made, FIELD, field),
        "error": colours(error, ERROR, (0.0, most)),
    }
    # Whole pixels a point, about 128 in all: compresses well, and no point is drawn wider than its neighbour.
    points = truth.shape[2], truth.shape[1]
    scale = max(1, 128 // max(points))
    size = tuple(max(48, n * scale) if n * scale <= 256 else 256 for n in points)
    return _scene("areas", panels, size, forecasts, forecast, steps, most)


def _particles(forecasts: Forecasts, forecast: Forecast, steps: Sequence[int]) -> Scene:
    """Particles where they truly are and where the operator takes them; the error is the distance between."""
    start, box = forecast.known["start"][0], forecast.geometry["box"]
    dimension = start.shape[-1]
    true, made = (
        start + values[0, steps, :, :dimension] for values in (forecast.truth, forecast.predictions["operator"])
    )
    off = np.linalg.norm(made - true, axis=-1)
    inside = [fold(places, box) for places in (true, made)]
    low, high = (np.where(box > 0, end, bound) for end, bound in ((0.0, true.min((0, 1))), (box, true.max((0, 1)))))
    tint = _tint(start)
    most = max(float(np.percentile(off, 99)), 1e-12)

    def dots(places: np.ndarray, colours: np.ndarray, **style: object) -> Callable[[Axes], Show]:
        def begin(axes: Axes) -> Show:
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
            points = axes.scatter(*places[0, :, :2].T, c=colours[0], s=7, lw=0, **style)

            def show(k: int) -> None:
                points.set_offsets(places[k, :, :2])
                points.set_array(colours[k])

            return show

        return begin

    same = np.broadcast_to(tint, off.shape)
    panels = {
        "truth": dots(inside[0], same, cmap="viridis", vmin=0, vmax=1),
        "operator": dots(inside[1], same, cmap="viridis", vmin=0, vmax=1),
        "error": dots(inside[0], off, cmap=ERROR + "_r", vmin=0, vmax=most),
    }
    return _scene("curves", panels, (200, 200), forecasts, forecast, steps, most)


def _tint(start: np.ndarray) -> np.ndarray:
    """A colour for each particle [P] in 0..1 by its height at the start, so that mixing can be seen."""
    height = start[:, 1]
    return (height - height.min()) / max(float(np.ptp(height)), 1e-12)


def _mesh(forecasts: Forecasts, kept: Sequence[Forecast]) -> Scene:
    """Samples of a static problem one after another: what is given, the solution, the operator's, the error."""
    given = [next(iter(forecast.known.values()))[0] for forecast in kept]
    truth, made = (
        [values[0, 0, :, 0] for values in group]
        for group in ([f.truth for f in kept], [f.predictions["operator"] for f in kept])
    )
    error = [np.abs(a - b) for a, b in zip(made, truth, strict=True)]
    scales = {
        "given": [_range(values, 0.0) for values in given],
        "truth": [_range(values, 0.0) for values in truth],
        "error": [(0.0, max(float(values.max()), 1e-12)) for values in error],
    }

    def colours(values: list[np.ndarray], cmap: str, limits: list[tuple[float, float]]) -> Callable[[Axes], Show]:
        def start(axes: Axes) -> Show:
            def show(k: int) -> None:
                axes.cla()
                axes.set(xticks=[], yticks=[], aspect="equal")
                axes.axis("off")
                (x, y), cells = kept[k].geometry["coords"][:, :2].T, kept[k].geometry["cells"]
                low, high = limits[k]
                axes.tripcolor(x, y, cells, values[k], shading="gouraud", cmap=cmap, vmin=low, vmax=high)

            return show

        return start

    panels = {
        "given": colours(given, "viridis", scales["given"]),
        "truth": colours(truth, FIELD, scales["truth"]),
        "operator": colours(made, FIELD, scales["truth"]),
        "error": colours(error, ERROR, scales["error"]),
    }
    nrmse = [float(_errors(forecasts, forecast)[0, 0, 0]) for forecast in kept]

    def captions(k: int) -> dict[str, str]:
        name = next(iter(kept[k].known))
        return {
            "given": name,
            "truth": f"truth, sample {kept[k].samples[0]}",
            "operator": f"operator, nRMSE {nrmse[k]:.2g}",
            "error": f"error (scale: {scales['error'][k][1]:.1g})",
        }

    return Scene("areas", panels, (160, 160), captions)


def _scene(
    style: str,
    panels: dict[str, Callable[[Axes], Show]],
    size: tuple[int, int],
    forecasts: Forecasts,
    forecast: Forecast,
    steps: Sequence[int],
    most: float,
) -> Scene:
    """A trajectory in time with its captions; `most`: the end of the error's scale."""
    errors = _errors(forecasts, forecast)[0, steps]
    nrmse = errors.mean(axis=-1) if "start" in forecast.known else errors[:, 0]
    named = in_words(forecasts.parameter_names, forecasts.parameters[forecast.samples[0]], 3)

    def captions(k: int) -> dict[str, str]:
        return {
            "truth": ", ".join([f"t = {forecasts.times[steps[k]]:.2f}", *named]),
            "operator": f"operator, nRMSE {nrmse[k]:.2g}",
            "error": f"error (scale: {most:.1g})",
        }

    return Scene(style, panels, size, captions)


def _errors(forecasts: Forecasts, forecast: Forecast) -> np.ndarray:
    """nRMSE [1, T, C] of the operator."""
    return nrmse(forecast.predictions["operator"], forecast.truth, forecasts.spread)


def _range(values: np.ndarray, margin: float) -> tuple[float, float]:
    """The ends of a scale: all but the outermost half per cent of values, or all with a margin around them."""
    low, high = np.percentile(values, [0.5, 99.5]) if not margin else (values.min(), values.max())
    if not high > low:
        return float(low) - 1.0, float(high) + 1.0
    return float(low - margin * (high - low)), float(high + margin * (high - low))


def _render(scenes: Sequence[Scene], frames: int) -> np.ndarray:
    """All frames, the scenes one above the other: uint8 [frames, H, W, 3]."""
    width, height = scenes[0].size
    columns = len(scenes[0].panels)
    total = columns * (width + GAP) - GAP, len(scenes) * (height + STRIP)
    figure = Figure(figsize=(total[0] / DPI, total[1] / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    shows, texts = [], []
    for row, scene in enumerate(scenes):
        for column, (name, start) in enumerate(scene.panels.items()):
            left, bottom = column * (width + GAP), total[1] - (row + 1) * (height + STRIP)
            place = left / total[0], bottom / total[1], width / total[0], height / total[1]
            axes = figure.add_axes(place, xticks=[], yticks=[])
            shows.append(start(axes))
            for spine in axes.spines.values():
                spine.set(color="#cccccc", linewidth=0.8)
            text = figure.text((left + 2) / total[0], (bottom + height + 5) / total[1], "", fontsize=7, color="#333333")
            texts.append((text, scene.captions, name))
    drawn = np.empty((frames, total[1], total[0], 3), np.uint8)
    for k in range(frames):
        for show in shows:
            show(k)
        for text, captions, name in texts:
            text.set_text(captions(k)[name])
        canvas.draw()
        drawn[k] = np.asarray(canvas.buffer_rgba())[..., :3]
    return drawn
