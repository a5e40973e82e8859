"""Archives to files: verified in full in a temporary folder, then published by renaming."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from ups_data.archive.flow import BUFFER, FLUSH, Buffers, Flusher
from ups_data.archive.format import MAGIC, Block, Contents, Member, Seal
from ups_data.archive.index import read_index
from ups_data.errors import UpsDataError
from ups_data.execution import in_order
from ups_data.staging import staging

SMALL = 1 << 20  # bytes of a file that is sent to the disk by itself
ROOM = 16 << 20  # bytes to spare for folders and names

Advance = Callable[[int], None]
Accept = Callable[[list[Member]], None]


def members(archive: str | Path) -> list[Member]:
    """What an archive holds, sorted by path, from its index (.upk) or its first member (.tar.gz).

    Tiny members that are verified together are unpacked for this: their own checksums are not stored.
    """
    with _opened(archive) as file:
        if _is_gzip(file, archive):
            return targz.open_gzip(file, str(archive))[0]
        contents = read_index(file, str(archive))
        unknown = [member for member in contents.members if not member.sha256]
        found = _verified(file, contents, unknown, execution.cores(), _ignore) if unknown else {}
        return _complete(contents.members, found)


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
    place of its namesake by renaming. `accept` sees the members before that and may refuse them by raising;
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
            listed = _complete(contents.members, {})
            restore = partial(_restore_blocks, file, contents, workers or execution.cores())
        chosen, units = _choose(listed, only, archive)
        files.require_space(target, sum(m.size for m in chosen) + ROOM, f"unpacking {archive.name}")
        target.mkdir(parents=True, exist_ok=True)
        _check_places(target, units, {member.path for member in chosen})
        with staging(target) as folder:
            restored = restore(chosen, folder, advance or _ignore)
            if accept:
                accept(restored)
            with execution.signals_noted():  # all or none
                for unit in units:
                    files.publish(folder / unit, target / unit)
    return restored


def verify(archive: str | Path, advance: Advance | None = None) -> list[Member]:
    """Unpack every byte of an archive and compare it with its SHA-256, writing nothing; returns the members."""
    with _opened(archive) as file:
        if _is_gzip(file, archive):
            listed, stream = targz.open_gzip(file, str(archive))
            for member, pieces in targz.gzip_contents(stream, listed):
                _copy(member, pieces, None, advance or _ignore)
            return listed
        contents = read_index(file, str(archive))
        found = _verified(file, contents, contents.members, execution.cores(), advance or _ignore)
        return _complete(contents.members, found)


def _complete(listed: Iterable[Member], found: Mapping[str, Member]) -> list[Member]:
    """Members sorted by path, those that were `found` with the checksums of their bytes."""
    return sorted((found.get(member.path, member) for member in listed), key=lambda member: member.path)


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


def _check_places(target: Path, units: Sequence[str], plain: set[str]) -> None:
    """Refuse what would stop the last of the renamings after the first: all appear, or none.

    A linked folder between `target` and what is published would lead outside; a folder is not replaced by a file
    (`plain`: the paths of files).
    """
    for unit in units:
        for parent in Path(unit).parents[:-1]:
            if (target / parent).is_symlink():
                raise UpsDataError(f"{target / parent} is a link; remove it, files are not written through it")
            if (target / parent).exists() and not (target / parent).is_dir():
                raise UpsDataError(f"{target / parent} is a file, and a folder is to be there; move it away")
        if unit in plain:
            files.check_file(target / unit)


# --- .upk ----------------------------------------------------------------------------------------


def _create(folder: Path, member: Member) -> int:
    path = folder / member.path
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)


@dataclass(frozen=True)
class _Slice:
    """Bytes of a block or several that belong to one member."""

    member: Member
    seal: Seal
    begin: int  # in the unpacked bytes of the task
    size: int
    target: int  # offset in the member
    last: bool  # whether the bytes under the seal end with these
    wanted: bool  # else it is only read to verify another one


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
            if piece.wanted:
                _write(self.folder / piece.member.path, out[piece.begin : piece.begin + piece.size], piece.target)
        return out


def _write(path: Path, data: np.ndarray, offset: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_NOFOLLOW), "wb", buffering=0) as out:
        written = 0
        while written < len(data):
            written += os.pwrite(out.fileno(), data[written:], offset + written)


def _tasks(contents: Contents, chosen: Iterable[Member], begin: Callable[[Member], None]) -> Iterator[_Task]:
    """The blocks of the chosen members and of what is sealed with them; `begin` hears of a member before its first."""
    wanted = {member.path for member in chosen}
    seals = [seal for seal in contents.seals if any(contents.members[n].path in wanted for n in seal.members)]
    waiting = deque((seal, n) for seal in seals for n in seal.members if contents.members[n].size)
    for seal in seals:
        for member in (contents.members[n] for n in seal.members):
            if member.path in wanted and not member.size:
                begin(member)
        if not contents.span(seal):
            _compare(contents.members[seal.members[0]].path, hashlib.sha256().hexdigest(), seal.sha256)
    for blocks in _batches(contents, seals):
        end = contents.block_ends[blocks[-1]]
        start = contents.block_ends[blocks[0]] - contents.blocks[blocks[0]].size
        slices = []
        while waiting:
            seal, number = waiting[0]
            member, stop = contents.members[number], contents.member_ends[number]
            first, asked = stop - member.size, member.path in wanted
            if first >= end:
                break
            if first >= start and asked:
                begin(member)
            inside, last = max(first, start), min(stop, end) == contents.bounds(seal)[1]
            slices.append(_Slice(member, seal, inside - start, min(stop, end) - inside, inside - first, last, asked))
            if stop > end:
                break
            waiting.popleft()
        yield _Task(tuple(contents.blocks[n] for n in blocks), contents.offsets[blocks[0]], tuple(slices))


def _batches(contents: Contents, seals: Iterable[Seal]) -> Iterator[list[int]]:
    """Neighbouring blocks of the bytes under these seals, as many as a buffer holds but at least one."""
    batch, size = [], 0
    for number in sorted({block for seal in seals for block in contents.span(seal)}):
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
) -> list[Member]:
    with closing(_Outputs(folder)) as outputs:
        found = _verified(file, contents, chosen, workers, advance, outputs)
        outputs.flusher.settle()
    return _complete(chosen, found)


def _verified(
    file: BinaryIO,
    contents: Contents,
    chosen: Sequence[Member],
    workers: int,
    advance: Advance,
    outputs: _Outputs | None = None,
) -> dict[str, Member]:
    """Unpack the chosen members, into files where there are `outputs`; returns those without stored checksums.

    Bytes are hashed in their order, and none count before all those under their seal have its SHA-256.
    """
    work = _Work(file.fileno(), file.name, outputs.folder if outputs else None)
    tasks = _tasks(contents, chosen, outputs.create if outputs else _ignore)
    found, digests = {}, _Digests()
    with ThreadPoolExecutor(workers) as pool:
        for task, data in in_order(pool, work, tasks, _ahead(workers)):
            for piece in task.slices:
                found |= digests.add(piece, data[piece.begin : piece.begin + piece.size])
                if piece.wanted:
                    advance(piece.size)
                    if outputs:
                        outputs.wrote(piece)
            work.buffers.give(data)
    return found


class _Digests:
    """Checksums of the bytes under one seal after another, and of the members under it."""

    def __init__(self):
        self.seal, self.own, self.waiting = hashlib.sha256(), (), {}

    def add(self, piece: _Slice, data: np.ndarray) -> dict[str, Member]:
        """Count the next bytes; returns the members that are verified with them and had no checksums, by path."""
        self.seal.update(data)
        if len(piece.seal.members) > 1:
            if piece.target == 0:
                self.own = hashlib.sha256(), hashlib.md5()
            for digest in self.own:
                digest.update(data)
            if piece.target + piece.size == piece.member.size:
                sums = (digest.hexdigest() for digest in self.own)
                self.waiting[piece.member.path] = Member(piece.member.path, piece.member.size, *sums)
        if not piece.last:
            return {}
        others = len(piece.seal.members) - 1
        name = f"{piece.member.path} and {others} beside it" if others else piece.member.path
        _compare(name, self.seal.hexdigest(), piece.seal.sha256)
        verified, self.waiting, self.seal = self.waiting, {}, hashlib.sha256()
        return verified


def _compare(name: str, found: str, stored: str) -> None:
    if found != stored:
        raise UpsDataError(
            f"{name}: the unpacked bytes have SHA-256 {found}, the archive says {stored}; "
            "the archive is damaged, fetch it again"
        )


# --- .tar.gz -------------------------------------------------------------------------------------


def _restore_gzip(
    stream: targz.Inflated, listed: list[Member], chosen: list[Member], folder: Path, advance: Advance
) -> list[Member]:
    wanted = {member.path for member in chosen}
    for member, pieces in targz.gzip_contents(stream, listed):
        if member.path in wanted:
            with open(_create(folder, member), "wb") as out:
                _copy(member, pieces, out, advance)
        else:
            _copy(member, pieces, None, _ignore)
    return chosen


def _copy(member: Member, pieces: Iterator[bytes], out: BinaryIO | None, advance: Advance) -> None:
    digest = hashlib.sha256()
    for data in pieces:
        digest.update(data)
        advance(len(data))
        if out is not None:
            out.write(data)
    _compare(member.path, digest.hexdigest(), member.sha256)
