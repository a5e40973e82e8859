"""What a person sees while a stage works: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal
QUIET, NORMAL, VERBOSE = -1, 0, 1
_level = NORMAL
_bars: list[tqdm] = []  # on the terminal now: a line is written above them


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
        _print(text)


def detail(text: str) -> None:
    """A line for the person who asked for more."""
    if _level >= VERBOSE:
        _print(text)


def _print(text: str) -> None:
    try:
        if _bars:
            _bars[-1].write(text)  # above the bar, which is drawn again
        else:
            print(text, flush=True)
    except BrokenPipeError:  # whoever read the lines went away, as `| head` does: the work goes on without
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def duration(seconds: float) -> str:
    """A time as a person says it: 12.3 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _size() -> dict[str, object]:
    """How large tqdm takes the terminal to be: as it is, or 80 x 24 where it does not say (tqdm would draw nothing)."""
    try:
        known = os.get_terminal_size(sys.stderr.fileno()).lines > 0
    except OSError:
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}


class Progress:
    """A running count with rate and time left: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, label: str, total: float, unit: str):
        self.label, self.total, self.unit = label, total, unit
        self.done, self.note = 0.0, ""
        self.started = self.last_line = time.monotonic()
        self.bar: tqdm | None = None
        if _level >= NORMAL and sys.stderr.isatty():
            from tqdm import tqdm

            spaced = unit if unit == "B" else f" {unit}"
            self.bar = tqdm(total=total, desc=label, unit=spaced, unit_scale=True, leave=False, **_size())
            _bars.append(self.bar)

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count `amount` more of the unit as done; `note` is shown beside the count."""
        self.done, self.note = self.done + amount, note
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(amount)
        elif time.monotonic() - self.last_line >= LINE_EVERY:
            self.last_line = time.monotonic()
            say(self._line())

    def _line(self) -> str:
        rate = self.done / max(self.last_line - self.started, 1e-9)
        left = duration((self.total - self.done) / rate) if rate else "unknown time"
        counts = f"{_scaled(self.done)}/{_scaled(self.total)} {self.unit}, {_scaled(rate)} {self.unit}/s"
        return f"{self.label}: {counts}, {left} left {self.note}".rstrip()

    def expect(self, amount: float) -> None:
        """Count `amount` more of the unit as to be done."""
        self.total += amount
        if self.bar is not None:
            self.bar.total = self.total

    def close(self) -> None:
        """Take the bar off the terminal; the person who asked for more is told the count, the time and the rate."""
        if self.bar is not None:
            _bars.remove(self.bar)
            self.bar.close()
        took = max(time.monotonic() - self.started, 1e-9)
        rate = f"{_scaled(self.done / took)} {self.unit}/s"
        detail(f"{self.label}: {_scaled(self.done)} {self.unit} in {duration(took)}, {rate}")


def _scaled(value: float) -> str:
    for limit, divisor, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= limit:
            return f"{value / divisor:.1f}{suffix}"
    return f"{value:.3g}"


@contextmanager
def progress(label: str, total: float, unit: str) -> Iterator[Progress]:
    """Show the progress of the enclosed work: `with progress("convert", n, "B") as bar: bar.advance(k)`."""
    bar = Progress(label, total, unit)
    try:
        yield bar
    finally:
        bar.close()
