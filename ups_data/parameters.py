"""Physical parameters of samples, [S, P]: NaN where a sample's equation has no such parameter (never 0, a value)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def values_of(column: np.ndarray) -> np.ndarray:
    """The distinct values of a parameter [S], sorted, over the samples that have it."""
    return np.unique(column[~np.isnan(column)])


def lacking(column: np.ndarray) -> int:
    """How many samples have no such parameter [S]."""
    return int(np.isnan(column).sum())


def in_words(names: Sequence[str], values: Sequence[float], digits: int) -> list[str]:
    """The parameters of one sample, each as `viscosity 0.001`; those that its equation does not have are left out."""
    return [f"{name} {value:.{digits}g}" for name, value in zip(names, values, strict=True) if not np.isnan(value)]
