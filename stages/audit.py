"""Prove from the stored data that no initial condition stands in two splits, of one task or of several named together.

    python -m stages.audit burgers1d advection1d

Prints, beside what leaks (nothing), what splits over rows or over files of the same samples would leak. Ends with
status 1 when a leak is found, or when the data are not those that the manifest speaks of.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from stages.common import add_flags, repeated, run, stage_parser
from ups_data import console
from ups_data.errors import UpsDataError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and audit; returns the exit status."""
    parser = stage_parser(__doc__.split("\n\n", 1)[0], "python -m stages.audit burgers1d advection1d")
    parser.add_argument("tasks", nargs="+", metavar="task", help="converted tasks; together they must not leak either")
    add_flags(parser, "data")
    return run(audit_tasks, parser, argv)


def audit_tasks(args: argparse.Namespace) -> str:
    """Audit the tasks and print a line for each; returns the last line to print."""
    from ups_data.audit import audit, leaks

    audits = [audit(args.data, task) for task in args.tasks]
    console.say(f"{'task':<20} {'samples':>8} {'initial':>8} {'leaked':>8} {'by rows':>8} {'by files':>8}")
    for found in audits:
        files = found.leaked_by_files()
        console.say(
            f"{found.task:<20} {len(found.groups):>8} {found.distinct:>8} {found.leaked:>8.1%} "
            f"{found.leaked_by_rows():>8.1%} {'-' if files is None else f'{files:.1%}':>8}"
        )
    problems, leaking = [problem for found in audits for problem in found.problems], leaks(audits)
    for problem in (problems + leaking)[1:]:
        console.say(problem)
    if problems:
        raise UpsDataError(f"{problems[0]}; fetch the data again or convert them again")
    if leaking:
        remedy = (
            "convert again with splits.protocol: grouped and the same samples, or hashed, and the same seed and shares "
            "for all tasks"
        )
        raise UpsDataError(f"{leaking[0]}; {remedy}")
    return (
        f"no initial condition stands in two splits of {', '.join(args.tasks)}; leaked is the share of the test "
        "samples whose initial condition stands in train, here and in naive splits of the same samples; "
        f"next: python -m stages.autoencoder {args.tasks[0]}{repeated(params=args.params, data=args.data)}"
    )


if __name__ == "__main__":
    sys.exit(main())
