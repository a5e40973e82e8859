"""Moments that merge: mean, variance and extrema a channel, in float64, whatever the order of the parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ups_data.errors import UpsDataError

STRIP = 1 << 17  # numbers taken in at once: they and their deviations, 1 MB, stay in a cache
TERMS = 32  # float32 numbers added up one after another before float64 takes over
SAMPLED = 61  # one number in so many tells where the mean is: a prime, so that it does not go along with a grid
MANY = 1 << 12  # rows of a strip whose float32 roundings cancel out; fewer are added up in float64 from the start
SAFE = (1e-15, 1e15)  # deviations whose squares float32 can hold


@dataclass(frozen=True)
class Moments:
    """Count, mean, sum of squared deviations and extrema of C channels (float64 arrays of shape [C])."""

    count: int
    mean: np.ndarray
    m2: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Moments of an array [.., C] over all its axes but the last."""
        flat = values.reshape(-1, values.shape[-1])
        sums = Sums(flat.shape[1])
        sums.add_rows(flat)
        return sums.moments()

    def merge(self, other: Moments) -> Moments:
        """Moments of both parts together (Chan, Golub, LeVeque 1983)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.m2 + other.m2 + delta**2 * (self.count * other.count / count),
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
        )

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation, float64 [C]."""
        if self.count < 1 or np.any(self.m2 < 0):
            raise UpsDataError(f"statistics: impossible moments (count {self.count}, m2 {self.m2}); convert again")
        return np.sqrt(self.m2 / self.count)

    def is_finite(self) -> bool:
        """Whether every value that went in was finite: NaN and Inf survive in mean and extrema."""
        return bool(np.isfinite(self.mean).all() and np.isfinite(self.minimum + self.maximum).all())

    def to_manifest(self, channels: Sequence[str]) -> dict:
        """The manifest's `statistics`: mean, std, minimum, maximum a channel, and the count of values."""
        std = self.std
        return {
            "count": self.count,
            "channels": {
                name: {
                    "mean": float(self.mean[i]),
                    "std": float(std[i]),
                    "minimum": float(self.minimum[i]),
                    "maximum": float(self.maximum[i]),
                }
                for i, name in enumerate(channels)
            },
        }

    def to_list(self) -> list:
        """Plain numbers for a journal; `Moments.from_list` takes them back without loss."""
        return [self.count, *(a.tolist() for a in (self.mean, self.m2, self.minimum, self.maximum))]

    @classmethod
    def from_list(cls, values: list) -> Moments:
        """The inverse of `to_list`."""
        return cls(values[0], *(np.array(v, dtype=np.float64) for v in values[1:]))


class Sums:
    """Moments of rows of C numbers that come in strips, each with its own shift and merged in float64 at the end.

    Of many float32 numbers, the deviations from a float32 near the strip's mean are float32 too (near it, that is
    exact), a few of them are added up in float32, and all else is float64: mean and standard deviation are within 1e-7
    standard deviations of the exact ones, within 1e-5 for the worst arrangement of numbers (tests/test_statistics.py).
    Elementwise operations and sums in a fixed order give the same bits everywhere; BLAS, which is faster, does not.
    `scratch` (see `new_scratch`) is memory to work in, for who has many sums to make.
    """

    def __init__(self, channels: int, scratch: np.ndarray | None = None):
        self.strip = max(1, STRIP // channels)  # rows taken in at once at most
        self._scratch = new_scratch(channels) if scratch is None else scratch
        self._strips: list[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def add_rows(self, rows: np.ndarray) -> None:
        """Take in any number of rows [n, C]."""
        for start in range(0, len(rows), self.strip):
            self.add(np.ascontiguousarray(rows[start : start + self.strip].T))

    def add(self, strip: np.ndarray) -> None:
        """Take in a contiguous strip [C, n] of at most `strip` rows, channel by channel for long inner loops."""
        rows = strip.shape[1]
        lowest, highest = np.minimum.reduce(strip, axis=1), np.maximum.reduce(strip, axis=1)  # NaN wins in both
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is for `is_finite` to report
            sampled = np.add.reduce(strip[:, ::SAMPLED], axis=1, dtype=np.float64)
            shift = (sampled / -(-rows // SAMPLED)).astype(strip.dtype)
            spreads = np.maximum(highest - shift, shift - lowest).tolist()
            safe = strip.dtype == np.float32 and all(s == 0 or SAFE[0] < s < SAFE[1] for s in spreads)
            single = safe and rows >= MANY
            total, squares = _powers(strip, shift, self._scratch if single else new_scratch(len(strip), np.float64))
        self._strips.append((rows, shift, total, squares, lowest, highest))

    def moments(self) -> Moments:
        """Moments of all that was taken in (strips merge as `Moments` do, all at once)."""
        counts, *columns = zip(*self._strips, strict=True)
        shift, total, squares, lowest, highest = (np.array(column, dtype=np.float64) for column in columns)
        count, weights = sum(counts), np.array(counts, dtype=np.float64)[:, None]
        with np.errstate(invalid="ignore"):
            means = shift + total / weights
            mean = np.add.reduce(weights * means, axis=0) / count
            m2 = np.maximum(squares - total**2 / weights, 0.0) + weights * (means - mean) ** 2
        return Moments(count, mean, np.add.reduce(m2, axis=0), lowest.min(axis=0), highest.max(axis=0))


def new_scratch(channels: int, dtype: type = np.float32) -> np.ndarray:
    """Memory for the deviations of a strip, filled up to whole columns of TERMS."""
    return np.empty(max(STRIP, channels) + TERMS * channels, dtype=dtype)


def _powers(strip: np.ndarray, shift: np.ndarray, scratch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the deviations of a strip [C, n] from the shift [C], and of their squares: float64 [C]."""
    channels, rows = strip.shape
    width = -(-rows // TERMS)
    terms = scratch[: channels * TERMS * width].reshape(channels, TERMS, width)
    deviations = terms.reshape(channels, -1)
    np.subtract(strip, shift[:, None], out=deviations[:, :rows], dtype=scratch.dtype)
    deviations[:, rows:] = 0.0
    total = _sum(terms)
    np.multiply(terms, terms, out=terms)
    return total, _sum(terms)


def _sum(terms: np.ndarray) -> np.ndarray:
    """Sums of [C, TERMS, n] for each C, float64: by columns, so that few roundings follow one another."""
    return np.add.reduce(np.add.reduce(terms, axis=1), axis=1, dtype=np.float64)


def merge_all(parts: Iterable[Moments]) -> Moments:
    """Merge parts in the given order; give them in a fixed order for the same bits on every run."""
    return reduce(Moments.merge, parts)
