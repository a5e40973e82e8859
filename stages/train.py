"""Train the latent operator of a task, from the latent cache and the autoencoder's decoder alone.

Writes models/<task>/operator.safetensors and the learning curve reports/<task>/operator.csv. A killed run goes on
from its last saved state.

    python -m stages.train burgers1d
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
    parser = stage_parser(__doc__.split("\n\n", 1)[0], "python -m stages.train burgers1d")
    parser.add_argument("task", help="a dataset of params.yaml")
    add_flags(parser, "cache-dir", "models", "reports", "device", reports="folder of the learning curves")
    return run(train, parser, argv)


def train(args: argparse.Namespace) -> str:
    """Train the operator of the task; returns the last line to print."""
    params = load_params(args.params, args.set)
    knobs = dataset_params(params, args.task).train
    from ups_data.execution import pick_device
    from ups_data.manifest import content_key
    from ups_data.models.autoencoder import load_autoencoder
    from ups_data.models.checkpoint import save_model
    from ups_data.stores.latents import open_cache
    from ups_data.training import ranks
    from ups_data.training.loop import lowest
    from ups_data.training.minutes import minutes
    from ups_data.training.operator import train_operator
    from ups_data.training.publish import publish, state_folder
    from ups_data.training.tracking import tracked

    with ranks.joined(pick_device(args.device)) as device:
        autoencoder = load_autoencoder(Path(args.models) / args.task / "autoencoder.safetensors", device)
        caches = [open_cache(Path(args.cache_dir), args.task, split, autoencoder) for split in ("train", "val")]
        key = content_key(caches=[cache.key for cache in caches], knobs=knobs.model_dump())
        state = state_folder("train", args.task, key)
        models, reports = Path(args.models) / args.task, Path(args.reports) / args.task
        with tracked(params, args.task, "train") as run:
            with minutes(reports, "operator", device, state):
                model, curve = train_operator(
                    autoencoder,
                    *caches,
                    knobs,
                    state=state,
                    key=key,
                    device=device,
                    label=f"{args.task} operator",
                )
            publish(
                run,
                "operator",
                lambda path: save_model(path, model.state_dict(), model.config),
                curve,
                models=models,
                reports=reports,
                state=state,
            )
    best = lowest(curve)
    flags = repeated(params=args.params, models=args.models, reports=args.reports)
    following = f"python -m stages.baseline {args.task}{flags}"
    return f"{args.task}: operator with a validation error of {best:.3g}; next: {following}"


if __name__ == "__main__":
    sys.exit(main())
