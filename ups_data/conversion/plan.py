"""The plan of a grid conversion: every sample looked at, grouped, given its split and its place.

Nothing is copied here. A plan depends on the raw files and the knobs alone, so the outputs do too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ups_data import console
from ups_data.errors import UpsDataError
from ups_data.params import SPLITS, Splits
from ups_data.sources.pdebench import RawFile, open_raw
from ups_data.splits import assign_splits, group_id, positional_splits


@dataclass(frozen=True)
class Sample:
    """One trajectory on its way: where it stands now, what it is, where it goes."""

    file: int
    row: int
    group: str
    parameters: tuple[float, ...]
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
    static: np.ndarray  # [S, X.., C'] float32
    counts: list[int]  # samples taken of each file
    splits: Splits | None  # None: one output holds all samples

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
    task: str, root: Path, paths: list[Path], limit: int | None, splits: Splits | None, only: str = "train"
) -> Plan:
    """Look at every file and every first frame; decide splits and places."""
    samples: list[Sample] = []
    static: list[np.ndarray] = []
    counts: list[int] = []
    first: RawFile | None = None
    with console.progress("plan", len(paths), "file") as bar:
        for index, path in enumerate(paths):
            with open_raw(path) as raw:
                first = first or raw
                _check_sibling(first, raw)
                counts.append(min(raw.samples, limit or raw.samples))
                for row in range(counts[-1]):
                    start = read_frames(raw, row, 0, 1)
                    values = tuple(value for _, value in raw.parameters.values())
                    samples.append(Sample(index, row, group_id(start[0]), values))
                    if raw.read_static:
                        static.append(check_finite(raw, raw.read_static(row).astype(np.float32), row))
            bar.advance()
    groups = [s.group for s in samples]
    if splits is None:
        names = [only] * len(samples)
    elif splits.protocol == "grouped":
        assigned = assign_splits(groups, splits)
        names = [assigned[g] for g in groups]
    else:
        rows = positional_splits(counts, splits, test_first=paths[0].suffix == ".hdf5")
        names = [name for file in rows for name in file]
    places = dict.fromkeys(SPLITS, 0)
    for i, name in enumerate(names):
        samples[i] = replace(samples[i], split=name, place=places[name])
        places[name] += 1
    fixed = np.stack(static) if static else np.zeros((len(samples), 0), np.float32)
    return Plan(task, root, paths, first, samples, fixed, counts, splits)


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
    try:
        return raw.read(row, start, stop).astype(np.float32, copy=False)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise UpsDataError(f"{raw.path}: sample {row} cannot be read ({reason}); fetch the file again") from None


def check_finite(raw: RawFile, values: np.ndarray, row: int, start: int | None = None) -> np.ndarray:
    """Return `values` of a sample (of its static fields when `start` is None); refuse NaN and Inf, naming the first."""
    if not np.isfinite(values).all():
        where = np.argwhere(~np.isfinite(values))[0]
        names = raw.static_channels if start is None else raw.channels
        frame = "" if start is None else f", frame {start + where[0]}"
        raise UpsDataError(
            f"{raw.path}: {names[where[-1]]} is {values[tuple(where)]} in sample {row}{frame} at grid point "
            f"{tuple(int(i) for i in where[start is not None : -1])}, expected finite numbers; fetch the file again"
        )
    return values
