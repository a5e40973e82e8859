"""Particles from grid files: tracers carried through the stored frames of a flow in the plane.

The velocity between the stored points is linear in space and time; the paths are integrated by fourth-order
Runge-Kutta. Positions count from the lower corner of the domain. Where an axis is not periodic the box is closed: the
velocity falls to zero at the wall, half a cell beyond the last point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from ups_data.errors import UpsDataError
from ups_data.geometry import neighbour_graph
from ups_data.params import Tracers
from ups_data.sources.grids import open_raw
from ups_data.sources.raw import RawFile, check_axes, rounded
from ups_data.splits import group_id

VELOCITY = ("velocity_x", "velocity_y")
CELLS_A_STEP = 1.0  # the farthest a tracer goes in one step of the integration: the field is smooth within a cell


class FlowTracers(AbstractContextManager):
    """An open flow as a file of particle trajectories, one for each of its samples."""

    together = 1  # trajectory for one process at a time: all frames of the flow are read for it

    def __init__(self, path: str | Path, tracers: Tracers):
        self.path, self.tracers = Path(path), tracers
        with ExitStack() as stack:
            raw = stack.enter_context(open_raw(path, "pdebench"))
            if len(raw.space) != 2 or not set(VELOCITY) <= set(raw.channels) or raw.frames < 2:
                raise UpsDataError(
                    f"{path}: got channels {', '.join(raw.channels)} of {raw.frames} frames in {len(raw.space)} "
                    "dimensions, expected velocity_x and velocity_y over time in the plane to carry tracers"
                )
            check_axes(raw)
            self.spacing = np.array([float(np.diff(x).mean()) for x in raw.coordinates.values()])
            self.size = self.spacing * raw.space
            if tracers.radius > self.size.min() / 2:
                raise UpsDataError(
                    f"convert.tracers.radius: got {tracers.radius:g}, expected at most half of the domain of {path}, "
                    f"{self.size.min() / 2:g}"
                )
            self.raw, self._stack = raw, stack.pop_all()
        self.times, self.samples, self.dimension = raw.time, raw.samples, 2
        self.is_float64, self.loss, self.unread = raw.is_float64, 0.0, raw.unread()
        self.box = np.where(raw.periodic, self.size, 0.0)

    def parameters(self) -> dict[str, tuple[str, float]]:
        """The physical parameters, the same for all samples: name -> (raw name, value)."""
        return self.raw.constant_parameters()

    def trajectory(self, row: int) -> Trajectory:
        """The tracers of one sample of the flow."""
        return Trajectory(self, row)

    def velocity(self, row: int, frame: int) -> np.ndarray:
        """The velocity at the grid's points, float64 [X, Y, 2], finite."""
        chosen = [self.raw.channels.index(name) for name in VELOCITY]
        field = self.raw.read(row, frame, frame + 1)[0][..., chosen].astype(np.float64)
        if not np.isfinite(field).all():
            raise UpsDataError(
                f"{self.path}: the velocity of sample {row}, frame {frame} is not finite; fetch it again"
            )
        return field

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


class Trajectory:
    """Tracers in one sample of a flow: what `particles_npz.ParticleShard` has; integrated when first asked for.

    Where they start follows from the seed and the state of the flow at the start, so that copies of a file carry the
    same tracers.
    """

    def __init__(self, flow: FlowTracers, row: int):
        self.flow, self.row = flow, row
        self.particles, self.radius = flow.tracers.particles, flow.tracers.radius
        rng = np.random.default_rng((flow.tracers.seed, int(_state(flow.raw, row), 16)))
        self.start = (rng.random((self.particles, 2)) * flow.size).astype(np.float32)
        first = _interpolator(flow.velocity(row, 0), flow.spacing, flow.raw.periodic)
        self.group = group_id(self.start, first(self.start.astype(np.float64)))
        self.indptr, self.indices = neighbour_graph(self.start, self.radius, flow.box)

    @cached_property
    def _path(self) -> dict[str, np.ndarray]:
        flow = self.flow
        positions, velocities = advect(
            lambda frame: flow.velocity(self.row, frame), flow.times, self.start, flow.spacing, flow.raw.periodic
        )
        (stored, lost), (velocities, more) = rounded(positions), rounded(velocities)
        flow.loss = max(flow.loss, lost, more)
        for axis, size in enumerate(flow.size.astype(np.float32)):
            if flow.raw.periodic[axis]:  # just below the period rounds to it in single precision
                stored[..., axis] = np.where(stored[..., axis] >= size, 0.0, stored[..., axis])
        return {"positions": stored, "velocities": velocities}

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """`positions` or `velocities`, float32 [T, P, 2], in one block."""
        yield self._path[name]


