"""Files to one archive: numbers by pcodec, other bytes by deflate or lzma, the same bytes on every machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ups_data import execution, files
from ups_data.archive.blocks import Packed, decode, encode, encode_by_order, encode_bytes
from ups_data.archive.flow import FLUSH, Buffers, Flusher, in_order
from ups_data.archive.format import Coding, Member, check_paths
from ups_data.archive.index import HEADER, index_and_footer
from ups_data.archive.layout import BLOCK, Cut, cuts, regions
from ups_data.archive.targz import pack_gzip
from ups_data.errors import UpsDataError

PIECE = 128 << 10  # bytes of a sample: enough rows for each axis to show how smooth it is
SAMPLES = 5  # at most, one for each 4 MB: an odd number, so that a dataset of equal parts is not met in step
DEFLATE_PIECE = 32 << 10  # deflate is 6 times slower than pcodec; repetition shows early
AXES = 3  # how many of the last axes are tried as the fastest one, the first of three or more (samples) never
PATIENCE = 32 << 20  # bytes; less than that is packed before a longer trial has paid for itself
WORTH = 1.03  # differences chosen by us pack twice as fast as those pcodec looks for: worth this much more size
SMALL = 1 << 20  # bytes; smaller files without numbers share blocks
LZMA_BUDGET = 8 << 20  # bytes of an archive on which lzma is tried, at 1 to 3 MB/s a core; those after are deflated

Advance = Callable[[int], None]
Encode = Callable[[np.ndarray], list[Packed]]


@dataclass(frozen=True)
class _Plan:
    """How numbers of one kind are packed: the axis put last, counted from the end (0: as bytes), and who chooses the
    order of differences: we, page by page, or pcodec."""

    fastest: int
    by_order: bool = False


@dataclass(frozen=True)
class _Source:
    """A file to be packed; it must not change before it is."""

    member: str
    path: Path
    state: tuple[int, int, int]  # inode, bytes, time of its last change

    @property
    def size(self) -> int:
        """Bytes."""
        return self.state[1]

    def read(self, offset: int, out: np.ndarray) -> np.ndarray:
        """Fill `out` with the bytes from `offset`."""
        with open(self.path, "rb", buffering=0) as file:
            if _state(os.fstat(file.fileno())) != self.state or os.preadv(file.fileno(), [out], offset) != len(out):
                raise UpsDataError(f"{self.path} changed while it was being packed; pack it when nothing writes it")
        return out


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class _Task:
    """One block to be, or several: a cut of a file, or small files one after another."""

    parts: tuple[tuple[_Source, int, int], ...]  # source, offset in it, bytes
    encode: Encode

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(size for _, _, size in self.parts)


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
    appears whole or not at all. Returns the members with their checksums, sorted by path.
    """
    archive, workers = Path(archive), workers or execution.cores()
    sources = dict(sorted(sources.items()))
    check_paths(sources, str(archive))
    total = sum(path.stat().st_size for path in sources.values())
    files.require_space(archive.parent, total // 2, f"packing {archive.name}")  # numbers pack to half or less
    with files.atomic(archive) as temporary, ThreadPoolExecutor(workers) as pool:
        if codec == "gzip":
            return pack_gzip(sources, temporary, pool, 2 * workers + 2, advance or _ignore)
        found = [_Source(name, path, _state(path.stat())) for name, path in sources.items()]
        members = _pack_blocks(found, temporary, pool, 2 * workers + 2, advance or _ignore)
    return sorted(members, key=lambda member: member.path)


def _ignore(_: int) -> None:
    pass


def _pack_blocks(sources: list[_Source], archive: Path, pool: Executor, ahead: int, advance: Advance) -> list[Member]:
    hashed, blocks = _Hashed(), []
    work, unsent = _Work(), 0
    with open(archive, "wb") as out, closing(Flusher()) as flusher:
        out.write(HEADER)
        for task, (data, packed) in in_order(pool, work, _tasks(sources, pool), ahead):
            hashed.update(task, data)
            for piece, block in packed:
                unsent += out.write(piece)
                blocks.append(block)
            if unsent >= FLUSH:
                unsent = 0
                out.flush()
                flusher.submit(os.fdatasync, out.fileno())
            advance(len(data))
            work.buffers.give(data)
        flusher.settle()
        out.write(index_and_footer(hashed.members, blocks))
    return hashed.members


class _Hashed:
    """The members so far, in the order of their bytes."""

    def __init__(self):
        self.members: list[Member] = []
        self.sha256, self.md5 = hashlib.sha256(), hashlib.md5()

    def update(self, task: _Task, data: np.ndarray) -> None:
        """Add the next bytes; a member is complete with its last one."""
        begin = 0
        for source, offset, size in task.parts:
            for digest in (self.sha256, self.md5):
                digest.update(data[begin : begin + size])
            begin += size
            if offset + size == source.size:
                self.members.append(Member(source.member, source.size, self.sha256.hexdigest(), self.md5.hexdigest()))
                self.sha256, self.md5 = hashlib.sha256(), hashlib.md5()


class _Work:
    """Reads and packs a block; returns its bytes, to be hashed in order, and the blocks they make."""

    def __init__(self):
        self.buffers = Buffers()

    def __call__(self, task: _Task) -> tuple[np.ndarray, list[Packed]]:
        data, begin = self.buffers.take(task.size), 0
        for source, offset, size in task.parts:
            source.read(offset, data[begin : begin + size])
            begin += size
        packed = task.encode(data) if len(data) else []
        # An archive is proved while its source is there: what it unpacks to is compared at once.
        restored, begin = self.buffers.take(len(data)), 0
        for piece, block in packed:
            decode(bytes(piece), block, restored[begin : begin + block.size], "packing")
            begin += block.size
        if not np.array_equal(restored, data):
            raise UpsDataError("packing: a block does not unpack to what it was made of; report this, use codec gzip")
        self.buffers.give(restored)
        return data, packed


# --- which bytes make a block, and how it is packed ----------------------------------------------


def _tasks(sources: list[_Source], pool: Executor) -> Iterator[_Task]:
    """Small files without numbers first, those of one kind together; then the others, each cut for itself."""
    small = [source for source in sources if source.size < SMALL and not regions(source.path)]
    small.sort(key=lambda source: (Path(source.member).suffix, source.member))
    budget = LZMA_BUDGET

    def as_bytes(size: int) -> Encode:
        nonlocal budget
        budget -= size
        return partial(_encode_bytes, patient=budget >= 0)

    for parts in _together(small):
        yield _Task(parts, as_bytes(sum(size for _, _, size in parts)))
    alone, plans = set(sources) - set(small), {}
    for source in sources:
        if source not in alone:
            continue
        pieces = list(cuts(regions(source.path), source.size))
        for cut in pieces:
            if cut.dtype and cut.kind not in plans:
                plans[cut.kind] = _trial(pool, source, [other for other in pieces if other.kind == cut.kind])
            plan = plans[cut.kind] if cut.dtype else _Plan(0)
            yield _Task(((source, cut.offset, cut.size),), _encode(cut, plan) if plan.fastest else as_bytes(cut.size))


def _together(small: list[_Source]) -> Iterator[tuple[tuple[_Source, int, int], ...]]:
    parts, size = [], 0
    for source in small:
        if parts and size + source.size > BLOCK:
            yield tuple(parts)
            parts, size = [], 0
        parts.append((source, 0, source.size))
        size += source.size
    if parts:
        yield tuple(parts)


def _encode_bytes(data: np.ndarray, patient: bool) -> list[Packed]:
    return [encode_bytes(data, patient)]


def _encode(cut: Cut, plan: _Plan) -> Encode:
    """What packs this cut of numbers."""
    if not plan.fastest:
        return partial(_encode_bytes, patient=False)
    axes = list(range(len(cut.shape)))
    axes.append(axes.pop(plan.fastest))
    coding = Coding("pcodec", cut.dtype, cut.shape, tuple(axes))
    return partial(encode_by_order if plan.by_order else encode, coding=coding)


def _trial(pool: Executor, source: _Source, alike: list[Cut]) -> _Plan:
    """The plan that packs samples of these cuts smallest: which axis last, or as bytes; for much data, who chooses.

    The choice depends on the data alone, never on the time it took.
    """
    much = sum(cut.size for cut in alike) >= PATIENCE
    count = max(1, min(SAMPLES, len(alike), sum(cut.size for cut in alike) // BLOCK))
    samples = [_start(alike[(2 * i + 1) * len(alike) // (2 * count)]) for i in range(count)]
    dimensions = len(alike[0].shape)
    axes = min(AXES, dimensions - 1 if dimensions > 2 else dimensions)
    plans = [*(_Plan(-axis, by_order=much) for axis in range(1, axes + 1)), _Plan(0)]
    sizes = _sizes(pool, source, samples, plans)
    best = min(plans, key=sizes.__getitem__)  # the first of equals: the order in the file
    if not best.by_order:
        return best
    by_pcodec = _Plan(best.fastest)
    return best if sizes[best] <= WORTH * _sizes(pool, source, samples, [by_pcodec])[by_pcodec] else by_pcodec


def _sizes(pool: Executor, source: _Source, samples: list[Cut], plans: list[_Plan]) -> dict[_Plan, float]:
    """Packed size of the samples under each plan, in units of their unpacked size, added up."""
    trials = [(plan, cut) for plan in plans for cut in samples]

    def share(trial: tuple[_Plan, Cut]) -> float:
        plan, cut = trial
        if not plan.fastest:
            cut = Cut(cut.offset, min(cut.size, DEFLATE_PIECE))
        data = source.read(cut.offset, np.empty(cut.size, np.uint8))
        return sum(block.packed for _, block in _encode(cut, plan)(data)) / len(data)

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
