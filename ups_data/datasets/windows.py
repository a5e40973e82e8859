"""What datasets of meshes and particles share: windows of trajectories, one open store a process."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from ups_data.errors import UpsDataError
from ups_data.stores.packed import PackedReader


class WindowDataset(Dataset):
    """Trajectories of one split, or every window of `window` frames in them; subclasses say what an item is.

    The store is opened where it is used: a worker process, forked or spawned, opens its own, and a pickled dataset
    carries a path. Raises UpsDataError for a store that cannot be read or a window longer than the trajectories.
    """

    reader: type[PackedReader]

    def __init__(self, path: str | Path, window: int | None = None):
        self.path = Path(path)
        self._opened: tuple[int, PackedReader] | None = None
        store = self.store
        self.channels, self.parameter_names, self.manifest = store.channels, store.parameter_names, store.manifest
        self.samples, self.frames = len(store), store.frames
        self.window = self.frames if window is None else window
        if not 1 <= self.window <= self.frames:
            raise UpsDataError(f"{path}: got a window of {window} frames, expected 1 to {self.frames}")
        self.windows = self.frames - self.window + 1  # a trajectory
        self._opened = None  # workers that are forked from here shall find nothing to share

    @property
    def store(self) -> PackedReader:
        """The store, opened by this very process."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), self.reader(self.path)
        return self._opened[1]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_opened": None}

    def __len__(self) -> int:
        return self.samples * self.windows

    def read(self, index: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """The arrays of a window, and which it is: its `sample` and its first frame `start`."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        sample, start = divmod(index % len(self), self.windows)
        return self.store.read(sample, start, start + self.window), {"sample": sample, "start": start}


def tensor(values: np.ndarray) -> torch.Tensor:
    """A tensor of its own memory: float32 for numbers, int64 for indices."""
    dtype = torch.float32 if values.dtype.kind == "f" else torch.int64
    return torch.from_numpy(np.array(values)).to(dtype)
