"""Files to one archive: numbers by pcodec, other bytes by deflate or lzma, the same bytes on every machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from ups_data import execution, files
from ups_data.archive import numbers
from ups_data.archive.blocks import Packed, decode, encode, encode_by_order, encode_bytes
from ups_data.archive.flow import FLUSH, Buffers, Flusher
from ups_data.archive.format import Coding, Member, Seal, check_paths
from ups_data.archive.index import HEADER, index_and_footer, read_index
from ups_data.archive.layout import BLOCK, Cut, Region, cuts, description, regions
from ups_data.archive.targz import pack_gzip
from ups_data.errors import UpsDataError
from ups_data.execution import in_order

PIECE = 128 << 10  # bytes of a sample: enough rows for each axis to show how smooth it is
SAMPLES = 5  # at most, one for each 4 MB: an odd number, so that a dataset of equal parts is not met in step
DEFLATE_PIECE = 32 << 10  # deflate is 6 times slower than pcodec; repetition shows early
AXES = 3  # how many of the last axes are tried as the fastest one, the first of three or more (samples) never
PATIENCE = 32 << 20  # bytes; less than that is packed before a longer trial has paid for itself
# Differences chosen by us pack twice as fast as those pcodec looks for, and a level less a tenth faster: the fastest
# way is taken that is worth its size.
WORTH = 1.03
NEAR = 1.01  # an axis farther from the last one takes longer to reach: it has to pack so much smaller
SMALL = 1 << 20  # bytes; smaller files without numbers share blocks
# Bytes; smaller files, and runs of numbers, share blocks whatever they hold, and smaller files share a checksum. It is
# as far as deflate looks back: beyond, tar's 512 bytes before each file cost it more than our checksums cost us.
TINY = 32 << 10
INDEXED = 12  # bytes of the index that one more block takes, about
LZMA_BUDGET = 8 << 20  # bytes of an archive on which lzma is tried, at 1 to 3 MB/s a core; those after are deflated

Advance = Callable[[int], None]
Accept = Callable[[list[Member], Path], None]
Encode = Callable[[np.ndarray], list[Packed]]


@dataclass(frozen=True)
class _Plan:
    """How numbers of one kind are packed: the axis put last, counted from the end (0: as bytes), and at which level,
    where we choose the order of differences page by page and not pcodec (0)."""

    fastest: int
    by_order: int = 0

    def pack(self, data: np.ndarray, cut: Cut) -> int:
        """The size of a sample."""
        if not self.fastest:
            return encode_bytes(data, patient=False)[1].packed
        coding = _coding(cut, self.fastest)
        if not self.by_order:
            return len(numbers.pack(data, coding))
        return sum(len(piece) for piece, _, _ in numbers.pack_by_order(data, coding, self.by_order))


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


_Part = tuple[_Source, Cut]


@dataclass(frozen=True)
class _Task:
    """One block to be, or several: a cut of a file, or small ones one after another."""

    parts: tuple[_Part, ...]
    encode: Encode

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(cut.size for _, cut in self.parts)


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
    accept: Accept | None = None,
) -> list[Member]:
    """Write `sources` (member path -> file) to `archive`; the bytes depend on the files alone.

    `codec` is `pcodec` (.upk) or `gzip` (.tar.gz). `advance` is told bytes as they are read. The archive
    appears whole or not at all; `accept` sees the members and the file before it does, and may refuse by raising.
    Returns the members with their checksums, sorted by path.
    """
    archive, workers = Path(archive), workers or execution.cores()
    sources = dict(sorted(sources.items()))
    check_paths(sources, str(archive))
    total = sum(path.stat().st_size for path in sources.values())
    files.require_space(archive.parent, total // 2, f"packing {archive.name}")  # numbers pack to half or less
    with files.atomic(archive) as temporary, ThreadPoolExecutor(workers) as pool:
        if codec == "gzip":
            members = pack_gzip(sources, temporary, pool, 2 * workers + 2, advance or _ignore)
        else:
            found = [_Source(name, path, _state(path.stat())) for name, path in sources.items()]
            members = _pack_blocks(found, temporary, pool, 2 * workers + 2, advance or _ignore)
            members.sort(key=lambda member: member.path)
        if accept:
            accept(members, temporary)
    return members


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
        out.write(index_and_footer(hashed.members, hashed.seals, blocks))
    with open(archive, "rb") as written:  # as the blocks were, the index is proved while the sources are there
        listed = {(member.path, member.size) for member in read_index(written, "packing").members}
    if listed != {(source.member, source.size) for source in sources}:
        raise UpsDataError("packing: the index does not list what was packed; report this, use codec gzip")
    return hashed.members


class _Hashed:
    """The members so far, in the order of their bytes, and the seals they are under."""

    def __init__(self):
        self.members: list[Member] = []
        self.seals: list[Seal] = []
        self.sha256, self.md5, self.together = hashlib.sha256(), hashlib.md5(), hashlib.sha256()

    def update(self, task: _Task, data: np.ndarray) -> None:
        """Add the next bytes; a member is complete with its last one. Tiny ones of one task share a seal."""
        begin = 0
        for source, cut in task.parts:
            tiny = source.size < TINY
            if not tiny:
                self._seal()
            for digest in (self.sha256, self.md5, *([self.together] if tiny else [])):
                digest.update(data[begin : begin + cut.size])
            begin += cut.size
            if cut.offset + cut.size == source.size:
                self.members.append(Member(source.member, source.size, self.sha256.hexdigest(), self.md5.hexdigest()))
                if not tiny:
                    self.together = self.sha256
                    self._seal()
                self.sha256, self.md5 = hashlib.sha256(), hashlib.md5()
        self._seal()

    def _seal(self) -> None:
        """Put the members that have none yet under a seal."""
        first = self.seals[-1].members.stop if self.seals else 0
        if first < len(self.members):
            self.seals.append(Seal(range(first, len(self.members)), self.together.hexdigest()))
            self.together = hashlib.sha256()


class _Work:
    """Reads and packs a block; returns its bytes, to be hashed in order, and the blocks they make."""

    def __init__(self):
        self.buffers = Buffers()

    def __call__(self, task: _Task) -> tuple[np.ndarray, list[Packed]]:
        data, begin = self.buffers.take(task.size), 0
        for source, cut in task.parts:
            source.read(cut.offset, data[begin : begin + cut.size])
            begin += cut.size
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
    """Small files first, those of one kind together; then the others, cut for themselves."""
    budget = LZMA_BUDGET

    def task(parts: list[_Part]) -> _Task:
        nonlocal budget
        budget -= sum(cut.size for _, cut in parts)
        return _Task(tuple(parts), partial(_encode_mixed, cuts=[cut for _, cut in parts], patient=budget >= 0))

    packed = {source.member: source.path for source in sources}

    def runs_of(source: _Source) -> list[Region]:
        return regions(source.path, description(source.member, packed))

    found = {source: runs_of(source) for source in sources if source.size < SMALL}
    small = [source for source, runs in found.items() if source.size < TINY or not runs]
    small.sort(key=lambda source: (bool(found[source]), source.size >= TINY, Path(source.member).suffix, source.member))
    for parts in _together((source, cut) for source in small for cut in _parts(found[source], source.size)):
        yield task(parts)
    alone, plans = set(sources) - set(small), {}
    for source in sources:
        if source not in alone:
            continue
        pieces = list(cuts(found.get(source) or runs_of(source), source.size))
        for parts in _together((source, cut) for cut in pieces):
            cut = parts[0][1]
            if len(parts) > 1 or not cut.dtype:
                yield task(parts)
                continue
            if cut.kind not in plans:
                plans[cut.kind] = _trial(pool, source, [other for other in pieces if other.kind == cut.kind])
            plan = plans[cut.kind]
            yield (
                _Task(tuple(parts), _encode(cut, plan)) if plan.fastest else task([(source, Cut(cut.offset, cut.size))])
            )


def _together(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Neighbours that make a block: small ones up to its size; numbers that are many, and files with such, alone."""
    block, size = [], 0
    for source, cut in parts:
        large = cut.dtype and cut.size >= TINY
        if block and (large or size + cut.size > BLOCK):
            yield block
            block, size = [], 0
        block.append((source, cut))
        size += cut.size
        if large:
            yield block
            block, size = [], 0
    if block:
        yield block


