"""Archives to files: verified in full in a temporary folder, then published by renaming."""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ups_data import execution, files
from ups_data.archive import targz
from ups_data.archive.blocks import decode
from ups_data.archive.flow import BUFFER, FLUSH, Buffers, Flusher, in_order
from ups_data.archive.format import MAGIC, Block, Contents, Member
from ups_data.archive.index import read_index
from ups_data.errors import UpsDataError

SMALL = 1 << 20  # bytes of a file that is sent to the disk by itself
STAGING = ".upk-"  # temporary folders are .upk-<random>.tmp inside the target
ROOM = 16 << 20  # bytes to spare for folders and names

Advance = Callable[[int], None]
Accept = Callable[[list[Member]], None]


def members(archive: str | Path) -> list[Member]:
    """What an archive holds, sorted by path, from its index (.upk) or its first member (.tar.gz)."""
    with _opened(archive) as file:
        if _is_gzip(file, archive):
            return targz.open_gzip(file, str(archive))[0]
        return _by_path(read_index(file, str(archive)))


def extract(
    archive: str | Path,
    target: str | Path,
    only: Sequence[str] = (),
    workers: int | None = None,
    advance: Advance | None = None,
    accept: Accept | None = None,
) -> list[Member]:
    """Restore an archive, or the files and folders named in `only`, into the folder `target`.

    Nothing is visible there before every byte asked for has its SHA-256; then each file or folder takes the
    place of its namesake by renaming. `accept` sees the members first and may refuse them by raising;
    `advance` is told bytes as they are written. Returns the restored members. Raises UpsDataError for a
    damaged or hostile archive, an unknown name, or a disk without room, and leaves nothing behind.
    """
    archive, target = Path(archive), Path(target)
    with _opened(archive) as file:
        if _is_gzip(file, archive):
            listed, stream = targz.open_gzip(file, str(archive))
            restore = partial(_restore_gzip, stream, listed)
        else:
            contents = read_index(file, str(archive))
            listed = _by_path(contents)
            restore = partial(_restore_blocks, file, contents, workers or execution.cores())
        chosen, units = _choose(listed, only, archive)
        if accept:
            accept(chosen)
        files.require_space(target, sum(m.size for m in chosen) + ROOM, f"unpacking {archive.name}")
        target.mkdir(parents=True, exist_ok=True)
        _refuse_links(target, units)
        with _staging(target) as folder:
            restore(chosen, folder, advance or _ignore)
            for unit in units:
                files.publish(folder / unit, target / unit)
    return chosen


def verify(archive: str | Path, advance: Advance | None = None) -> list[Member]:
    """Unpack every byte of an archive and compare it with its SHA-256, writing nothing; returns the members."""
    workers = execution.cores()
    with _opened(archive) as file, ThreadPoolExecutor(workers) as pool:
        if _is_gzip(file, archive):
            listed, stream = targz.open_gzip(file, str(archive))
            for member, pieces in targz.gzip_contents(stream, listed):
                _copy(member, pieces, None, str(archive), advance or _ignore)
            return listed
        contents = read_index(file, str(archive))
        work, tasks = _Work(file.fileno(), str(archive)), _tasks(contents, contents.members, _ignore)
        _consume(in_order(pool, work, tasks, _ahead(workers)), work, advance or _ignore, _ignore)
    return _by_path(contents)


def _by_path(contents: Contents) -> list[Member]:
    return sorted(contents.members, key=lambda member: member.path)


def _ignore(_: object) -> None:
    pass


def _ahead(workers: int) -> int:
    """Tasks at a time: few, so that hashing, which the main thread does, never falls behind unpacking."""
    return workers + 2


@contextmanager
def _opened(archive: str | Path) -> Iterator[BinaryIO]:
    try:
        file = open(archive, "rb")  # noqa: SIM115 - closed below; only the opening is guarded
    except FileNotFoundError:
        raise UpsDataError(f"{archive} is missing; fetch it (`dvc pull {archive}`) or check the name") from None
    except IsADirectoryError:
        raise UpsDataError(f"{archive} is a folder, not an archive; name a .upk or .tar.gz file") from None
    with file:
        yield file


