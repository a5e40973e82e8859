"""A file under way: `body`, with room for all of it, and `journal.json`, which says what of each range is there."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from ups_data import files
from ups_data.errors import UpsDataError

JOURNAL = "journal.json"


@dataclass
class Part:
    """A file under way. `total` is None until a server said it; `done` are bytes of each range, from its start."""

    folder: Path
    url: str
    size: int | None  # what the catalogue says
    total: int | None = None
    validator: str = ""  # the strong ETag or the date that the ranges belong to
    segment: int = 0
    done: list[int] = field(default_factory=list)
    saved: float = 0.0  # when the journal was last written, on the monotonic clock
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def body(self) -> Path:
        """The bytes, in their places."""
        return self.folder / "body"

    @property
    def shown(self) -> str:
        """The address without a name and password that may stand in it."""
        return re.sub(r"//[^/]*@", "//", self.url, count=1)

    @property
    def journal(self) -> Path:
        """What of the body is there."""
        return self.folder / JOURNAL

    def span(self, index: int) -> tuple[int, int | None]:
        """The first byte of a range and the one after its last; None where the length is unknown."""
        if self.total is None:
            return 0, None
        return index * self.segment, min((index + 1) * self.segment, self.total)

    def plan(self, total: int | None, validator: str, segment: int) -> None:
        """Lay out the body: `total` bytes in ranges of `segment`, in one range if that is 0."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.validator = validator
        self.know(total)
        self.segment = segment or self.segment
        self.done = [0] * max(1, -(-(total or 0) // self.segment))
        self.saved = time.monotonic()
        with open(self.body, "wb") as file:
            file.truncate(total or 0)

    def know(self, total: int | None) -> None:
        """Take note of the length, of a file in one range."""
        self.total, self.segment = total, max(1, total or 1)

    def save(self) -> None:
        """Note what is there, once it is on the disk."""
        with self.lock:
            done, self.saved = list(self.done), time.monotonic()
        if done:
            files.sync(self.body)
            note = {"total": self.total, "validator": self.validator, "segment": self.segment, "done": done}
            files.write_json(self.journal, note)

    def clear(self) -> int:
        """Forget what is there; returns how many bytes that were."""
        with self.lock:
            lost = sum(self.done)
            files.remove(self.folder)
            self.total, self.validator, self.segment, self.done = None, "", 0, []
        return lost


def open_part(folder: Path, url: str, size: int | None) -> Part:
    """The part an earlier run left in `folder`, or a new one. A part of another size is thrown away."""
    part = Part(folder, url, size)
    try:
        note = files.read_json(part.journal)
        part.total, part.validator, part.segment = note["total"], note["validator"], note["segment"]
        part.done = [int(n) for n in note["done"]]
        whole = part.body.stat().st_size == part.total and size in (None, part.total)
        if not whole or len(part.done) != max(1, -(-part.total // part.segment)):
            part.clear()
    except (UpsDataError, OSError, ArithmeticError, KeyError, TypeError, ValueError):
        part.clear()
    return part


def bytes_there(folder: Path) -> int:
    """How much an unfinished download in `folder` has, by its journal; 0 if there is none."""
    try:
        return sum(files.read_json(folder / JOURNAL)["done"])
    except (UpsDataError, KeyError, TypeError):
        return 0
