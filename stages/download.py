"""Download official PDEBench files, verified, into DVC's cache and the workspace (data/raw/pdebench).

Names a family (1D/Burgers), a folder, a file, a glob ('2D/NS_incom/*-1?.h5') or a task of params.yaml. Stopped at
any moment, the same command goes on where it was. Afterwards `dvc push` mirrors the files to the DVC remote.

    python -m stages.download 1D/Burgers
    python -m stages.download burgers1d '2D/DarcyFlow/*beta1.0*'
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import run, stage_parser
from ups_data.catalogue import BASE_URL, OFFICIAL, all_entries, read_catalogue, select
from ups_data.errors import UpsDataError
from ups_data.files import amount
from ups_data.params import load_params

CONNECTIONS = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and download; returns the exit status."""
    parser = stage_parser(__doc__.split("\n\n", 1)[0], "python -m stages.download 1D/Burgers")
    parser.add_argument("what", nargs="+", help="a family, folder, file, glob or task; stages.catalogue lists them")
    parser.add_argument(
        "--base-url",
        default=os.environ.get("UPS_PDEBENCH_URL") or BASE_URL,
        metavar="URL",
        help=f"where URL/<file id> is the file: a mirror (also $UPS_PDEBENCH_URL; {BASE_URL})",
    )
    parser.add_argument(
        "--connections",
        type=int,
        default=CONNECTIONS,
        metavar="N",
        help=f"connections at once, over files and the ranges of large files ({CONNECTIONS})",
    )
    return run(_work, parser, argv)


def _work(args: argparse.Namespace) -> str:
    from ups_data.download import Policy, download, publish
    from ups_data.dvc_files import cache_folder

    if not 1 <= args.connections <= 64:
        raise UpsDataError(f"--connections: got {args.connections}, expected 1 to 64")
    if not args.base_url.startswith(("http://", "https://")):
        raise UpsDataError(f"--base-url: got {args.base_url!r}, expected http://.. or https://..")
    wanted = select(all_entries(read_catalogue()), args.what, load_params(args.params, args.set).datasets)
    cache = cache_folder(Path())
    outcome = download(wanted, cache, base_url=args.base_url, policy=Policy(args.connections))
    here = outcome.present + outcome.fetched
    changed = publish(here, cache) if here else []
    counts = f"{len(outcome.fetched)} files fetched ({amount(outcome.size)}), {len(outcome.present)} already here"
    if outcome.failures:
        more = f" (and {len(outcome.failures) - 1} more)" if len(outcome.failures) > 1 else ""
        raise UpsDataError(f"{outcome.failures[0]}{more}; {counts}")
    share = f"; to share them: git add {OFFICIAL}, commit, dvc push" if changed else ""
    return f"{counts}, verified{share}; next: python -m stages.convert TASK (entries: docs/families.md)"


if __name__ == "__main__":
    sys.exit(main())
