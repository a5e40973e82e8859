"""Where the numbers of a sample stand in its file, for who reads them without HDF5.

float32 numbers that no filter has touched are a copy away: each channel in one piece (`Planes`), or in boxes (`Boxes`),
the chunks of a file, which HDF5 puts together number by number and ten times as slow. Boxes that lzf has packed, which
in the files we know are few among those it left as they are, are read with them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod
from pathlib import Path
from threading import get_ident
from typing import NamedTuple

import h5py
import numpy as np

from ups_data.errors import UpsDataError

NUMBER = np.dtype("<f4")
UNPACKED = 1 << 18  # numbers of boxes that are unpacked at once, 1 MB, or those of one box
Planes = tuple[int, ...]  # byte offsets of a sample's channels, each float32 [T, X..] without a gap


class Boxes(NamedTuple):
    """Where the boxes stand that a sample [T, ..] of `shape` is cut into, some frames to a box."""

    offsets: np.ndarray  # int64 [boxes along every axis]; -1: never written, or packed by anything but lzf
    packed: np.ndarray  # uint32, the same: bytes of a box that lzf has packed; 0: its numbers as they are
    box: tuple[int, ...]  # numbers along every axis
    shape: tuple[int, ...]
    order: tuple[int, ...]  # the axes of the file that are channel, time, x, y, ..

    def __reduce__(self) -> tuple:  # thousands go from process to process: as arrays they would take five times as long
        return _boxes, (self.offsets.tobytes(), self.packed.tobytes(), *self[2:])

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


def _boxes(
    offsets: bytes, packed: bytes, box: tuple[int, ...], shape: tuple[int, ...], order: tuple[int, ...]
) -> Boxes:
    grid = _grid(shape, box)
    places, sizes = np.frombuffer(offsets, np.int64), np.frombuffer(packed, np.uint32)
    return Boxes(places.reshape(grid), sizes.reshape(grid), box, shape, order)


def _grid(shape: tuple[int, ...], box: tuple[int, ...]) -> list[int]:
    """Boxes along every axis."""
    return [-(-points // width) for points, width in zip(shape, box, strict=True)]


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
    if data.get_create_plist().get_layout() != h5py.h5d.CHUNKED:
        start = data.get_offset()
        return samples_of(data, order, np.array([-1 if start is None else start]), None)[0]
    found: list[h5py.h5d.StoreInfo] = []
    data.chunk_iter(lambda chunk: found.append((chunk.size, chunk.filter_mask, chunk.chunk_offset, chunk.byte_offset)))
    return samples_of(data, order, None, np.array([found], chunk_type(data.rank)))[0]


def chunk_type(axes: int) -> np.dtype:
    """A chunk of a dataset: its bytes, the filters it skipped, its first number, where it stands."""
    return np.dtype([("size", "<u4"), ("mask", "<u4"), ("place", "<u8", (axes,)), ("address", "<u8")])


def samples_of(
    data: h5py.h5d.DatasetID, order: tuple[int, ...], starts: np.ndarray | None, chunks: np.ndarray | None
) -> list[Stored | None]:
    """`sample_of` for N datasets that differ from `data` only in where they are.

    `starts`: int64 [N], -1 where there is nothing, for data in one piece; `chunks`: [N, chunks] of `chunk_type`, at the
    same places in every dataset.
    """
    shape, count = data.shape, len(chunks if starts is None else starts)
    if not data.get_type().equal(h5py.h5t.IEEE_F32LE):
        return [None] * count
    if starts is not None:
        return [None if start < 0 else _in_one_piece(start, shape, order) for start in starts.tolist()]
    made = data.get_create_plist()
    filters = [made.get_filter(index)[0] for index in range(made.get_nfilters())]
    box, places = made.get_chunk(), chunks["place"][0, :, : len(shape)]
    if (places >= shape).any():
        return [None] * count  # a damaged index: HDF5 says what is wrong
    as_is = (chunks["mask"] == (1 << len(filters)) - 1) & (chunks["size"] == 4 * prod(box))  # every filter did nothing
    packed = (chunks["mask"] == 0) & (chunks["size"] <= 4 * prod(box)) & (filters == [h5py.h5z.FILTER_LZF])
    grid = _grid(shape, box)
    offsets, sizes = np.full((count, *grid), -1, np.int64), np.zeros((count, *grid), np.uint32)
    at = (slice(None), *(places // np.array(box, np.uint64)).T.astype(np.intp))
    offsets[at] = np.where(as_is | packed, chunks["address"].astype(np.int64), -1)
    sizes[at] = np.where(packed, chunks["size"], 0)
    some = (as_is | packed).any(axis=1)
    return [Boxes(offsets[i], sizes[i], box, shape, order) if some[i] else None for i in range(count)]


def _in_one_piece(start: int, shape: tuple[int, ...], order: tuple[int, ...]) -> Stored:
    if shape[-1] == 1 and order[1:] == tuple(range(len(shape) - 1)):
        return (start,)
    offsets = start + 4 * prod(shape[1:]) * np.arange(shape[0], dtype=np.int64)
    offsets = offsets.reshape(-1, *[1] * (len(shape) - 1))
    return Boxes(offsets, np.zeros_like(offsets, np.uint32), (1, *shape[1:]), shape, order)


def read_boxes(path: Path, descriptor: int, boxes: Boxes, start: int, stop: int) -> np.ndarray:
    """Frames [start, stop) of a sample, all of them stored: float32 [C, T, X..]. Raises OSError as HDF5 does."""
    frames, row = boxes.box[0], prod(boxes.box[1:])
    first, last = start // frames, -(-stop // frames)
    early, late = start - first * frames, stop - first * frames
    grid, packed = boxes.offsets[first:last], boxes.packed[first:last].ravel()
    offsets, is_packed = grid.ravel(), packed > 0
    if len(grid) == 1 and not is_packed.any():  # of one box, as it is, only the frames asked for are read
        offsets, frames = offsets + 4 * row * early, late - early
        early, late = 0, frames
    box, numbers = (frames, *boxes.box[1:]), frames * row
    ends = offsets + np.where(is_packed, packed, 4 * numbers)
    values = np.empty((len(offsets), numbers), NUMBER)
    cuts = np.flatnonzero((offsets[1:] != ends[:-1]) | (is_packed[1:] != is_packed[:-1])) + 1
    for begin, end in pairwise([0, *cuts.tolist(), len(offsets)]):  # what stands side by side is read at once
        if is_packed[begin]:
            _unpack(path, descriptor, int(offsets[begin]), packed[begin:end].tolist(), box, values[begin:end])
        else:
            read_plain(path, descriptor, int(offsets[begin]), values[begin:end])
    values, axes = values.reshape(*grid.shape, *box), grid.ndim
    if len(grid) == 1:  # of one box only the frames asked for are moved
        values = values[(*[slice(None)] * axes, slice(early, late))]
        early, late = 0, late - early
    values = values.transpose([part + axis for axis in boxes.order for part in (0, axes)])
    sides = [values.shape[i] * values.shape[i + 1] for i in range(0, 2 * axes, 2)]
    channels, _, *points = (slice(boxes.shape[axis]) for axis in boxes.order)
    return np.ascontiguousarray(values).reshape(sides)[(channels, slice(early, late), *points)]


def _unpack(path: Path, descriptor: int, at: int, sizes: list[int], box: tuple[int, ...], out: np.ndarray) -> None:
    """Fill `out` [boxes, numbers] with boxes of those sizes, side by side from byte `at`, that lzf has packed.

    HDF5 unpacks them as chunks of a dataset in memory: to have it find them in their own takes four times as long.
    """
    content = np.empty(sum(sizes), np.uint8)
    read_plain(path, descriptor, at, content)
    done, most = 0, max(1, UNPACKED // prod(box))
    for begin in range(0, len(sizes), most):
        part = out[begin : begin + most]
        data = _in_memory(len(part), box, get_ident())
        for index, size in enumerate(sizes[begin : begin + most]):
            data.write_direct_chunk((index * box[0], *[0] * (len(box) - 1)), content[done : done + size])
            done += size
        data.read(h5py.h5s.ALL, h5py.h5s.ALL, part)


@lru_cache(16)
def _in_memory(count: int, box: tuple[int, ...], thread: int) -> h5py.h5d.DatasetID:
    """A dataset of some boxes one after another, in no file; every `thread` has its own."""
    name, shape = f"{count} boxes {box} of {thread}", (count * box[0], *box[1:])  # HDF5 tells files by their names
    file = h5py.File(name, "w", driver="core", backing_store=False)
    return file.create_dataset("data", shape, NUMBER, chunks=box, compression="lzf").id


def read_plain(path: Path, descriptor: int, at: int, out: np.ndarray) -> None:
    """Fill a contiguous array with the bytes of an open file from byte `at`; a file that ends before is refused."""
    view, done = memoryview(out).cast("B"), 0
    while done < len(view):
        got = os.preadv(descriptor, [view[done:]], at + done)
        if not got:
            raise UpsDataError(f"{path}: truncated: it ends before byte {at + len(view)}; fetch it again")
        done += got
