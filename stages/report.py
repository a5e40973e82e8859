"""Write the Markdown that belongs in a pull request: knobs, data, metrics and plots against a base revision."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import run, stage_parser
from ups_data import files
from ups_data.report import report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit status."""
    parser = stage_parser(__doc__, "python -m stages.report --base main --out report.md")
    parser.add_argument("--base", default="main", metavar="REV", help="compare with where the branch left this (main)")
    parser.add_argument("--out", metavar="FILE", help="write the report here instead of printing it")
    parser.add_argument(
        "--link", default="", metavar="URL", help="where this commit's files are seen, put before paths of pictures"
    )
    return run(_work, parser, argv)


def _work(args: argparse.Namespace) -> str:
    if args.out is not None:
        files.check_file(args.out)
    text = report(args.base, Path(), args.link)
    if args.out is None:
        print(text, end="")
        return ""
    files.write_text(args.out, text)
    return f"wrote {args.out}; next: put it into the pull request"


if __name__ == "__main__":
    sys.exit(main())
