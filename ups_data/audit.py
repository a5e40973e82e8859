"""Prove from the stored data alone that no initial condition stands in two splits.

Every sample's initial condition is hashed again from its first frame and held against what the store and the manifest
say. What two naive splits of the same samples would leak is counted beside it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ups_data import console, execution
from ups_data.errors import UpsDataError
from ups_data.execution import in_order
from ups_data.manifest import check_split, read_manifest, store_path
from ups_data.params import SPLITS, Splits
from ups_data.splits import group_id, leaked_share, split_sizes
from ups_data.statistics import Moments, merge_all

if TYPE_CHECKING:
    from ups_data.stores.grid import GridReader
    from ups_data.stores.packed import PackedReader

READ = 16 << 20  # bytes of an array read at a time, by each core


@dataclass(frozen=True)
class Audit:
    """What was found of one task: for every sample its initial condition, its split and its raw file."""

    task: str
    groups: list[str]
    names: list[str]
    files: list[int]
    problems: list[str]  # sentences: what the store or the manifest says and the data do not

    @property
    def distinct(self) -> int:
        """How many initial conditions there are."""
        return len(set(self.groups))

    @property
    def leaked(self) -> float:
        """Share of the test samples whose initial condition stands in train."""
        return leaked_share(self.groups, self.names)

    def leaked_by_rows(self) -> float:
        """The same, expected of a random split of the samples into as many of each."""
        twins = Counter(self.groups)
        return _expected([twins[group] - 1 for group in self.groups], len(self.groups), self.names.count("train"))

    def leaked_by_files(self) -> float | None:
        """The same, expected of a random split of whole raw files; None where there are too few of them."""
        shares = {name: self.names.count(name) / len(self.names) for name in SPLITS}
        count = len(set(self.files))
        try:
            train = split_sizes(count, Splits(protocol="grouped", seed=0, **shares))["train"]
        except UpsDataError:
            return None
        homes = defaultdict(set)
        for group, file in zip(self.groups, self.files, strict=True):
            homes[group].add(file)
        return _expected([len(homes[group]) - 1 for group in self.groups], count, train)


def _expected(twins: list[int], count: int, train: int) -> float:
    """Mean chance that one of a test item's twins is among the `train` of the other `count` - 1 that are drawn."""
    missed = {k: comb(count - 1 - train, k) / comb(count - 1, k) for k in set(twins)}
    return sum(1.0 - missed[k] for k in twins) / len(twins)


