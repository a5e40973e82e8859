"""Particle shards: one .npz a trajectory.

Keys: `positions` and `velocities` [T, P, D] with D = 2 or 3, `times` [T], `radius`; optional `box` [D], the period of
every axis (0 where it is not periodic; without the key no axis is). The neighbour graph of the first frame within
`radius`, every pair both ways, in CSR: `indptr` [P + 1], `indices` [E] and `edges` [E, 2] as (row, column); where it is
missing it is built, where it is wrong the shard is refused. Every other scalar is a physical parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ups_data.geometry import edges_of_graph, neighbour_graph
from ups_data.sources.npz import NpzFile, Rows
from ups_data.splits import group_id

ARRAYS = ("positions", "velocities", "times", "radius", "box", "indptr", "indices", "edges")
BLOCK_BYTES = 8 << 20  # of a trajectory read at a time
RADIUS_TOLERANCE = 1e-5  # relative: a pair this close to the radius may fall on either side in single precision


class ParticleShard(NpzFile):
    """An open particle shard, checked: shapes, times, box and graph at once, the trajectory as it is read."""

    samples = together = 1
    not_parameters = ("radius",)  # of the neighbour graph

    def __init__(self, path: str | Path):
        super().__init__(path)
        self.require(("positions", "velocities", "times", "radius"), "particle")
        shape = self.shapes["positions"]
        if len(shape) != 3 or shape[2] not in (2, 3) or 0 in shape:
            raise self.wrong("positions", f"shape {shape}", "[T, P, 2] or [T, P, 3]")
        if self.shapes["velocities"] != shape:
            raise self.wrong("velocities", f"shape {self.shapes['velocities']}", f"{shape} as positions has")
        for name in ("positions", "velocities"):
            if self.dtypes[name].kind != "f":
                raise self.wrong(name, self.dtypes[name], "floating-point numbers")
        self.is_float64 = self.has_float64(("positions", "velocities"))
        self.particles, self.dimension = shape[1:]
        self.unread = [name for name, axes in self.shapes.items() if axes and name not in ARRAYS]
        self.times = self.numbers("times")
        if self.times.shape != shape[:1]:
            raise self.wrong("times", f"shape {self.times.shape}", f"ascending times ({shape[0]},) as positions has")
        self.check_ascending()
        self.radius = _radius(self)
        self.box = _box(self)
        start = next(self.blocks("positions", frames=1))[0]
        self.group = group_id(start, next(self.blocks("velocities", frames=1))[0])
        self.indptr, self.indices = neighbour_graph(start, self.radius, self.box)
        if any(name in self.shapes for name in ("indptr", "indices", "edges")):
            _check_graph(self, start)

    def trajectory(self, row: int) -> ParticleShard:
        """The one trajectory of the file."""
        return self

    def blocks(self, name: str, frames: int | None = None) -> Iterator[np.ndarray]:
        """Stream the first frames (all without `frames`) of positions or velocities: float32 [t, P, D] each."""
        frames = len(self.times) if frames is None else frames
        reader = Rows(self, name, axes=2)
        step = max(1, BLOCK_BYTES // reader.row_bytes)
        for first in range(0, frames, step):
            values = self.single(reader.take(first, min(step, frames - first)))
            yield self.finite(name, values, first=first)


def _radius(shard: NpzFile) -> float:
    value = shard.numbers("radius")
    if value.shape != () or value <= 0:
        raise shard.wrong("radius", value.tolist(), "one positive number")
    return float(value)


def _box(shard: ParticleShard) -> np.ndarray:
    """The period of every axis, 0 where it is not periodic: float64 [D]."""
    if "box" not in shard.shapes:
        return np.zeros(shard.dimension)
    box = shard.numbers("box")
    if box.shape != (shard.dimension,) or np.any(box < 0):
        raise shard.wrong("box", box.tolist(), f"{shard.dimension} periods, 0 for an axis that is not periodic")
    if np.any((box > 0) & (shard.radius > box / 2)):
        raise shard.wrong("radius", shard.radius, f"at most half of every period in box = {box.tolist()}")
    return box


def _check_graph(shard: ParticleShard, start: np.ndarray) -> None:
    """Refuse a stored graph that is inconsistent, or that is not the one within `radius` in the first frame."""
    shard.require(("indptr", "indices"), "particle")
    indptr, indices = shard.csr("", shard.particles)
    edges = edges_of_graph(indptr, indices)
    if "edges" in shard.shapes and not (
        shard.shapes["edges"] == edges.shape and np.array_equal(shard.integers("edges", shard.particles), edges)
    ):
        raise shard.wrong("edges", f"shape {shard.shapes['edges']} or other pairs", "the entries of indptr and indices")
    # A pair in one graph only is forgiven where rounding decides whether it is within the radius.
    stored, built = (_codes(pairs, shard.particles) for pairs in (edges, edges_of_graph(shard.indptr, shard.indices)))
    differing = np.setxor1d(stored, built)
    row, column = np.divmod(differing, shard.particles)
    distance = _distance(start[row], start[column], shard.box)
    wrong = (abs(distance - shard.radius) > RADIUS_TOLERANCE * shard.radius) | (row == column)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise shard.wrong(
            "indices",
            f"a graph that differs in {int(wrong.sum())} entries, first at the pair ({row[first]}, {column[first]}), "
            f"{distance[first]:.6g} apart",
            f"all pairs of distinct particles within radius {shard.radius:g} of the first frame, both ways; "
            "leave the graph's keys out to have it built",
        )


def _codes(pairs: np.ndarray, particles: int) -> np.ndarray:
    """Pairs as single numbers, row * P + column."""
    return pairs[:, 0].astype(np.int64) * particles + pairs[:, 1]


def _distance(a: np.ndarray, b: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Distance to the nearest image, float64 [n]."""
    apart = a.astype(np.float64) - b.astype(np.float64)
    period = np.where(box > 0, box, np.inf)
    with np.errstate(invalid="ignore"):
        shift = np.where(box > 0, box * np.round(apart / period), 0.0)
    return np.linalg.norm(apart - shift, axis=1)
