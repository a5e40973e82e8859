"""Looking at mesh and particle shards, and streaming chosen samples of them into a store.

Both kinds have the same two steps: `scan_*` opens every shard once, checks it and returns a `Scan`; `write_*` writes
some of its samples and returns the moments of what it wrote. One shard is in memory at a time. What a shard is, a .npz
file or one on a grid, is the business of the function that opens it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from ups_data import console
from ups_data.conversion.files import find_twin
from ups_data.errors import UpsDataError
from ups_data.sources.mesh_grid import GridMesh
from ups_data.sources.mesh_npz import MeshShard
from ups_data.sources.particles_flow import FlowTracers
from ups_data.sources.particles_npz import ParticleShard
from ups_data.statistics import Moments
from ups_data.stores import mesh, particles

AXES = "xyz"
AnyShard = MeshShard | GridMesh | ParticleShard | FlowTracers
Written = list[tuple[list[str], Moments]]  # moments of the channels of those names


@dataclass
class Scan:
    """What a first look at the shards found; samples are in the order of files and rows."""

    open: Callable[[Path], AnyShard]
    facts: dict[str, object]  # what all shards share: channels, frames, parameters, ..
    times: np.ndarray  # float64 [T]
    raw_names: list[str]  # of the parameters
    paths: list[Path] = field(default_factory=list)  # copies of files left out
    twins: list[tuple[Path, Path]] = field(default_factory=list)  # left out, the file it is a copy of
    samples: list = field(default_factory=list)  # mesh.Sample or particles.Sample
    sizes: list[int] = field(default_factory=list)  # bytes of every sample in the store
    counts: list[int] = field(default_factory=list)  # samples taken of every file
    topologies: list[tuple[dict[str, int], int]] = field(default_factory=list)  # sizes, and the file that has it
    entries: list[int] = field(default_factory=list)  # of the neighbour graph of every sample
    residuals: list[list[float]] = field(default_factory=list)  # of the samples of every file, where it is known
    kept: dict[Path, list] = field(default_factory=dict)  # what the samples of every file are

    def is_new(self, path: Path, facts: list) -> bool:
        """Take a file in, or note that it is a copy of one that was."""
        if twin := find_twin(path, facts, self.kept):
            self.twins.append((path, twin))
            console.say(f"{path.name} is a copy of {twin.name}: used once")
            return False
        self.kept[path] = facts
        self.paths.append(path)
        self.counts.append(len(facts))
        return True


def check_sibling(scan: Scan | None, shard: AnyShard, facts: dict[str, object]) -> None:
    """Refuse a shard that differs from the first one in what a dataset has in common."""
    if scan is None:
        return
    for what, expected in scan.facts.items():
        if facts[what] != expected:
            raise UpsDataError(
                f"{shard.path}: {what} is {facts[what]}, expected {expected} as in {scan.paths[0].name}; "
                "convert files that differ as datasets of their own"
            )
    if not np.allclose(shard.times, scan.times, rtol=1e-4, atol=1e-6):
        raise UpsDataError(f"{shard.path}: its times differ from those of {scan.paths[0].name}; convert it on its own")


# --- meshes --------------------------------------------------------------------------------------


def scan_meshes(paths: Sequence[Path], limit: int | None, open_shard: Callable[[Path], AnyShard]) -> Scan:
    """Look at every mesh shard; a mesh that several shards share becomes one topology."""
    scan: Scan | None = None
    known: dict[str, int] = {}
    with console.progress("look at meshes", len(paths), "files") as bar:
        for path in paths:
            with open_shard(path) as shard:
                parameters = shard.parameters()
                facts = {
                    "dimensions": shard.topology.coords.shape[1],
                    "frames": len(shard.times),
                    "channels": shard.channels,
                    "roles": shard.roles,
                    "grouped_by": shard.grouped_by,
                    "parameters": list(parameters),
                }
                check_sibling(scan, shard, facts)
                scan = scan or Scan(open_shard, facts, shard.times, [raw for raw, _ in parameters.values()])
                values = tuple(value for _, value in parameters.values())
                groups = shard.groups(min(shard.samples, limit or shard.samples))
                if scan.is_new(path, [(group, values) for group in groups]):
                    topology = known.setdefault(_identity(shard.topology), len(known))
                    file = len(scan.paths) - 1
                    if topology == len(scan.topologies):
                        scan.topologies.append((shard.topology.sizes, file))
                    scan.residuals.append(shard.residuals(len(groups)))
                    for row, group in enumerate(groups):
                        scan.samples.append(
                            mesh.Sample(
                                times=shard.times,
                                parameters=values,
                                group=group,
                                source_file=file,
                                source_row=row,
                                topology=topology,
                            )
                        )
                        scan.sizes.append(4 * len(shard.times) * len(shard.topology.coords) * len(shard.channels))
            bar.advance()
    return scan


def _identity(topology: mesh.Topology) -> str:
    """A digest of nodes and cells: edges and Laplacian follow from them."""
    digest = hashlib.sha256(repr((topology.coords.shape, topology.cells.shape)).encode())
    digest.update(np.ascontiguousarray(topology.coords))
    digest.update(np.ascontiguousarray(topology.cells))
    return digest.hexdigest()


def write_meshes(scan: Scan, chosen: Sequence[int], path: Path, bar: console.Progress) -> Written:
    """Write the chosen samples, ascending, and the topologies they use, to a new store."""
    samples = [scan.samples[i] for i in chosen]
    used = sorted({s.topology for s in samples})
    sizes = [scan.topologies[k][0] for k in used]
    moments: list[Moments] = []

    def topologies() -> Iterator[mesh.Topology]:
        for k in used:
            with scan.open(scan.paths[scan.topologies[k][1]]) as shard:
                yield shard.topology

    def fields() -> Iterator[np.ndarray]:
        for file, members in groupby(samples, key=lambda s: s.source_file):
            with scan.open(scan.paths[file]) as shard:
                rows = [s.source_row for s in members]
                for block in shard.blocks(rows, shard.channels, len(shard.times)):
                    accumulate(moments, block)
                    bar.advance(block.nbytes)
                    yield block

    mesh.write_mesh(
        path,
        sizes,
        topologies(),
        [replace(s, topology=used.index(s.topology)) for s in samples],
        fields(),
        dimension=scan.facts["dimensions"],
        channels=len(scan.facts["channels"]),
    )
    return [(scan.facts["channels"], moments[0])]


# --- particles -----------------------------------------------------------------------------------


def scan_particles(paths: Sequence[Path], limit: int | None, open_shard: Callable[[Path], AnyShard]) -> Scan:
    """Look at every file of particle trajectories; a .npz shard is one of them."""
    scan: Scan | None = None
    with console.progress("look at particles", len(paths), "files") as bar:
        for path in paths:
            with open_shard(path) as shard:
                parameters = shard.parameters()
                axes = AXES[: shard.dimension]
                facts = {
                    "channels": [f"{what}_{axis}" for what in ("position", "velocity") for axis in axes],
                    "frames": len(shard.times),
                    "box": shard.box.tolist(),
                    "parameters": list(parameters),
                }
                check_sibling(scan, shard, facts)
                scan = scan or Scan(open_shard, facts, shard.times, [raw for raw, _ in parameters.values()])
                values = tuple(value for _, value in parameters.values())
                found = [shard.trajectory(row) for row in range(min(shard.samples, limit or shard.samples))]
                if scan.is_new(path, [(trajectory.group, values) for trajectory in found]):
                    for row, trajectory in enumerate(found):
                        scan.samples.append(
                            particles.Sample(
                                times=shard.times,
                                parameters=values,
                                group=trajectory.group,
                                source_file=len(scan.paths) - 1,
                                source_row=row,
                                particles=trajectory.particles,
                                radius=trajectory.radius,
                                box=shard.box,
                            )
                        )
                        scan.entries.append(len(trajectory.indices))
                        scan.sizes.append(8 * len(shard.times) * trajectory.particles * shard.dimension)
            bar.advance()
    return scan


def write_particles(scan: Scan, chosen: Sequence[int], path: Path, bar: console.Progress) -> Written:
    """Write the chosen samples, ascending, to a new store."""
    samples = [scan.samples[i] for i in chosen]
    moments: dict[str, list[Moments]] = {"positions": [], "velocities": []}

    def runs() -> Iterator[tuple[str, np.ndarray]]:
        for sample in samples:
            with scan.open(scan.paths[sample.source_file]) as shard:
                trajectory = shard.trajectory(sample.source_row)
                yield "graph_indptr", trajectory.indptr
                yield "graph_indices", trajectory.indices
                for name, parts in moments.items():
                    for block in trajectory.blocks(name):
                        accumulate(parts, block)
                        bar.advance(block.nbytes)
                        yield name, block

    particles.write_particles(path, samples, runs(), [scan.entries[i] for i in chosen])
    half = len(scan.facts["channels"]) // 2
    names = scan.facts["channels"][:half], scan.facts["channels"][half:]
    return [(channels, parts[0]) for channels, parts in zip(names, moments.values(), strict=True)]


def accumulate(total: list[Moments], block: np.ndarray) -> None:
    """Merge the moments of a block into the one item of `total`."""
    part = Moments.of(block)
    total[:] = [total[0].merge(part)] if total else [part]
