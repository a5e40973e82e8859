"""Train the plain network of a task in physical space, from the converted data.

Writes models/<task>/baseline.safetensors and the learning curve reports/<task>/baseline.csv. A killed run goes on
from its last saved state.

    python -m stages.baseline burgers1d
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import add_flags, repeated, run, stage_parser
from ups_data.params import dataset_params, load_params


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train; returns the exit status."""
    parser = stage_parser(__doc__.split("\n\n", 1)[0], "python -m stages.baseline burgers1d")
    parser.add_argument("task", help="a dataset of params.yaml")
    add_flags(parser, "data", "models", "reports", "device", reports="folder of the learning curves")
    return run(train, parser, argv)


def train(args: argparse.Namespace) -> str:
    """Train the baseline of the task; returns the last line to print."""
    params = load_params(args.params, args.set)
    knobs = dataset_params(params, args.task)
    from ups_data.execution import pick_device
    from ups_data.manifest import check_split, content_key, read_manifest, store_path
    from ups_data.models.checkpoint import save_model
    from ups_data.training import ranks
    from ups_data.training.baseline import train_baseline
    from ups_data.training.loop import lowest
    from ups_data.training.minutes import minutes
    from ups_data.training.publish import publish, state_folder
    from ups_data.training.tracking import tracked

    with ranks.joined(pick_device(args.device)) as device:
        manifest = read_manifest(args.data, args.task)
        splits = {split: store_path(args.data, args.task, split, knobs.kind) for split in ("train", "val")}
        for split, path in splits.items():
            check_split(manifest, path, split)
        made_from = {"data": manifest["key"], "view": knobs.view.model_dump()}
        key = content_key(knobs=knobs.baseline.model_dump(), **made_from)
        state = state_folder("baseline", args.task, key)
        models, reports = Path(args.models) / args.task, Path(args.reports) / args.task
        with tracked(params, args.task, "baseline") as run:
            with minutes(reports, "baseline", device, state):
                model, curve = train_baseline(
                    knobs.kind,
                    *splits.values(),
                    knobs.baseline,
                    knobs.view,
                    state=state,
                    key=key,
                    device=device,
                    label=f"{args.task} baseline",
                )
            publish(
                run,
                "baseline",
                lambda path: save_model(path, model.state_dict(), model.config | made_from),
                curve,
                models=models,
                reports=reports,
                state=state,
            )
    best = lowest(curve)
    flags = repeated(params=args.params, data=args.data, models=args.models, reports=args.reports)
    following = f"python -m stages.evaluate {args.task}{flags}"
    return f"{args.task}: baseline with a validation error of {best:.3g}; next: {following}"


if __name__ == "__main__":
    sys.exit(main())
