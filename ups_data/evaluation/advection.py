"""Carrying particles with a velocity field that is known frame by frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ups_data.models.autoencoder import Autoencoder

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


def velocity_at(autoencoder: Autoencoder, latents: Tensor, positions: Tensor, box: np.ndarray) -> Tensor:
    """The velocity field that latents [B, L, D] stand for, at positions [B, P, d] in or beyond the box: [B, P, d]."""
    period = torch.tensor(box, dtype=torch.float32, device=positions.device)
    inside = torch.where(period > 0, torch.remainder(positions, torch.where(period > 0, period, 1.0)), positions)
    everywhere = torch.ones(positions.shape[:2], dtype=torch.bool, device=positions.device)
    return autoencoder.decode(latents, {"coords": inside, "mask": everywhere}, "state")


def carry(
    autoencoder: Autoencoder, future: Tensor, positions: Tensor, velocities: Tensor, dt: float, box: np.ndarray
) -> tuple[Tensor, Tensor]:
    """`advect` with the field of latents [B, steps, L, D] from the last known positions and velocities [B, P, d]."""

    def field(step: int, places: Tensor) -> Tensor:
        return velocity_at(autoencoder, future[:, step], places, box)

    return advect(field, positions, velocities, dt, future.shape[1])
