"""Meshes from grid files: a static problem in the plane (Darcy flow) on the triangulated grid.

The nodes are the grid's points, x outermost; every cell of the grid is cut into two triangles along the same diagonal,
so that the cotangent Laplacian is the five-point one. The source, one number a file, becomes a node field.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from pathlib import Path

import numpy as np

from ups_data.errors import UpsDataError
from ups_data.sources.grids import open_raw
from ups_data.sources.raw import check_axes, rounded
from ups_data.splits import group_id
from ups_data.stores.mesh import Topology

SOURCE, STRENGTH = "source", "source_strength"
BLOCK_BYTES = 16 << 20  # of fields for one process at a time: large against the cost of opening a file


class GridMesh(AbstractContextManager):
    """An open grid file as a mesh shard: what `mesh_npz.MeshShard` has, of samples on one mesh."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with ExitStack() as stack:
            raw = stack.enter_context(open_raw(path, "pdebench"))
            if not raw.roles or len(raw.space) != 2 or STRENGTH not in raw.parameters:
                raise UpsDataError(
                    f"{path}: got channels {', '.join(raw.channels)} of {raw.frames} frames, expected Darcy flow in "
                    "the plane: a mesh is made of a static problem with `nu`, `tensor` and `beta`"
                )
            check_axes(raw)
            self._raw, self._stack = raw, stack.pop_all()
        self.coords = grid_points(*raw.coordinates.values())
        self.times, self.samples = raw.time, raw.samples
        self.is_float64, self.loss, self.unread = raw.is_float64, 0.0, raw.unread()
        self.grouped_by = raw.grouped_by
        self.roles = {"input": [*raw.roles["input"], SOURCE], "target": list(raw.roles["target"])}
        self.channels = self.roles["input"] + self.roles["target"]
        self.together = max(1, BLOCK_BYTES // (4 * len(self.coords) * len(self.channels)))

    @cached_property
    def topology(self) -> Topology:
        """The mesh of all samples."""
        return grid_topology(*self._raw.coordinates.values())

    def parameters(self) -> dict[str, tuple[str, float]]:
        """The physical parameters, the same for all samples: name -> (raw name, value)."""
        return self._raw.constant_parameters()

    def groups(self, rows: Sequence[int]) -> list[str]:
        """Ids of some samples: the mesh and the coefficient on it, whatever the strength of the source."""
        blocks = self.blocks(rows, self.grouped_by, frames=1)
        return [group_id(self.coords, block[0]) for block in blocks]

    def residuals(self, rows: Sequence[int]) -> list[float]:
        """Relative residual of the equation for some samples; none where it cannot be told."""
        return [self._raw.residual(row) for row in rows] if self._raw.residual else []

    def blocks(self, samples: Iterable[int], channels: Sequence[str], frames: int) -> Iterator[np.ndarray]:
        """Stream the node fields of those samples: float32 [1, N, C] each; there is one frame."""
        strength = self.parameters()[STRENGTH][1]
        for row in samples:
            values, loss = rounded(self._raw.read(row, 0, frames)[0])
            self.loss = max(self.loss, loss)
            if not np.isfinite(values).all():
                raise UpsDataError(
                    f"{self.path}: sample {row} holds NaN or Inf, expected finite numbers; fetch it again"
                )
            fields = {name: values[..., i].reshape(-1) for i, name in enumerate(self._raw.channels)}
            fields[SOURCE] = np.full(values[..., 0].size, strength, dtype=np.float32)
            yield np.stack([fields[name] for name in channels], axis=-1)[None]

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def grid_points(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The points (x_i, y_j), x outermost: [len(x) * len(y), 2]."""
    return np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)


def grid_topology(x: np.ndarray, y: np.ndarray) -> Topology:
    """The triangle mesh of the points (x_i, y_j), node i * len(y) + j, triangles counter-clockwise."""
    coords = grid_points(x, y)
    node = np.arange(len(coords)).reshape(len(x), len(y))
    a, b, c, d = (corner.ravel() for corner in (node[:-1, :-1], node[1:, :-1], node[1:, 1:], node[:-1, 1:]))
    cells = np.stack([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)], axis=1).reshape(-1, 3)
    return Topology.of(coords, cells)