def _is_gzip(file: BinaryIO, archive: str | Path) -> bool:
    start = file.read(len(MAGIC))
    file.seek(0)
    if start != MAGIC and start[:2] != targz.MAGIC:
        raise UpsDataError(f"{archive} is neither a .upk nor a .tar.gz archive (its first bytes are {start!r})")
    return start != MAGIC


def _choose(listed: list[Member], only: Sequence[str], archive: Path) -> tuple[list[Member], list[str]]:
    """The members asked for, and the files and folders to publish."""
    if not only:
        return listed, sorted({m.path.split("/")[0] for m in listed})
    units = sorted({name.rstrip("/") for name in only})
    for unit in units:
        if not any(m.path == unit or m.path.startswith(unit + "/") for m in listed):
            tops = ", ".join(sorted({m.path.split("/")[0] for m in listed}))
            raise UpsDataError(f"{archive} holds no {unit!r}; it holds {tops}")
    # A file inside a folder that is asked for too comes with the folder.
    units = [u for u in units if not any(u.startswith(other + "/") for other in units)]
    return [m for m in listed if any(m.path == u or m.path.startswith(u + "/") for u in units)], units


def _refuse_links(target: Path, units: Sequence[str]) -> None:
    """A linked folder between `target` and what is published would lead outside."""
    for unit in units:
        for parent in Path(unit).parents[:-1]:
            if (target / parent).is_symlink():
                raise UpsDataError(f"{target / parent} is a link; remove it, files are not written through it")


