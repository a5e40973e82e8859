"""The copy of a grid conversion: the work cut into blocks, and what one block is to whoever runs it.

A block names a raw file and the pieces of it, each with its place in the raw file and in the output: any process that
sees both files can copy any block at any time, and once more after it was killed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ups_data.conversion.plan import Plan, check_finite, read_exact, read_frames
from ups_data.sources.grids import open_raw
from ups_data.sources.raw import RawFile, rounded
from ups_data.sources.stored import Boxes, Stored, read_boxes, read_plain
from ups_data.statistics import STRIP, Sums, new_scratch

BLOCK = 32 << 20  # bytes a block: large against the cost of opening a file
WRITTEN = 1 << 18  # bytes written at a time: the kernel takes memory in such pieces, and larger ones are harder to find
PIECES = 2  # pieces that a block of one large sample is cut into: small against 1 GiB of memory
LIBRARY = ctypes.CDLL(None)  # that of C, which this process runs on
SYNC_FILE_RANGE = getattr(LIBRARY, "sync_file_range", None)  # Linux has it; where not, nothing is lost
START_WRITING = ctypes.c_uint(2)  # SYNC_FILE_RANGE_WRITE
KEPT = {-1: 64 << 20, -3: 32 << 20}  # mallopt's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: bytes


class Piece(NamedTuple):
    """Frames [start, stop) of one sample, `points` numbers of each channel a frame, for byte `offset` of `target`.

    `stored`: where the numbers of the sample stand in the raw file as they are, if so.
    """

    row: int
    start: int
    stop: int
    split: str
    target: str
    offset: int
    points: int
    stored: Stored | None


def blocks_of(plan: Plan, folder: Path, offsets: Mapping[str, int]) -> Iterator[tuple[Path, list[Piece], int]]:
    """Cut the work into blocks of one file and about BLOCK bytes: many small samples, or some frames of a large one.

    `offsets`: of the data in each output, by its path in `folder`.
    """
    frame = int(np.prod(plan.sample_shape[1:])) * 4
    points = int(np.prod(plan.first.space))
    size = frame * plan.first.frames
    step = max(1, min(plan.first.frames, BLOCK // PIECES // frame))
    targets = {output.path: str(folder / output.path) for output in plan.files}
    for index, path in enumerate(plan.paths):
        block: list[Piece] = []
        held = 0
        for sample in (s for s in plan.samples if s.file == index):
            output, place = plan.place_of(sample)
            for start in range(0, plan.first.frames, step):
                stop = min(start + step, plan.first.frames)
                to = offsets[output.path] + place * size + start * frame
                target = targets[output.path]
                block.append(Piece(sample.row, start, stop, sample.split, target, to, points, sample.stored))
                held += (stop - start) * frame
                if held >= BLOCK:
                    yield path.absolute(), block, len(plan.first.channels)
                    block, held = [], 0
        if block:
            yield path.absolute(), block, len(plan.first.channels)


def copy_block(path: Path, block: Sequence[Piece], channels: int) -> dict[str, object]:
    """Copy the pieces of a block to their places; return `moments` of each split in it and the greatest `loss`.

    Runs in a worker process, here or on another machine. Raises UpsDataError for unreadable or non-finite data.
    """
    _keep_memory()
    sums: dict[str, Sums] = {}
    loss = 0.0
    with ExitStack() as stack:

        def opened(file: str | Path, flags: int) -> int:
            descriptor = os.open(file, flags)
            stack.callback(os.close, descriptor)
            return descriptor

        source = Source(path, opened(path, os.O_RDONLY), cache(lambda: stack.enter_context(open_raw(path))))
        targets = {name: opened(name, os.O_WRONLY) for name in sorted({piece.target for piece in block})}
        memory = Memory(channels)
        for piece in block:
            taken = sums.setdefault(piece.split, Sums(channels, memory.scratch))
            if piece.stored:
                _copy_stored(source, piece, targets[piece.target], taken, memory)
            else:
                loss = max(loss, _copy_values(source.raw(), piece, targets[piece.target], taken))
        for name, target in targets.items():
            _start_writing(target, [piece for piece in block if piece.target == name], channels)
    moments = {split: taken.moments() for split, taken in sums.items()}
    if not all(found.is_finite() for found in moments.values()):
        _refuse(path, block)
    return {"moments": {split: found.to_list() for split, found in moments.items()}, "loss": loss}


@cache
def _keep_memory() -> None:
    """Have the C library keep the memory that arrays of megabytes leave: to be given it anew costs a fault a page."""
    mallopt = getattr(LIBRARY, "mallopt", None)  # glibc has it
    for option, size in KEPT.items() if mallopt else ():
        mallopt(option, size)


class Source(NamedTuple):
    """A raw file as bytes and, for what only HDF5 can read, as a RawFile, opened when it is first asked for."""

    path: Path
    descriptor: int
    raw: Callable[[], RawFile]


def _refuse(path: Path, block: Sequence[Piece]) -> None:
    """Raise UpsDataError for the first number that is not finite."""
    with open_raw(path) as raw:
        for piece in block:
            check_finite(raw, read_frames(raw, piece.row, piece.start, piece.stop), piece.row, piece.start)


class Memory:
    """What a copy works in, made once a block: fresh pages for every sample would cost as much as the copy."""

    def __init__(self, channels: int):
        self.scratch = new_scratch(channels)
        self.planes, self.mixed = np.empty(len(self.scratch), dtype="<f4"), np.empty(len(self.scratch), dtype="<f4")


def _copy_stored(source: Source, piece: Piece, target: int, sums: Sums, memory: Memory) -> None:
    """Copy by strips that stay in a cache from reading to writing, no library between disk and memory."""
    strips = _box_strips if isinstance(piece.stored, Boxes) else _plane_strips
    offset = piece.offset
    for strip in strips(source, piece, sums.strip, memory):
        sums.add(strip)
        channels, rows = strip.shape
        out = strip
        if channels > 1:
            out = memory.mixed[: rows * channels].reshape(rows, channels)
            for channel, values in enumerate(strip):  # one after another is seven times as fast as `strip.T`
                out[:, channel] = values
        _write(target, out, offset)
        offset += out.nbytes


def _plane_strips(source: Source, piece: Piece, most: int, memory: Memory) -> Iterator[np.ndarray]:
    """The channels of a piece, each in one piece in the file, in strips [C, n] of `most` rows."""
    channels = len(piece.stored)
    for done in range(piece.start * piece.points, piece.stop * piece.points, most):
        rows = min(most, piece.stop * piece.points - done)
        strip = memory.planes[: rows * channels].reshape(channels, rows)
        for values, at in zip(strip, piece.stored, strict=True):
            read_plain(source.path, source.descriptor, at + 4 * done, values)
        yield strip


def _box_strips(source: Source, piece: Piece, most: int, memory: Memory) -> Iterator[np.ndarray]:
    """The channels of a piece that stands in boxes, in strips [C, n] of at most `most` rows."""
    parts = _boxes(source, piece)
    if (piece.stop - piece.start) * piece.points <= most:
        parts = list(parts)  # a strip costs as much as the boxes of a small sample
        parts = [np.concatenate(parts, axis=1)] if len(parts) > 1 else parts
    for planes in parts:
        for first in range(0, planes.shape[1], most):
            yield np.ascontiguousarray(planes[:, first : first + most])


def _boxes(source: Source, piece: Piece) -> Iterator[np.ndarray]:
    """The channels of a piece step by step, [C, n]; HDF5 reads what is not stored as lzf or no filter left it."""
    for start, stop, plain in piece.stored.steps(piece.start, piece.stop, STRIP):
        planes = None
        if plain:
            with suppress(OSError):  # of what cannot be unpacked HDF5 says where it is
                planes = read_boxes(source.path, source.descriptor, piece.stored, start, stop)
        if planes is None:
            planes = np.moveaxis(read_frames(source.raw(), piece.row, start, stop), -1, 0)
        yield planes.reshape(len(planes), -1)


def _copy_values(raw: RawFile, piece: Piece, target: int, sums: Sums) -> float:
    """Copy what the reader makes of the file; return the greatest loss of rounding."""
    values, loss = rounded(read_exact(raw, piece.row, piece.start, piece.stop))
    sums.add_rows(values.reshape(-1, values.shape[-1]))
    _write(target, np.ascontiguousarray(values), piece.offset)
    return loss


def _start_writing(target: int, pieces: Sequence[Piece], channels: int) -> None:
    """Let the disk begin with the pieces, which stand side by side, so that the last flush finds little to do."""
    start, last = pieces[0].offset, pieces[-1]
    stop = last.offset + 4 * channels * last.points * (last.stop - last.start)
    if SYNC_FILE_RANGE:
        SYNC_FILE_RANGE(target, ctypes.c_int64(start), ctypes.c_int64(stop - start), START_WRITING)


def _write(target: int, values: np.ndarray, offset: int) -> None:
    view, done = memoryview(values).cast("B"), 0
    while done < len(view):
        done += os.pwrite(target, view[done : done + WRITTEN], offset + done)
