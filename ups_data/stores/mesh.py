"""Meshes on disk: one Zarr v3 group a split, a topology that many samples share stored once.

A sample is a trajectory of node fields on one topology; T frames (1 for a static problem), C channels.
    fields            float32 [rows, C]   frame after frame, node after node; sample s starts at row sample_offsets[s]
    topology          int32 [S]           which topology sample s lives on
    times             float64 [S, T]
    parameters        float64 [S, P]
    group             uint8 [S, 16]       id of the initial condition (32 hex digits)
    source_file/_row  int32/int64 [S]     which raw file (in the manifest's order), which row of it
The K topologies, each a run of rows; the offsets are int64 [K + 1]:
    coords            float64 [.., 2|3]   between node_offsets
    cells             int32 [.., 3]       between cell_offsets
    edges             int32 [.., 2]       between edge_offsets
    laplacian_data    float64 [..]        between laplacian_offsets, as laplacian_indices int32
    laplacian_indptr  int32 [..]          rows node_offsets[k] + k .. node_offsets[k + 1] + k + 1: one more than nodes
Node numbers (in cells, edges, indices) and indptr count from 0 within their topology.
Attributes: format "ups-data/mesh", version, task, split, channels, parameter_names, manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ups_data.geometry import cotangent_laplacian, edges_of_cells
from ups_data.stores import packed

FORMAT = "ups-data/mesh"
# What a topology has runs of, and in which arrays.
PARTS = {
    "node": ("coords",),
    "cell": ("cells",),
    "edge": ("edges",),
    "laplacian": ("laplacian_data", "laplacian_indices"),
}
TOPOLOGIES_KEPT = 64  # by an open reader: samples of one mesh are read after one another or at random among a few


@dataclass(frozen=True, eq=False)
class Topology:
    """A triangle mesh: nodes, cells, edges, and its cotangent Laplacian in CSR."""

    coords: np.ndarray  # float64 [N, 2 or 3]
    cells: np.ndarray  # int32 [M, 3]
    edges: np.ndarray  # int32 [E, 2]
    laplacian_data: np.ndarray  # float64 [Z]
    laplacian_indices: np.ndarray  # int32 [Z]
    laplacian_indptr: np.ndarray  # int32 [N + 1]

    @classmethod
    def of(cls, coords: np.ndarray, cells: np.ndarray) -> Topology:
        """Build edges and Laplacian: they follow from the nodes and cells."""
        coords, cells = coords.astype(np.float64), cells.astype(np.int32)
        return cls(coords, cells, edges_of_cells(cells), *cotangent_laplacian(coords, cells))

    @property
    def sizes(self) -> dict[str, int]:
        """Number of nodes, cells, edges and entries of the Laplacian."""
        lengths = (len(self.coords), len(self.cells), len(self.edges), len(self.laplacian_data))
        return dict(zip(PARTS, lengths, strict=True))


@dataclass(frozen=True, kw_only=True)
class Sample(packed.Sample):
    """What is stored of a sample beside its fields."""

    topology: int


def create_mesh(
    path: Path, sizes: Sequence[Mapping[str, int]], samples: Sequence[Sample], *, dimension: int, channels: int
) -> None:
    """Make a new store with room for its topologies and fields; `packed.describe` completes it when they are written.

    `sizes`: `Topology.sizes` of every topology.
    """
    packed.create_group(path)
    packed.write_samples(path, samples)
    packed.write_array(path, "topology", np.array([s.topology for s in samples], dtype="<i4"))
    packed.write_array(path, "sample_offsets", _rows(sizes, samples))
    for part in PARTS:
        packed.write_array(path, f"{part}_offsets", packed.offsets_of([size[part] for size in sizes]))
    topologies, fields = places(path, sizes, samples, dimension=dimension, channels=channels)
    for run in (topologies[0] | fields[0]).values():
        packed.create(run.array)


def places(
    path: Path, sizes: Sequence[Mapping[str, int]], samples: Sequence[Sample], *, dimension: int, channels: int
) -> tuple[list[dict[str, packed.Run]], list[dict[str, packed.Run]]]:
    """Where in a store the arrays of every topology go, by name, and the `fields` of every sample."""
    offsets = {part: packed.offsets_of([size[part] for size in sizes]).tolist() for part in PARTS}
    node, cell, edge, entry = (offsets[part] for part in PARTS)
    runs = packed.runs_of(
        path,
        coords=(node, (dimension,), "<f8"),
        cells=(cell, (3,), "<i4"),
        edges=(edge, (2,), "<i4"),
        laplacian_data=(entry, (), "<f8"),
        laplacian_indices=(entry, (), "<i4"),
        laplacian_indptr=([n + k for k, n in enumerate(node)], (), "<i4"),
    )
    return runs, packed.runs_of(path, fields=(_rows(sizes, samples).tolist(), (channels,), "<f4"))


def _rows(sizes: Sequence[Mapping[str, int]], samples: Sequence[Sample]) -> np.ndarray:
    """Where the fields of every sample start, and where the last ones end: int64 [S + 1]."""
    return packed.offsets_of([sizes[s.topology]["node"] * len(s.times) for s in samples])


class MeshStore(packed.PackedReader):
    """An open mesh store; `read` gives trajectories or windows of them as numpy arrays.

    Raises UpsDataError for a store that is missing, damaged or of another format.
    """

    def __init__(self, path: str | Path):
        super().__init__(path, FORMAT)
        self._offsets = {part: self.offsets(f"{part}_offsets", *arrays) for part, arrays in PARTS.items()}
        self.check_pointers("laplacian_indptr", self._offsets["node"])
        nodes = np.diff(self._offsets["node"])
        self.topology_of = self.within("topology", self.of_samples("topology"), len(nodes))
        self.sample_offsets = self.offsets("sample_offsets", "fields")
        if not np.array_equal(np.diff(self.sample_offsets), self.frames * nodes[self.topology_of]):
            raise self.damaged("sample_offsets", "has other places than meshes and frames say")
        self.topology = lru_cache(TOPOLOGIES_KEPT)(self._topology)

    def _topology(self, index: int) -> Topology:
        """Read one topology; recently used ones are kept (`topology`)."""
        between = {k: (int(v[index]), int(v[index + 1])) for k, v in self._offsets.items()}
        first, last = between["node"]
        indptr = self.rows("laplacian_indptr", first + index, last + index + 1)
        start, stop = between["laplacian"]

        def nodes(name: str, rows: tuple[int, int]) -> np.ndarray:
            return self.within(name, self.rows(name, *rows), last - first)

        return Topology(
            self.rows("coords", first, last),
            nodes("cells", between["cell"]),
            nodes("edges", between["edge"]),
            self.rows("laplacian_data", start, stop),
            nodes("laplacian_indices", (start, stop)),
            self.pointers("laplacian_indptr", indptr, stop - start),
        )

    def nodes(self, sample: int) -> int:
        """Number of nodes of a sample's mesh."""
        index = self.topology_of[sample]
        return int(self._offsets["node"][index + 1] - self._offsets["node"][index])

    def fields(self, sample: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Node fields of frames start..stop of a sample: float32 [t, N, C]."""
        start, stop = self.bounds(sample, start, stop)
        nodes, first = self.nodes(sample), int(self.sample_offsets[sample])
        rows = self.rows("fields", first + start * nodes, first + stop * nodes)
        return rows.reshape(stop - start, nodes, len(self.channels))

    def read(self, sample: int, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """Frames start..stop of a sample with everything about it.

        Keys: fields [t, N, C], times [t], parameters [P], topology (its number), coords, cells, edges,
        laplacian_data, laplacian_indices, laplacian_indptr. The topology's arrays are shared: do not write to them.
        """
        start, stop = self.bounds(sample, start, stop)
        index = int(self.topology_of[sample])
        return {
            "fields": self.fields(sample, start, stop),
            "times": self.times[sample, start:stop],
            "parameters": self.parameters[sample],
            "topology": np.int64(index),
            **vars(self.topology(index)),
        }
