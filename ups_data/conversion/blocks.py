"""The copy of a grid conversion: the work cut into blocks, and what one block is to whoever runs it.

A block names a raw file and the pieces of it, each with its place in the raw file and in the output: any process that
sees both files can copy any block at any time, and once more after it was killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ups_data.conversion.plan import Plan, check_finite, read_exact
from ups_data.sources.grids import open_raw
from ups_data.sources.raw import Planes, RawFile, read_plain
from ups_data.statistics import SCRATCH, Moments, Sums, merge_all

BLOCK = 16 << 20  # bytes a block: large against the cost of opening a file, small against 1 GiB of memory


@dataclass(frozen=True)
class Piece:
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
    step = max(1, min(plan.first.frames, BLOCK // frame))
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
    found: dict[str, list[Moments]] = {}
    loss = 0.0
    with ExitStack() as stack:

        def opened(file: str | Path, flags: int) -> int:
            descriptor = os.open(file, flags)
            stack.callback(os.close, descriptor)
            return descriptor

        plain = all(piece.planes for piece in block)
        source = opened(path, os.O_RDONLY) if plain else stack.enter_context(open_raw(path))
        targets = {name: opened(name, os.O_WRONLY) for name in sorted({piece.target for piece in block})}
        memory = Memory()
        for piece in block:
            if plain:
                moments, lost = _copy_planes(path, source, piece, targets[piece.target], memory), 0.0
            else:
                moments, lost = _copy_values(source, piece, targets[piece.target])
            found.setdefault(piece.split, []).append(moments)
            loss = max(loss, lost)
    return {"moments": {split: merge_all(parts).to_list() for split, parts in found.items()}, "loss": loss}


class Memory:
    """What a copy works in, made once a block: fresh pages for every sample would cost as much as the copy."""

    def __init__(self):
        self.planes, self.mixed = np.empty(SCRATCH, dtype="<f4"), np.empty(SCRATCH, dtype="<f4")
        self.scratch = np.empty(SCRATCH)


def _copy_planes(path: Path, source: int, piece: Piece, target: int, memory: Memory) -> Moments:
    """Copy by strips that stay in a cache from reading to writing, no library between disk and memory."""
    channels = len(piece.planes)
    first = np.empty((channels, 1), dtype="<f4")
    for value, at in zip(first, piece.planes, strict=True):
        read_plain(path, source, at, value)
    sums = Sums(first[:, 0], memory.scratch)
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
            out[:] = strip.T
        _write(target, out, piece.offset + 4 * channels * done)
    moments = sums.moments()
    if not moments.is_finite():
        with open_raw(path) as raw:
            check_finite(raw, read_exact(raw, piece.row, piece.start, piece.stop), piece.row, piece.start)
    return moments


def _copy_values(raw: RawFile, piece: Piece, target: int) -> tuple[Moments, float]:
    """Copy what the reader makes of the file; return the greatest loss of rounding too."""
    values, loss = _rounded(raw, piece)
    moments = Moments.of(values)
    if not moments.is_finite():
        check_finite(raw, values, piece.row, piece.start)
    _write(target, np.ascontiguousarray(values), piece.offset)
    return moments, loss


def _rounded(raw: RawFile, piece: Piece) -> tuple[np.ndarray, float]:
    """Frames as float32, and the greatest relative loss of a number (of the least normal one, if it is below that)."""
    exact = read_exact(raw, piece.row, piece.start, piece.stop)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite and NaN are for check_finite
        values = exact.astype(np.float32, copy=False)
        if values.dtype == exact.dtype:
            return values, 0.0
        lost = np.abs(exact - values) / np.maximum(np.abs(exact), np.finfo(np.float32).tiny)
    return values, float(lost.max())


def _write(target: int, values: np.ndarray, offset: int) -> None:
    view, done = memoryview(values).cast("B"), 0
    while done < len(view):
        done += os.pwrite(target, view[done:], offset + done)
