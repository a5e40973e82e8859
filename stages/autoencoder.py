"""Train the autoencoder of a task on its converted train split; the weights are chosen on the val split.

Writes models/<task>/autoencoder.safetensors and the learning curve reports/<task>/autoencoder.csv. A killed run goes
on from its last saved state.

    python -m stages.autoencoder burgers1d
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
    parser = stage_parser(__doc__.split("\n\n", 1)[0], "python -m stages.autoencoder burgers1d")
    parser.add_argument("task", help="a dataset of params.yaml")
    add_flags(parser, "data", "models", "reports", "device", reports="folder of the learning curves")
    return run(train, parser, argv)


def train(args: argparse.Namespace) -> str:
    """Train the autoencoder of the task; returns the last line to print."""
    params = load_params(args.params, args.set)
    knobs = dataset_params(params, args.task)
    from ups_data.execution import pick_device
    from ups_data.manifest import content_key
    from ups_data.models.autoencoder import save_autoencoder
    from ups_data.training import ranks
    from ups_data.training.autoencoder import round_trip, train_autoencoder
    from ups_data.training.frames import open_frames
    from ups_data.training.minutes import minutes
    from ups_data.training.publish import publish, state_folder
    from ups_data.training.tracking import tracked

    with ranks.joined(pick_device(args.device)) as device:
        train, val = (open_frames(args.data, args.task, split, knobs.kind, knobs.view) for split in ("train", "val"))
        key = content_key(
            data=train.manifest["key"], knobs=knobs.autoencoder.model_dump(), view=knobs.view.model_dump()
        )
        state = state_folder("autoencoder", args.task, key)
        models, reports = Path(args.models) / args.task, Path(args.reports) / args.task
        with tracked(params, args.task, "autoencoder") as run:
            with minutes(reports, "autoencoder", device, state):
                model, curve = train_autoencoder(
                    args.task, train, val, knobs.autoencoder, state=state, key=key, device=device
                )
            publish(
                run,
                "autoencoder",
                lambda path: save_autoencoder(path, model, knobs.autoencoder.steps),
                curve,
                models=models,
                reports=reports,
                state=state,
            )
    errors = ", ".join(f"{channel} {error:.2g}" for channel, error in round_trip(model, val, device).items())
    flags = repeated(params=args.params, data=args.data, models=args.models)
    return f"{args.task}: round-trip nRMSE on val: {errors}; next: python -m stages.latents {args.task}{flags}"


if __name__ == "__main__":
    sys.exit(main())
