"""Where the numbers of a sample stand in its file, for who reads them without HDF5.

float32 numbers that no filter has touched are a copy away: each channel in one piece (`Planes`), or in boxes (`Boxes`),
the chunks of a file, which HDF5 puts together number by number and ten times as slow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from ups_data.errors import UpsDataError

NUMBER = np.dtype("<f4")
Planes = tuple[int, ...]  # byte offsets of a sample's channels, each float32 [T, X..] without a gap


class Boxes(NamedTuple):
    """Where the boxes stand that a sample [T, ..] of `shape` is cut into, some frames to a box."""

    offsets: np.ndarray  # int64 [boxes along every axis]; -1: packed, or never written
    box: tuple[int, ...]  # numbers along every axis
    shape: tuple[int, ...]
    order: tuple[int, ...]  # the axes of the file that are channel, time, x, y, ..

    def steps(self, start: int, stop: int, most: int) -> Iterator[tuple[int, int, bool]]:
        """Frames [start, stop) in steps of at most `most` numbers or one box, and whether all of a step is stored."""
        frames = self.box[0]
        together = max(1, most // (frames * prod(self.shape[1:])))
        first, last = start // frames, -(-stop // frames)
        plain = (self.offsets[first:last].reshape(last - first, -1) >= 0).all(axis=1).tolist()
        begin = first
        for row in range(first + 1, last + 1):
            if row == last or row - begin == together or plain[row - first] != plain[begin - first]:
                yield max(start, begin * frames), min(stop, row * frames), plain[begin - first]
                begin = row


Stored = Planes | Boxes


def planes_of(fields: Sequence[h5py.Dataset], samples: int) -> Callable[[int], Planes] | None:
    """`Planes` of every row of channels that are arrays [N, T, X..] of their own; None where HDF5 packs or converts."""
    starts = [data.id.get_offset() for data in fields if data.dtype == NUMBER and data.chunks is None]
    if None in starts or len(starts) < len(fields):
        return None
    size = fields[0].size // samples * 4
    return lambda row: tuple(start + row * size for start in starts)


def sample_of(data: h5py.h5d.DatasetID, order: tuple[int, ...]) -> Stored | None:
    """Where a sample [T, ..] stands that is a dataset of its own; None where HDF5 packs or converts all of it."""
    made, shape = data.get_create_plist(), data.shape
    if not data.get_type().equal(h5py.h5t.IEEE_F32LE):
        return None
    if made.get_layout() == h5py.h5d.CHUNKED:
        return _chunks_of(data, made, shape, order)
    start = data.get_offset()
    if start is None:
        return None
    if shape[-1] == 1 and order[1:] == tuple(range(len(shape) - 1)):
        return (start,)
    offsets = start + 4 * prod(shape[1:]) * np.arange(shape[0], dtype=np.int64)
    return Boxes(offsets.reshape(-1, *[1] * (len(shape) - 1)), (1, *shape[1:]), shape, order)


def _chunks_of(
    data: h5py.h5d.DatasetID, made: h5py.h5p.PropDCID, shape: tuple[int, ...], order: tuple[int, ...]
) -> Boxes | None:
    box, unfiltered = made.get_chunk(), (1 << made.get_nfilters()) - 1  # a bit for every filter that did nothing
    found: list[h5py.h5d.StoreInfo] = []
    data.chunk_iter(found.append)
    size = 4 * prod(box)
    plain = [chunk for chunk in found if chunk.filter_mask == unfiltered and chunk.size == size]
    if not plain:
        return None
    places = np.array([chunk.chunk_offset for chunk in plain], dtype=np.uint64)
    if (places >= shape).any():
        return None  # a damaged index: HDF5 says what is wrong
    offsets = np.full([-(-points // width) for points, width in zip(shape, box, strict=True)], -1, dtype=np.int64)
    addresses = np.array([chunk.byte_offset for chunk in plain], dtype=np.uint64).astype(np.int64)
    offsets[tuple((places // np.array(box, dtype=np.uint64)).T)] = addresses
    return Boxes(offsets, box, shape, order)


def read_boxes(path: Path, descriptor: int, boxes: Boxes, start: int, stop: int) -> np.ndarray:
    """Frames [start, stop) of a sample, all of them stored: float32 [C, T, X..]."""
    frames, numbers = boxes.box[0], prod(boxes.box)
    first = start // frames
    grid = boxes.offsets[first : -(-stop // frames)]
    offsets, early, late = grid.ravel(), start - first * frames, stop - first * frames
    values = np.empty((len(offsets), numbers), NUMBER)
    cuts = (np.flatnonzero(np.diff(offsets) != 4 * numbers) + 1).tolist()
    for begin, end in pairwise([0, *cuts, len(offsets)]):  # what stands side by side is read at once
        read_plain(path, descriptor, int(offsets[begin]), values[begin:end])
    values, axes = values.reshape(*grid.shape, *boxes.box), grid.ndim
    if len(grid) == 1:  # of one box only the frames asked for are moved
        values = values[(*[slice(None)] * axes, slice(early, late))]
        early, late = 0, late - early
    values = values.transpose([part + axis for axis in boxes.order for part in (0, axes)])
    sides = [values.shape[i] * values.shape[i + 1] for i in range(0, 2 * axes, 2)]
    channels, _, *points = (slice(boxes.shape[axis]) for axis in boxes.order)
    return np.ascontiguousarray(values).reshape(sides)[(channels, slice(early, late), *points)]


def read_plain(path: Path, descriptor: int, at: int, out: np.ndarray) -> None:
    """Fill a contiguous array with the bytes of an open file from byte `at`; a file that ends before is refused."""
    view, done = memoryview(out).cast("B"), 0
    while done < len(view):
        got = os.preadv(descriptor, [view[done:]], at + done)
        if not got:
            raise UpsDataError(f"{path}: truncated: it ends before byte {at + len(view)}; fetch it again")
        done += got
