"""The picture of a look: a PNG, or a few lines of text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ups_data.choice import evenly
from ups_data.files import atomic
from ups_data.inspection.look import Panel

BARS, SHADES = "▁▂▃▄▅▆▇█", "·░▒▓█"
COLUMNS = 3


def save_picture(path: str | Path, panels: Sequence[Panel], title: str) -> None:
    """Write the panels as a PNG; equal panels give equal bytes."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.0 * columns, 3.2 * rows + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        _draw(axes, panel)
    for axes in figure.axes[len(panels) : rows * columns]:
        if not axes.has_data():
            axes.set_axis_off()
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def _draw(axes, panel: Panel) -> None:  # noqa: ANN001 (matplotlib's)
    if panel.points is None:
        extent = panel.extent if panel.extent and np.isfinite(panel.extent).all() else None  # a damaged axis
        drawn = axes.imshow(panel.values, origin="lower", extent=extent, aspect="auto", cmap="viridis")
    elif panel.cells is None:
        drawn = axes.scatter(*panel.points.T, c=panel.values, s=4, cmap="viridis")
    else:
        drawn = axes.tripcolor(*panel.points.T, panel.cells, panel.values, shading="gouraud", cmap="viridis")
    if panel.points is not None:
        axes.set_aspect("equal")
    if panel.points is None or panel.cells is not None:
        axes.figure.colorbar(drawn, ax=axes, shrink=0.9).ax.tick_params(labelsize=7)
    axes.set_title(panel.title, fontsize=9)
    axes.set_xlabel(panel.labels[0], fontsize=8)
    axes.set_ylabel(panel.labels[1], fontsize=8)
    axes.tick_params(labelsize=7)


def sketch(panel: Panel, columns: int = 64, rows: int = 16) -> str:
    """The panel in block characters: a heat view, darker is larger; dots are counted by cell.

    Over time in one dimension, the first and the last profile as well.
    """
    cells = _cells(panel, columns, rows)
    low, high = np.nanmin(cells), np.nanmax(cells)
    lines = ["".join(_mark(v, low, high, SHADES) for v in row) for row in cells[::-1]]
    heat = [f"{panel.title}: {low:.3g} to {high:.3g}, {panel.labels[1]} upwards", *lines]
    if panel.points is None and panel.labels[1] == "time":
        heat += [f"first {sparkline(panel.values[0], columns)}", f"last  {sparkline(panel.values[-1], columns)}"]
    return "\n".join(heat)


def sparkline(values: np.ndarray, columns: int = 64) -> str:
    """One line of bars over the numbers, by means of equal runs of them."""
    runs = np.array_split(values, min(columns, len(values)))
    means = np.array([np.nanmean(run) if np.isfinite(run).any() else np.nan for run in runs])
    low, high = (np.nanmin(means), np.nanmax(means)) if np.isfinite(means).any() else (0.0, 0.0)
    return "".join(_mark(v, low, high, BARS) for v in means)


def _mark(value: float, low: float, high: float, marks: str) -> str:
    if not np.isfinite(value):
        return "?" if marks is BARS else " "
    return marks[min(len(marks) - 1, int((value - low) / (high - low) * len(marks)))] if high > low else marks[1]


def _cells(panel: Panel, columns: int, rows: int) -> np.ndarray:
    """The panel as [rows, columns] means."""
    if panel.points is None:
        picked = [evenly(n, m) for n, m in zip(panel.values.shape, (rows, columns), strict=True)]
        return panel.values[np.ix_(*picked)]
    x, y = panel.points[:, 0], panel.points[:, 1]
    bounds = [[y.min(), y.max()], [x.min(), x.max()]]
    counts, *_ = np.histogram2d(y, x, (rows, columns // 2), bounds)
    if panel.cells is None:
        return counts
    sums, *_ = np.histogram2d(y, x, (rows, columns // 2), bounds, weights=panel.values)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
