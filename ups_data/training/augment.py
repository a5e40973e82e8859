"""New training trajectories from cached ones, by symmetries of the equation.

    shift        the whole trajectory moved along the periodic axes, by any number of points
    reflection   u(x) -> -u(-x), which Burgers' equation keeps (1D, one velocity)

An encoder sees patches, so latents can be moved by whole patches alone. Other shifts, and reflections, are made on the
decoded fields: those are needed for the loss anyway, and only the frames that are given are encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ups_data.errors import UpsDataError

# Parameters of equations that u(x) -> -u(-x) does not keep: it turns an advection around, and a growth into a decay.
ONE_SIDED = ("advection_speed", "reaction_rate", "reaction_constant")


def check_augment(
    augment: Sequence[str],
    kind: str,
    periodic: Sequence[bool],
    label: str,
    channels: Sequence[str] = (),
    parameters: Sequence[str] = (),
) -> None:
    """Raise UpsDataError for symmetries that the domain, the fields or the equation do not have."""
    if augment and (kind != "grid" or not any(periodic)):
        raise UpsDataError(f"{label}: train.augment {list(augment)} needs a grid with a periodic axis; take it out")
    if "reflection" in augment and len(periodic) != 1:
        raise UpsDataError(f"{label}: train.augment reflection is u(x) -> -u(-x), for 1D grids; take it out")
    against = [f"an equation with {name}" for name in parameters if name in ONE_SIDED]
    against = [f"the channels {', '.join(channels)}"] if len(channels) > 1 else against
    if "reflection" in augment and against:
        raise UpsDataError(
            f"{label}: train.augment reflection is u(x) -> -u(-x), which velocities keep under Burgers' equation, not "
            f"{against[0]}; take it out"
        )


def draw_moves(
    augment: Sequence[str], generator: torch.Generator, batch: int, points: Sequence[int], periodic: Sequence[bool]
) -> dict[str, Tensor]:
    """How each sample of a batch is moved: `shifts` int64 [B, axes] in points, `signs` int64 [B], -1 if reflected."""
    shifts = torch.zeros(batch, len(points), dtype=torch.int64)
    signs = torch.ones(batch, dtype=torch.int64)
    if "shift" in augment:
        for axis, (count, wraps) in enumerate(zip(points, periodic, strict=True)):
            if wraps:
                shifts[:, axis] = torch.randint(count, (batch,), generator=generator)
    if "reflection" in augment:
        signs = 1 - 2 * torch.randint(2, (batch,), generator=generator)
    return {"shifts": shifts, "signs": signs}


def move(fields: Tensor, shifts: Tensor, signs: Tensor) -> Tensor:
    """Fields [B, F, X.., C] shifted by `shifts` [B, axes] points, and reflected where `signs` [B] is -1."""
    for axis, count in enumerate(fields.shape[2:-1]):
        index = (signs[:, None] * torch.arange(count, device=fields.device) + shifts[:, axis, None]) % count
        shape = [len(fields), *(count if dim == axis + 2 else 1 for dim in range(1, fields.dim()))]
        fields = torch.take_along_dim(fields, index.reshape(shape), dim=axis + 2)
    return fields * signs.reshape(-1, *[1] * (fields.dim() - 1))
