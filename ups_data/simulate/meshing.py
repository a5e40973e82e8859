"""Irregular triangle meshes of plane shapes: random points, relaxed, Delaunay triangles inside the outline.

The outline is a set of closed polygons (the outer one and the holes) with points about `spacing` apart. Because no
inner point comes near a boundary segment, the Delaunay triangulation contains the outline; this is checked, as are
the angles.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial import Delaunay, cKDTree

from ups_data.errors import UpsDataError
from ups_data.geometry import boundary_edges, cell_angles, cell_areas

MIN_ANGLE = 20.0  # degrees: what every triangle has at least; the P1 error grows as it shrinks
CLEARANCE = 0.75  # of the spacing between any two points at the start; > 0.707 keeps boundary segments Delaunay
CANDIDATES = 30  # random points tried for each that is kept: the plane is then nearly full
RELAXATIONS = 8  # enough to be rid of slivers, too few to become regular
ATTEMPTS = 20  # fresh random points when a triangle stays too sharp

Loops = list[np.ndarray]  # closed polygons, [B, 2] each, the outer one first


def triangulate(shape: str, spacing: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random mesh of a shape: coords float64 [N, 2], the boundary's nodes first, and cells int32 [M, 3].

    All triangles run counter-clockwise and have angles of MIN_ANGLE degrees or more. Shapes: OUTLINES. Raises
    UpsDataError when the spacing is too wide for the shape.
    """
    for _ in range(ATTEMPTS):
        loops = OUTLINES[shape](spacing, rng)
        boundary = np.concatenate(loops)
        points = np.concatenate([boundary, _scatter(loops, spacing, rng)])
        cells = _delaunay(points, loops)
        for _ in range(RELAXATIONS):
            points[len(boundary) :] = _centred(points, cells)[len(boundary) :]
            cells = _delaunay(points, loops)
        if _conforms(cells, loops, len(points)) and np.degrees(cell_angles(points, cells).min()) >= MIN_ANGLE:
            return points, cells
    raise UpsDataError(
        f"spacing: got {spacing:g}, too wide for a mesh of the shape {shape!r} with angles of {MIN_ANGLE:g} degrees or "
        "more; use a smaller spacing"
    )


# --- outlines ------------------------------------------------------------------------------------


def _square(spacing: float, rng: np.random.Generator) -> Loops:
    return [_polygon([(0, 0), (1, 0), (1, 1), (0, 1)], spacing)]


def _disk(spacing: float, rng: np.random.Generator) -> Loops:
    return [_circle((0.5, 0.5), 0.5, spacing, rng)]


def _l_shape(spacing: float, rng: np.random.Generator) -> Loops:
    x, y = rng.uniform(0.35, 0.65, 2)
    return [_polygon([(0, 0), (1, 0), (1, y), (x, y), (x, 1), (0, 1)], spacing)]


def _annulus(spacing: float, rng: np.random.Generator) -> Loops:
    hole = 0.5 + rng.uniform(-0.08, 0.08, 2)
    return [_circle((0.5, 0.5), 0.5, spacing, rng), _circle(hole, rng.uniform(0.15, 0.25), spacing, rng)]


def _channel(spacing: float, rng: np.random.Generator) -> Loops:
    """A rectangle with a round obstacle."""
    hole = rng.uniform((0.3, 0.22), (0.7, 0.28))
    sides = _polygon([(0, 0), (1, 0), (1, 0.5), (0, 0.5)], spacing)
    return [sides, _circle(hole, rng.uniform(0.08, 0.12), spacing, rng)]


OUTLINES: dict[str, Callable[[float, np.random.Generator], Loops]] = {
    "square": _square,
    "disk": _disk,
    "l_shape": _l_shape,
    "annulus": _annulus,
    "channel": _channel,
}


