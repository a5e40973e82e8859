"""Merge the leaderboards of all tasks into one, best first under each protocol.

Writes reports/leaderboard.csv, and reports/leaderboard.md with the minutes of training beside it.

    python -m stages.leaderboard
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import add_flags, run, stage_parser
from ups_data import files
from ups_data.evaluation import leaderboard


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and merge; returns the exit status."""
    parser = stage_parser(__doc__.split("\n\n", 1)[0], "python -m stages.leaderboard")
    add_flags(parser, "reports")
    return run(merge, parser, argv)


def merge(args: argparse.Namespace) -> str:
    """Write both files; returns the last line to print."""
    reports = Path(args.reports)
    table = leaderboard.merge(reports)
    tasks = list(dict.fromkeys(row["task"] for row in table))
    minutes = {task: leaderboard.read_minutes(reports, task) for task in tasks}
    text = leaderboard.markdown(table, minutes)
    files.write_csv(reports / "leaderboard.csv", leaderboard.COLUMNS, ([*row.values()] for row in table))
    files.write_text(reports / "leaderboard.md", text)
    return (
        f"{reports}/leaderboard.md: {len(tasks)} tasks: {', '.join(tasks)}; next: python -m stages.package {tasks[0]}"
    )


if __name__ == "__main__":
    sys.exit(main())
