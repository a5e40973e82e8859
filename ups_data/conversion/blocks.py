"""The copy of a grid conversion: the work cut into blocks, and what one block is to whoever runs it.

A block names a raw file and the pieces of it, each with its place in the raw file and in the output: any process that
sees both files can copy any block at any time, and once more after it was killed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ups_data.conversion.plan import Plan, check_finite, read_exact, read_frames
from ups_data.sources.grids import open_raw
from ups_data.sources.raw import Planes, RawFile, read_plain
from ups_data.statistics import Sums, new_scratch

BLOCK = 32 << 20  # bytes a block: large against the cost of opening a file
PIECES = 2  # pieces that a block of one large sample is cut into: small against 1 GiB of memory
SYNC_FILE_RANGE = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux has it; where not, nothing is lost
START_WRITING = ctypes.c_uint(2)  # SYNC_FILE_RANGE_WRITE


class Piece(NamedTuple):
    """Frames [start, stop) of one sample, to be copied to byte `offset` of `target`.

    `planes`: where these frames of each channel, `points` numbers a frame, stand in the raw file as they are, if so.
    """

    row: int
    start: int
    stop: int
    split: str
    target: str
    offset: int
    points: int
    planes: Planes | None


def blocks_of(plan: Plan, folder: Path, offsets: Mapping[str, int]) -> Iterator[tuple[Path, list[Piece]]]:
    """Cut the work into blocks of one file and about BLOCK bytes: many small samples, or some frames of a large one.

    `offsets`: of the data in each output, by its path in `folder`.
    """
    frame = int(np.prod(plan.sample_shape[1:])) * 4
    points = int(np.prod(plan.first.space))
    size = frame * plan.first.frames
    step = max(1, min(plan.first.frames, BLOCK // PIECES // frame))
    for index, path in enumerate(plan.paths):
        block: list[Piece] = []
        held = 0
        for sample in (s for s in plan.samples if s.file == index):
            output, place = plan.place_of(sample)
            for start in range(0, plan.first.frames, step):
                stop = min(start + step, plan.first.frames)
                to = offsets[output.path] + place * size + start * frame
                planes = tuple(at + 4 * start * points for at in sample.planes) if sample.planes else None
                target = str(folder / output.path)
                block.append(Piece(sample.row, start, stop, sample.split, target, to, points, planes))
                held += (stop - start) * frame
                if held >= BLOCK:
                    yield path.absolute(), block
                    block, held = [], 0
        if block:
            yield path.absolute(), block


def copy_block(path: Path, block: Sequence[Piece]) -> dict[str, object]:
    """Copy the pieces of a block to their places; return `moments` of each split in it and the greatest `loss`.

    Runs in a worker process, here or on another machine. Raises UpsDataError for unreadable or non-finite data.
    """
    sums: dict[str, Sums] = {}
    loss = 0.0
    with ExitStack() as stack:

        def opened(file: str | Path, flags: int) -> int:
            descriptor = os.open(file, flags)
            stack.callback(os.close, descriptor)
            return descriptor

        plain = all(piece.planes for piece in block)
        source = opened(path, os.O_RDONLY) if plain else stack.enter_context(open_raw(path))
        channels = len(block[0].planes) if plain else len(source.channels)
        targets = {name: opened(name, os.O_WRONLY) for name in sorted({piece.target for piece in block})}
        memory = Memory(channels)
        for piece in block:
            taken = sums.setdefault(piece.split, Sums(channels, memory.scratch))
            if plain:
                _copy_planes(path, source, piece, targets[piece.target], taken, memory)
            else:
                loss = max(loss, _copy_values(source, piece, targets[piece.target], taken))
        for name, target in targets.items():
            _start_writing(target, [piece for piece in block if piece.target == name], channels)
    moments = {split: taken.moments() for split, taken in sums.items()}
    if not all(found.is_finite() for found in moments.values()):
        _refuse(path, block)
    return {"moments": {split: found.to_list() for split, found in moments.items()}, "loss": loss}


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


def _copy_planes(path: Path, source: int, piece: Piece, target: int, sums: Sums, memory: Memory) -> None:
    """Copy by strips that stay in a cache from reading to writing, no library between disk and memory."""
    channels = len(piece.planes)
    total = (piece.stop - piece.start) * piece.points
    for done in range(0, total, sums.strip):
        rows = min(sums.strip, total - done)
        strip = memory.planes[: rows * channels].reshape(channels, rows)
        for values, at in zip(strip, piece.planes, strict=True):
            read_plain(path, source, at + 4 * done, values)
        sums.add(strip)
        out = strip
        if channels > 1:
            out = memory.mixed[: rows * channels].reshape(rows, channels)
            for channel, values in enumerate(strip):  # one after another is seven times as fast as `strip.T`
                out[:, channel] = values
        _write(target, out, piece.offset + 4 * channels * done)


def _copy_values(raw: RawFile, piece: Piece, target: int, sums: Sums) -> float:
    """Copy what the reader makes of the file; return the greatest loss of rounding."""
    values, loss = _rounded(raw, piece)
    sums.add_rows(values.reshape(-1, values.shape[-1]))
    _write(target, np.ascontiguousarray(values), piece.offset)
    return loss


def _rounded(raw: RawFile, piece: Piece) -> tuple[np.ndarray, float]:
    """Frames as float32, and the greatest relative loss of a number (of the least normal one, if it is below that)."""
    exact = read_exact(raw, piece.row, piece.start, piece.stop)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite and NaN are for check_finite
        values = exact.astype(np.float32, copy=False)
        if values.dtype == exact.dtype:
            return values, 0.0
        lost = np.abs(exact - values) / np.maximum(np.abs(exact), np.finfo(np.float32).tiny)
    return values, float(lost.max())


def _start_writing(target: int, pieces: Sequence[Piece], channels: int) -> None:
    """Let the disk begin with the pieces, which stand side by side, so that the last flush finds little to do."""
    start, last = pieces[0].offset, pieces[-1]
    stop = last.offset + 4 * channels * last.points * (last.stop - last.start)
    if SYNC_FILE_RANGE:
        SYNC_FILE_RANGE(target, ctypes.c_int64(start), ctypes.c_int64(stop - start), START_WRITING)


def _write(target: int, values: np.ndarray, offset: int) -> None:
    view, done = memoryview(values).cast("B"), 0
    while done < len(view):
        done += os.pwrite(target, view[done:], offset + done)
