"""Players: rows of panels that one slider moves through time, or from sample to sample.

A player is a dict: `what` the slider moves through, `labels` of its steps, `start`, `rows` [{caption, panels}].
A panel has a `kind`:
    film   frames of a field as a strip (plates.strip), one frame where it does not change
    map    a field over space (up) and time (to the right), with a cursor at the slider's time
    plot   marks drawn from numbers: lines over an axis, dots in a plane with trails, links between two sets of dots
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ups_data.gallery import plates
from ups_data.parameters import in_words

FRAMES = 41  # of a player at most
POINTS = 256  # of a line, and of a map each way, at most
SIDE = 128  # points a side of a film at most
DECADES = 100.0  # from which ratio of its ends on a positive field is shown as a power of ten
TRAIL = 6  # frames that a dot's trail reaches back, as in script.js
MARGIN = 0.04  # of the range of values, above and below a line
UNIT = 1000  # the width and height of a plot's own coordinates, as in script.js


def player(what: str, labels: Sequence[str], rows: Sequence[dict], start: int = 0, name: str = "") -> dict:
    """A player of as many steps as there are labels."""
    return {"what": what, "labels": list(labels), "rows": list(rows), "start": start, "name": name}


def times(values: np.ndarray) -> list[str]:
    """Labels of a slider through time."""
    return [f"t = {value:.3g}" for value in values]


def thinned(count: int, most: int) -> slice:
    """Every n-th of `count`, n as small as leaves at most `most`."""
    return slice(None, None, max(1, -(-count // most)))


# --- panels --------------------------------------------------------------------------------------


def film(name: str, frames: np.ndarray, ends: tuple[float, float], colours: str) -> dict:
    """A field in the plane, [T, X, Y] with y upwards."""
    frames = frames[:, thinned(frames.shape[1], SIDE), thinned(frames.shape[2], SIDE)]
    upright = frames.swapaxes(1, 2)[:, ::-1]
    return {
        "kind": "film",
        "name": name,
        "source": plates.strip(upright, ends, colours),
        "frames": len(upright),
        "height": upright.shape[1],
        "width": upright.shape[2],
        "pad": plates.PAD,
        "bar": plates.bar(ends, colours),
    }


def meshes(
    name: str,
    fields: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    ends: tuple[float, float],
    colours: str,
) -> dict:
    """A node field a sample: (coords, cells, values) each."""
    return {
        "kind": "film",
        "name": name,
        "source": plates.mesh_strip(fields, ends, colours),
        "frames": len(fields),
        "height": plates.MESH_PIXELS,
        "width": plates.MESH_PIXELS,
        "pad": plates.PAD,
        "bar": plates.bar(ends, colours),
        "clear": True,
    }


def space_time(name: str, values: np.ndarray, ends: tuple[float, float], colours: str) -> dict:
    """A field on a line, [T, X]: time to the right, space upwards."""
    seen = values[thinned(len(values), POINTS), thinned(values.shape[1], POINTS)]
    source = plates.picture(seen.T[::-1], ends, colours)
    return {"kind": "map", "name": name, "source": source, "bar": plates.bar(ends, colours)}


def plot(
    name: str, marks: Sequence[dict], x: tuple[float, float], y: tuple[float, float], square: bool = False
) -> dict:
    """A plot of marks within the ranges x and y."""
    ends = {"x": plates.in_words(*x), "y": plates.in_words(*y)}
    return {"kind": "plot", "name": name, "marks": list(marks), "ends": ends, "square": square}


def line(name: str, look: str, values: np.ndarray, low: float, high: float) -> dict:
    """A curve a frame, [T, X] at even places; `look` is its class on the page, `path` its first frame."""
    seen = values[:, thinned(values.shape[1], POINTS)]
    x, y = np.linspace(0, UNIT, seen.shape[1]), UNIT * (1 - np.clip((seen[0] - low) / (high - low), 0, 1))
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
    numbers = plates.numbers(seen, low, high)
    return {"kind": "line", "name": name, "look": look, "numbers": numbers, "count": seen.shape[1], "path": path}


def dots(name: str, look: str, places: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict:
    """Points in the plane a frame, [T, P, 2]; `path` is the first frame."""
    scaled = np.clip((places[..., :2] - low) / (high - low), 0, 1)
    path = "".join(f"M{a:.1f} {UNIT - b:.1f}h0" for a, b in scaled[0] * UNIT)
    numbers = plates.numbers(scaled, 0, 1)
    return {"kind": "dots", "name": name, "look": look, "numbers": numbers, "count": 2 * places.shape[1], "path": path}


def drawn(kind: str, name: str) -> dict:
    """A mark that the page draws from the dots of its plot: `trails` behind them, or `links` between two sets."""
    return {"kind": kind, "name": name, "look": kind, "numbers": "", "count": 0, "path": ""}


def tracks(places: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """Paths [T, P, 2] as the data of an SVG path, broken where they cross a seam."""
    scaled = np.round(UNIT * np.clip((places - low) / (high - low), 0, 1), 0).astype(int)
    parts = []
    for track in scaled.swapaxes(0, 1):
        jumps = np.abs(np.diff(track, axis=0)).max(axis=1) > UNIT / 2
        for run in np.split(track, np.flatnonzero(jumps) + 1):
            parts.append("M" + "L".join(f"{a} {UNIT - b}" for a, b in run))
    return "".join(parts)


# --- what is shown of each kind ------------------------------------------------------------------


def plane(values: np.ndarray) -> np.ndarray:
    """Frames [T, X, Y] of fields [T, X, Y] or, of a cube, its middle plane."""
    return values if values.ndim == 3 else values[..., values.shape[-1] // 2]


def colours_of(values: np.ndarray) -> tuple[tuple[float, float], str]:
    """The ends of the colours and the colours of a field."""
    signed = plates.is_signed(values)
    return plates.limits(values, signed), plates.SIGNED if signed else plates.POSITIVE


def logarithms(fields: Sequence[np.ndarray], name: str) -> tuple[list[np.ndarray], str]:
    """Positive fields over decades as powers of ten, with their name; others as they are."""
    low, high = min(float(f.min()) for f in fields), max(float(f.max()) for f in fields)
    if low > 0 and high > DECADES * low:
        return [np.log10(f) for f in fields], f"log10 {name}"
    return list(fields), name


def range_of(*fields: np.ndarray) -> tuple[float, float]:
    """The range of a plot that shows all of the fields."""
    low, high = min(float(np.min(f)) for f in fields), max(float(np.max(f)) for f in fields)
    margin = MARGIN * ((high - low) or 1.0)
    return low - margin, high + margin


def lines_player(
    fields: np.ndarray, names: Sequence[str], channels: Sequence[str], x: np.ndarray, time: np.ndarray
) -> dict:
    """Trajectories on a line, [M, T, X, C]: of each channel all curves in one plot, and a map of each."""
    frames, rows = thinned(len(time), FRAMES), []
    for channel, values in zip(channels, np.moveaxis(fields, -1, 0), strict=True):
        low, high = range_of(values)
        named = list(zip(names, values, strict=True))
        marks = [line(name, f"shade s{k}", one[frames], low, high) for k, (name, one) in enumerate(named)]
        maps = [space_time(name, one, *colours_of(values)) for name, one in named]
        rows.append({"caption": "", "panels": [plot(channel, marks, (float(x[0]), float(x[-1])), (low, high))]})
        rows.append({"caption": "", "panels": maps})
    labels = times(time[frames])
    return player("Time", labels, rows, len(labels) // 4)


def planes_player(
    fields: np.ndarray, still: np.ndarray, names: Sequence[str], stills: Sequence[str], time: np.ndarray
) -> dict:
    """A trajectory in the plane: fields [T, X, Y, C] and those that do not change, [X, Y, C']."""
    panels = [film(name, plane(fields[..., c]), *colours_of(fields[..., c])) for c, name in enumerate(names)]
    fixed = [film(name, plane(still[None, ..., c]), *colours_of(still[..., c])) for c, name in enumerate(stills)]
    rows = [{"caption": "", "panels": panels}, {"caption": "does not change in time", "panels": fixed}]
    return player("Time", times(time), [row for row in rows if row["panels"]], len(time) // 2)


def particles_player(
    trajectories: Sequence[np.ndarray], names: Sequence[str], low: np.ndarray, high: np.ndarray, time: np.ndarray
) -> dict:
    """Trajectories of particles, positions [T, P, 2] between low and high each."""
    panels = []
    for name, places in zip(names, trajectories, strict=True):
        marks = [drawn("trails", "trails"), dots("particles", "particles", places, low, high)]
        panels.append(plot(name, marks, (low[0], high[0]), (low[1], high[1]), square=True))
    return player("Time", times(time), [{"caption": "", "panels": panels}], min(TRAIL, len(time) - 1))


def rollout_rows(kind: str, arrays: dict[str, np.ndarray]) -> tuple[list[str], list[dict], str]:
    """Labels, rows and the name of the slider for the kept rollouts of evaluation/record.py."""
    if kind == "mesh":
        return _mesh_rollouts(arrays)
    captions = _captions(arrays)
    shown = _particle_rows if kind == "particles" else _line_rows if arrays["truth"].ndim == 4 else _plane_rows
    return times(arrays["times"]), shown(arrays, captions), "Time"


def _captions(arrays: dict[str, np.ndarray]) -> list[str]:
    facts = zip(arrays["samples"], arrays["parameters"], arrays["nrmse"], strict=True)
    names = [str(name) for name in arrays["parameter_names"]]
    return [", ".join([*in_words(names, values, 4), f"nRMSE {error:.3g}"]) for _, values, error in facts]


def _line_rows(arrays: dict[str, np.ndarray], captions: Sequence[str]) -> list[dict]:
    """One channel a trajectory, in turn: the curves of truth and operator, and three maps."""
    x, rows = arrays["x"], []
    for k, caption in enumerate(captions):
        channel = k % len(arrays["channels"])
        truth, made = (arrays[which][k, ..., channel].astype(np.float32) for which in ("truth", "operator"))
        low, high = range_of(truth, made)
        marks = [line("truth", "truth", truth, low, high), line("operator", "operator", made, low, high)]
        ends, colours = colours_of(truth)
        error = np.abs(made - truth)
        panels = [
            plot(str(arrays["channels"][channel]), marks, (float(x[0]), float(x[-1])), (low, high)),
            space_time("truth", truth, ends, colours),
            space_time("operator", made, ends, colours),
            space_time("error", error, (0.0, max(float(error.max()), 1e-12)), plates.ERROR),
        ]
        rows.append({"caption": caption, "panels": panels})
    return rows


def _plane_rows(arrays: dict[str, np.ndarray], captions: Sequence[str]) -> list[dict]:
    """One channel a trajectory, from the last one on: three films each."""
    rows, count = [], len(arrays["channels"])
    for k, caption in enumerate(captions):
        channel = (count - 1 - k) % count
        truth, made = (plane(arrays[which][k, ..., channel].astype(np.float32)) for which in ("truth", "operator"))
        ends, colours = colours_of(truth)
        error = np.abs(made - truth)
        name = arrays["channels"][channel]
        panels = [
            film(f"{name}, truth", truth, ends, colours),
            film(f"{name}, operator", made, ends, colours),
            film("error", error, (0.0, max(float(error.max()), 1e-12)), plates.ERROR),
        ]
        rows.append({"caption": caption, "panels": panels})
    return rows


def _particle_rows(arrays: dict[str, np.ndarray], captions: Sequence[str]) -> list[dict]:
    every = np.concatenate([arrays[which][..., :2].reshape(-1, 2) for which in ("truth", "operator")])
    box = arrays["box"][:2]
    low, high = np.where(box > 0, 0.0, every.min(axis=0)), np.where(box > 0, box, every.max(axis=0))
    panels = []
    for k, caption in enumerate(captions):
        marks = [dots(which, which, arrays[which][k], low, high) for which in ("truth", "operator")]
        panels.append(
            plot(caption, [drawn("links", "distance"), *marks], (low[0], high[0]), (low[1], high[1]), square=True)
        )
    return [{"caption": "", "panels": panels}]


def _mesh_rollouts(arrays: dict[str, np.ndarray]) -> tuple[list[str], list[dict], str]:
    given, name = str(arrays["given"]), str(arrays["channels"][0])
    shapes = [(arrays[f"coords_{k}"], arrays[f"cells_{k}"]) for k in range(len(arrays["samples"]))]

    def fields(which: str) -> list[np.ndarray]:
        columns = (arrays[f"{which}_{k}"].astype(np.float32) for k in range(len(shapes)))
        return [values if values.ndim == 1 else values[:, 0] for values in columns]

    def panel(label: str, values: Sequence[np.ndarray], ends: tuple[float, float], colours: str) -> dict:
        return meshes(label, [(*shape, v) for shape, v in zip(shapes, values, strict=True)], ends, colours)

    truth, made, inputs = fields("truth"), fields("operator"), fields("given")
    error = [np.abs(a - b) for a, b in zip(made, truth, strict=True)]
    inputs, given = logarithms(inputs, given)
    scale = colours_of(np.concatenate(truth))
    panels = [
        panel(given, inputs, *colours_of(np.concatenate(inputs))),
        panel(f"{name}, truth", truth, *scale),
        panel(f"{name}, operator", made, *scale),
        panel("error", error, (0.0, max(float(np.concatenate(error).max()), 1e-12)), plates.ERROR),
    ]
    labels = [f"sample {s}, nRMSE {e:.3g}" for s, e in zip(arrays["samples"], arrays["nrmse"], strict=True)]
    return labels, [{"caption": "", "panels": panels}], "Sample"
