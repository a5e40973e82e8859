"""Evaluate a task on its test split: roll out, decode, compare with truth, the baseline, and doing nothing.

Writes into reports/<task>/:
    metrics.json         flat, the same keys for every task
    details.json         protocol, definitions, errors by channel and parameter
    error_per_step.csv   nRMSE of every predictor against time
    spectrum.csv, .png   truth and errors against wavenumber: mean squares in shells floor(|k|), in units of the
                         variance over train, mean over samples, steps and channels
    rollout.png, .gif    a few trajectories, still and moving
    rollouts.npz         the same as numbers: see ups_data/evaluation/record.py
and, into reports/leaderboard/<task>.csv, nRMSE of every predictor under every protocol (knobs evaluate.given and
points), of all test trajectories and by parameter, with 95 % intervals; `stages.leaderboard` merges these.

    python -m stages.evaluate burgers1d
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import add_flags, repeated, run, stage_parser
from ups_data.params import dataset_params, load_params


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and evaluate; returns the exit status."""
    parser = stage_parser(__doc__.split("\n\n", 1)[0], "python -m stages.evaluate burgers1d")
    parser.add_argument("task", help="a dataset of params.yaml")
    add_flags(parser, "data", "cache-dir", "models", "reports", "device")
    return run(evaluate, parser, argv)


def evaluate(args: argparse.Namespace) -> str:
    """Evaluate the task; returns the last line to print."""
    params = load_params(args.params, args.set)
    knobs = dataset_params(params, args.task)
    from ups_data.evaluation.report import write_report
    from ups_data.evaluation.task import open_evaluation
    from ups_data.execution import pick_device
    from ups_data.training.tracking import tracked

    evaluation = open_evaluation(
        args.task, knobs, Path(args.data), Path(args.cache_dir), Path(args.models), pick_device(args.device)
    )
    reports = Path(args.reports) / args.task
    with tracked(params, args.task, "evaluate", Path(args.data)) as run:
        metrics = write_report(reports, args.task, knobs, evaluation)
        run.metrics(metrics)
        run.picture("rollout", reports / "rollout.png")
    reference = "persistence" if metrics["nrmse_persistence"] is not None else "mean"
    return (
        f"{args.task}: nRMSE {metrics['nrmse']:.3g} over {metrics['samples']} test trajectories "
        f"({reference} {metrics[f'nrmse_{reference}']:.3g}, baseline {metrics['nrmse_baseline']:.3g}, "
        f"round trip {metrics['nrmse_roundtrip']:.3g}); see {args.reports}/{args.task}; "
        f"next: python -m stages.leaderboard{repeated(params=args.params, reports=args.reports)}"
    )


if __name__ == "__main__":
    sys.exit(main())
