"""Linear advection on a periodic line, u_t + beta u_x = 0: the exact solution, without numerical diffusion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ups_data.simulate.initial_conditions import InitialConditions, evaluate


def solve(
    functions: InitialConditions, speed: float, x: np.ndarray, times: Sequence[float] | np.ndarray, dtype: str
) -> np.ndarray:
    """u(x, t) = u(x - beta t, 0) by characteristics of the formula: exact to the rounding of `dtype`.

    Returns [rows, times, X] for `x` [X]. (PDEBench's own files come from a second-order upwind scheme and
    smear the kinks; these do not.)
    """
    frames = np.empty((len(functions.sign), len(times), len(x)), dtype=dtype)
    for frame, time in enumerate(times):
        frames[:, frame] = evaluate(functions, x - speed * time)
    return frames
