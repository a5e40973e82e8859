"""Initial conditions of the line problems: functions of x that Burgers and advection share.

As in PDEBench: a sum of two sines whose wave numbers are drawn from 1..4 (the same may be drawn twice);
the wave numbers not drawn add the constant amplitude * sin(phase); some samples pass through abs(), some
through a smooth window; the sign is random. A sample is a formula, so it can be evaluated anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

WAVE_NUMBERS = 4  # waves per unit length are drawn from 1..4
ABSOLUTE = 0.1  # share of the samples that pass through abs()
WINDOWED = 0.1  # share of the samples that pass through a window
WINDOW_LEFT = (0.1, 0.4)  # where the window opens and closes, drawn uniformly
WINDOW_RIGHT = (0.6, 0.9)
# Half-width of the window's flanks. They die out to 1e-8 at the ends of (0, 1), so the windowed function
# is periodic, and 10 points of the 1024-point grid lie on a flank.
FLANK = 0.01


class InitialConditions(NamedTuple):
    """Coefficients of `n` functions of period 1; float64."""

    wave_numbers: np.ndarray  # [n, 2] waves per unit length
    amplitudes: np.ndarray  # [n, 2] in [0, 1)
    phases: np.ndarray  # [n, 2] radians
    offset: np.ndarray  # [n] the constant left by the wave numbers not drawn
    absolute: np.ndarray  # [n] bool
    windowed: np.ndarray  # [n] bool
    window: np.ndarray  # [n, 2] where the window opens and closes
    sign: np.ndarray  # [n] -1 or 1


def draw(seed: int, samples: Iterable[int]) -> InitialConditions:
    """Draw the functions of the given numbers; number i depends on `seed` and i alone."""
    columns = zip(*(_draw_one(np.random.default_rng([seed, i])) for i in samples), strict=True)
    return InitialConditions(*(np.array(column) for column in columns))


def _draw_one(rng: np.random.Generator) -> InitialConditions:
    drawn = rng.integers(1, WAVE_NUMBERS, size=2, endpoint=True)
    amplitudes = rng.random(2)
    phases = 2 * np.pi * rng.random(2)
    left_over = rng.random(WAVE_NUMBERS) * np.sin(2 * np.pi * rng.random(WAVE_NUMBERS))
    not_drawn = ~np.isin(np.arange(1, WAVE_NUMBERS + 1), drawn)
    absolute, windowed = rng.random(2) < (ABSOLUTE, WINDOWED)
    window = np.array([rng.uniform(*WINDOW_LEFT), rng.uniform(*WINDOW_RIGHT)])
    sign = rng.choice([-1.0, 1.0])
    return InitialConditions(
        drawn.astype(float), amplitudes, phases, left_over[not_drawn].sum(), absolute, windowed, window, sign
    )


def evaluate(functions: InitialConditions, x: np.ndarray) -> np.ndarray:
    """The functions' values at `x` (any shape [..., X], broadcast against [n, X]), float64 [n, X].

    `x` may lie anywhere: the functions have period 1.
    """
    x = np.broadcast_to(np.mod(x, 1.0), (len(functions.sign), np.shape(x)[-1]))
    u = np.repeat(functions.offset[:, None], x.shape[-1], axis=1)
    waves = (functions.wave_numbers, functions.amplitudes, functions.phases)
    for k, amplitude, phase in zip(*(column.T[..., None] for column in waves), strict=True):
        u += amplitude * np.sin(2 * np.pi * k * x + phase)
    u[functions.absolute] = np.abs(u[functions.absolute])
    opened, closed = functions.window[functions.windowed].T[..., None]
    inside = x[functions.windowed]
    u[functions.windowed] *= 0.5 * (np.tanh((inside - opened) / FLANK) - np.tanh((inside - closed) / FLANK))
    return u * functions.sign[:, None]


def cell_centres(resolution: int) -> np.ndarray:
    """x of the centres of `resolution` equal cells of (0, 1), float64, as the official files have them."""
    return (np.arange(resolution) + 0.5) / resolution
