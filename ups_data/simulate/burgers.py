"""Burgers' equation on a periodic line, u_t + (u^2/2)_x = (Nu/pi) u_xx on (0, 1), for many rows at once.

Strang splitting. Convection: a MUSCL-Hancock step with van Leer's limiter and the exact Godunov flux, which
for a convex flux is max(f(max(u_left, 0)), f(min(u_right, 0))) (van Leer 1979; Toro, Riemann Solvers, ch. 14).
Diffusion: the exact exponential of the three-point Laplacian, applied by FFT. Both conserve the mean, and
neither leaves the initial range: the discrete heat kernel is positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

# Cells that the fastest wave of a row may cross in a step: below 1, the limit of the Hancock step.
COURANT = 0.9


class Buffers(NamedTuple):
    """Scratch memory for at most `rows` rows, reused by every step."""

    padded: torch.Tensor  # [rows, cells + 4], two ghost cells at each end
    jump: torch.Tensor  # [rows, cells + 3]
    slope: torch.Tensor  # [rows, cells + 2], cells and one ghost at each end
    state: torch.Tensor  # [rows, cells + 2]
    left: torch.Tensor  # [rows, cells + 2]
    right: torch.Tensor  # [rows, cells + 2]
    spectrum: torch.Tensor  # [rows, cells // 2 + 1] complex


@torch.inference_mode()
def solve(
    initial: np.ndarray | torch.Tensor,
    viscosity: float | Sequence[float] | np.ndarray,
    times: Sequence[float] | np.ndarray,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Solve from `initial` [rows, cells] at times[0]; returns [rows, times, cells] on `device`.

    `viscosity` is Nu, one or one a row (the equation has Nu/pi). Works in the dtype of `initial`, float32 or
    float64. A row's time step depends on that row alone, so its solution does not depend on the others.
    """
    u = torch.tensor(initial, device=device) if isinstance(initial, np.ndarray) else initial.to(device, copy=True)
    rows, cells = u.shape
    nu = torch.tensor(np.broadcast_to(np.divide(viscosity, np.pi), rows).copy(), device=device)
    waves = np.arange(cells // 2 + 1)
    laplacian = torch.tensor(-((2 * cells * np.sin(np.pi * waves / cells)) ** 2), device=device)  # its eigenvalues
    buffers = _buffers(u)
    frames = torch.empty((rows, len(times), cells), dtype=u.dtype, device=device)
    frames[:, 0] = u
    for frame, interval in enumerate(np.diff(times), start=1):
        _advance(u, float(interval), nu[:, None] * laplacian, buffers)
        frames[:, frame] = u
    return frames


def _buffers(u: torch.Tensor) -> Buffers:
    rows, cells = u.shape
    widths = (cells + 4, cells + 3, cells + 2, cells + 2, cells + 2, cells + 2)
    spectrum = torch.empty((rows, cells // 2 + 1), dtype=u.dtype.to_complex(), device=u.device)
    return Buffers(*(torch.empty((rows, width), dtype=u.dtype, device=u.device) for width in widths), spectrum)


def _advance(u: torch.Tensor, interval: float, rate: torch.Tensor, buffers: Buffers) -> None:
    """Advance `u` [rows, cells] in place by `interval`; `rate` [rows, waves] are the decay rates (< 0).

    Each row takes its own number of equal steps, from its own greatest speed, which can only fall. Rows are
    sorted by that number, so the rows still under way are always the first ones: a contiguous block.
    """
    cells = u.shape[1]
    steps = torch.ceil(u.abs().amax(dim=1).double() * (interval * cells / COURANT)).clamp_(min=1)
    steps, order = torch.sort(steps, descending=True, stable=True)
    step = interval / steps[:, None]
    half = torch.exp(rate[order] * (step / 2)).to(u.dtype)
    whole = torch.exp(rate[order] * step).to(u.dtype)
    # The unknown inside is c = u dt/dx, the local Courant number: c_t + (c^2/2)_x = .. with unit steps.
    scale = (step * cells).to(u.dtype)
    c = u[order].mul_(scale)
    under_way = np.searchsorted(-steps.cpu().numpy(), -np.arange(int(steps[0])))
    _diffuse(c, half, buffers)
    for taken, rows in enumerate(under_way.tolist()):
        if taken:  # the last half step of diffusion and the first of the next step are one
            _diffuse(c[:rows], whole[:rows], buffers)
        _convect(c[:rows], buffers)
    _diffuse(c, half, buffers)
    u[order] = c.div_(scale)


def _diffuse(c: torch.Tensor, decay: torch.Tensor, buffers: Buffers) -> None:
    """c <- the discrete heat kernel applied to c, in place; `decay` [rows, waves]."""
    spectrum = torch.fft.rfft(c, out=buffers.spectrum[: len(c)])
    torch.fft.irfft(spectrum.mul_(decay), n=c.shape[1], out=c)


def _convect(c: torch.Tensor, buffers: Buffers) -> None:
    """One MUSCL-Hancock step of c_t + (c^2/2)_x = 0 with dt = dx = 1, in place."""
    padded, jump, slope, state, left, right = (b[: len(c)] for b in buffers[:-1])
    padded[:, 2:-2] = c
    padded[:, :2] = c[:, -2:]
    padded[:, -2:] = c[:, :2]
    torch.sub(padded[:, 1:], padded[:, :-1], out=jump)
    before, after = jump[:, :-1], jump[:, 1:]
    # Half of van Leer's slope: b a / (b + a) where the two jumps agree in sign, else 0. The tiny number
    # only matters in flat places, where it turns 0/0 into 0.
    torch.mul(before, after, out=slope).clamp_(min=0)
    slope.div_(torch.add(before, after, out=state).add_(torch.finfo(c.dtype).tiny))
    # Hancock's half step in time: f(c + h) - f(c - h) = 2 c h for f = c^2/2.
    centre = padded[:, 1:-1]
    torch.addcmul(centre, centre, slope, value=-1, out=state)
    torch.add(state, slope, out=left)  # the state at a cell's right face: left of that face
    torch.sub(slope, state, out=right)  # minus the state at a cell's left face
    flux = torch.maximum(left[:, :-1], right[:, 1:], out=jump[:, :-2]).clamp_(min=0).square_()  # twice the flux
    c.add_(torch.sub(flux[:, :-1], flux[:, 1:], out=slope[:, :-2]), alpha=0.5)
