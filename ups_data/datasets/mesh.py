"""Meshes as torch tensors."""

from __future__ import annotations

import torch

from ups_data.datasets.windows import WindowDataset, tensor
from ups_data.stores.mesh import MeshStore


class MeshZarrDataset(WindowDataset):
    """Node fields of one split: an item is a trajectory, or with `window` that many frames of one.

    An item is a dict: `fields` float32 [T, N, C] (channels as in `.channels`), `times` [T], `parameters` [P] (as in
    `.parameter_names`), the mesh as `coords` float32 [N, D], `cells` int64 [M, 3], `edges` int64 [E, 2], its Laplacian
    in CSR as `laplacian_data` float32, `laplacian_indices` and `laplacian_indptr` int64, `topology` (the number of the
    mesh, the same for all samples on it), and the ints `sample` and `start`. Meshes differ in size: batch them with a
    collate function of your own. Safe with any number of DataLoader workers, forked or spawned.
    """

    reader = MeshStore

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        arrays, place = self.read(index)
        topology = int(arrays.pop("topology"))
        return {name: tensor(values) for name, values in arrays.items()} | {"topology": topology} | place
