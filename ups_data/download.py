"""Official files brought here: fetched, verified by MD5, put into DVC's cache, linked into the workspace.

A file appears in the cache, and so anywhere, only with the MD5 of the catalogue. What is under way stands in
.state/download and is taken up by the next run.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ups_data import catalogue, console, files
from ups_data.catalogue import BASE_URL, Entry
from ups_data.dvc_files import READ_ONLY, Output, add_to_cache, cache_object, dvc, what_failed
from ups_data.errors import UpsDataError
from ups_data.parts import Part, open_part
from ups_data.transfer import Fetcher, Policy, Unreachable

STATE = Path(".state/download")
PUBLISHING = Path(".state/publish")
VERIFIED = "verified.json"
FULL = (errno.ENOSPC, errno.EDQUOT)
GENTLE = Policy()


@dataclass
class Outcome:
    """What a download did: files by what became of them, and the sentences of those that failed."""

    present: list[Entry] = field(default_factory=list)
    fetched: list[Entry] = field(default_factory=list)
    size: int = 0  # bytes of the fetched bodies
    failures: list[str] = field(default_factory=list)


def download(
    entries: Sequence[Entry],
    cache: Path,
    repository: Path = Path(),
    base_url: str = BASE_URL,
    policy: Policy = GENTLE,
) -> Outcome:
    """Bring the files' bodies into DVC's cache, each body once however many files share it.

    What is there and has its MD5 stays. A file that fails does not hold up the others; a full disk or a silent
    server ends the run. Raises UpsDataError for a disk without room and for a strange file in a file's place.
    """
    state = repository / STATE
    outcome = Outcome()
    with _alone(state):
        seen = _Verified(state / VERIFIED)
        missing: dict[str, list[Entry]] = {}
        for entry in entries:
            if _is_here(entry, cache, repository, seen):
                outcome.present.append(entry)
                files.remove(state / entry.md5)  # what an interrupted download had of it
            else:
                missing.setdefault(entry.md5, []).append(entry)
        if missing:
            _fetch_all(missing, cache, state, base_url, policy, outcome, seen)
    return outcome


def publish(entries: Sequence[Entry], cache: Path, repository: Path = Path()) -> list[Path]:
    """Make files of the cache data sources of this project and link them into the workspace, by DVC itself.

    Returns the .dvc files that changed.
    """
    # Two lists written at once would lose one's files.
    with files.locked(repository / PUBLISHING, "another download lists its files"):
        changed = catalogue.keep(entries, repository)
    paths = [
        (catalogue.ROOT / entry.path).as_posix()
        for entry in entries
        if not _linked(repository / catalogue.ROOT / entry.path, cache_object(cache, entry.md5))
    ]
    if paths and (checked_out := dvc(["checkout", *paths], repository)).returncode:
        raise UpsDataError(f"the files are in DVC's cache, but `dvc checkout` fails: {what_failed(checked_out.stderr)}")
    return changed


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    state.mkdir(parents=True, exist_ok=True)
    with open(state / ".lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UpsDataError(f"another download works in {state}; wait for it or stop it") from None
        yield


# --- what is here --------------------------------------------------------------------------------


class _Verified:
    """Remembers which files had which MD5, by inode, size and time, so that nothing is read again unchanged."""

    def __init__(self, path: Path):
        self.path = path
        self.lock = threading.Lock()
        try:
            known = files.read_json(path)
        except UpsDataError:
            known = {}  # none yet, or one cut off: reading the files again costs time only
        self.known = {file: row for file, row in known.items() if isinstance(row, list) and len(row) == 4}

    def md5(self, path: Path) -> str:
        """The MD5 of a file, from memory where it is unchanged."""
        stat = path.stat()
        marks = [stat.st_ino, stat.st_size, stat.st_mtime_ns]
        key = str(path.absolute())
        if key not in self.known or self.known[key][:3] != marks:
            console.detail(f"reading {path} for its MD5")
            self._add(key, [*marks, files.checksum(path, "md5")])
        return self.known[key][3]

    def note(self, path: Path, md5: str) -> None:
        """Remember a file just verified."""
        stat = path.stat()
        self._add(str(path.absolute()), [stat.st_ino, stat.st_size, stat.st_mtime_ns, md5])

    def _add(self, key: str, row: list) -> None:
        with self.lock:
            self.known[key] = row
            files.write_json(self.path, self.known)


def _is_here(entry: Entry, cache: Path, repository: Path, seen: _Verified) -> bool:
    """Whether the cache holds the file; a right one found in the workspace is taken into the cache.

    Raises UpsDataError for a workspace file that is neither the official one nor a link to the cache.
    """
    cached, place = cache_object(cache, entry.md5), repository / catalogue.ROOT / entry.path
    if cached.exists() and seen.md5(cached) != entry.md5:
        # DVC trusts what its cache holds: a damaged object would be handed out for ever.
        console.say(f"{cached} is damaged and is fetched again")
        if _linked(place, cached):
            place.unlink()
        cached.unlink()
    if place.exists() and not _linked(place, cached):
        if seen.md5(place) != entry.md5:
            raise UpsDataError(f"{place} is not the official file (MD5 {entry.md5}); move it away or delete it")
        if not cached.exists():
            add_to_cache(Output(str(place), entry.md5), place, {"": entry.md5}, cache)
        if not cached.exists():  # another disk, where it cannot be linked
            _into_cache(place, cached, entry.md5, keep=True)
        seen.note(cached, entry.md5)
    return cached.exists()


def _linked(place: Path, cached: Path) -> bool:
    return place.exists() and cached.exists() and place.samefile(cached)


# --- what is not ---------------------------------------------------------------------------------


def _fetch_all(
    missing: dict[str, list[Entry]],
    cache: Path,
    state: Path,
    base_url: str,
    policy: Policy,
    outcome: Outcome,
    seen: _Verified,
) -> None:
    parts = {md5: open_part(state / md5, group[0].url_under(base_url), group[0].size) for md5, group in missing.items()}
    left = _room(parts.values(), sum(map(len, missing.values())), state, cache)
    lock = threading.Lock()
    with console.progress("download", left, "B") as bar:

        def advance(amount: int) -> None:
            with lock:
                bar.advance(amount, f"{len(outcome.fetched)} files done")

        def expect(amount: int) -> None:
            with lock:
                bar.expect(amount)

        fetcher = Fetcher(policy, advance, expect)
        crew = ThreadPoolExecutor(policy.connections, thread_name_prefix="file")
        try:
            work = {crew.submit(_one, fetcher, part, md5, cache, seen): md5 for md5, part in parts.items()}
            for future in as_completed(work):
                try:
                    outcome.size += future.result()
                    outcome.fetched += missing[work[future]]
                except UpsDataError as error:
                    outcome.failures.append(str(error))
                    if isinstance(error, Unreachable):
                        break
                except OSError as error:
                    if error.errno not in FULL:
                        raise
                    outcome.failures.append(
                        f"no room left on the disk of {state}; what is there is kept, free some room and run it again"
                    )
                    break
        finally:
            fetcher.close()
            crew.shutdown(cancel_futures=True)


def _room(parts: Iterable[Part], count: int, state: Path, cache: Path) -> int:
    """Say what there is to do and refuse it where it does not fit; returns the bytes still to come, where known."""
    left = there = 0
    for part in parts:
        there += sum(part.done)
        left += (part.size or part.total or 0) - sum(part.done)
    before = f", {files.amount(there)} of them there from before" if there else ""
    console.say(f"downloading {count} files, {files.amount(left)} to go{before}")
    files.require_space(state, left, "the download")
    if state.stat().st_dev != _existing(cache).stat().st_dev:
        files.require_space(cache, left + there, "the download")
    return left


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _one(fetcher: Fetcher, part: Part, md5: str, cache: Path, seen: _Verified) -> int:
    """Fetch one body, compare its MD5, put it into the cache; a wrong body is fetched once more. Returns its bytes."""
    for last in (False, True):
        fetcher.fetch(part)
        if (found := files.checksum(part.body, "md5")) == md5:
            size = part.total or 0
            cached = cache_object(cache, md5)
            _into_cache(part.body, cached, md5, keep=False)
            seen.note(cached, md5)
            files.remove(part.folder)
            return size
        fetcher.advance(-part.clear())
        if not last:
            console.say(f"{part.shown} sent a body with a wrong MD5; fetching it again")
    raise UpsDataError(
        f"{part.shown} sent a body with MD5 {found}, the catalogue says {md5}; nothing of it is kept, check --base-url"
    )


def _into_cache(body: Path, cached: Path, md5: str, keep: bool) -> None:
    """Move (or copy, if `keep`) a verified file to its place in the cache; over to another disk it is read again."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    if not keep:
        body.chmod(READ_ONLY)
        files.sync(body)
        try:
            body.rename(cached)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
    with files.atomic(cached) as temporary:
        shutil.copyfile(body, temporary)
        temporary.chmod(READ_ONLY)
        if files.checksum(temporary, "md5") != md5:
            raise UpsDataError(f"copying {body} to {cached} changed it; check the disks")
