"""Which trajectories, from which frame: for a training batch at random, for judging evenly spread."""

from __future__ import annotations

import torch


def draw(generator: torch.Generator, batch: int, samples: int, starts: int) -> tuple[list[int], list[int]]:
    """`batch` samples out of `samples` and as many first frames out of `starts`."""
    rows, frames = (torch.randint(n, (batch,), generator=generator).tolist() for n in (samples, starts))
    return rows, frames


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` samples, from the first to the last at even distances."""
    wanted = min(count, wanted)
    return [round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)]
