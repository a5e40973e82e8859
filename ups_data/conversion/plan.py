"""The plan of a grid conversion: every sample looked at, grouped, given its split and its place.

Nothing is copied here. A plan depends on the raw files and the knobs alone, so the outputs do too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ups_data import console
from ups_data.conversion.files import check_precision, find_twin
from ups_data.errors import UpsDataError
from ups_data.execution import run_all
from ups_data.params import SPLITS, Splits
from ups_data.sources.grids import loose_numbers, open_raw
from ups_data.sources.raw import RawFile, check_axes, left_out, same_points, uneven_step
from ups_data.sources.stored import Boxes, Stored, read_boxes, read_plain
from ups_data.splits import assign_splits, group_id, positional_splits

LOOK = 512  # samples looked at by one process at a time


class Sample(NamedTuple):  # a dataclass takes five times as long to make and to pickle, and there are thousands
    """One trajectory on its way: where it stands now, what it is, where it goes."""

    file: int
    row: int
    group: str
    parameters: tuple[float, ...]
    stored: Stored | None = None  # where its numbers stand in the file as they are, if they do
    residual: float | None = None  # of the equation of a static problem
    split: str = ""
    place: int = 0


@dataclass(frozen=True)
class Output:
    """A file to be made: samples first..first + count of a split, at `path` in the folder of work."""

    path: str
    name: str
    split: str
    first: int
    count: int


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
    shard: int | None = None  # samples of a file at most; a split of more becomes a folder of such files

    @cached_property
    def outputs(self) -> dict[str, list[Output]]:
        """The files of every split that has samples."""
        counts = Counter(sample.split for sample in self.samples)
        return {split: self._files(split, counts[split]) for split in SPLITS if counts[split]}

    @property
    def files(self) -> list[Output]:
        """All files of all splits."""
        return [output for outputs in self.outputs.values() for output in outputs]

    def _files(self, split: str, count: int) -> list[Output]:
        size = self.shard or count
        if count <= size:
            return [Output(split, f"{self.task}_{split}.h5", split, 0, count)]
        names = [f"{self.task}_{split}_{index:03d}.h5" for index in range(-(-count // size))]
        return [
            Output(f"{split}/{name}", name, split, index * size, min(size, count - index * size))
            for index, name in enumerate(names)
        ]

    def place_of(self, sample: Sample) -> tuple[Output, int]:
        """The file that a sample goes to, and its row there."""
        files = self.outputs[sample.split]
        output = files[sample.place // files[0].count]
        return output, sample.place - output.first

    def of(self, split: str) -> list[Sample]:
        """The samples of one split, in their order in the output."""
        return [sample for sample in self.samples if sample.split == split]

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
    equations: str = "one",
    shard_gb: float | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
) -> Plan:
    """Look at every file and every first frame; leave copies of files out; decide splits and places.

    `source` (None: any) is the one the files must be of; `float64` is "round" or "refuse"; `equations` is "one" or
    "several"; `shard_gb` bounds a file.
    """
    samples: list[Sample] = []
    kept: dict[Path, list] = {}  # what its samples are
    counts: list[int] = []
    parameters: list[dict[str, str]] = []  # of every file that is kept
    rounded, twins, unread, loose = [], [], {}, []
    seen: dict[tuple, Path] = {}  # every start under its parameters, and a file that has it
    first: RawFile | None = None
    with console.progress("plan", len(paths), "file") as bar:
        for path in paths:
            with open_raw(path, source) as raw:
                check_axes(raw)
                if uneven := uneven_step(raw.time):
                    raise UpsDataError(f"{path}: time: {uneven}; a grid dataset has one time step: resample the frames")
                unread |= dict.fromkeys(raw.unread())
                first = first or raw
                _check_sibling(first, raw, equations)
                if raw.is_float64:
                    check_precision(path, float64)
                found = _look_at_all(raw, len(kept), min(raw.samples, limit or raw.samples), workers, scheduler)
                _check_parameters(raw, found)
                facts = [tuple(raw.parameters), *((s.row, s.group, s.parameters) for s in found)]
                if twin := find_twin(path, facts, kept):
                    twins.append((path, twin))
                    console.say(f"{path.name} is a copy of {twin.name}: used once")
                else:
                    _check_apart(raw, found, seen)
                    loose.append(loose_numbers(raw))
                    kept[path] = facts
                    counts.append(len(found))
                    parameters.append(raw.parameters)
                    samples += found
                    rounded += [path] if raw.is_float64 else []
            bar.advance()
    _say_what_is_lost(task, list(unread), loose)
    if equations == "several":
        first, samples = _together(first, parameters, samples)
    placed = _place(samples, _split_names(samples, counts, splits, only, test_first=paths[0].suffix == ".hdf5"))
    plan = Plan(task, root, list(kept), first, placed, counts, splits, rounded, twins)
    if shard_gb is None:
        return plan
    return replace(plan, shard=max(1, int(shard_gb * 1e9) // (4 * int(np.prod(plan.sample_shape)))))


def _say_what_is_lost(task: str, unread: Sequence[str], loose: Sequence[dict[str, float]]) -> None:
    """Name the keys that no reader takes, and attributes of files that differ as parameters do and are none."""
    if unread:
        console.say(f"{task}: {left_out(unread)}")
    if varying := [name for name in sorted(set().union(*loose)) if len({own.get(name) for own in loose}) > 1]:
        console.say(f"{task}: differs between files, but is no known parameter and not kept: {', '.join(varying)}")


def _look_at_all(raw: RawFile, file: int, rows: int, workers: int | None, scheduler: str | None) -> list[Sample]:
    """What the first rows of a file are; looked at by several processes where they are many."""
    if rows <= 2 * LOOK:
        return list(_look(raw, file, range(rows)))
    starts = range(0, rows, LOOK)
    tasks = {start: (raw.path.absolute(), file, start, min(start + LOOK, rows)) for start in starts}
    looked = dict(run_all(look, tasks, workers, scheduler))
    return [sample for start in starts for sample in looked[start]]


def look(path: Path, file: int, start: int, stop: int) -> list[Sample]:
    """Name the initial condition of some rows of a file, and note what belongs to each; runs in a worker process."""
    with open_raw(path) as raw:
        return list(_look(raw, file, range(start, stop)))


def _look(raw: RawFile, file: int, rows: range) -> Iterator[Sample]:
    chosen = [raw.channels.index(name) for name in raw.grouped_by]
    with open(raw.path, "rb", buffering=0) as plain:
        for row in rows:
            values = raw.values(row)
            if raw.read_static:
                read_static(raw, row)  # refused now or not at all
            stored = raw.stored(row) if raw.stored else None
            start = _first_frame(raw, row, stored, plain.fileno())
            state = start if len(chosen) == len(raw.channels) else start[..., chosen]
            residual = raw.residual(row) if raw.residual else None
            yield Sample(file, row, group_id(state), values, stored, residual)


def _first_frame(raw: RawFile, row: int, stored: Stored | None, descriptor: int) -> np.ndarray:
    """The first frame of a sample: float32 [X.., C]."""
    if isinstance(stored, Boxes) and (stored.offsets[0] >= 0).all():
        with suppress(OSError):  # of what cannot be unpacked HDF5 says where it is
            return _channels_last(read_boxes(raw.path, descriptor, stored, 0, 1)[:, 0])
    if stored is None or isinstance(stored, Boxes):
        return read_frames(raw, row, 0, 1)[0]
    start = np.empty((len(stored), *raw.space), dtype="<f4")
    for values, at in zip(start, stored, strict=True):
        read_plain(raw.path, descriptor, at, values)
    return _channels_last(start)


def _channels_last(fields: np.ndarray) -> np.ndarray:
    """Channels [C, X..] as [X.., C], without a copy; np.moveaxis takes as long as reading a line."""
    return fields.transpose(*range(1, fields.ndim), 0)


def _split_names(
    samples: list[Sample], counts: list[int], splits: Splits | None, only: str, test_first: bool
) -> list[str]:
    """The split of every sample."""
    if splits is None:
        return [only] * len(samples)
    if splits.protocol != "pdebench":
        assigned = assign_splits([s.group for s in samples], splits)
        return [assigned[s.group] for s in samples]
    return [name for file in positional_splits(counts, splits, test_first) for name in file]


def _place(samples: list[Sample], names: list[str]) -> list[Sample]:
    """Give every sample its split and its row there."""
    places = dict.fromkeys(SPLITS, 0)
    placed = []
    for sample, name in zip(samples, names, strict=True):
        placed.append(sample._replace(split=name, place=places[name]))
        places[name] += 1
    return placed


def _check_parameters(raw: RawFile, found: Sequence[Sample]) -> None:
    """Refuse a parameter that is no number in the file: in the output NaN says that an equation does not have it."""
    for sample in found:
        for name, value in zip(raw.parameters, sample.parameters, strict=True):
            if not math.isfinite(value):
                raise UpsDataError(
                    f"{raw.path}: {name} is {value} in sample {sample.row}, expected a number; fetch it again"
                )


def _check_apart(raw: RawFile, found: Sequence[Sample], seen: dict[tuple, Path]) -> None:
    """Refuse a start that another file has under the same parameters, and note those of this one.

    Static fields may tell two of them apart.
    """
    own = {(s.group, tuple(raw.parameters), s.parameters): s.row for s in found if not raw.static_channels}
    if both := [key for key in own if key in seen]:
        values = ", ".join(f"{name} {value:g}" for name, value in zip(*both[0][1:], strict=True)) or "none"
        raise UpsDataError(
            f"{raw.path}: sample {own[both[0]]} starts as one of {seen[both[0]].name} under the same parameters "
            f"({values}), so the files differ in something that is no known parameter; give it as PDEBench does, in "
            "the name (.._Nu0.1.hdf5) or an attribute (Nu), or leave one of them out"
        )
    seen |= dict.fromkeys(own, raw.path)


def _check_sibling(first: RawFile, raw: RawFile, equations: str) -> None:
    facts = raw.describe()
    for what, expected in first.describe().items():
        got = facts[what]
        if got != expected and not (what == "parameters" and equations == "several"):
            more = ", or set the knob convert.equations to several" if what == "parameters" else ""
            raise UpsDataError(
                f"{raw.path}: {what} is {_plain(got)}, expected {_plain(expected)} as in {first.path.name}; "
                f"convert files that differ as datasets of their own{more}"
            )
    if not same_points(raw.time, first.time):
        raise UpsDataError(f"{raw.path}: its times differ from those of {first.path.name}; convert it on its own")
    for axis, points in first.coordinates.items():
        if not same_points(raw.coordinates[axis], points):
            raise UpsDataError(f"{raw.path}: its {axis} differs from that of {first.path.name}; convert it on its own")


def _together(
    first: RawFile, parameters: Sequence[dict[str, str]], samples: list[Sample]
) -> tuple[RawFile, list[Sample]]:
    """Files of several equations as one: it has the parameters of all, a sample NaN in those its file does not have.

    `parameters`: name -> raw name in every file; of several raw names the first file's is kept.
    """
    every = dict(sorted({name: raw for own in reversed(parameters) for name, raw in own.items()}.items()))
    places = [[list(own).index(name) if name in own else -1 for name in every] for own in parameters]
    widened = [
        sample._replace(parameters=tuple((*sample.parameters, math.nan)[place] for place in places[sample.file]))
        for sample in samples
    ]
    return replace(first, parameters=every), widened


def _plain(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return (", " if any(isinstance(part, str) for part in value) else " x ").join(map(str, value)) or "none"


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


def static_fields(plan: Plan, chosen: Sequence[Sample]) -> Iterator[np.ndarray]:
    """The fields of those samples that do not change in time, in their order; none where all fields do."""
    for file, samples in groupby(chosen if plan.first.static_channels else [], key=lambda sample: sample.file):
        with open_raw(plan.paths[file]) as raw:
            for sample in samples:
                yield read_static(raw, sample.row)


def check_finite(raw: RawFile, values: np.ndarray, row: int, start: int | None = None) -> np.ndarray:
    """Return `values` of a sample (of its static fields when `start` is None); refuse NaN and Inf, naming the first."""
    if not np.isfinite(values).all():
        where = tuple(np.argwhere(~np.isfinite(values))[0])
        names = raw.static_channels if start is None else raw.channels
        frame = "" if start is None else f", frame {start + where[0]}"
        exact = (raw.read_static(row) if start is None else read_exact(raw, row, start, start + len(values)))[where]
        remedy = "fetch it again"
        if np.isfinite(exact):
            remedy = "it is too large for them: store the field in a larger unit"
        raise UpsDataError(
            f"{raw.path}: {names[where[-1]]} is {exact} in sample {row}{frame} at grid point "
            f"{tuple(int(i) for i in where[start is not None : -1])}, expected finite float32 numbers; {remedy}"
        )
    return values
