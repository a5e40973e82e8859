"""Large files over HTTP: ranges on several connections, resumed after any stop, retried within bounds.

Nothing here decides that a body is right: download.py compares its MD5 before anyone sees it.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from ups_data import files
from ups_data.errors import UpsDataError
from ups_data.parts import Part

if TYPE_CHECKING:
    import requests

CHUNK = 1 << 20  # bytes taken from a connection at a time, at most
JOURNAL_EVERY = 2.0  # seconds between two notes of how far a file is: what a kill can cost
NUMBER = "[0-9]{1,18}"  # in a header
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # answers that another try may change


@dataclass(frozen=True)
class Policy:
    """How a server is treated: connections at once, bytes a range, tries without progress, seconds of patience."""

    connections: int = 4
    segment: int = 128 << 20
    attempts: int = 6
    backoff: float = 1.0  # before the second try; doubled before each further one
    longest_wait: float = 300.0  # a server that asks for more (Retry-After) is left alone
    timeout: tuple[float, float] = (15.0, 60.0)  # to connect, and between two chunks


class Stopped(Exception):
    """Another thread ended the work; what is there is kept for the next run."""


class Unreachable(UpsDataError):
    """The server does not answer at all: there is no use in asking it for the other files."""


class _Transient(Exception):
    """Something another try may mend; `after` are the seconds the server asked for."""

    def __init__(self, message: str, after: float = 0.0, unreachable: bool = False):
        super().__init__(message)
        self.after, self.unreachable = after, unreachable


class _Changed(Exception):
    """The server's file is not the one these parts are of, or it no longer serves ranges: start from the first byte."""


