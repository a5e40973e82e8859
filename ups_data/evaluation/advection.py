"""Carrying particles with a velocity field that is known frame by frame."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[[int, Tensor], Tensor]  # (step, positions [B, P, d]) -> velocities [B, P, d] there and then


def advect(field: Field, positions: Tensor, velocities: Tensor, dt: float, steps: int) -> tuple[Tensor, Tensor]:
    """Carry particles [B, P, d] with a velocity field known at whole steps: positions, velocities [B, steps, P, d].

    Heun's method: a full Euler step finds the velocity at the next frame, and the mean of both velocities moves the
    particle. `velocities` are those of the given frame; positions are not wrapped.
    """
    x, v = positions, velocities
    xs, vs = [], []
    for step in range(steps):
        ahead = field(step, x + dt * v)
        x = x + 0.5 * dt * (v + ahead)
        v = field(step, x)
        xs.append(x)
        vs.append(v)
    return torch.stack(xs, dim=1), torch.stack(vs, dim=1)
