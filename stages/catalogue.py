"""List the official PDEBench files: families, sizes, what is here, what is elsewhere, what is a duplicate.

Without a name: a line a family. With names (families, folders, globs, tasks): a line a file.

    python -m stages.catalogue
    python -m stages.catalogue 1D/Burgers --remote
    python -m stages.catalogue '2D/NS_incom/*-13?.h5' --json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from stages.common import run, stage_parser
from ups_data import holdings
from ups_data.catalogue import all_entries, read_catalogue, select
from ups_data.params import load_params


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and list; returns the exit status."""
    parser = stage_parser(__doc__.split("\n\n", 1)[0], "python -m stages.catalogue 1D/Burgers")
    parser.add_argument("what", nargs="*", help="a family, folder, file, glob or task; all families if left out")
    parser.add_argument(
        "--remote", nargs="?", const="", metavar="NAME", help="also ask a DVC remote what it has (the default one)"
    )
    parser.add_argument("--json", action="store_true", help="the list as JSON, sizes in bytes")
    return run(_work, parser, argv)


def _work(args: argparse.Namespace) -> str:
    entries = all_entries(read_catalogue())
    rows = holdings.survey(entries, remote=args.remote)
    if args.what:
        chosen = {entry.path for entry in select(entries, args.what, load_params(args.params, args.set).datasets)}
        rows = [row for row in rows if row.path in chosen]
    if args.json:
        print(json.dumps([row.as_dict() for row in rows], indent=2))
        return ""
    print(holdings.file_table(rows) if args.what else holdings.family_table(rows))
    return f"{holdings.summary(rows)}; next: python -m stages.download WHAT"


if __name__ == "__main__":
    sys.exit(main())
