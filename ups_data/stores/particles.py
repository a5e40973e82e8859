"""Particles on disk: one Zarr v3 group a split, trajectories packed one after another.

Sample s has T frames of P_s particles in D dimensions; P_s may differ from sample to sample.
    positions         float32 [rows, D]   frame after frame, particle after particle, from sample_offsets[s]
    velocities        float32 [rows, D]   likewise
    particle_offsets  int64 [S + 1]       particle_offsets[s + 1] - particle_offsets[s] = P_s
    graph_indptr      int32 [..]          neighbour graph of frame 0 within `radius`, CSR; the run of sample s is rows
                                          particle_offsets[s] + s .. particle_offsets[s + 1] + s + 1
    graph_indices     int32 [E]           its columns; sample s stands between graph_offsets [S + 1]
    radius            float64 [S]
    box               float64 [S, D]      the period of every axis, 0 where it is not periodic
    times, parameters, group, source_file, source_row: as for meshes
Attributes: format "ups-data/particles", version, task, split, channels, parameter_names, manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ups_data.geometry import edges_of_graph
from ups_data.stores import packed

FORMAT = "ups-data/particles"


@dataclass(frozen=True, kw_only=True)
class Sample(packed.Sample):
    """What is stored of a sample beside its trajectory and its graph."""

    particles: int
    radius: float
    box: np.ndarray  # float64 [D]


def create_particles(path: Path, samples: Sequence[Sample], entries: Sequence[int]) -> None:
    """Make a new store with room for trajectories and graphs; `packed.describe` completes it when they are written.

    `entries`: those of the neighbour graph of every sample.
    """
    packed.create_group(path)
    packed.write_samples(path, samples)
    packed.write_array(path, "radius", np.array([s.radius for s in samples], dtype="<f8"))
    packed.write_array(path, "box", np.array([s.box for s in samples], dtype="<f8"))
    names = ("particle_offsets", "sample_offsets", "graph_offsets")
    for name, offsets in zip(names, _offsets(samples, entries), strict=True):
        packed.write_array(path, name, offsets)
    for run in places(path, samples, entries)[0].values():
        packed.create(run.array)


def places(path: Path, samples: Sequence[Sample], entries: Sequence[int]) -> list[dict[str, packed.Run]]:
    """Where in a store the positions, velocities, graph_indptr and graph_indices of every sample go."""
    particles, rows, graph = (offsets.tolist() for offsets in _offsets(samples, entries))
    dimension = len(samples[0].box)
    return packed.runs_of(
        path,
        positions=(rows, (dimension,), "<f4"),
        velocities=(rows, (dimension,), "<f4"),
        graph_indptr=([n + s for s, n in enumerate(particles)], (), "<i4"),
        graph_indices=(graph, (), "<i4"),
    )


def _offsets(samples: Sequence[Sample], entries: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of particles, of rows of a trajectory, and of entries of the graph: int64 [S + 1] each."""
    counts = [s.particles for s in samples], [s.particles * len(s.times) for s in samples], entries
    return tuple(packed.offsets_of(of) for of in counts)


class ParticleStore(packed.PackedReader):
    """An open particle store; `read` gives trajectories or windows of them as numpy arrays.

    Raises UpsDataError for a store that is missing, damaged or of another format.
    """

    def __init__(self, path: str | Path):
        super().__init__(path, FORMAT)
        self.radius, self.box = self.of_samples("radius"), self.all("box")
        self.of_samples("box", self.box.shape[-1])
        self.sample_offsets = self.offsets("sample_offsets", "positions", "velocities")
        self.graph_offsets = self.offsets("graph_offsets", "graph_indices")
        self.particle_offsets = self.all("particle_offsets")
        self.check_pointers("graph_indptr", self.particle_offsets)
        if not np.array_equal(self.sample_offsets, self.frames * self.particle_offsets):
            raise self.damaged("sample_offsets", "has other places than particles and frames say")

    def particles(self, sample: int) -> int:
        """Number of particles of a sample."""
        return int(self.particle_offsets[sample + 1] - self.particle_offsets[sample])

    def trajectory(self, name: str, sample: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """`positions` or `velocities` of frames start..stop of a sample: float32 [t, P, D]."""
        start, stop = self.bounds(sample, start, stop)
        count, first = self.particles(sample), int(self.sample_offsets[sample])
        rows = self.rows(name, first + start * count, first + stop * count)
        return rows.reshape(stop - start, count, rows.shape[1])

    def graph(self, sample: int) -> tuple[np.ndarray, np.ndarray]:
        """The neighbour graph of frame 0 as CSR: indptr int32 [P + 1], indices int32 [E]."""
        first, last = (int(n) + sample for n in self.particle_offsets[sample : sample + 2])
        indices = self.rows("graph_indices", *(int(n) for n in self.graph_offsets[sample : sample + 2]))
        indptr = self.pointers("graph_indptr", self.rows("graph_indptr", first, last + 1), len(indices))
        return indptr, self.within("graph_indices", indices, last - first)

    def read(self, sample: int, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """Frames start..stop of a sample with everything about it.

        Keys: positions and velocities [t, P, D], times [t], parameters [Q], radius, box [D], and the neighbour
        graph of frame 0: indptr [P + 1], indices [E], edges [E, 2].
        """
        start, stop = self.bounds(sample, start, stop)
        indptr, indices = self.graph(sample)
        return {
            "positions": self.trajectory("positions", sample, start, stop),
            "velocities": self.trajectory("velocities", sample, start, stop),
            "times": self.times[sample, start:stop],
            "parameters": self.parameters[sample],
            "radius": self.radius[sample],
            "box": self.box[sample],
            "indptr": indptr,
            "indices": indices,
            "edges": edges_of_graph(indptr, indices),
        }
