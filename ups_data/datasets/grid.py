"""Grids as torch tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from ups_data.errors import UpsDataError
from ups_data.stores.grid import GridReader


class GridDataset(Dataset):
    """Trajectories of one split, or every window of `window` frames in them.

    An item is a dict of tensors: `fields` float32 [T, X.., C] (channels as in `.channels`), `static` float32 [X.., C'],
    `parameters` float32 [P] (as in `.parameter_names`; NaN: the sample's equation has none), `times` float32 [T],
    coordinates `x`, `y`, `z` float32 as far as there are, and the ints `sample` and `start`. `space_stride` and
    `time_stride` take every n-th point and frame. Files are mapped into memory, each worker process for itself: safe
    with any number of DataLoader workers.
    """

    def __init__(self, path: str | Path, window: int | None = None, space_stride: int = 1, time_stride: int = 1):
        self.reader = GridReader(path)
        if min(space_stride, time_stride) < 1:
            raise UpsDataError(f"{path}: got strides of {space_stride} and {time_stride}, expected 1 or more")
        self.space_stride, self.time_stride = space_stride, time_stride
        self.channels, self.parameter_names = self.reader.channels, self.reader.parameter_names
        self.frames = len(range(0, self.reader.shape[1], time_stride))
        self.window = self.frames if window is None else window
        if not 1 <= self.window <= self.frames:
            raise UpsDataError(f"{path}: got a window of {window} frames, expected 1 to {self.frames}")
        self.windows = self.frames - self.window + 1  # a trajectory
        every = slice(None, None, space_stride)
        self.coordinates = {
            axis: torch.from_numpy(values[every].astype(np.float32)) for axis, values in self.reader.coordinates.items()
        }

    def __len__(self) -> int:
        return len(self.reader) * self.windows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        sample, start = divmod(index % len(self), self.windows)
        axes = len(self.reader.shape) - 3
        space = (slice(None, None, self.space_stride),) * axes
        times = slice(start * self.time_stride, (start + self.window - 1) * self.time_stride + 1, self.time_stride)
        return {
            # np.array copies: the mapped file is read-only, a tensor is not.
            "fields": torch.from_numpy(np.array(self.reader.data[(sample, times, *space)])),
            "static": torch.from_numpy(np.array(self.reader.static[(sample, *space)])),
            "parameters": torch.from_numpy(self.reader.parameters[sample].astype(np.float32)),
            "times": torch.from_numpy(self.reader.time[times].astype(np.float32)),
            **self.coordinates,
            "sample": sample,
            "start": start,
        }
