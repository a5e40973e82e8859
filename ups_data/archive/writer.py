"""Files to one archive: numbers by pcodec, other bytes by deflate, the same bytes on every machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ups_data import execution, files
from ups_data.archive.blocks import DEFLATE, Packed, decode, encode, encode_by_order
from ups_data.archive.flow import FLUSH, Buffers, Flusher, in_order
from ups_data.archive.format import Block, Coding, Member, check_paths, header, index_and_footer
from ups_data.archive.layout import BLOCK, Cut, cuts, regions
from ups_data.archive.targz import pack_gzip
from ups_data.errors import UpsDataError

PIECE = 128 << 10  # bytes of a sample: enough rows for each axis to show how smooth it is
SAMPLES = 5  # at most, one for each 4 MB: an odd number, so that a dataset of equal parts is not met in step
DEFLATE_PIECE = 32 << 10  # deflate is 6 times slower than pcodec; repetition shows early
AXES = 3  # how many of the last axes are tried as the fastest one, the first of three or more (samples) never
PATIENCE = 32 << 20  # bytes; less than that is packed before a longer trial has paid for itself
WORTH = 1.03  # differences chosen by us pack twice as fast as those pcodec looks for: worth this much more size

Advance = Callable[[int], None]


@dataclass(frozen=True)
class _Plan:
    """How numbers of one kind are packed: the axis put last, counted from the end (0: deflate), and who chooses the
    order of differences: we, page by page, or pcodec."""

    fastest: int
    by_order: bool = False


@dataclass(frozen=True)
class _Task:
    source: int  # index into the sorted sources
    descriptor: int
    cut: Cut
    plan: _Plan


def collect(root: str | Path, names: Iterable[str]) -> dict[str, Path]:
    """Member path -> file for the named files and folders under `root`, folders with all they hold.

    Links to files are followed (DVC links its cache into the workspace). Raises UpsDataError for what is
    missing or is neither file nor folder.
    """
    root, found = Path(root), {}
    for name in names:
        top = root / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file():
                found[path.relative_to(root).as_posix()] = path
            elif not path.exists():
                raise UpsDataError(f"{path} is missing; run the stage that writes it (`dvc repro`)")
            elif not path.is_dir() or path.is_symlink():
                raise UpsDataError(f"{path} is neither a file nor a folder; only those are packed")
    return found


def pack(
    sources: Mapping[str, Path],
    archive: str | Path,
    codec: str = "pcodec",
    workers: int | None = None,
    advance: Advance | None = None,
) -> list[Member]:
    """Write `sources` (member path -> file) to `archive`; the bytes depend on the files alone.

    `codec` is `pcodec` (.upk) or `gzip` (.tar.gz). `advance` is told bytes as they are read. The archive
    appears whole or not at all. Returns the members with their checksums.
    """
    archive, workers = Path(archive), workers or execution.cores()
    sources = dict(sorted(sources.items()))
    check_paths(sources, str(archive))
    total = sum(path.stat().st_size for path in sources.values())
    files.require_space(archive.parent, total // 2, f"packing {archive.name}")  # numbers pack to half or less
    with files.atomic(archive) as temporary, ThreadPoolExecutor(workers) as pool:
        if codec == "gzip":
            return pack_gzip(sources, temporary, pool, 2 * workers + 2, advance or _ignore)
        return _pack_blocks(sources, temporary, pool, 2 * workers + 2, advance or _ignore)


def _ignore(_: int) -> None:
    pass


def _pack_blocks(
    sources: Mapping[str, Path], archive: Path, pool: Executor, ahead: int, advance: Advance
) -> list[Member]:
    paths, inputs = list(sources), list(sources.values())
    hashes = [(hashlib.sha256(), hashlib.md5()) for _ in paths]
    blocks: list[list[Block]] = [[] for _ in paths]
    work, unsent = _Work(), 0
    with closing(_Inputs(inputs)) as opened, open(archive, "wb") as out, closing(Flusher()) as flusher:
        out.write(header())
        for task, (data, packed) in in_order(pool, work, _tasks(opened, pool), ahead):
            for digest in hashes[task.source]:
                digest.update(data)
            for piece, block in packed:
                unsent += out.write(piece)
                blocks[task.source].append(block)
            if unsent >= FLUSH:
                unsent = 0
                out.flush()
                flusher.submit(os.fdatasync, out.fileno())
            opened.forget(before=task.source)
            advance(len(data))
            work.buffers.give(data)
        flusher.settle()
        members = [
            Member(path, sum(b.size for b in rows), sha256.hexdigest(), md5.hexdigest(), tuple(rows))
            for path, rows, (sha256, md5) in zip(paths, blocks, hashes, strict=True)
        ]
        out.write(index_and_footer(members, out.tell()))
    return members


class _Inputs:
    """The files being read, open from their first block to their last."""

    def __init__(self, paths: list[Path]):
        self.paths, self.open = paths, {}

    def descriptor(self, index: int) -> int:
        if index not in self.open:
            self.open[index] = os.open(self.paths[index], os.O_RDONLY)
        return self.open[index]

    def forget(self, before: int) -> None:
        for index in [i for i in self.open if i < before]:
            os.close(self.open.pop(index))

    def close(self) -> None:
        self.forget(before=len(self.paths))


def _tasks(inputs: _Inputs, pool: Executor) -> Iterator[_Task]:
    plans: dict[tuple[str, str, int], _Plan] = {}
    for index, path in enumerate(inputs.paths):
        descriptor = inputs.descriptor(index)
        pieces = list(cuts(regions(path), os.fstat(descriptor).st_size))
        for cut in pieces:
            if cut.dtype and cut.kind not in plans:
                alike = [other for other in pieces if other.kind == cut.kind]
                plans[cut.kind] = _trial(pool, descriptor, alike)
            yield _Task(index, descriptor, cut, plans[cut.kind] if cut.dtype else _Plan(0))


class _Work:
    """Reads and packs a block; returns its bytes, to be hashed in order, and the blocks they make."""

    def __init__(self):
        self.buffers = Buffers()

    def __call__(self, task: _Task) -> tuple[np.ndarray, list[Packed]]:
        data = _read(task.descriptor, task.cut, self.buffers.take(task.cut.size))
        packed = _encode(data, task.cut, task.plan)
        # An archive is proved while its source is there: what it unpacks to is compared at once.
        restored, offset = self.buffers.take(len(data)), 0
        for piece, block in packed:
            decode(piece, block, restored[offset : offset + block.size], "packing")
            offset += block.size
        if not np.array_equal(restored, data):
            raise UpsDataError("packing: a block does not unpack to what it was made of; report this, use codec gzip")
        self.buffers.give(restored)
        return data, packed


def _encode(data: np.ndarray, cut: Cut, plan: _Plan) -> list[Packed]:
    if plan.by_order:
        return encode_by_order(data, _coding(cut, plan))
    return [encode(data, _coding(cut, plan))]


def _read(descriptor: int, cut: Cut, out: np.ndarray) -> np.ndarray:
    if os.preadv(descriptor, [out], cut.offset) != cut.size:
        raise UpsDataError("a file became shorter while it was being packed; pack it when nothing writes it")
    return out


def _coding(cut: Cut, plan: _Plan) -> Coding:
    if not plan.fastest:
        return DEFLATE
    axes = list(range(len(cut.shape)))
    axes.append(axes.pop(plan.fastest))
    return Coding("pcodec", cut.dtype, cut.shape, tuple(axes))


def _trial(pool: Executor, descriptor: int, alike: list[Cut]) -> _Plan:
    """The plan that packs samples of these cuts smallest: which axis last, or deflate; for much data, who chooses.

    The choice depends on the data alone, never on the time it took.
    """
    much = sum(cut.size for cut in alike) >= PATIENCE
    count = max(1, min(SAMPLES, len(alike), sum(cut.size for cut in alike) // BLOCK))
    samples = [_start(alike[(2 * i + 1) * len(alike) // (2 * count)]) for i in range(count)]
    dimensions = len(alike[0].shape)
    axes = min(AXES, dimensions - 1 if dimensions > 2 else dimensions)
    plans = [*(_Plan(-axis, by_order=much) for axis in range(1, axes + 1)), _Plan(0)]
    sizes = _sizes(pool, descriptor, samples, plans)
    best = min(plans, key=sizes.__getitem__)  # the first of equals: the order in the file
    if not best.by_order:
        return best
    by_pcodec = _Plan(best.fastest)
    return best if sizes[best] <= WORTH * _sizes(pool, descriptor, samples, [by_pcodec])[by_pcodec] else by_pcodec


def _sizes(pool: Executor, descriptor: int, samples: list[Cut], plans: list[_Plan]) -> dict[_Plan, float]:
    """Packed size of the samples under each plan, in units of their unpacked size, added up."""
    trials = [(plan, cut) for plan in plans for cut in samples]

    def share(trial: tuple[_Plan, Cut]) -> float:
        plan, cut = trial
        if not plan.fastest:
            cut = Cut(cut.offset, min(cut.size, DEFLATE_PIECE))
        data = _read(descriptor, cut, np.empty(cut.size, np.uint8))
        return sum(block.packed for _, block in _encode(data, cut, plan)) / len(data)

    sizes = dict.fromkeys(plans, 0.0)
    for (plan, _), value in zip(trials, pool.map(share, trials), strict=True):
        sizes[plan] += value
    return sizes


def _start(cut: Cut) -> Cut:
    """The first rows of a block, about PIECE bytes, with as many axes as the block has."""
    shape, size = list(cut.shape), cut.size
    for axis, length in enumerate(cut.shape):
        row = size // length
        shape[axis] = max(1, min(length, PIECE // row))
        size = row * shape[axis]
        if shape[axis] > 1:
            break
    return Cut(cut.offset, size, cut.dtype, tuple(shape), cut.name)
