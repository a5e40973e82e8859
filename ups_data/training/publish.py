"""What a training leaves behind: its checkpoint and its learning curve, and word of both to W&B."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ups_data import files
from ups_data.training import ranks
from ups_data.training.loop import CURVE

if TYPE_CHECKING:
    from ups_data.training.tracking import Tracker

FORGOTTEN = 30 * 24 * 3600  # seconds that a state is kept when nothing goes on with it


def state_folder(stage: str, task: str, key: str) -> Path:
    """Where a training with that key keeps what it resumes from; others of the task, at once too, have theirs.

    Those that nothing went on with for a month are removed by the next training of the task that ends.
    """
    return Path(".state") / stage / task / key[:12]


def publish(
    run: Tracker,
    name: str,
    save: Callable[[Path], object],
    curve: Sequence[Sequence[float]],
    *,
    models: Path,
    reports: Path,
    state: Path,
) -> None:
    """Write a checkpoint and its learning curve, and tell the run of both; rank 0 does it.

    `save(path)` writes `<models>/<name>.safetensors`; rows of CURVE become `<reports>/<name>.csv`. The folder `state`,
    which a killed training resumes from, is removed when both are there.
    """
    if ranks.rank():
        return
    checkpoint = models / f"{name}.safetensors"
    save(checkpoint)
    files.write_csv(reports / f"{name}.csv", CURVE, curve)
    run.curve(CURVE, curve)
    run.model(name, checkpoint)
    files.remove(state)
    for other in state.parent.glob("*/state.safetensors"):
        if time.time() - other.stat().st_mtime > FORGOTTEN:
            files.remove(other.parent)