def audit(folder: str | Path, task: str) -> Audit:
    """Hash the initial conditions of a converted task anew and compare them with what is written of them.

    Raises UpsDataError for data that are missing or damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, task)
    found = Audit(task, [], [], [], [])
    total = sum(facts["samples"] for facts in manifest["splits"].values())
    with console.progress(f"audit {task}", total, "samples") as bar:
        for split, facts in manifest["splits"].items():
            path = store_path(folder, task, split, manifest["kind"])
            reader, hashes = _open(path, manifest)
            check_split(manifest, path, split)
            groups = []
            for group in hashes:
                groups.append(group)
                bar.advance()
            found.problems.extend(_differences(path, groups, reader.groups, facts["groups"]))
            found.groups.extend(groups)
            found.names.extend([split] * len(groups))
            found.files.extend(int(file) for file in reader.source_file)
    return found


def _open(path: Path, manifest: dict) -> tuple[object, Iterator[str]]:
    """The reader of a split, and the initial condition of each of its samples, hashed from the data."""
    if manifest["kind"] == "particles":
        from ups_data.stores.particles import ParticleStore

        store = ParticleStore(path)
        first = (tuple(store.trajectory(n, s, 0, 1)[0] for n in ("positions", "velocities")) for s in range(len(store)))
        return store, (group_id(*arrays) for arrays in first)
    by = [manifest["channels"].index(name) for name in manifest.get("grouped_by", manifest["channels"])]
    if manifest["kind"] == "mesh":
        from ups_data.stores.mesh import MeshStore

        store = MeshStore(path)
        coords = (store.topology(int(index)).coords for index in store.topology_of)
        return store, (group_id(c, store.fields(s, 0, 1)[0][:, by]) for s, c in enumerate(coords))
    from ups_data.stores.grid import GridReader

    reader = GridReader(path)
    return reader, (group_id(reader.data[s, 0][..., by]) for s in range(len(reader)))


def check_numbers(path: Path, manifest: dict, split: str) -> None:
    """Read a split through; raise UpsDataError unless it is whole and, as far as can be told, what was converted.

    Count and extremes of its channels must be those of the manifest, mean and spread too but for the rounding of
    another order, and every sample must start as its group says. All else must be finite, parameters such as the
    manifest has, times ascend, and indices lie within what they count.
    """
    told = manifest["fingerprint"][split]
    wanted = [Moments.from_list(part) for part in (told if manifest["kind"] != "grid" else [told])]
    reader, hashes = _open(path, manifest)
    found = [_merged(arrays) for arrays in _channels(reader, manifest["kind"])]
    right = all(map(_alike, found, wanted)) and all(np.isfinite(a).all() for a in _others(reader, manifest["kind"]))
    right = right and _described(reader, manifest)
    if not right or any(_differences(path, list(hashes), reader.groups, manifest["splits"][split]["groups"])):
        raise UpsDataError(
            f"{path}: its numbers are not those that were converted; fetch it again or run "
            f"`dvc repro convert@{manifest['task']}`"
        )


def _described(reader: GridReader | PackedReader, manifest: dict) -> bool:
    """Whether parameters, times and sources of the samples, radius and box of particles, are such as were converted."""
    known = [manifest["parameters"][name]["values"] for name in reader.parameter_names]
    columns = np.asarray(reader.parameters).T
    none = np.isnan(columns) & (manifest["kind"] == "grid")  # where an equation has no such parameter
    told = all(np.isin(c[~n], values).all() for c, n, values in zip(columns, none, known, strict=True))
    times = np.atleast_2d(reader.time if manifest["kind"] == "grid" else reader.times)
    ascending = np.isfinite(times).all() and (np.diff(times, axis=1) > 0).all()
    file = np.asarray(reader.source_file)
    sources = ((file >= 0) & (file < len(manifest["source"]["files"]))).all() and (reader.source_row >= 0).all()
    around = True
    if manifest["kind"] == "particles":
        around = np.isfinite(reader.radius).all() and (reader.radius > 0).all() and (reader.box >= 0).all()
    return bool(told and ascending and sources and around)


def _alike(found: Moments, expected: Moments) -> bool:
    exact = all(np.array_equal(getattr(found, n), getattr(expected, n)) for n in ("count", "minimum", "maximum"))
    close = exact and np.allclose(found.mean, expected.mean, rtol=0, atol=1e-5 * np.maximum(expected.std, 1e-300))
    return close and np.allclose(found.m2, expected.m2, rtol=1e-5)


def _channels(reader: GridReader | PackedReader, kind: str) -> list[list[np.ndarray | _Rows]]:
    """The arrays [.., C] whose moments the manifest tells together."""
    if kind == "grid":
        return [[file.data.reshape(-1, len(reader.channels)) for file in reader.files]]
    return [[_Rows(reader, name)] for name in (("fields",) if kind == "mesh" else ("positions", "velocities"))]


def _others(reader: GridReader | PackedReader, kind: str) -> Iterator[np.ndarray]:
    """What a split has beside its channels, a piece at a time."""
    if kind == "grid":
        yield reader.time
        yield from reader.coordinates.values()
        for file in reader.files:
            yield from file.static(len(reader.static_channels))
    elif kind == "mesh":
        for index in np.unique(reader.topology_of):
            yield from vars(reader.topology(int(index))).values()
    else:
        for sample in range(len(reader)):
            yield from reader.graph(sample)


class _Rows:
    """An array of a packed store as something to be cut: a damaged one is a sentence."""

    def __init__(self, store: PackedReader, name: str):
        self.store, self.name = store, name
        self.shape = store.array(name).shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.store.rows(self.name, rows.start, rows.stop)


def _merged(arrays: Sequence[np.ndarray | _Rows]) -> Moments:
    """Moments of arrays [.., C] together, block after block on all cores."""
    cores = execution.cores()
    tasks = ((array, rows) for array in arrays for rows in _blocks(array))
    with ThreadPoolExecutor(cores) as pool:
        parts = in_order(pool, lambda task: Moments.of(task[0][task[1]]), tasks, cores)
        return merge_all(moments for _, moments in parts)


def _blocks(array: np.ndarray | _Rows) -> Iterator[slice]:
    rows = max(1, READ // (4 * int(np.prod(array.shape[1:]))))
    return (slice(start, min(start + rows, array.shape[0])) for start in range(0, array.shape[0], rows))


def _differences(path: Path, groups: list[str], stored: list[str], listed: list[str]) -> Iterator[str]:
    wrong = [i for i, (a, b) in enumerate(zip(groups, stored, strict=True)) if a != b]
    if wrong:
        yield (
            f"{path}: the first frame of {len(wrong)} samples, first of sample {wrong[0]}, is not the initial "
            "condition that is stored for it"
        )
    if sorted(set(groups)) != listed:
        odd = len(set(groups) ^ set(listed))
        yield f"{path}: {odd} initial conditions stand in the data or in the manifest, not in both"


def leaks(audits: Sequence[Audit]) -> list[str]:
    """Sentences naming each pair of splits, of one task or of two, that share initial conditions."""
    places: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for found in audits:
        for group, name in zip(found.groups, found.names, strict=True):
            places[group].add((name, found.task))
    shared: dict[tuple[str, str], list[str]] = defaultdict(list)
    for group, where in sorted(places.items()):
        for one in where:
            for other in where:
                if SPLITS.index(one[0]) < SPLITS.index(other[0]):
                    shared[f"{one[0]} of {one[1]}", f"{other[0]} of {other[1]}"].append(group)
    return [
        f"{len(groups)} initial conditions stand both in {one} and in {other}, the first is {groups[0]}"
        for (one, other), groups in sorted(shared.items())
    ]
