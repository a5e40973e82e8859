"""Moments that merge: mean, variance and extrema a channel, in float64, whatever the order of the parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ups_data.errors import UpsDataError

TILE = 1 << 15  # numbers summed up by themselves: few enough for the sum to be exact to the last digits
STRIP = 4  # tiles taken in at once: numpy is called less often, and their 1 MB of float64 stays in a cache
SCRATCH = STRIP * TILE


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
        sums = Sums(flat[0])
        for start in range(0, len(flat), sums.strip):
            sums.add(np.ascontiguousarray(flat[start : start + sums.strip].T))
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
    """Moments of rows of C numbers that come in strips: float64 sums of deviations from the first row, tile by tile.

    Strips of `strip` rows, the last one may be shorter, give the same bits whoever cuts them. `scratch` (float64,
    SCRATCH numbers) is memory to work in, for who has many sums to make one after another.
    """

    def __init__(self, first: np.ndarray, scratch: np.ndarray | None = None):
        self.shift = first.astype(np.float64)  # near the mean, so that the sum of squares does not cancel
        self.tile = max(1, TILE // len(first))
        self.strip = STRIP * self.tile
        self.count = 0
        self._total, self._squares = np.zeros_like(self.shift), np.zeros_like(self.shift)
        self._extrema: list[tuple[np.ndarray, np.ndarray]] = []
        self._scratch = np.empty(SCRATCH) if scratch is None else scratch

    def add(self, strip: np.ndarray) -> None:
        """Take in a contiguous strip [C, n], channel by channel for long inner loops."""
        channels, rows = strip.shape
        deviations = self._scratch[: strip.size].reshape(channels, rows)
        np.subtract(strip, self.shift[:, None], out=deviations)
        for start in range(0, rows, self.tile):
            tile = deviations[:, start : start + self.tile]
            self._total += np.add.reduce(tile, axis=1)
            # Not by BLAS, which is faster and rounds differently on every processor.
            self._squares += np.einsum("ij,ij->i", tile, tile)
        self._extrema.append((np.minimum.reduce(strip, axis=1), np.maximum.reduce(strip, axis=1)))  # NaN wins in both
        self.count += rows

    def moments(self) -> Moments:
        """Moments of all that was taken in."""
        minima, maxima = zip(*self._extrema, strict=True)
        mean = self._total / self.count
        with np.errstate(invalid="ignore"):  # values that are not finite are for `is_finite` to report
            m2 = np.maximum(self._squares - self.count * mean**2, 0.0)
        lowest, highest = reduce(np.minimum, minima), reduce(np.maximum, maxima)
        return Moments(self.count, self.shift + mean, m2, lowest.astype(np.float64), highest.astype(np.float64))


def merge_all(parts: Iterable[Moments]) -> Moments:
    """Merge parts in the given order; give them in a fixed order for the same bits on every run."""
    return reduce(Moments.merge, parts)
