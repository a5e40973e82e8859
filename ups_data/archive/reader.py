"""Archives to files: verified in full in a temporary folder, then published by renaming."""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ups_data import execution, files
from ups_data.archive import targz
from ups_data.archive.blocks import decode
from ups_data.archive.flow import BUFFER, FLUSH, Buffers, Flusher, in_order
from ups_data.archive.format import MAGIC, Block, Member, read_index
from ups_data.errors import UpsDataError

STAGING = ".upk-"  # temporary folders are .upk-<random>.tmp inside the target
ROOM = 16 << 20  # bytes to spare for folders and names

Advance = Callable[[int], None]
Accept = Callable[[list[Member]], None]


def members(archive: str | Path) -> list[Member]:
    """What an archive holds, from its index (.upk) or its first member (.tar.gz)."""
    with _opened(archive) as file:
        if _is_gzip(file, archive):
            return targz.open_gzip(file, str(archive))[0]
        return read_index(file, str(archive))


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
        stream = None
        if _is_gzip(file, archive):
            listed, stream = targz.open_gzip(file, str(archive))
        else:
            listed = read_index(file, str(archive))
        chosen, units = _choose(listed, only, archive)
        if accept:
            accept(chosen)
        files.require_space(target, sum(m.size for m in chosen) + ROOM, f"unpacking {archive.name}")
        target.mkdir(parents=True, exist_ok=True)
        _refuse_links(target, units)
        with _staging(target) as folder:
            if stream is not None:
                _restore_gzip(stream, listed, chosen, folder, advance or _ignore)
            else:
                _restore_blocks(file, chosen, folder, workers or execution.cores(), advance or _ignore)
            for unit in units:
                files.publish(folder / unit, target / unit)
    return chosen


def verify(archive: str | Path, advance: Advance | None = None) -> list[Member]:
    """Unpack every byte of an archive and compare it with its SHA-256, writing nothing; returns the members."""
    with _opened(archive) as file, ThreadPoolExecutor(execution.cores()) as pool:
        if _is_gzip(file, archive):
            listed, stream = targz.open_gzip(file, str(archive))
            for member, pieces in targz.gzip_contents(stream, listed):
                _copy(member, pieces, None, str(archive), advance or _ignore)
            return listed
        listed = read_index(file, str(archive))
        work = _Work(file.fileno(), str(archive))
        _consume(in_order(pool, work, _tasks(listed, lambda _: None), _ahead()), work, listed, advance or _ignore)
    return listed


def _ignore(_: int) -> None:
    pass


def _ahead(workers: int | None = None) -> int:
    return 2 * (workers or execution.cores()) + 2


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
class _Task:
    member: int
    output: int | None  # descriptor of the file being restored
    blocks: tuple[Block, ...]  # neighbours, restored by one worker at a time; none: the member is empty
    source: int  # offset of the packed bytes in the archive
    target: int  # offset of the bytes in the member

    @property
    def size(self) -> int:
        """Bytes once unpacked."""
        return sum(block.size for block in self.blocks)


class _Work:
    """Unpacks the blocks of a task and writes them in their place; returns their bytes, which are hashed in order."""

    def __init__(self, archive: int, name: str):
        self.archive, self.name = archive, name
        self.buffers = Buffers()

    def __call__(self, task: _Task) -> np.ndarray:
        out, source, offset = self.buffers.take(task.size), task.source, 0
        for block in task.blocks:
            packed = os.pread(self.archive, block.packed, source)
            decode(packed, block, out[offset : offset + block.size], self.name)
            source, offset = source + block.packed, offset + block.size
        if task.output is not None:
            written = 0
            while written < len(out):
                written += os.pwrite(task.output, out[written:], task.target + written)
        return out


def _tasks(chosen: Sequence[Member], create: Callable[[Member], int | None]) -> Iterator[_Task]:
    for index, member in enumerate(chosen):
        output, source, target = create(member), member.offset, 0
        for blocks in _batches(member.blocks):
            task = _Task(index, output, blocks, source, target)
            yield task
            source, target = source + sum(block.packed for block in blocks), target + task.size


def _batches(blocks: Sequence[Block]) -> Iterator[tuple[Block, ...]]:
    """Neighbouring blocks, as many as a buffer holds but at least one; a member without blocks is one empty batch."""
    batch, size = [], 0
    for block in blocks:
        if batch and size + block.size > BUFFER:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(block)
        size += block.size
    yield tuple(batch)


class _Outputs:
    """The files being restored; their bytes go to the disk while others are still being unpacked."""

    def __init__(self, folder: Path):
        self.folder, self.flusher = folder, Flusher()
        self.open: dict[int, int] = {}  # descriptor -> bytes that are final and not yet sent to the disk

    def create(self, member: Member) -> int:
        """A new file for this member."""
        descriptor = _create(self.folder, member)
        self.open[descriptor] = 0
        return descriptor

    def wrote(self, descriptor: int, size: int) -> None:
        """`size` more bytes of a file are final."""
        self.open[descriptor] += size
        if self.open[descriptor] >= FLUSH:
            self.open[descriptor] = 0
            self.flusher.submit(os.fdatasync, descriptor)

    def finish(self, descriptor: int) -> None:
        """All bytes of a file are final."""
        self.flusher.submit(os.fsync, descriptor)
        self.flusher.submit(os.close, descriptor)
        del self.open[descriptor]

    def close(self) -> None:
        """Give up what is not finished."""
        self.flusher.close()
        for descriptor in self.open:
            os.close(descriptor)


def _restore_blocks(file: BinaryIO, chosen: Sequence[Member], folder: Path, workers: int, advance: Advance) -> None:
    # The workers end before the descriptors are closed: none writes into a number used anew.
    with closing(_Outputs(folder)) as outputs, ThreadPoolExecutor(workers) as pool:
        work = _Work(file.fileno(), file.name)
        _consume(in_order(pool, work, _tasks(chosen, outputs.create), _ahead(workers)), work, chosen, advance, outputs)
        outputs.flusher.settle()


def _consume(
    results: Iterator[tuple[_Task, np.ndarray]],
    work: _Work,
    chosen: Sequence[Member],
    advance: Advance,
    outputs: _Outputs | None = None,
) -> None:
    """Hash the blocks in their order; a member's file is finished once it has its checksum."""
    current, digest, size = -1, hashlib.sha256(), 0
    for task, data in results:
        if task.member != current:
            current, digest, size = task.member, hashlib.sha256(), 0
        digest.update(data)
        size += len(data)
        advance(len(data))
        work.buffers.give(data)
        if outputs:
            outputs.wrote(task.output, task.size)
        if size == chosen[current].size:
            _compare(chosen[current], digest.hexdigest())
            if outputs:
                outputs.finish(task.output)


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
