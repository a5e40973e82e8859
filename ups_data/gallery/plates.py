"""Pictures as data URIs: fields as strips of frames in uniform colours, meshes, and numbers that the page draws itself.

A strip stacks the frames of a field top to bottom, each with a rim of PAD points repeated from its edge, so that a
browser that smooths it never mixes two frames.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image

PAD = 1
SIGNED, POSITIVE, ERROR = "berlin", "viridis", "magma"  # perceptually uniform; berlin is dark where a field is zero
STOPS = 9  # colours that a colour bar is drawn from
CUT = 0.5  # percent of the values beyond either end of the colours: single points do not flatten the rest
LARGEST = 65535
MESH_PIXELS, MESH_SCALE = 260, 2  # of a mesh's picture, and how much finer it is drawn before it is made smaller


def limits(values: np.ndarray, signed: bool) -> tuple[float, float]:
    """The ends of the colours for a field; about zero where it is `signed`."""
    low, high = (float(v) for v in np.percentile(values[np.isfinite(values)], [CUT, 100 - CUT]))
    if signed:
        high = max(abs(low), abs(high))
        low = -high
    return (low, high) if high > low else (low - 1.0, low + 1.0)


def is_signed(values: np.ndarray) -> bool:
    """Whether a field swings about zero, rather than standing on one side of it."""
    low, high = np.percentile(values[np.isfinite(values)], [CUT, 100 - CUT])
    return bool(low < 0 < high and min(-low, high) > 0.2 * max(-low, high))


def strip(frames: np.ndarray, ends: tuple[float, float], colours: str) -> str:
    """Frames [T, H, W] (row 0 on top) as one picture of T * (H + 2 PAD) rows: a WebP data URI, lossless."""
    padded = np.pad(frames, ((0, 0), (PAD, PAD), (PAD, PAD)), mode="edge")
    return picture(padded.reshape(-1, padded.shape[2]), ends, colours)


def picture(values: np.ndarray, ends: tuple[float, float], colours: str) -> str:
    """A field [H, W] (row 0 on top) as a WebP data URI, a pixel a point, lossless."""
    scaled = np.clip((values.astype(np.float64) - ends[0]) / (ends[1] - ends[0]), 0, 1)
    levels = np.nan_to_num(np.round(scaled * 255)).astype(np.uint8)
    table = (matplotlib.colormaps[colours](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
    return uri(Image.fromarray(table[levels]), lossless=True)


def uri(image: Image.Image, lossless: bool) -> str:
    """A picture as a WebP data URI."""
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", lossless=lossless, quality=90 if lossless else 82, method=6 if lossless else 2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def bar(ends: tuple[float, float], colours: str) -> dict:
    """A colour bar: its two ends in words, its colours from low to high."""
    stops = [matplotlib.colors.to_hex(colour) for colour in matplotlib.colormaps[colours](np.linspace(0, 1, STOPS))]
    low, high = in_words(*ends)
    return {"low": low, "high": high, "colours": stops}


def in_words(low: float, high: float) -> tuple[str, str]:
    """The ends of a range, to a hundredth of it: (0.000488, 0.9995) is 0 to 1."""
    digits = 2 - math.floor(math.log10(high - low))
    return tuple(f"{round(float(v), digits) + 0.0:.4g}" for v in (low, high))


def numbers(values: np.ndarray, low: float, high: float) -> str:
    """Numbers between low and high as little-endian uint16 in base64: 0 is low, 65535 is high."""
    scaled = np.clip((np.asarray(values, dtype=np.float64) - low) / (high - low), 0, 1)
    return base64.b64encode(np.round(scaled * LARGEST).astype("<u2").tobytes()).decode()


def mesh_strip(
    meshes: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], ends: tuple[float, float], colours: str
) -> str:
    """Node fields on meshes (coords [N, 2], cells [M, 3], values [N]) as a strip of squares on a clear ground."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = MESH_PIXELS * MESH_SCALE
    tiles = []
    for coords, cells, values in meshes:
        figure = Figure(figsize=(1, 1), dpi=side)
        canvas = FigureCanvasAgg(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
        axes.set_axis_off()
        (x, y), middle = coords[:, :2].T, (coords[:, :2].min(0) + coords[:, :2].max(0)) / 2
        reach = float(np.ptp(coords[:, :2], axis=0).max()) / 2
        axes.set(aspect="equal", xlim=middle[0] + reach * np.array([-1, 1]), ylim=middle[1] + reach * np.array([-1, 1]))
        axes.tripcolor(x, y, cells, values, shading="gouraud", vmin=ends[0], vmax=ends[1], cmap=colours)
        axes.triplot(x, y, cells, color="white", lw=0.05, alpha=0.35)
        canvas.draw()
        tile = Image.fromarray(np.asarray(canvas.buffer_rgba())).resize(
            (MESH_PIXELS, MESH_PIXELS), Image.Resampling.LANCZOS
        )
        tiles.append(np.pad(np.asarray(tile), ((PAD, PAD), (PAD, PAD), (0, 0)), mode="edge"))
    return uri(Image.fromarray(np.concatenate(tiles)), lossless=False)