def _polygon(corners: list[tuple[float, float]], spacing: float) -> np.ndarray:
    """Points on the sides of a polygon, `spacing` apart or a little less or more so that corners are points."""
    points = []
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        start, end = np.array(start, dtype=np.float64), np.array(end, dtype=np.float64)
        steps = max(1, round(np.linalg.norm(end - start) / spacing))
        points.append(start + np.arange(steps)[:, None] / steps * (end - start))
    return np.concatenate(points)


def _circle(centre: tuple[float, float] | np.ndarray, radius: float, spacing: float, rng: np.random.Generator):
    """Points on a circle, `spacing` apart, turned by a random angle."""
    count = max(8, round(2 * np.pi * radius / spacing))
    angle = (np.arange(count) + rng.random()) * (2 * np.pi / count)
    return np.asarray(centre) + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


# --- points and triangles ------------------------------------------------------------------------


def _inside(points: np.ndarray, loops: Loops) -> np.ndarray:
    """Which points lie within the outer polygon and outside the holes: even-odd rule, bool [N]."""
    inside = np.zeros(len(points), dtype=bool)
    x, y = points.T
    for loop in loops:
        for (x0, y0), (x1, y1) in zip(loop, np.roll(loop, -1, axis=0), strict=True):
            if y0 != y1:
                inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return inside


def _scatter(loops: Loops, spacing: float, rng: np.random.Generator) -> np.ndarray:
    """Random points inside, no two closer than CLEARANCE * spacing, nor to the boundary's: float64 [n, 2]."""
    boundary, distance = np.concatenate(loops), CLEARANCE * spacing
    low, high = boundary.min(axis=0), boundary.max(axis=0)
    tries = rng.uniform(low, high, (int(CANDIDATES * np.prod(high - low) / spacing**2) + 1, 2))
    tries = tries[cKDTree(boundary).query(tries)[0] >= distance]
    tries = tries[_inside(tries, loops)]
    kept = np.ones(len(tries), dtype=bool)
    neighbours = cKDTree(tries).query_ball_point(tries, distance) if len(tries) else []
    for i, near in enumerate(neighbours):  # first come, first served
        if kept[i]:
            kept[near] = False
            kept[i] = True
    return tries[kept]


def _delaunay(points: np.ndarray, loops: Loops) -> np.ndarray:
    """The Delaunay triangles inside the outline, counter-clockwise, in a fixed order: int32 [M, 3]."""
    cells = Delaunay(points).simplices
    flat = np.abs(cell_areas(points, cells)) < 1e-12  # three points of one straight side, by rounding
    cells = cells[~flat & _inside(points[cells].mean(axis=1), loops)]
    turn = cell_areas(points, cells) < 0
    cells[turn] = cells[turn][:, [0, 2, 1]]
    cells = np.take_along_axis(cells, (cells.argmin(axis=1)[:, None] + np.arange(3)) % 3, axis=1)
    return cells[np.lexsort(cells.T[::-1])].astype(np.int32)


def _centred(points: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Every point moved to the mean centroid of its triangles, weighted by their areas (Chen 2004): [N, 2]."""
    area = cell_areas(points, cells)
    weighted = area[:, None] * points[cells].mean(axis=1)
    total, moved = np.zeros(len(points)), np.zeros_like(points)
    for corner in range(3):
        np.add.at(total, cells[:, corner], area)
        np.add.at(moved, cells[:, corner], weighted)
    return moved / np.maximum(total, np.finfo(np.float64).tiny)[:, None]


def _conforms(cells: np.ndarray, loops: Loops, points: int) -> bool:
    """Whether the triangles' free edges are exactly the outline, and every point belongs to a triangle."""
    outline, first = [], 0
    for loop in loops:
        here = first + np.arange(len(loop))
        outline.append(np.sort(np.stack([here, np.roll(here, -1)], axis=1), axis=1))
        first += len(loop)
    outline = np.concatenate(outline)
    outline = outline[np.lexsort((outline[:, 1], outline[:, 0]))]
    return np.array_equal(boundary_edges(cells), outline) and len(np.unique(cells)) == points