def _parts(runs: list[Region], size: int) -> list[Cut]:
    """The cuts of a small file; one of no bytes has one too."""
    return list(cuts(runs, size)) or [Cut(0, 0)]


def _encode_mixed(data: np.ndarray, cuts: Sequence[Cut], patient: bool) -> list[Packed]:
    """Pack as bytes, or the tiny runs of numbers among them as numbers where that is smaller."""
    whole = [encode_bytes(data, patient)]
    if not any(cut.dtype for cut in cuts):
        return whole
    apart, begin = [], 0
    for are_numbers, run in groupby(cuts, key=lambda cut: bool(cut.dtype)):
        for size, ways in [(c.size, _ways(c)) for c in run] if are_numbers else [(sum(c.size for c in run), [])]:
            piece, begin = data[begin : begin + size], begin + size
            tried = [encode(piece, coding) for coding in ways] or [[encode_bytes(piece, patient)]]
            apart += min(tried, key=_cost)
    return min(whole, apart, key=_cost)


def _cost(packed: list[Packed]) -> int:
    """Bytes in the archive."""
    return sum(block.packed + INDEXED for _, block in packed)


def _ways(cut: Cut) -> list[Coding]:
    """Codings of these numbers, each with another axis as the fastest one; the order in the file is the first."""
    dimensions = len(cut.shape)
    return [_coding(cut, axis) for axis in range(1, min(AXES, dimensions - 1 if dimensions > 2 else dimensions) + 1)]