class Fetcher:
    """Fetches parts over a pool of connections that all files share.

    `advance(n)` hears of every n bytes; `expect(n)` of the length of a file whose size the catalogue does not know.
    """

    def __init__(self, policy: Policy, advance: Callable[[int], None], expect: Callable[[int], None]):
        self.policy, self.advance, self.expect = policy, advance, expect
        self.pool = ThreadPoolExecutor(policy.connections, thread_name_prefix="connection")
        self.local = threading.local()
        self.parts: list[Part] = []
        self.closed = False

    def close(self) -> None:
        """Stop all work; what is there of each file is noted first."""
        self.closed = True
        for part in list(self.parts):
            part.stop.set()
        self.pool.shutdown()

    def fetch(self, part: Part) -> None:
        """Bring all bytes of a file. Raises UpsDataError when the server will not give them, Stopped after close()."""
        self.parts.append(part)
        try:
            self._collect(part, self.policy.segment)
        except _Changed:
            self.advance(-part.clear())
            try:
                self._collect(part, 0)  # one range: a server that mixes its answers is asked for the whole
            except _Changed as error:
                raise UpsDataError(f"{part.shown} keeps changing ({error}); try again later") from None

    def _collect(self, part: Part, segment: int) -> None:
        work: list[Future] = []
        part.stop.clear()
        try:
            if part.done:
                work = [self._submit(part, i) for i in range(len(part.done))]
            else:
                # The first answer says how long the file is; its body is the first range, the others start beside it.
                planned: Future = Future()
                work = [self._submit(part, 0, segment, planned)]
                wait([work[0], planned], return_when=FIRST_COMPLETED)
                if planned.done():
                    work += [self._submit(part, i) for i in range(1, planned.result())]
            wait(work, return_when=FIRST_EXCEPTION)
        finally:
            if not all(future.done() for future in work):
                part.stop.set()
            wait(work)  # the ranges still in the queue see the stop as soon as they begin
            part.save()
        problems = [future.exception() for future in work]
        for problem in sorted(filter(None, problems), key=lambda problem: isinstance(problem, Stopped)):
            raise problem

    def _submit(self, part: Part, *args: object) -> Future:
        if self.closed:
            raise Stopped
        try:
            return self.pool.submit(self._range, part, *args)
        except RuntimeError:  # closed meanwhile
            raise Stopped from None

    # --- one range -------------------------------------------------------------------------------

    def _range(self, part: Part, index: int, segment: int = 0, planned: Future | None = None) -> None:
        best, tries = part.done[index] if part.done else 0, 0
        while True:
            if part.stop.is_set() or self.closed:
                raise Stopped
            try:
                return self._stream(part, index, segment, planned)
            except _Transient as problem:
                reached = part.done[index] if part.done else 0
                best, tries = max(best, reached), 0 if reached > best else tries
                tries += 1
                if tries >= self.policy.attempts:
                    kind = Unreachable if problem.unreachable else UpsDataError
                    raise kind(
                        f"{part.shown}: {problem}, {tries} times; what is there is kept, run the same command to go on"
                    ) from None
                delay = max(problem.after, self.policy.backoff * 2 ** (tries - 1))
                if delay > self.policy.longest_wait:
                    raise UpsDataError(
                        f"{part.shown}: {problem} and asks for {delay:.0f} s of patience; run the same command later"
                    ) from None
                part.stop.wait(delay)

    def _stream(self, part: Part, index: int, segment: int, planned: Future | None) -> None:
        """Ask once for what is missing of a range and write what comes."""
        import requests
        import urllib3

        if not part.done:
            start, end = 0, segment or None
        else:
            first, end = part.span(index)
            start = first + part.done[index]
            if start == end:
                return
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{'' if end is None else end - 1}"}
        if part.validator and start:
            headers["If-Range"] = part.validator
        answered = False
        try:
            with self._session().get(part.url, headers=headers, stream=True, timeout=self.policy.timeout) as answer:
                answered = True
                self._accept(part, answer, index, start, segment)
                if planned is not None and not planned.done():
                    planned.set_result(len(part.done))
                self._write(part, index, answer)
        except (requests.ConnectionError, requests.Timeout) as error:
            reason = "the connection was cut" if answered else _reason(error)
            raise _Transient(reason, unreachable=not answered) from None
        except urllib3.exceptions.HTTPError:
            raise _Transient("the connection was cut") from None
        except (requests.RequestException, ValueError) as error:  # an address, or a header, that no library reads
            if answered and not isinstance(error, requests.RequestException):
                raise
            raise UpsDataError(f"{part.shown}: {_reason(error)}; check --base-url") from None

    def _session(self) -> requests.Session:
        import requests

        if not hasattr(self.local, "session"):
            self.local.session = requests.Session()
        return self.local.session

    def _accept(self, part: Part, answer: requests.Response, index: int, start: int, segment: int) -> None:
        """Check an answer before its body is read; lay out the file if this is its first."""
        status = answer.status_code
        if status in TRANSIENT:
            raise _Transient(f"the server answers {status} {answer.reason}", _retry_after(answer))
        if status == 416:
            raise _Changed("a range is refused")
        if status not in (200, 206):
            hint = {401: "it is not public there", 403: "it is not public there", 404: "no such file there"}
            raise UpsDataError(
                f"{part.shown} answers {status} {answer.reason}: {hint.get(status, 'unexpected')}; "
                "check --base-url or the catalogue"
            )
        if answer.headers.get("Content-Type", "").partition(";")[0].strip() in ("text/html", "application/xhtml+xml"):
            raise UpsDataError(
                f"{part.shown} answers with a web page instead of the file; check --base-url, or try later"
            )
        total = _total(answer)
        if part.size is not None and total not in (None, part.size):
            raise UpsDataError(
                f"{part.shown} has {total} bytes, the catalogue says {part.size}; it is not the official file"
            )
        if not part.done:
            self._plan(part, answer, total, segment)
        elif part.total is None:
            part.know(total)
        elif total not in (None, part.total):
            raise _Changed(f"{part.total} bytes before, {total} now")
        if status == 200 and start:
            self._from_the_start(part)
        elif status == 206 and _content_range(answer)[0] != start:
            raise _Changed(f"asked for byte {start}, got {answer.headers.get('Content-Range')!r}")

    def _plan(self, part: Part, answer: requests.Response, total: int | None, segment: int) -> None:
        ranged = answer.status_code == 206
        if ranged and segment and total is None:
            raise _Changed("a range of a file of unknown length")
        if part.size is None and total:
            files.require_space(part.folder, total, f"downloading {part.shown}")
            self.expect(total)
        part.plan(total, _validator(answer), segment if ranged else 0)

    def _from_the_start(self, part: Part) -> None:
        """A server that ignores ranges sends all again: fine for a file of one range."""
        if len(part.done) > 1:
            raise _Changed("ranges are no longer served")
        self.advance(-part.done[0])
        part.done[0] = 0

    def _write(self, part: Part, index: int, answer: requests.Response) -> None:
        first, end = part.span(index)
        file = os.open(part.body, os.O_WRONLY)
        try:
            # read1 gives what has come: a cut costs nothing that was received
            while chunk := answer.raw.read1(CHUNK):
                at = first + part.done[index]
                if end is None and part.size is not None and at + len(chunk) > part.size:
                    self.advance(-part.clear())
                    raise UpsDataError(f"{part.shown} sends more than the {part.size} bytes that the catalogue says")
                if end is not None and at + len(chunk) > end:
                    # All of a range may come where a part was asked for, but a file has no more bytes than it said.
                    if end == part.total:
                        raise UpsDataError(f"{part.shown} sends more than the {part.total} bytes it announced")
                    chunk = chunk[: end - at]
                _write_all(file, chunk, at)
                with part.lock:
                    part.done[index] += len(chunk)
                self.advance(len(chunk))
                if time.monotonic() - part.saved >= JOURNAL_EVERY:
                    part.save()
                if part.stop.is_set():
                    raise Stopped
                if end is not None and first + part.done[index] == end:
                    return
        finally:
            os.close(file)
        if part.total is None:
            part.know(part.done[0])  # it has ended: that was its length
        elif first + part.done[index] < end:
            raise _Transient("the body ends early")


