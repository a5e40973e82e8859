"""A first look at mesh and particle files, on all cores or on a Dask cluster: what they hold, what every sample is.

Every file is looked at once, a large one in parts; what was found is put together in the order of files and rows,
whoever was first. What a file is, .npz or on a grid, is the business of the function that opens it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ups_data import console
from ups_data.conversion.files import find_twin
from ups_data.errors import UpsDataError
from ups_data.execution import run_all
from ups_data.sources.mesh_grid import GridMesh
from ups_data.sources.mesh_npz import MeshShard
from ups_data.sources.particles_flow import FlowTracers
from ups_data.sources.particles_npz import ParticleShard
from ups_data.sources.raw import same_points
from ups_data.stores import mesh, particles
from ups_data.stores.packed import Run

AnyShard = MeshShard | GridMesh | ParticleShard | FlowTracers
Opener = Callable[[Path], AnyShard]


@dataclass(frozen=True)
class Row:
    """One sample as a look finds it; which file (and topology) of all it has is not known yet."""

    sample: mesh.Sample | particles.Sample
    size: int  # bytes in the store
    entries: int = 0  # of its neighbour graph
    residual: float | None = None  # of its equation, where that is known


@dataclass(frozen=True)
class Look:
    """What a look at some rows of a file found."""

    facts: dict[str, object]  # what all files of a dataset share: channels, frames, parameters, ..
    times: np.ndarray  # float64 [T]
    raw_names: list[str]  # of the parameters
    samples: int  # of the whole file
    together: int  # how many of them one process should read
    rows: list[Row]
    is_float64: bool  # its numbers are rounded
    unread: Sequence[str]  # arrays that are left behind
    topology: tuple[str, dict[str, int]] = ("", {})  # in a look from row 0: its digest and sizes

    @classmethod
    def of(cls, shard: AnyShard, rows: list[Row], facts: dict[str, object], **topology: tuple) -> Look:
        """Rows and facts of an open file, with what files of every kind have."""
        parameters = shard.parameters()
        for name, (_, value) in parameters.items():
            if not math.isfinite(value):
                raise UpsDataError(f"{shard.path}: {name} is {value}, expected a number; fetch it again")
        facts = {"frames": len(shard.times)} | facts | {"parameters": list(parameters)}
        raw_names = [raw for raw, _ in parameters.values()]
        of_file = (shard.samples, shard.together, rows, shard.is_float64, shard.unread)
        return cls(facts, shard.times, raw_names, *of_file, **topology)


@dataclass(frozen=True)
class Piece:
    """A sample on its way: its row in the file, its split, and where its parts go."""

    row: int
    split: str
    runs: dict[str, Run]


def rows_to_look_at(shard: AnyShard, start: int, limit: int | None) -> range:
    """Rows of a file from `start` on that one process should read, of the first `limit`."""
    return range(start, min(start + shard.together, limit or shard.samples, shard.samples))


def shared(shard: AnyShard) -> dict[str, object]:
    """What all samples of a file have; the number of the file comes when all files were looked at."""
    parameters = tuple(value for _, value in shard.parameters().values())
    return {"times": shard.times, "parameters": parameters, "source_file": 0}


@dataclass
class Scan:
    """What the looks at all files found; samples are in the order of files and rows."""

    facts: dict[str, object]
    times: np.ndarray
    raw_names: list[str]
    paths: list[Path] = field(default_factory=list)  # copies of files left out
    rounded: list[Path] = field(default_factory=list)  # files of float64 numbers
    twins: list[tuple[Path, Path]] = field(default_factory=list)  # left out, the file it is a copy of
    samples: list = field(default_factory=list)  # mesh.Sample or particles.Sample
    sizes: list[int] = field(default_factory=list)  # bytes of every sample in the store
    entries: list[int] = field(default_factory=list)  # of the neighbour graph of every sample
    counts: list[int] = field(default_factory=list)  # samples taken of every file
    together: list[int] = field(default_factory=list)  # samples of a file that one process should read
    residuals: list[list[float]] = field(default_factory=list)  # of the samples of every file, where it is known
    topologies: list[tuple[dict[str, int], int]] = field(default_factory=list)  # sizes, and the file that has it
    known: dict[str, int] = field(default_factory=dict)  # the number of every topology by its digest
    unread: dict[str, None] = field(default_factory=dict)  # arrays that are left behind, of any file
    kept: dict[Path, list] = field(default_factory=dict)  # what the samples of every file are

    def take(self, path: Path, first: Look, rows: Sequence[Row]) -> None:
        """Take a file in, or note that it is a copy of one that was."""
        facts = [(row.sample.group, row.sample.parameters) for row in rows]
        if twin := find_twin(path, facts, self.kept):
            self.twins.append((path, twin))
            console.say(f"{path.name} is a copy of {twin.name}: used once")
            return
        self.kept[path] = facts
        place = {"source_file": len(self.paths)}
        digest, sizes = first.topology
        if digest:
            place["topology"] = self.known.setdefault(digest, len(self.known))
            if place["topology"] == len(self.topologies):
                self.topologies.append((sizes, len(self.paths)))
        self.paths.append(path)
        self.rounded += [path] if first.is_float64 else []
        self.counts.append(len(rows))
        self.together.append(first.together)
        self.residuals.append([row.residual for row in rows if row.residual is not None])
        self.samples += [replace(row.sample, **place) for row in rows]
        self.sizes += [row.size for row in rows]
        self.entries += [row.entries for row in rows]

    def blocks(self) -> Iterator[tuple[int, list[int]]]:
        """The samples cut into what one process should read: the number of a file, and those of samples of it."""
        first = 0
        for file, count in enumerate(self.counts):
            for start in range(first, first + count, self.together[file]):
                yield file, list(range(start, min(start + self.together[file], first + count)))
            first += count


def scan_files(
    paths: Sequence[Path],
    limit: int | None,
    look: Callable[[Opener, Path, int, int | None], Look],
    open_shard: Opener,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
) -> Scan:
    """Look at every file, at `limit` samples of it at most. Raises UpsDataError for files that do not go together.

    `look(open_shard, path, start, limit)` looks at rows start.. of a file, as many as one process should read.
    """
    with console.progress("look", len(paths), "parts") as bar:

        def looked(places: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Look]:
            tasks = {n: (open_shard, paths[i].absolute(), start, limit) for n, (i, start) in enumerate(places)}
            found = {}
            for number, result in run_all(look, tasks, workers, scheduler):
                found[places[number]] = result
                bar.advance()
            return found

        found = looked([(i, 0) for i in range(len(paths))])
        taken = [min(found[i, 0].samples, limit or found[i, 0].samples) for i in range(len(paths))]
        starts = [range(0, count, found[i, 0].together) for i, count in enumerate(taken)]
        more = [(i, start) for i, of in enumerate(starts) for start in of[1:]]
        bar.expect(len(more))
        found |= looked(more)
    one = found[0, 0]
    scan = Scan(one.facts, one.times, one.raw_names)
    for i, path in enumerate(paths):
        _check_sibling(scan, paths[0], path, found[i, 0])
        scan.take(path, found[i, 0], [row for start in starts[i] for row in found[i, start].rows])
        scan.unread |= dict.fromkeys(found[i, 0].unread)
    return scan


def _check_sibling(scan: Scan, first: Path, path: Path, look: Look) -> None:
    """Refuse a file that differs from the first one in what a dataset has in common."""
    for what, expected in scan.facts.items():
        if look.facts[what] != expected:
            raise UpsDataError(
                f"{path}: {what} is {look.facts[what]}, expected {expected} as in {first.name}; "
                "convert files that differ as datasets of their own"
            )
    if not same_points(look.times, scan.times):
        raise UpsDataError(f"{path}: its times differ from those of {first.name}; convert it on its own")
