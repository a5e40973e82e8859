"""Which raw files a conversion takes, and the folder it works in."""

from __future__ import annotations

import fcntl
import filecmp
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from ups_data import files
from ups_data.errors import UpsDataError
from ups_data.execution import WorkersLost
from ups_data.manifest import content_key
from ups_data.params import Convert

PATIENCE = 50  # tenths of a second to wait for another conversion to end
DONE = "done.json"  # in the folder of work: all outputs are whole, and this is their manifest
BOOT = Path("/proc/sys/kernel/random/boot_id")


def natural_key(name: str) -> list[tuple[int, float, str]]:
    """Sort numbers in names by value: beta0.2 before beta10.0, file 9 before file 10, 1.e-8 before 0.1."""
    parts = re.split(r"([0-9]+(?:\.[0-9]*)?(?:e[-+]?[0-9]+)?)", name)
    return [(1, float(part), "") if i % 2 else (0, 0.0, part) for i, part in enumerate(parts)]


def find_files(folder: Path, pattern: str, limit: int | None) -> list[Path]:
    """The files of a folder that match a glob, in natural order, at most `limit`; none at all is an error.

    The folder is taken as it is written, whatever stands in its name; an absolute glob is of no folder.
    """
    # Names that differ in the spelling of a number alone (1.0, 1.00) are equal naturally: their text decides.
    found = sorted(_matches(folder, pattern), key=lambda p: (natural_key(str(p)), str(p)))
    if lost := [path for path in found if path.is_symlink() and not path.exists()]:
        raise UpsDataError(f"{lost[0]} is a link to nothing; fetch the file again (`dvc checkout`), or remove the link")
    paths = [path for path in found if path.is_file()][:limit]
    if not paths:
        raise UpsDataError(
            f"no file matches {folder / pattern}; make the sample with `dvc repro`, fetch the files, "
            "or correct --root or --pattern"
        )
    return paths


def _matches(folder: Path, pattern: str) -> list[Path]:
    path = Path(pattern)
    if path == Path():  # an empty glob: the folder itself, which is no file
        return []
    try:
        return list((folder / path.anchor).glob(str(path.relative_to(path.anchor))))
    except ValueError as error:
        raise UpsDataError(f"--pattern, or the knob convert.pattern: got {pattern!r}, no glob: {error}") from None


def raw_files(knobs: Convert) -> tuple[Path, list[Path]]:
    """The root that names are relative to, and the files.

    A root that is the folder itself, or that has the one such folder somewhere below it, is understood too.
    """
    root = Path(knobs.root)
    folder = root / knobs.folder
    if not folder.exists() and not Path(knobs.folder).is_absolute():
        if any(_matches(root, knobs.pattern)):
            folder = root
        elif len(below := [path for path in root.glob(f"**/{escape(knobs.folder)}") if path.is_dir()]) == 1:
            folder = below[0]
    paths = find_files(folder, knobs.pattern, knobs.limit)
    if strangers := [path for path in paths if not _is_below(path, root)]:
        raise UpsDataError(
            f"{strangers[0]} is not below convert.root, {root}, which the names in the manifest are relative to; "
            "correct --root, and give convert.folder and --pattern relative to it"
        )
    return root, paths


def _is_below(path: Path, root: Path) -> bool:
    """Whether a path is below a root by what is written, `..` taken away; data may be links to elsewhere."""
    plain = [Path(os.path.normpath(place.absolute())) for place in (path, root)]
    return path.is_relative_to(root) and plain[0].is_relative_to(plain[1])


def check_precision(path: Path, float64: str) -> None:
    """Refuse a file of float64 numbers where the knob convert.float64 says so."""
    if float64 == "refuse":
        raise UpsDataError(
            f"{path}: its numbers are float64 and would be rounded to float32; set the knob convert.float64 to "
            "round, which reports the loss, or leave the file out"
        )


def find_twin(path: Path, facts: object, kept: Mapping[Path, object]) -> Path | None:
    """The file among those kept that `path` is a copy of, byte for byte; files of equal size and facts are read."""
    size = path.stat().st_size
    for other, known in kept.items():
        if known == facts and other.stat().st_size == size and filecmp.cmp(path, other, shallow=False):
            return other
    return None


@contextmanager
def workplace(out: Path, task: str) -> Iterator[Path]:
    """A folder beside the outputs, held by this process alone; what a killed run left in it is still there.

    The workers of a run that was killed leave within a second, so another holder is waited for a while.
    """
    out.mkdir(parents=True, exist_ok=True)
    folder = out / f".{task}.partial"
    lock = os.open(folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        for _ in range(PATIENCE):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        else:
            raise UpsDataError(f"{folder}: another conversion of this task is at work; wait for it or stop it")
        folder.mkdir(exist_ok=True)
        yield folder
    finally:
        os.close(lock)


def work_key(paths: Sequence[Path], **facts: object) -> str:
    """What a killed run must have in common with this one for its parts to be taken over.

    Parts are trusted only within one boot of the machine: after a power cut, pages that were written may be lost.
    """
    stats = [(path.resolve(), path.stat()) for path in paths]
    return content_key(
        boot=BOOT.read_text().strip() if BOOT.exists() else "",
        raw=[[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats],
        **facts,
    )


def empty(folder: Path) -> None:
    """Delete what is in a folder."""
    for child in folder.iterdir():
        files.remove(child)


def note_done(folder: Path, key: str, manifest: Mapping, outputs: Iterable[str]) -> None:
    """Note that these outputs in the folder of work are whole: from here on they are only renamed."""
    marks = {name: _mark(folder / name) for name in outputs}
    files.write_json(folder / DONE, {"key": key, "manifest": manifest, "marks": marks})


def _mark(path: Path) -> list[int]:
    """What a file keeps when it is renamed, and loses when another takes its place."""
    stat = path.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns]


def done_before(folder: Path, key: str, targets: Mapping[str, Path]) -> dict | None:
    """The manifest of outputs that a killed run of this very work has made whole, if all are still there."""
    if not (folder / DONE).exists():
        return None
    done = files.read_json(folder / DONE)
    if done["key"] != key:
        return None
    for name, mark in done["marks"].items():
        place = folder / name if (folder / name).exists() else targets[name]
        if not place.exists() or _mark(place) != mark:
            return None
    return done["manifest"]


def make_once(
    folder: Path, key: str, targets: Mapping[str, Path], manifest_file: Path | None, make: Callable[[], dict]
) -> dict:
    """Publish what `make()` leaves in the folder of work, or what a killed run of this work has made whole there.

    Returns the manifest. When `make` fails nothing is kept; when it lost its workers the next run goes on.
    """
    manifest = done_before(folder, key, targets)
    if manifest is None:
        try:
            manifest = make()
        except WorkersLost:
            raise
        except (UpsDataError, OSError):
            files.remove(folder)
            raise
    publish_all(folder, manifest, targets, manifest_file)
    return manifest


def publish_all(folder: Path, manifest: Mapping, targets: Mapping[str, Path], manifest_file: Path | None) -> None:
    """Put the whole outputs into their places and delete the folder of work; once more after a kill is no harm."""
    for name, target in targets.items():
        for aside in target.parent.glob(f".{target.name}.*.old"):
            files.remove(aside)  # a run was killed while it replaced a folder
        if name not in manifest["splits"]:
            files.remove(target)  # an empty split must not leave an older one standing
        elif (folder / name).exists():
            files.publish(folder / name, target)
    if manifest_file:
        files.write_json(manifest_file, manifest)
    files.remove(folder)
