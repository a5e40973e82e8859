"""Tag a version of a dataset, NAME@vX.Y.Z as GTO does, once git is clean, dvc.lock matches and the archive is pushed.

With --check, only say whether dvc.lock matches code, knobs and the data at hand; absent data counts as recorded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from stages.common import run, stage_parser
from ups_data.errors import UpsDataError
from ups_data.release import release, some, stale_stages


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit status."""
    parser = stage_parser(__doc__, "python -m stages.release burgers1d-subset v1.0.0")
    parser.add_argument("name", nargs="?", help="an artifact of dvc.yaml, e.g. burgers1d-subset")
    parser.add_argument("version", nargs="?", help="the new version, e.g. v1.0.0")
    parser.add_argument("--remote", metavar="NAME", help="the DVC remote that must hold the archive (its default)")
    parser.add_argument("--check", action="store_true", help="tag nothing, only check dvc.lock; status 1 if stale")
    return run(_work, parser, argv)


def _work(args: argparse.Namespace) -> str:
    if args.check:
        if stale := stale_stages():
            raise UpsDataError(
                f"dvc.lock does not match for {some(stale)}; run `dvc repro` (`dvc status` says why) and commit"
            )
        return "dvc.lock matches the code, the knobs and the data at hand; next: make push"
    if not (args.name and args.version):
        raise UpsDataError("name and version are needed, e.g. make release NAME=burgers1d-subset VERSION=v1.0.0")
    return release(args.name, args.version, remote=args.remote)


if __name__ == "__main__":
    sys.exit(main())
