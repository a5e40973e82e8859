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

from stages.common import run, stage_parser
from ups_data.params import dataset_params, load_params


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train; returns the exit status."""
    parser = stage_parser(__doc__.split("\n\n", 1)[0], "python -m stages.train burgers1d")
    parser.add_argument("task", help="a dataset of params.yaml")
    parser.add_argument("--cache-dir", default="data/latent_cache", metavar="DIR", help="folder of the latent caches")
    parser.add_argument(
        "--models", default="models", metavar="DIR", help="folder of the checkpoints, one a task inside"
    )
    parser.add_argument("--reports", default="reports", metavar="DIR", help="folder of the learning curves")
    parser.add_argument("--device", default="auto", help="auto (CUDA when there), cpu, cuda or cuda:N")
    return run(train, parser, argv)


def train(args: argparse.Namespace) -> str:
    """Train the operator of the task; returns the last line to print."""
    params = load_params(args.params, args.set)
    knobs = dataset_params(params, args.task).train
    from ups_data.execution import pick_device
    from ups_data.files import remove, write_csv
    from ups_data.manifest import content_key
    from ups_data.models.autoencoder import load_autoencoder
    from ups_data.models.checkpoint import save_model
    from ups_data.stores.latents import open_cache
    from ups_data.training import ranks
    from ups_data.training.loop import CURVE
    from ups_data.training.minutes import minutes
    from ups_data.training.operator import train_operator
    from ups_data.training.tracking import tracked

    with ranks.joined(pick_device(args.device)) as device:
        autoencoder = load_autoencoder(Path(args.models) / args.task / "autoencoder.safetensors", device)
        caches = [open_cache(Path(args.cache_dir), args.task, split, autoencoder) for split in ("train", "val")]
        state = Path(".state/train") / args.task
        checkpoint = Path(args.models) / args.task / "operator.safetensors"
        with tracked(params, args.task, "train") as run:
            with minutes(Path(args.reports) / args.task, "operator", device, state):
                model, curve = train_operator(
                    autoencoder,
                    *caches,
                    knobs,
                    state=state,
                    key=content_key(caches=[cache.key for cache in caches], knobs=knobs.model_dump()),
                    device=device,
                    label=f"{args.task} operator",
                )
            if ranks.rank() == 0:
                save_model(checkpoint, model.state_dict(), model.config)
                write_csv(Path(args.reports) / args.task / "operator.csv", CURVE, curve)
                run.curve(CURVE, curve)
                run.model("operator", checkpoint)
                remove(state)
    best = min(row[2] for row in curve)
    return f"{args.task}: operator with a validation error of {best:.3g}; next: python -m stages.baseline {args.task}"


if __name__ == "__main__":
    sys.exit(main())
