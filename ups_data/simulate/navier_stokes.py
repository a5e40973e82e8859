"""Incompressible Navier-Stokes with a carried scalar on a periodic unit square, for several flows at once.

    w_t + u . grad w = nu lap w + curl f,    s_t + u . grad s = nu lap s,    div u = 0,    w = curl u

Pseudo-spectral in space, dealiased by the 2/3 rule; an integrating factor takes diffusion exactly and the
classical Runge-Kutta scheme of fourth order takes the rest (Canuto et al., Spectral Methods, 2006).
Arrays are [flow, x, y(, component)]; component 0 points along x. Velocity and force have zero mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

# dt * (greatest |u| + |v|) * (greatest wave number kept): the scheme is stable to 2.83 on the imaginary
# axis; the margin is for flows that speed up between two frames.
STABILITY = 2.4


class Operators(NamedTuple):
    """Wave numbers [N, N // 2 + 1] (radians per unit length) and what is made of them."""

    kx: torch.Tensor
    ky: torch.Tensor
    square: torch.Tensor  # kx^2 + ky^2
    inverse: torch.Tensor  # 1 / square, 0 for the mean
    kept: torch.Tensor  # 1 for the modes that the 2/3 rule keeps, else 0
    largest: float  # the largest wave number kept


@torch.inference_mode()
def solve(
    velocity: np.ndarray,
    scalar: np.ndarray,
    force: np.ndarray,
    viscosity: float,
    times: Sequence[float] | np.ndarray,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Solve from `velocity` [B, N, N, 2] and `scalar` [B, N, N] under the static `force` [B, N, N, 2].

    Yields (velocity, scalar) at each of `times`, the first one included, in the dtype of `velocity` (float32
    or float64) on `device`. The scalar diffuses as momentum does (Schmidt number 1).
    """
    u, s, f = (torch.tensor(np.asarray(a, dtype=velocity.dtype), device=device) for a in (velocity, scalar, force))
    operators = _operators(u.shape[1], u.dtype, u.device)
    state = torch.stack([_curl(u, operators), torch.fft.rfft2(s)]) * operators.kept
    source = torch.stack([_curl(f, operators), torch.zeros_like(state[0])]) * operators.kept
    fields = _fields(state, operators)
    yield _frame(fields)
    for interval in np.diff(times):
        speed = float((fields[0].abs() + fields[1].abs()).max())
        steps = max(1, int(np.ceil(float(interval) * speed * operators.largest / STABILITY)))
        step = float(interval) / steps
        decay = torch.exp(-viscosity * step / 2 * operators.square)
        for _ in range(steps):
            state = _runge_kutta(state, source, step, decay, operators)
        fields = _fields(state, operators)
        yield _frame(fields)


def _operators(cells: int, dtype: torch.dtype, device: torch.device) -> Operators:
    across = torch.fft.fftfreq(cells, 1 / cells, dtype=dtype, device=device)[:, None]
    along = torch.fft.rfftfreq(cells, 1 / cells, dtype=dtype, device=device)[None, :]
    kept = ((across.abs() < cells / 3) & (along < cells / 3)).to(dtype)
    kx, ky = 2 * torch.pi * across * torch.ones_like(along), 2 * torch.pi * along * torch.ones_like(across)
    square = kx**2 + ky**2
    inverse = torch.where(square > 0, 1 / square, 0)
    return Operators(kx, ky, square, inverse, kept, 2 * np.pi * np.ceil(cells / 3 - 1))


def _curl(vector: torch.Tensor, o: Operators) -> torch.Tensor:
    """The spectrum of d(v)/dx - d(u)/dy of [B, N, N, 2]."""
    x, y = torch.fft.rfft2(vector.movedim(-1, 0))
    return 1j * (o.kx * y - o.ky * x)


def _fields(state: torch.Tensor, o: Operators) -> torch.Tensor:
    """u, v and the scalar [3, B, N, N] of the spectra of vorticity and scalar [2, B, N, N // 2 + 1]."""
    stream = 1j * state[0] * o.inverse
    spectra = torch.stack([o.ky * stream, -o.kx * stream, state[1]])
    return torch.fft.irfft2(spectra, s=(o.kx.shape[0], o.kx.shape[0]))


def _frame(fields: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return fields[:2].movedim(0, -1).contiguous(), fields[2]


def _rate(state: torch.Tensor, source: torch.Tensor, o: Operators) -> torch.Tensor:
    """What convection and the force change in a unit of time; `state` and the result are spectra.

    Convection of vorticity is the curl of div(u u): it needs the products uv and uu - vv alone.
    """
    u, v, s = _fields(state, o)
    uv, difference, us, vs = torch.fft.rfft2(torch.stack([u * v, (u - v) * (u + v), u * s, v * s]))
    vorticity = (o.kx**2 - o.ky**2) * uv - (o.kx * o.ky) * difference
    scalar = -1j * (o.kx * us + o.ky * vs)
    return torch.stack([vorticity, scalar]).mul_(o.kept).add_(source)


def _runge_kutta(q: torch.Tensor, source: torch.Tensor, step: float, half: torch.Tensor, o: Operators) -> torch.Tensor:
    """One step; `half` is the decay by viscosity over half a step."""
    a = _rate(q, source, o)
    middle = half * q
    b = _rate(torch.add(middle, half * a, alpha=step / 2), source, o)
    c = _rate(torch.add(middle, b, alpha=step / 2), source, o)
    d = _rate(half * torch.add(middle, c, alpha=step), source, o)
    return half * (half * torch.add(q, a, alpha=step / 6)).add_(b + c, alpha=step / 3) + d * (step / 6)