def _coding(cut: Cut, fastest: int) -> Coding:
    """Numbers with this axis, counted from the end, as the last one; samples and channels, if there are, lead."""
    order = list(range(len(cut.shape)))
    if fastest > 1:
        order.append(order.pop(-fastest))
        order.insert(min(1, len(order) - 2), order.pop(-2))
    return Coding("pcodec", cut.dtype, cut.shape, tuple(order))


def _encode(cut: Cut, plan: _Plan) -> Encode:
    """What packs this cut as numbers."""
    coding = _coding(cut, plan.fastest)
    if plan.by_order:
        return partial(encode_by_order, coding=coding, level=plan.by_order)
    return partial(encode, coding=coding)


def _trial(pool: Executor, source: _Source, alike: list[Cut]) -> _Plan:
    """The plan that packs samples of these cuts smallest: which axis last, or as bytes; for much data, which effort.

    The choice depends on the data alone, never on the time it took.
    """
    much = sum(cut.size for cut in alike) >= PATIENCE
    count = max(1, min(SAMPLES, len(alike), sum(cut.size for cut in alike) // BLOCK))
    samples = [_start(alike[(2 * i + 1) * len(alike) // (2 * count)]) for i in range(count)]
    level = numbers.LEVEL if much else 0
    plans = [*(_Plan(axis, level) for axis in range(1, len(_ways(alike[0])) + 1)), _Plan(0)]
    sizes = _sizes(pool, source, samples, plans)
    best = min(plans, key=lambda plan: sizes[plan] * NEAR**plan.fastest)  # the first of equals: the order in the file
    if not best.by_order:
        return best
    efforts = [_Plan(best.fastest, numbers.QUICK), best, _Plan(best.fastest)]
    sizes |= _sizes(pool, source, samples, [efforts[0], efforts[2]])
    return next(plan for plan in efforts if sizes[plan] <= WORTH * min(sizes[plan] for plan in efforts))


def _sizes(pool: Executor, source: _Source, samples: list[Cut], plans: list[_Plan]) -> dict[_Plan, float]:
    """Packed size of the samples under each plan, in units of their unpacked size, added up."""
    trials = [(plan, cut) for plan in plans for cut in samples]

    def share(trial: tuple[_Plan, Cut]) -> float:
        plan, cut = trial
        size = cut.size if plan.fastest else min(cut.size, DEFLATE_PIECE)
        return plan.pack(source.read(cut.offset, np.empty(size, np.uint8)), cut) / size

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