# --- the temporary folder ------------------------------------------------------------------------


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder inside `target` for files in the making; those of killed runs are swept away first.

    A run holds a lock inside its folder for as long as it lives, so a folder whose lock is free is dead.
    """
    for other in target.glob(f"{STAGING}*.tmp"):
        _sweep(other)
    folder = target / f"{STAGING}{uuid.uuid4().hex[:12]}.tmp"
    folder.mkdir()
    try:
        with open(folder / "lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "files").mkdir()
            yield folder / "files"
    finally:
        files.remove(folder)


def _sweep(folder: Path) -> None:
    try:
        with open(folder / "lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            files.remove(folder)
    except OSError:
        return  # alive, just being made, or gone by now


def _create(folder: Path, member: Member) -> int:
    path = folder / member.path
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)


# --- .upk ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slice:
    """Bytes of a block or several that belong to one member."""

    member: Member
    begin: int  # in the unpacked bytes of the task
    size: int
    target: int  # offset in the member


@dataclass(frozen=True)
class _Task:
    blocks: tuple[Block, ...]  # neighbours, restored by one worker at a time
    source: int  # offset of the packed bytes in the archive
    slices: tuple[_Slice, ...]

    @property
    def size(self) -> int:
        """Bytes once unpacked."""
        return sum(block.size for block in self.blocks)


class _Work:
    """Unpacks the blocks of a task and writes what is wanted of them; returns their bytes, to be hashed in order."""

    def __init__(self, archive: int, name: str, folder: Path | None = None):
        self.archive, self.name, self.folder = archive, name, folder
        self.buffers = Buffers()

    def __call__(self, task: _Task) -> np.ndarray:
        out, source, begin = self.buffers.take(task.size), task.source, 0
        for block in task.blocks:
            packed = os.pread(self.archive, block.packed, source)
            decode(packed, block, out[begin : begin + block.size], self.name)
            source, begin = source + block.packed, begin + block.size
        for piece in task.slices if self.folder else ():
            _write(self.folder / piece.member.path, out[piece.begin : piece.begin + piece.size], piece.target)
        return out


def _write(path: Path, data: np.ndarray, offset: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_NOFOLLOW), "wb", buffering=0) as out:
        written = 0
        while written < len(data):
            written += os.pwrite(out.fileno(), data[written:], offset + written)


def _tasks(contents: Contents, chosen: Iterable[Member], begin: Callable[[Member], None]) -> Iterator[_Task]:
    """The blocks of the chosen members, each block once; `begin` hears of a member before its first one."""
    wanted, waiting = set(chosen), deque()
    for number, member in enumerate(contents.members):
        if member in wanted and member.size:
            waiting.append(number)
        elif member in wanted:
            begin(member)
            _compare(member, hashlib.sha256().hexdigest())
    for blocks in _batches(contents, list(waiting)):
        end = contents.block_ends[blocks[-1]]
        start = contents.block_ends[blocks[0]] - contents.blocks[blocks[0]].size
        slices = []
        while waiting:
            member, stop = contents.members[waiting[0]], contents.member_ends[waiting[0]]
            first = stop - member.size
            if first >= end:
                break
            if first >= start:
                begin(member)
            inside = max(first, start)
            slices.append(_Slice(member, inside - start, min(stop, end) - inside, inside - first))
            if stop > end:
                break
            waiting.popleft()
        yield _Task(tuple(contents.blocks[n] for n in blocks), contents.offsets[blocks[0]], tuple(slices))


def _batches(contents: Contents, chosen: Iterable[int]) -> Iterator[list[int]]:
    """Neighbouring blocks of the chosen members, as many as a buffer holds but at least one."""
    batch, size = [], 0
    for number in sorted({block for member in chosen for block in contents.span(member)}):
        block = contents.blocks[number]
        if batch and (size + block.size > BUFFER or number != batch[-1] + 1):
            yield batch
            batch, size = [], 0
        batch.append(number)
        size += block.size
    if batch:
        yield batch


class _Outputs:
    """The files being restored; their bytes go to the disk while others are still being unpacked."""

    def __init__(self, folder: Path):
        self.folder, self.flusher = folder, Flusher()
        self.unsent = 0  # bytes of the file at hand that are final and not yet sent to the disk

    def create(self, member: Member) -> None:
        """A new, empty file for this member."""
        os.close(_create(self.folder, member))

    def wrote(self, piece: _Slice) -> None:
        """These bytes of a file are final."""
        self.unsent += piece.size
        done = piece.target + piece.size == piece.member.size
        if self.unsent >= FLUSH or (done and piece.member.size >= SMALL):  # small ones go together, when published
            self.flusher.submit(files.sync, self.folder / piece.member.path)
            self.unsent = 0
        elif done:
            self.unsent = 0

    def close(self) -> None:
        """Give up what is not finished."""
        self.flusher.close()


def _restore_blocks(
    file: BinaryIO, contents: Contents, workers: int, chosen: Sequence[Member], folder: Path, advance: Advance
) -> None:
    with closing(_Outputs(folder)) as outputs, ThreadPoolExecutor(workers) as pool:
        work = _Work(file.fileno(), file.name, folder)
        tasks = _tasks(contents, chosen, outputs.create)
        _consume(in_order(pool, work, tasks, _ahead(workers)), work, advance, outputs.wrote)
        outputs.flusher.settle()


def _consume(
    results: Iterator[tuple[_Task, np.ndarray]], work: _Work, advance: Advance, wrote: Callable[[_Slice], None]
) -> None:
    """Hash the members in the order of their bytes; `wrote` hears of bytes once a whole member has its checksum."""
    digest = hashlib.sha256()
    for task, data in results:
        for piece in task.slices:
            if piece.target == 0:
                digest = hashlib.sha256()
            digest.update(data[piece.begin : piece.begin + piece.size])
            if piece.target + piece.size == piece.member.size:
                _compare(piece.member, digest.hexdigest())
            wrote(piece)
            advance(piece.size)
        work.buffers.give(data)


def _compare(member: Member, sha256: str) -> None:
    if sha256 != member.sha256:
        raise UpsDataError(
            f"{member.path}: the unpacked bytes have SHA-256 {sha256}, the archive says {member.sha256}; "
            "the archive is damaged, fetch it again"
        )


# --- .tar.gz -------------------------------------------------------------------------------------


def _restore_gzip(stream, listed: list[Member], chosen: list[Member], folder: Path, advance: Advance) -> None:  # noqa: ANN001
    wanted = {member.path for member in chosen}
    for member, pieces in targz.gzip_contents(stream, listed):
        if member.path in wanted:
            with open(_create(folder, member), "wb") as out:
                _copy(member, pieces, out, stream.name, advance)
        else:
            _copy(member, pieces, None, stream.name, _ignore)


def _copy(member: Member, pieces: Iterator[bytes], out: BinaryIO | None, name: str, advance: Advance) -> None:
    digest = hashlib.sha256()
    for data in pieces:
        digest.update(data)
        advance(len(data))
        if out is not None:
            out.write(data)
    _compare(member, digest.hexdigest())
