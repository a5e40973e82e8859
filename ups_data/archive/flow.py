"""What keeps memory and disk busy at once: buffers used again, bytes on their way to the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

BUFFER = 4 << 20  # bytes; from this size on numpy asks for huge pages
FLUSH = 32 << 20  # bytes of a file after which they are sent to the disk
FLUSHERS = 8  # threads that wait for the disk: it takes many small files at once five times as fast as one by one


class Buffers:
    """Memory that threads use again: the first touch of new memory costs as much as writing it."""

    def __init__(self):
        self.spare: deque[np.ndarray] = deque()

    def take(self, size: int) -> np.ndarray:
        """`size` bytes with anything in them."""
        if size > BUFFER:
            return np.empty(size, np.uint8)
        try:
            return self.spare.pop()[:size]
        except IndexError:
            return np.empty(BUFFER, np.uint8)[:size]

    def give(self, taken: np.ndarray) -> None:
        """Let what was taken be overwritten."""
        if taken.base is not None:
            self.spare.append(taken.base)


class Flusher:
    """Sends files to the disk in threads of its own: what is there when a file ends need not be waited for."""

    def __init__(self):
        self.threads, self.waiting = ThreadPoolExecutor(FLUSHERS), deque()

    def submit(self, work: Callable[[Path | int], None], file: Path | int) -> None:
        """Do this to a file, its path or descriptor, before long; raises the OSError of what is done by now."""
        self.waiting.append(self.threads.submit(work, file))
        while self.waiting and self.waiting[0].done():
            self.waiting.popleft().result()

    def settle(self) -> None:
        """Wait until all is done; raises the OSError of what could not be."""
        while self.waiting:
            self.waiting.popleft().result()

    def close(self) -> None:
        """Wait, whatever came of it."""
        self.threads.shutdown()
