"""Which trajectories, from which frame, for a training batch."""

from __future__ import annotations

import torch


def draw(
    generator: torch.Generator, batch: int, samples: int, starts: int, initial: float = 0.0
) -> tuple[list[int], list[int]]:
    """`batch` samples out of `samples` and as many first frames out of `starts`; of a share `initial`, frame 0."""
    rows, frames = (torch.randint(n, (batch,), generator=generator).tolist() for n in (samples, starts))
    if initial:
        chance = torch.rand(batch, generator=generator).tolist()
        frames = [0 if c < initial else frame for c, frame in zip(chance, frames, strict=True)]
    return rows, frames
