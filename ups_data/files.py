"""Files that are whole or absent: atomic writes, checksums, room on disk."""

from __future__ import annotations

import csv
import errno
import fcntl
import glob
import hashlib
import io
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from ups_data import console
from ups_data.errors import UpsDataError

ABANDONED = 24 * 3600  # seconds after which a temporary file is taken for that of a process that was killed
IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)  # another process has put something there
LOCK = ".hydrate.lock"  # in the folder that a process has to itself
LONG_NAME = 200  # bytes of a name that leaves room for what marks a temporary file, of 255 in all
MANY = 100  # files of a folder that are not worth a flush each
HASH_BLOCK = 8 << 20  # bytes read at a time: large enough that the hash, not the call, is the cost


def sync(path: Path) -> None:
    """Flush a file, or a directory with all it holds, to the disk; of many files the whole machine's disks at once."""
    if path.is_dir():
        children = list(path.iterdir())
        if len(children) > MANY:
            os.sync()
            return
        for child in children:
            sync(child)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Delete a file or a tree if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_file(path: str | Path, read: Sequence[Path] = ()) -> None:
    """Refuse a folder where a file is to be written, but for one that holds its own shards, and a file of `read`."""
    path = Path(path)
    if path.is_dir() and not _holds_shards(path):
        raise UpsDataError(f"{path} is a folder, and a file is to be written there; name a file, or move the folder")
    if path.resolve() in {source.resolve() for source in read}:
        raise UpsDataError(f"{path} is one of the files that are read; write to another one")


def _holds_shards(folder: Path) -> bool:
    """Whether all that a folder x.h5 has is x_000.h5, x_001.h5, ..: a split that was larger once."""
    shard = re.compile(rf"{re.escape(folder.stem)}_[0-9]+{re.escape(folder.suffix)}")
    names = [path.name for path in folder.iterdir()]
    return bool(names) and all(shard.fullmatch(name) for name in names)


def publish(temporary: Path, final: Path) -> None:
    """Put a finished file or directory in its place, flushed to the disk: readers see the old one or the new one.

    A directory cannot be renamed over another, so the old one is moved aside first; a kill between the
    two renames leaves no directory, never a mixed one. Of several processes that publish the same one each succeeds,
    and the last one's stays. Raises UpsDataError for a file that would replace a directory of other things than its
    own shards.
    """
    if not temporary.is_dir():
        check_file(final)
    sync(temporary)
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = _beside(final, "old")
    while not _take_place(temporary, final, aside):
        remove(aside)
    with suppress(FileNotFoundError):  # another process swept it
        remove(aside)
    fd = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _take_place(temporary: Path, final: Path, aside: Path) -> bool:
    """Rename `temporary` to `final`, what it cannot replace to `aside`; False if another process was there meanwhile.

    What was moved aside comes back when the renaming fails.
    """
    try:
        if temporary.is_dir() or (final.is_dir() and not final.is_symlink()):
            with suppress(FileNotFoundError):  # nothing was there, or another process has just moved it aside
                final.rename(aside)
                os.utime(aside)  # how old it is tells other machines whether it is abandoned
        temporary.replace(final)
    except BaseException as error:  # Ctrl-C between the two too
        taken = os.path.lexists(final)
        if isinstance(error, OSError) and error.errno in IN_THE_WAY and taken:
            return False
        if os.path.lexists(aside) and not taken:
            aside.rename(final)
        raise
    return True


