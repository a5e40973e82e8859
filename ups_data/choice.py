"""Which of many to look at: evenly spread, the same ones every time."""

from __future__ import annotations


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 .. count - 1, in order, from the first to the last at even distances."""
    chosen = min(count, most)
    return [round(i * (count - 1) / max(1, chosen - 1)) for i in range(chosen)]
