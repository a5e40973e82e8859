"""What a person sees while a stage works: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal
QUIET, NORMAL, VERBOSE = -1, 0, 1
_level = NORMAL


def set_level(level: int) -> None:
    """Choose how much is said: QUIET, NORMAL or VERBOSE."""
    global _level
    _level = level


def is_quiet() -> bool:
    """Whether the person asked for quiet."""
    return _level < NORMAL


def say(text: str) -> None:
    """A line for the person, unless they asked for quiet."""
    if _level >= NORMAL:
        print(text, flush=True)


def detail(text: str) -> None:
    """A line for the person who asked for more."""
    if _level >= VERBOSE:
        print(text, flush=True)


class Progress:
    """A running count with rate and time left: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, label: str, total: float, unit: str):
        self.label, self.total, self.unit = label, total, unit
        self.done, self.note = 0.0, ""
        self.started = self.last_line = time.monotonic()
        self.bar = None
        if _level >= NORMAL and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=label, unit=unit, unit_scale=True, dynamic_ncols=True, leave=False)

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count `amount` more of the unit as done; `note` is shown beside the count."""
        self.done, self.note = self.done + amount, note
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(amount)
        elif _level >= NORMAL and time.monotonic() - self.last_line >= LINE_EVERY:
            self.last_line = time.monotonic()
            rate = self.done / (self.last_line - self.started)
            left = (self.total - self.done) / rate if rate else float("inf")
            print(
                f"{self.label}: {_scaled(self.done)}/{_scaled(self.total)} {self.unit}, "
                f"{_scaled(rate)} {self.unit}/s, {left:.0f} s left {note}".rstrip(),
                flush=True,
            )

    def expect(self, amount: float) -> None:
        """Count `amount` more of the unit as to be done."""
        self.total += amount
        if self.bar is not None:
            self.bar.total = self.total

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self.bar is not None:
            self.bar.close()


def _scaled(value: float) -> str:
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / {'G': 1e9, 'M': 1e6, 'k': 1e3}[suffix]:.1f}{suffix}"
    return f"{value:.3g}"


@contextmanager
def progress(label: str, total: float, unit: str) -> Iterator[Progress]:
    """Show the progress of the enclosed work: `with progress("convert", n, "B") as bar: bar.advance(k)`."""
    bar = Progress(label, total, unit)
    try:
        yield bar
    finally:
        bar.close()
