"""What the tests of the mirror call things, and how they look at what it left."""

from __future__ import annotations

from pathlib import Path

from ups_data import registry

ROOT = Path(__file__).parents[2]
NAME, TASK, ARCHIVE = "burgers1d_subset_v1", "burgers1d", "artifacts/burgers1d_subset_v1.upk"
WRONG_KEY = "wrong" + "0" * 35


def record() -> registry.Mirror | None:
    """What the project says of where its dataset is."""
    return registry.read_mirror(registry.MIRROR, NAME)


def only(versions: list):
    """The one element."""
    (version,) = versions
    return version
