"""Mesh shards: one .npz a mesh, with the node fields of any number of samples on it.

Keys: `coords` [N, 2 or 3], `cells` [M, 3]; optional and checked, else built: `edges` [E, 2] (each once) and the
cotangent Laplacian `laplacian_data`, `laplacian_indices`, `laplacian_indptr`. Every other array of floating-point
numbers with nodes on its last axis is a field: [S, N] for S samples, [S, T, N] when there is `times` [T]; an axis
that a field lacks ([N], or [S, N] beside `times`) means that it is the same there. Scalars are physical parameters.
Roles: without time the field `solution` is the target and the others are its inputs; with time the fields that
have a time axis are the target. An initial condition is the inputs, with time the target's first frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from ups_data.geometry import cell_areas
from ups_data.sources.npz import NpzFile, Rows
from ups_data.splits import group_id
from ups_data.stores.mesh import Topology

CONNECTIVITY = ("edges", "laplacian_data", "laplacian_indices", "laplacian_indptr")
NOT_FIELDS = ("coords", "cells", "times", *CONNECTIVITY)
SOLUTION = "solution"
LAPLACIAN_TOLERANCE = 1e-4  # of the largest entry: what single-precision coordinates leave of a cotangent
BLOCK_BYTES = 8 << 20  # of fields read at a time


class MeshShard(NpzFile):
    """An open mesh shard, checked: its topology at once, its fields as they are read.

    Of a problem that is not `solved` the target may be missing.
    """

    def __init__(self, path: str | Path, *, solved: bool = True):
        super().__init__(path)
        self.require(("coords", "cells"), "mesh")
        self.topology = _topology(self)
        names = sorted(n for n, shape in self.shapes.items() if n not in NOT_FIELDS and shape)
        self.times = self.numbers("times") if "times" in self.shapes else np.zeros(1)
        if self.times.ndim != 1:
            raise self.wrong("times", f"shape {self.times.shape}", "ascending times [T]")
        self.check_ascending()
        leading = {name: _leading(self, name) for name in names}
        if "times" in self.shapes:
            target = [n for n in names if len(leading[n]) == 2]
        else:
            target = [n for n in names if n == SOLUTION]
        if not target and solved:
            wanted = "a field with a time axis [S, T, N]" if "times" in self.shapes else f"the key {SOLUTION!r} [S, N]"
            raise self.wrong("fields", ", ".join(names) or "none", wanted)
        self.roles = {"input": [n for n in names if n not in target], "target": target}
        self.channels = self.roles["input"] + target
        self.is_float64 = self.has_float64(self.channels)
        start = target if "times" in self.shapes else self.roles["input"]
        self.grouped_by = start or self.channels
        counts = {name: axes[0] for name, axes in leading.items() if axes}
        first = next(iter([*target, *counts]), "")
        self.samples = counts.get(first, 1)
        for name, count in counts.items():
            if count != self.samples:
                raise self.wrong(name, f"{count} samples", f"{self.samples} as {first} has")

    @property
    def coords(self) -> np.ndarray:
        """Places of the nodes, float64 [N, 2 or 3]."""
        return self.topology.coords

    @property
    def together(self) -> int:
        """How many samples one process should read: all, because the rows of an array are read one after another."""
        return self.samples

    def groups(self, rows: Sequence[int]) -> list[str]:
        """Ids of the initial conditions of some samples: the mesh and the inputs on it, or what develops at t0."""
        blocks = self.blocks(rows, self.grouped_by, frames=1)
        return [group_id(self.coords, block[0]) for block in blocks]

    def residuals(self, rows: Sequence[int]) -> list[float]:
        """None: what equation the fields obey is not known here."""
        return []

    def blocks(self, samples: Iterable[int], channels: Sequence[str], frames: int) -> Iterator[np.ndarray]:
        """Stream the first `frames` frames of node fields of those samples, ascending: float32 [t, N, C] each."""
        nodes = len(self.topology.coords)
        step = max(1, BLOCK_BYTES // (4 * nodes * len(channels)))
        readers = {name: Rows(self, name, axes=1) for name in channels}
        for sample in samples:
            for first in range(0, frames, step):
                block = np.empty((min(step, frames - first), nodes, len(channels)), dtype=np.float32)
                for channel, name in enumerate(channels):
                    block[..., channel] = self._frames(readers[name], name, sample, first, len(block))
                yield block

    def _frames(self, reader: Rows, name: str, sample: int, first: int, count: int) -> np.ndarray:
        """Frames of one field, finite as float32: [count, N], or [1, N] where it has no time axis."""
        axes = len(self.shapes[name]) - 1
        if axes == 2:
            values = self.single(reader.take(sample * len(self.times) + first, count))
            return self.finite(name, values, before=(sample,), first=first)
        row = sample if axes == 1 else 0
        return self.finite(name, self.single(reader.take(row, 1)), first=row)


def _leading(shard: MeshShard, name: str) -> tuple[int, ...]:
    """The axes of a field before its nodes: (), (S,) or (S, T)."""
    shape, nodes = shard.shapes[name], len(shard.topology.coords)
    frames = len(shard.times) if "times" in shard.shapes else None
    wanted = f"[N], [S, N]{' or [S, T, N]' if frames else ''} with N = {nodes}{f', T = {frames}' if frames else ''}"
    if shard.dtypes[name].kind != "f":
        raise shard.wrong(name, shard.dtypes[name], "floating-point numbers")
    too_many = len(shape) > (3 if frames else 2)
    if too_many or shape[-1] != nodes or (len(shape) == 3 and shape[1] != frames) or 0 in shape:
        raise shard.wrong(name, f"shape {shape}", wanted)
    return shape[:-1]


def _topology(shard: NpzFile) -> Topology:
    """Nodes and cells as stored, edges and Laplacian built; stored ones that differ are refused."""
    coords = shard.numbers("coords")
    if coords.ndim != 2 or coords.shape[1] not in (2, 3) or len(coords) < 3:
        raise shard.wrong("coords", f"shape {coords.shape}", "[N, 2] or [N, 3]")
    if len(shard.shapes["cells"]) != 2 or shard.shapes["cells"][1] != 3 or not shard.shapes["cells"][0]:
        raise shard.wrong("cells", f"shape {shard.shapes['cells']}", "triangles [M, 3]")
    cells = shard.integers("cells", len(coords))
    size = np.abs(cell_areas(coords, cells))
    if size.min() <= 1e-12 * size.max():
        raise shard.wrong(f"cells[{int(size.argmin())}]", "a triangle of no area", "three nodes that span one")
    topology = Topology.of(coords, cells)
    if "edges" in shard.shapes:
        _check_edges(shard, topology)
    stored = [name for name in CONNECTIVITY[1:] if name in shard.shapes]
    if stored:
        shard.require(CONNECTIVITY[1:], "mesh")
        _check_laplacian(shard, topology)
    return topology


def _check_edges(shard: NpzFile, topology: Topology) -> None:
    if len(shard.shapes["edges"]) != 2 or shard.shapes["edges"][1] != 2:
        raise shard.wrong("edges", f"shape {shard.shapes['edges']}", "[E, 2]")
    edges = np.sort(shard.integers("edges", len(topology.coords)), axis=1)
    edges = edges[np.lexsort((edges[:, 1], edges[:, 0]))]
    if not np.array_equal(edges, topology.edges):
        raise shard.wrong(
            "edges",
            f"{len(edges)} that are not those of the cells",
            f"each of their {len(topology.edges)} edges once; leave the key out to have them built",
        )


def _check_laplacian(shard: NpzFile, topology: Topology) -> None:
    nodes = len(topology.coords)
    indptr, indices = shard.csr("laplacian_", nodes)
    data = shard.numbers("laplacian_data")
    if data.shape != indices.shape:
        raise shard.wrong("laplacian_data", f"shape {data.shape}", f"{indices.shape} as laplacian_indices has")
    stored = sparse.csr_array((data, indices, indptr), shape=(nodes, nodes))
    built = sparse.csr_array(
        (topology.laplacian_data, topology.laplacian_indices, topology.laplacian_indptr), shape=(nodes, nodes)
    )
    error = abs(stored - built).max() / abs(built).max()
    if error > LAPLACIAN_TOLERANCE:
        raise shard.wrong(
            "laplacian_data",
            f"a matrix off by {error:.1e} of its largest entry",
            "the cotangent Laplacian of coords and cells (P1 stiffness, positive diagonal); leave the laplacian_ keys "
            "out to have it built",
        )
