"""Archives to files: verified in full in a temporary folder, then published by renaming."""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ups_data import execution, files
from ups_data.archive import targz
from ups_data.archive.blocks import decode, in_order
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
        tasks = _tasks(listed, lambda _: None)
        _consume(in_order(pool, _Work(file.fileno(), str(archive)), tasks, _ahead()), listed, advance or _ignore)
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
    block: Block | None  # None: the member is empty
    source: int  # offset of the packed bytes in the archive
    target: int  # offset of the bytes in the member


class _Work:
    """Unpacks a block and writes it in its place; returns its bytes, which are hashed in order."""

    def __init__(self, archive: int, name: str):
        self.archive, self.name = archive, name

    def __call__(self, task: _Task) -> bytes | memoryview:
        if task.block is None:
            return b""
        packed = os.pread(self.archive, task.block.packed, task.source)
        data = decode(packed, task.block, self.name)
        if task.output is not None:
            view, written = memoryview(data), 0
            while written < len(view):
                written += os.pwrite(task.output, view[written:], task.target + written)
        return data


def _tasks(chosen: Sequence[Member], create: Callable[[Member], int | None]) -> Iterator[_Task]:
    for index, member in enumerate(chosen):
        output, source, target = create(member), member.offset, 0
        for block in member.blocks:
            yield _Task(index, output, block, source, target)
            source, target = source + block.packed, target + block.size
        if not member.blocks:
            yield _Task(index, output, None, source, target)


def _restore_blocks(file: BinaryIO, chosen: Sequence[Member], folder: Path, workers: int, advance: Advance) -> None:
    outputs: dict[int, Member] = {}

    def create(member: Member) -> int:
        descriptor = _create(folder, member)
        outputs[descriptor] = member
        return descriptor

    def close(descriptor: int) -> None:
        del outputs[descriptor]
        os.close(descriptor)

    try:
        # The pool ends before the descriptors are closed: no worker writes into a number used anew.
        with ThreadPoolExecutor(workers) as pool:
            work = _Work(file.fileno(), file.name)
            _consume(in_order(pool, work, _tasks(chosen, create), _ahead(workers)), chosen, advance, close)
    finally:
        for descriptor in list(outputs):
            close(descriptor)


def _consume(
    results: Iterator[tuple[_Task, bytes | memoryview]],
    chosen: Sequence[Member],
    advance: Advance,
    close: Callable[[int], None] | None = None,
) -> None:
    """Hash the blocks in their order; a member's file is closed once it has its checksum."""
    current, digest, size = -1, hashlib.sha256(), 0
    for task, data in results:
        if task.member != current:
            current, digest, size = task.member, hashlib.sha256(), 0
        digest.update(data)
        size += len(data)
        advance(len(data))
        if size == chosen[current].size:
            _compare(chosen[current], digest.hexdigest())
            if close and task.output is not None:
                close(task.output)


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
