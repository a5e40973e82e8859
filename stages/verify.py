"""Rehash the DVC cache, the workspace and the archives against dvc.lock and the registry.

Prints what is broken and the command that mends it; exits with status 1 if anything is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import run, stage_parser
from ups_data import console, files
from ups_data.dvc_files import cache_folder
from ups_data.errors import UpsDataError
from ups_data.verification import bytes_to_read, verify


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit status."""
    return run(_work, stage_parser(__doc__, "python -m stages.verify"), argv)


def _work(args: argparse.Namespace) -> str:
    count = size = broken = 0
    cache = cache_folder(Path())
    with console.progress("verify", bytes_to_read(Path(), cache), "B") as bar:
        for finding in verify(Path(), cache):
            count, size = count + 1, size + finding.size
            bar.advance(finding.size)
            if finding.problem:
                broken += 1
                console.say(f"BROKEN {finding.what}: {finding.problem}\n       mend: {finding.remedy}")
            else:
                console.detail(f"ok     {finding.what}")
    summary = f"{count} objects, {files.amount(size)} rehashed"
    if broken:
        raise UpsDataError(f"{summary}; {broken} broken, see above")
    return f"{summary}, none broken; next: make push"


if __name__ == "__main__":
    sys.exit(main())
