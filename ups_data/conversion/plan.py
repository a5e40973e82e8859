"""The plan of a grid conversion: every sample looked at, grouped, given its split and its place.

Nothing is copied here. A plan depends on the raw files and the knobs alone, so the outputs do too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from ups_data import console
from ups_data.conversion.files import find_twin
from ups_data.errors import UpsDataError
from ups_data.params import SPLITS, Splits
from ups_data.sources.grids import open_raw
from ups_data.sources.raw import RawFile
from ups_data.splits import assign_splits, group_id, positional_splits


@dataclass(frozen=True)
class Sample:
    """One trajectory on its way: where it stands now, what it is, where it goes."""

    file: int
    row: int
    group: str
    parameters: tuple[float, ...]
    residual: float | None = None  # of the equation of a static problem
    split: str = ""
    place: int = 0


@dataclass(frozen=True)
class Plan:
    """All that is decided before the first block is copied."""

    task: str
    root: Path
    paths: list[Path]
    first: RawFile  # what all files share, its values closed over a closed file: only its description is used
    samples: list[Sample]
    counts: list[int]  # samples taken of each file
    splits: Splits | None  # None: one output holds all samples
    rounded: list[Path] = field(default_factory=list)  # files of float64 numbers
    twins: list[tuple[Path, Path]] = field(default_factory=list)  # left out, the file it is a copy of

    @property
    def outputs(self) -> list[str]:
        return [name for name in SPLITS if any(s.split == name for s in self.samples)]

    def of(self, split: str) -> list[int]:
        """Indices of the samples of one split, in their order in the output."""
        return [i for i, s in enumerate(self.samples) if s.split == split]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (self.first.frames, *self.first.space, len(self.first.channels))


def plan_grid(
    task: str,
    root: Path,
    paths: list[Path],
    limit: int | None,
    splits: Splits | None,
    only: str = "train",
    *,
    source: str | None = None,
    float64: str = "round",
) -> Plan:
    """Look at every file and every first frame; leave copies of files out; decide splits and places.

    `source` (None: any) is the one the files must be of; `float64` is "round" or "refuse".
    """
    samples: list[Sample] = []
    kept: dict[Path, list] = {}  # what its samples are
    counts: list[int] = []
    rounded, twins = [], []
    first: RawFile | None = None
    with console.progress("plan", len(paths), "file") as bar:
        for path in paths:
            with open_raw(path, source) as raw:
                first = first or raw
                _check_sibling(first, raw)
                _check_precision(raw, float64)
                found = list(_look(raw, len(kept), min(raw.samples, limit or raw.samples)))
                facts = [(s.row, s.group, s.parameters) for s in found]
                if twin := find_twin(path, facts, kept):
                    twins.append((path, twin))
                    console.say(f"{path.name} is a copy of {twin.name}: used once")
                else:
                    kept[path] = facts
                    counts.append(len(found))
                    samples += found
                    rounded += [path] if raw.is_float64 else []
            bar.advance()
    placed = _place(samples, _split_names(samples, counts, splits, only, test_first=paths[0].suffix == ".hdf5"))
    return Plan(task, root, list(kept), first, placed, counts, splits, rounded, twins)


def _look(raw: RawFile, file: int, rows: int) -> Iterator[Sample]:
    """Name the initial condition of the first rows of a file, and note what belongs to each."""
    chosen = [raw.channels.index(name) for name in raw.grouped_by]
    for row in range(rows):
        values = raw.values(row)
        if raw.read_static:
            read_static(raw, row)  # refused now or not at all
        start = read_frames(raw, row, 0, 1)[0]
        state = start if len(chosen) == len(raw.channels) else start[..., chosen]
        residual = raw.residual(row) if raw.residual else None
        yield Sample(file, row, group_id(state), values, residual)


def _split_names(
    samples: list[Sample], counts: list[int], splits: Splits | None, only: str, test_first: bool
) -> list[str]:
    """The split of every sample."""
    if splits is None:
        return [only] * len(samples)
    if splits.protocol == "grouped":
        assigned = assign_splits([s.group for s in samples], splits)
        return [assigned[s.group] for s in samples]
    return [name for file in positional_splits(counts, splits, test_first) for name in file]


def _place(samples: list[Sample], names: list[str]) -> list[Sample]:
    """Give every sample its split and its row there."""
    places = dict.fromkeys(SPLITS, 0)
    placed = []
    for sample, name in zip(samples, names, strict=True):
        placed.append(replace(sample, split=name, place=places[name]))
        places[name] += 1
    return placed


def _check_precision(raw: RawFile, float64: str) -> None:
    if raw.is_float64 and float64 == "refuse":
        raise UpsDataError(
            f"{raw.path}: its numbers are float64 and would be rounded to float32; set the knob convert.float64 to "
            "round, which reports the loss, or leave the file out"
        )


def _check_sibling(first: RawFile, raw: RawFile) -> None:
    for what, expected in first.describe().items():
        got = raw.describe()[what]
        if got != expected:
            raise UpsDataError(
                f"{raw.path}: {what} is {_plain(got)}, expected {_plain(expected)} as in {first.path.name}; "
                "convert files that differ as datasets of their own"
            )
    if not np.allclose(raw.time, first.time, rtol=1e-4, atol=1e-6):
        raise UpsDataError(f"{raw.path}: its times differ from those of {first.path.name}; convert it on its own")


def _plain(value: object) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def read_frames(raw: RawFile, row: int, start: int, stop: int) -> np.ndarray:
    """Frames [start, stop) of a sample as float32 [T, X.., C]; an unreadable one is a sentence."""
    with np.errstate(over="ignore"):  # too large for float32 is infinite, which is refused later
        return read_exact(raw, row, start, stop).astype(np.float32, copy=False)


def read_exact(raw: RawFile, row: int, start: int, stop: int) -> np.ndarray:
    """Frames [start, stop) of a sample in the file's own precision."""
    try:
        return raw.read(row, start, stop)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise UpsDataError(f"{raw.path}: sample {row} cannot be read ({reason}); fetch the file again") from None


def read_static(raw: RawFile, row: int) -> np.ndarray:
    """The fields of a sample that do not change in time, finite float32 [X.., C']."""
    with np.errstate(over="ignore"):
        return check_finite(raw, raw.read_static(row).astype(np.float32), row)


def static_fields(plan: Plan, split: str) -> Iterator[np.ndarray]:
    """The fields of the samples of a split that do not change in time, in their order; none where all fields do."""
    chosen = [plan.samples[i] for i in plan.of(split)] if plan.first.static_channels else []
    for file, samples in groupby(chosen, key=lambda sample: sample.file):
        with open_raw(plan.paths[file]) as raw:
            for sample in samples:
                yield read_static(raw, sample.row)


def check_finite(raw: RawFile, values: np.ndarray, row: int, start: int | None = None) -> np.ndarray:
    """Return `values` of a sample (of its static fields when `start` is None); refuse NaN and Inf, naming the first."""
    if not np.isfinite(values).all():
        where = np.argwhere(~np.isfinite(values))[0]
        names = raw.static_channels if start is None else raw.channels
        frame = "" if start is None else f", frame {start + where[0]}"
        raise UpsDataError(
            f"{raw.path}: {names[where[-1]]} is {values[tuple(where)]} in sample {row}{frame} at grid point "
            f"{tuple(int(i) for i in where[start is not None : -1])}, expected finite float32 numbers; fetch it again"
        )
    return values
