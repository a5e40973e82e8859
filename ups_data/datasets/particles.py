"""Particles as torch tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ups_data.datasets.windows import WindowDataset, tensor
from ups_data.errors import UpsDataError
from ups_data.geometry import edges_of_graph, neighbour_graph
from ups_data.stores.particles import ParticleStore


class ParticleZarrDataset(WindowDataset):
    """Particle trajectories of one split: an item is a whole one, or with `window` that many frames of one.

    An item is a dict: `positions` and `velocities` float32 [T, P, D], `times` [T], `parameters` [Q] (as in
    `.parameter_names`), `radius` [], `box` [D] (0: not periodic), and the ints `sample` and `start`. The neighbour
    graph within `radius` is that of the trajectory's first frame (graph="stored"): `indptr` int64 [P + 1], `indices`
    int64 [E], `edges` int64 [E, 2]. With graph="each" it is built for every frame of the window: `indptr` [T, P + 1],
    and `indices` and `edges` of the frames one after another, frame t at `graph_offsets[t]`..`graph_offsets[t + 1]`.
    Safe with any number of DataLoader workers, forked or spawned.
    """

    reader = ParticleStore

    def __init__(self, path: str | Path, window: int | None = None, graph: Literal["stored", "each"] = "stored"):
        if graph not in ("stored", "each"):
            raise UpsDataError(f"graph: got {graph!r}, expected 'stored' or 'each'")
        super().__init__(path, window)
        self.graph = graph

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        arrays, place = self.read(index)
        if self.graph == "each":
            arrays |= _graphs(arrays["positions"], float(arrays["radius"]), arrays["box"])
        return {name: tensor(values) for name, values in arrays.items()} | place


def _graphs(positions: np.ndarray, radius: float, box: np.ndarray) -> dict[str, np.ndarray]:
    """The neighbour graph of every frame of `positions` [T, P, D]."""
    graphs = [neighbour_graph(frame, radius, box) for frame in positions]
    return {
        "indptr": np.stack([indptr for indptr, _ in graphs]),
        "indices": np.concatenate([indices for _, indices in graphs]),
        "edges": np.concatenate([edges_of_graph(*graph) for graph in graphs]),
        "graph_offsets": np.cumsum([0] + [len(indices) for _, indices in graphs]),
    }
