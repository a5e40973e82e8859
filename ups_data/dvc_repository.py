"""The project as DVC's library sees it, for what its commands do not tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ups_data.errors import UpsDataError

if TYPE_CHECKING:
    from dvc.repo import Repo


@contextmanager
def dvc_repository(folder: Path) -> Iterator[Repo]:
    """The DVC repository in `folder`; what DVC raises (a broken dvc.yaml, another process at work) is a sentence."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(folder)) as repo:
            yield repo
    except DvcException as error:
        reason = " ".join(str(error).split())
        raise UpsDataError(f"DVC cannot do this in {folder.absolute()}: {reason}") from None
