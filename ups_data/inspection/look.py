"""What a look at a file gives, and the sampling and the ranges that all looks share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ups_data import console
from ups_data.choice import evenly
from ups_data.errors import UpsDataError
from ups_data.parameters import lacking, values_of

BUDGET = 64 << 20  # bytes of numbers that a look reads without `full`: about a second
BLOCK = 16 << 20  # bytes read at a time
PIECE = 1 << 16  # numbers turned into float64 at a time
SAMPLES = 16  # samples that are looked at without `full`
FIRST_FRAMES = 1000  # samples whose first frames are compared without `full`
POINTS = 256  # a side of a picture: more cannot be seen in it


@dataclass(frozen=True)
class Panel:
    """A part of the picture, small: `image` values [rows, columns] (NaN: nothing there), or points with values.

    `extent` is left, right, bottom, top. `cells` [M, 3] join the points [N, 2] to a surface; else they are dots.
    """

    title: str
    values: np.ndarray
    extent: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 1.0)
    labels: tuple[str, str] = ("x", "y")
    points: np.ndarray | None = None
    cells: np.ndarray | None = None


@dataclass
class Look:
    """A first look: what it is, facts by name, ranges by channel, problems as sentences, panels of a picture."""

    what: str
    facts: dict[str, str]
    ranges: dict[str, Range] = field(default_factory=dict)
    read: str = "everything was read"  # how much of the numbers the ranges speak of
    problems: list[str] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    following: str = ""  # the command that goes on from here

    def add(self, more: Iterable[str]) -> None:
        """Note problems."""
        self.problems.extend(more)


@dataclass
class Range:
    """Extrema, mean and standard deviation of the finite numbers seen so far, and how many were not finite."""

    count: int = 0
    odd: int = 0
    minimum: float = np.inf
    maximum: float = -np.inf
    total: float = 0.0
    squares: float = 0.0
    first_odd: str = ""

    def add(self, values: np.ndarray, place: str) -> None:
        """Take in an array of any shape; `place` says where it stands, for the first number that is not finite."""
        flat = values.reshape(-1)
        for start in range(0, len(flat), PIECE):
            # A damaged number is counted below, and one whose square is none is named: neither is warned of.
            with np.errstate(invalid="ignore"):
                piece = flat[start : start + PIECE].astype(np.float64)
            finite = np.isfinite(piece)
            if not finite.all():
                self.first_odd = self.first_odd or place
                self.odd += int((~finite).sum())
                piece = piece[finite]
            if piece.size:
                self.count += piece.size
                self.minimum = min(self.minimum, float(piece.min()))
                self.maximum = max(self.maximum, float(piece.max()))
                with np.errstate(over="ignore", invalid="ignore"):
                    self.total += float(piece.sum())
                    self.squares += float(piece @ piece)

    @property
    def mean(self) -> float:
        """Of the finite numbers; NaN without any."""
        return self.total / self.count if self.count else np.nan

    @property
    def std(self) -> float:
        """Population standard deviation, good to about eight digits of the mean; NaN where squares are too large."""
        return max(self.squares / self.count - self.mean * self.mean, 0.0) ** 0.5 if self.count else np.nan


def runs(samples: int, frames: int, frame_bytes: int, full: bool) -> tuple[list[tuple[int, int, int]], str]:
    """Which frames to read, as (sample, start, stop), and a sentence about it: all, or a sample within the budget."""
    if full or samples * frames * frame_bytes <= BUDGET:
        step = max(1, BLOCK // frame_bytes)
        whole = [(s, t, min(t + step, frames)) for s in range(samples) for t in range(0, frames, step)]
        return whole, "everything was read"
    affordable = max(2, BUDGET // frame_bytes)
    chosen = evenly(samples, min(SAMPLES, affordable))
    times = evenly(frames, max(1, affordable // len(chosen)))
    sentence = f"read: {len(chosen)} of {samples} samples, {len(times)} of {frames} frames of each; --full reads all"
    return [(s, t, t + 1) for s in chosen for t in times], sentence


def measure(
    look: Look,
    channels: Sequence[str],
    samples: int,
    frames: int,
    frame_bytes: int,
    read: Callable[[int, int, int], np.ndarray],
    full: bool,
) -> None:
    """Fill in the ranges and their problems; `read(sample, start, stop)` gives [t, .., C]."""
    chosen, look.read = runs(samples, frames, frame_bytes, full)
    look.ranges = {name: Range() for name in channels}
    size = sum(stop - start for _, start, stop in chosen) * frame_bytes
    try:
        with console.progress("look", size, "B") as bar:
            for sample, start, stop in chosen:
                block = read(sample, start, stop)
                for index, name in enumerate(channels):
                    look.ranges[name].add(block[..., index], f"sample {sample}, frames from {start}")
                bar.advance((stop - start) * frame_bytes)
    except (UpsDataError, OSError) as error:
        look.problems.append(f"reading stopped: {' '.join(str(error).split())}")
    look.add(_odd_ranges(look.ranges))


def _odd_ranges(ranges: dict[str, Range]) -> Iterator[str]:
    for name, found in ranges.items():
        if found.odd:
            yield f"{name}: {found.odd} numbers are NaN or infinite, the first in {found.first_odd}"
        elif found.count and found.minimum == found.maximum:
            yield f"{name}: every number that was read is {found.minimum:g}"
        if max(-found.minimum, found.maximum) > float(np.finfo(np.float32).max):
            yield f"{name}: numbers from {found.minimum:g} to {found.maximum:g} do not fit into float32"


def repeated(groups: Sequence[str], rows: Sequence[int]) -> Iterator[str]:
    """A sentence where samples start from bit-equal states; `groups` holds the id of each of the `rows`."""
    counts = Counter(groups)
    twins = sum(1 for group in groups if counts[group] > 1)
    if twins:
        first = next(group for group in groups if counts[group] > 1)
        pair = [row for row, group in zip(rows, groups, strict=True) if group == first][:2]
        yield f"{twins} of {len(groups)} samples share their initial state with another, first {pair[0]} and {pair[1]}"


def axis_fact(values: np.ndarray) -> str:
    """Points, ends and spacing of an axis."""
    if len(values) < 2:
        return f"{len(values)} at {values[0]:g}" if len(values) else "none"
    steps = np.diff(values)
    spacing = f"step {steps.mean():.4g}" if np.allclose(steps, steps.mean(), rtol=1e-3) else "not evenly spaced"
    return f"{len(values)} from {values[0]:.4g} to {values[-1]:.4g}, {spacing}"


def parameter_fact(names: dict[str, str], values: np.ndarray) -> str:
    """Physical parameters, [sample, P]: one value, or how many and between what; `names` -> the raw spelling."""
    parts = []
    for index, (name, raw) in enumerate(names.items()):
        found, missing = values_of(values[:, index]), lacking(values[:, index])
        many = f"{len(found)} values from {found[0]:g} to {found[-1]:g}" if len(found) > 6 else _listed(found)
        some = f" in {len(values) - missing} of {len(values)} samples" if missing else ""
        parts.append(f"{name} {many or 'none'}" + (f" ({raw})" if raw != name else "") + some)
    return "; ".join(parts) or "none"


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in values)


def thin(values: np.ndarray, *axes: int) -> np.ndarray:
    """Every n-th entry along the axes (all of them by default), so that at most POINTS are left."""
    steps = [1] * values.ndim
    for axis in axes or range(values.ndim):
        steps[axis] = -(-values.shape[axis] // POINTS)
    return values[tuple(slice(None, None, step) for step in steps)]