@contextmanager
def atomic(final: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; publish it on success, delete it on any failure.

    What killed processes left of the same file goes too: of this machine at once, of others after a day.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    _sweep(final)
    temporary = _beside(final, "tmp")
    try:
        yield temporary
        publish(temporary, final)
    except BaseException:
        remove(temporary)
        raise


def _beside(final: Path, ending: str) -> Path:
    """A hidden name beside `final` that no other has, and that tells whose it is."""
    return final.with_name(f"{_hidden(final)}.{uuid.uuid4().hex[:8]}.{_here()}-{os.getpid()}.{ending}")


def _hidden(final: Path) -> str:
    """How the hidden names of `final` begin: with its name, or a digest of one that leaves no room for more."""
    name = os.fsencode(final.name)
    return f".{final.name}" if len(name) <= LONG_NAME else f".{hashlib.sha256(name).hexdigest()}"


@cache
def _here() -> str:
    """Where a process number means one process: this machine since it was started, and a container on it."""
    try:
        where = Path("/proc/sys/kernel/random/boot_id").read_text() + str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:  # no Linux: not known, and every process has a place of its own
        where = uuid.uuid4().hex
    return hashlib.sha256(where.encode()).hexdigest()[:8]


def _sweep(final: Path) -> None:
    """Remove what dead processes left beside `final`; what one moved aside and could not replace comes back."""
    hidden = _hidden(final)
    mark = re.compile(rf"{re.escape(hidden)}\.[0-9a-f]{{8}}(\.[0-9a-f]{{8}}-[0-9]+)?\.(tmp|old)")
    found = [left for left in final.parent.glob(f"{glob.escape(hidden)}.*") if mark.fullmatch(left.name)]
    for left in sorted(found, reverse=True, key=_touched):
        with suppress(OSError):  # it was published just now, or is another user's: no reason not to write
            if _is_abandoned(left):
                if left.suffix == ".old" and not os.path.lexists(final):
                    left.rename(final)
                remove(left)


def _is_abandoned(left: Path) -> bool:
    """Whether a temporary file is that of a process of this machine that is gone, or was not touched for a day."""
    where, _, process = left.stem.rpartition(".")[2].partition("-")
    if where == _here():
        try:
            os.kill(int(process), 0)
        except OSError as error:
            return error.errno == errno.ESRCH  # else another user's
        return False
    return time.time() - max(map(_touched, (left, *left.rglob("*")))) > ABANDONED


def _touched(path: Path) -> float:
    """When a file or folder was last written; 0 for what is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


@contextmanager
def locked(folder: Path, waiting: str) -> Iterator[None]:
    """Hold the folder's lock; says `waiting` once where another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.say(f"{waiting}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: object) -> str:
    """JSON with a fixed key order, so that equal values are equal bytes; NaN and Inf are refused."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as JSON, atomically and with a fixed key order."""
    write_text(path, to_json(value))


def read_json(path: str | Path) -> dict:
    """Read a JSON file that holds an object; a missing or broken one is a sentence."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        raise UpsDataError(f"{path} is missing; run the stage that writes it (`dvc repro`)") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of thousands of digits, NaN
        raise UpsDataError(f"{path} is not valid JSON ({error}); delete it and run `dvc repro`") from None
    if not isinstance(value, dict):
        raise UpsDataError(f"{path}: got a JSON {type(value).__name__}, expected an object; delete it and `dvc repro`")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table atomically: a header line, then the rows; floats with 6 significant digits."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    for row in rows:
        table.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])
    write_text(path, text.getvalue())


def checksum(path: str | Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's bytes, read in blocks."""
    digest, block = hashlib.new(algorithm), memoryview(bytearray(HASH_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def require_space(folder: str | Path, size: int, what: str) -> None:
    """Refuse to start writing `size` bytes where they do not fit."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UpsDataError(
            f"{what} needs {amount(size)} but {folder} has {amount(free)} free; free some room or write elsewhere"
        )


def rate(size: float, started: float) -> str:
    """Bytes a second since `started`, by time.monotonic(), in such a unit: 75.8 MB/s."""
    return f"{amount(size / max(time.monotonic() - started, 1e-6))}/s"


def amount(size: float) -> str:
    """Bytes in the unit that a person would use: 75.8 MB."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= 0.9995 * unit:  # what is rounded to a thousand of the unit below
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"
