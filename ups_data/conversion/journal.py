"""Work in numbered parts, with a journal of those that are finished: a killed run goes on with the others.

The first line of a journal says what the work is; every line after it is [number, result] of a finished part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ups_data import console, files
from ups_data.execution import run_all


def start(journal: Path, head: Mapping) -> None:
    """A new journal of the work that `head` describes."""
    with files.atomic(journal) as temporary:
        temporary.write_text(json.dumps(head) + "\n")


def head_of(journal: Path) -> dict:
    """What a journal is of; nothing where there is none."""
    return json.loads(journal.read_text().partition("\n")[0] or "{}") if journal.exists() else {}


def run_parts(
    work: Callable,
    parts: Sequence[tuple],
    sizes: Sequence[float],
    journal: Path,
    label: str,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
) -> list:
    """Call `work(*part)` for the parts that the journal lacks; return the results of all in the order of the parts.

    `sizes`: bytes of every part, for the progress. Results are what JSON takes, and the same bits when they come back.
    """
    done = _finished(journal)
    if done:
        console.say(f"{label}: going on with {len(parts) - len(done)} of {len(parts)} blocks")
    todo = {number: part for number, part in enumerate(parts) if number not in done}
    with console.progress(label, sum(sizes), "B") as bar, open(journal, "a") as log:
        bar.advance(sum(sizes[number] for number in done))
        log.write("\n" if done else "")  # a run was killed while it wrote: what follows is a line of its own
        for number, result in run_all(work, todo, workers, scheduler):
            done[number] = result
            log.write(json.dumps([number, result]) + "\n")
            log.flush()
            bar.advance(sizes[number])
    return [done[number] for number in range(len(parts))]


def _finished(journal: Path) -> dict[int, object]:
    done: dict[int, object] = {}
    for line in journal.read_text().splitlines()[1:]:
        try:
            number, result = json.loads(line)
        except json.JSONDecodeError:
            continue  # half a line, or an empty one
        done[number] = result
    return done