def _state(raw: RawFile, row: int) -> str:
    return group_id(raw.read(row, 0, 1)[0].astype(np.float32))


def advect(
    velocity: Callable[[int], np.ndarray],
    times: np.ndarray,
    start: np.ndarray,
    spacing: np.ndarray,
    periodic: Sequence[bool],
) -> tuple[np.ndarray, np.ndarray]:
    """Carry points through a flow: positions and velocities at its times, float64 [T, P, 2] each.

    `velocity(frame)` [X, Y, 2] at cell centres `spacing` apart, taken one after another; `start` [P, 2] counts from the
    domain's lower corner. Periodic axes are wrapped, on closed ones the points stay within the walls.
    """
    points, before = start.astype(np.float64), velocity(0)
    size = spacing * before.shape[:2]
    now = _interpolator(before, spacing, periodic)
    positions, velocities = [points], [now(points)]
    for frame, (begin, end) in enumerate(pairwise(times), start=1):
        field = velocity(frame)
        later = _interpolator(field, spacing, periodic)
        fastest = max(np.abs(before / spacing).max(), np.abs(field / spacing).max())  # in cells a unit of time
        points = _carry(
            now, later, points, end - begin, math.ceil((end - begin) * fastest / CELLS_A_STEP), size, periodic
        )
        positions.append(points)
        velocities.append(later(points))
        before, now = field, later
    return np.stack(positions), np.stack(velocities)


def _carry(
    now: Callable,
    later: Callable,
    points: np.ndarray,
    span: float,
    steps: int,
    size: np.ndarray,
    periodic: Sequence[bool],
) -> np.ndarray:
    """One interval between stored frames, in equal Runge-Kutta steps."""

    def rate(at: np.ndarray, share: float) -> np.ndarray:
        return (1.0 - share) * now(at) + share * later(at)

    steps = max(1, steps)
    h = span / steps
    for step in range(steps):
        begin, middle, end = step / steps, (step + 0.5) / steps, (step + 1) / steps
        k1 = rate(points, begin)
        k2 = rate(points + 0.5 * h * k1, middle)
        k3 = rate(points + 0.5 * h * k2, middle)
        k4 = rate(points + h * k3, end)
        points = points + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        points = np.where(periodic, points % size, np.clip(points, 0.0, size))
    return points


def _interpolator(
    field: np.ndarray, spacing: np.ndarray, periodic: Sequence[bool]
) -> Callable[[np.ndarray], np.ndarray]:
    """Bilinear interpolation of cell-centred values [X, Y, C] at points [P, 2]: [P, C]; a ghost cell all around."""
    cells = np.array(field.shape[:2])
    padded = np.empty((*(cells + 2), field.shape[2]))
    padded[1:-1, 1:-1] = field
    for axis, wraps in enumerate(periodic):
        ends = np.moveaxis(padded, axis, 0)
        if wraps:
            ends[0], ends[-1] = ends[-2], ends[1]
        else:  # the opposite beyond the wall: zero on it
            ends[0], ends[-1] = -ends[1], -ends[-2]
    nodes, row = padded.reshape(-1, field.shape[2]), cells[1] + 2

    def at(points: np.ndarray) -> np.ndarray:
        wrapped = np.where(periodic, points % (cells * spacing), points)
        place = np.clip(wrapped / spacing + 0.5, 0.0, cells + 1.0)  # of the padded array: centre of cell i is at i + 1
        low = np.minimum(place.astype(int), cells)
        x, y = (place - low).T[..., None]
        node = low[:, 0] * row + low[:, 1]
        below = (1.0 - x) * nodes[node] + x * nodes[node + row]
        above = (1.0 - x) * nodes[node + 1] + x * nodes[node + row + 1]
        return (1.0 - y) * below + y * above

    return at
