"""Moments that merge: mean, variance and extrema a channel, in float64, whatever the order of the parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ups_data.errors import UpsDataError

PIECE = 1 << 15  # numbers turned into float64 at a time: 256 kB, within a core's cache


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
        """Moments of an array [.., C] over all its axes but the last; float64 sums of pieces that fit a cache."""
        flat = values.reshape(-1, values.shape[-1])
        shift = flat[0].astype(np.float64)  # near the mean, so that the sum of squares does not cancel
        total, squares = np.zeros_like(shift), np.zeros_like(shift)
        minimum, maximum = np.full_like(shift, np.inf), np.full_like(shift, -np.inf)
        rows = max(1, PIECE // flat.shape[1])
        for start in range(0, flat.shape[0], rows):
            piece = np.ascontiguousarray(flat[start : start + rows].T)  # channel by channel: long inner loops
            minimum = np.minimum(minimum, piece.min(axis=1))  # NaN wins in both, so it is never hidden
            maximum = np.maximum(maximum, piece.max(axis=1))
            deviation = piece - shift[:, None]
            total += deviation.sum(axis=1)
            squares += np.einsum("ij,ij->i", deviation, deviation)
        mean = total / flat.shape[0]
        with np.errstate(invalid="ignore"):  # values that are not finite are for `is_finite` to report
            m2 = np.maximum(squares - flat.shape[0] * mean**2, 0.0)
        return cls(flat.shape[0], shift + mean, m2, minimum, maximum)

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


def merge_all(parts: Iterable[Moments]) -> Moments:
    """Merge parts in the given order; give them in a fixed order for the same bits on every run."""
    return reduce(Moments.merge, parts)