def _write_all(file: int, chunk: bytes, at: int) -> None:
    while chunk:
        written = os.pwrite(file, chunk, at)
        chunk, at = chunk[written:], at + written


# --- headers -------------------------------------------------------------------------------------


def _content_range(answer: requests.Response) -> tuple[int | None, int | None]:
    """First byte and total of `Content-Range: bytes 0-99/1000`; None for what is not said."""
    match = re.fullmatch(rf"bytes ({NUMBER})-{NUMBER}/({NUMBER}|\*)", answer.headers.get("Content-Range", "").strip())
    if not match:
        return None, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _total(answer: requests.Response) -> int | None:
    if answer.status_code == 206:
        return _content_range(answer)[1]
    length = answer.headers.get("Content-Length", "")
    return int(length) if re.fullmatch(NUMBER, length) else None


def _validator(answer: requests.Response) -> str:
    """What If-Range may carry: a strong ETag, else the date of the last change."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")


def _retry_after(answer: requests.Response) -> float:
    """Seconds of `Retry-After`, given as a number or as a date; 0 if there is none."""
    value = answer.headers.get("Retry-After", "").strip()
    if re.fullmatch(NUMBER, value):
        return float(value)
    try:
        now = parsedate_to_datetime(answer.headers["Date"])
        return max(0.0, (parsedate_to_datetime(value) - now).total_seconds())
    except (KeyError, TypeError, ValueError):
        return 0.0


def _reason(error: Exception) -> str:
    """The innermost sentence of an HTTP library's nested errors."""
    text = str(error)
    for known in ("Connection refused", "Name or service not known", "timed out", "certificate verify failed"):
        if known in text:
            return f"the server cannot be reached: {known[:1].lower()}{known[1:]}"
    return f"the server cannot be reached: {type(error).__name__}"
