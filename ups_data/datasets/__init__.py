"""Torch datasets over converted data: index a trajectory, or a time window of one."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ups_data.datasets.grid import GridDataset
    from ups_data.datasets.mesh import MeshZarrDataset
    from ups_data.datasets.particles import ParticleZarrDataset

__all__ = ["GridDataset", "MeshZarrDataset", "ParticleZarrDataset"]

# Imported when asked for: a user of grids needs no zarr.
_HOMES = {"GridDataset": "grid", "MeshZarrDataset": "mesh", "ParticleZarrDataset": "particles"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
