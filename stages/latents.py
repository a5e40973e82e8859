"""Encode the converted splits of one or more tasks with their trained autoencoders.

Writes data/latent_cache/<task>_<split>/, whole or not at all. A cache that is up to date is left as it is; one of
another autoencoder, dataset, view or dtype is replaced with --overwrite alone.

    python -m stages.latents burgers1d --splits train val --dtype float16

All cores of a CPU share the work. Several GPUs, or hosts, do under torchrun; the bytes are the same:

    torchrun --nproc_per_node 4 -m stages.latents burgers1d
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.common import add_flags, count, from_zero, repeated, run, stage_parser
from ups_data.console import say
from ups_data.files import amount
from ups_data.params import SPLITS, Dataset, dataset_params, load_params

if TYPE_CHECKING:
    import torch


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and encode; returns the exit status."""
    parser = stage_parser(__doc__.split("\n\n", 1)[0], "python -m stages.latents burgers1d --splits train val")
    add = parser.add_argument
    add("tasks", nargs="+", metavar="task", help="datasets of params.yaml")
    add("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="which splits (all)")
    add_flags(parser, "data", "models", "cache-dir", cache_dir="folder to write to, a cache a split inside")
    add("--latent-len", type=count, metavar="L", help="tokens the autoencoder must have (knob autoencoder.latent_len)")
    add("--latent-dim", type=count, metavar="D", help="numbers a token must have (knob autoencoder.latent_dim)")
    add("--batch-size", type=count, metavar="N", help="frames encoded at once (knob latents.batch)")
    add("--dtype", choices=("float16", "bfloat16", "float32"), help="number format (knob latents.dtype)")
    add("--workers", type=from_zero, metavar="N", help="threads that read ahead for a GPU (up to 4); 0: none")
    add("--pin-memory", action=argparse.BooleanOptionalAction, help="pass through page-locked memory (with a GPU: yes)")
    add_flags(parser, "device")
    add("--overwrite", action="store_true", help="replace caches, also those that are up to date")
    return run(encode, parser, argv)


def encode(args: argparse.Namespace) -> str:
    """Write the caches asked for; returns the last line to print."""
    params = load_params(args.params, args.set)
    chosen = {task: dataset_params(params, task) for task in args.tasks}
    from ups_data.execution import pick_device
    from ups_data.training import ranks

    with ranks.joined(pick_device(args.device)) as device:
        for task, knobs in chosen.items():
            _encode_task(args, task, knobs, device)
    flags = repeated(params=args.params, cache_dir=args.cache_dir, models=args.models)
    return f"{', '.join(chosen)}: latents in {args.cache_dir}; next: python -m stages.train {args.tasks[0]}{flags}"


def _encode_task(args: argparse.Namespace, task: str, knobs: Dataset, device: torch.device) -> None:
    from ups_data.models.autoencoder import check_data, load_autoencoder
    from ups_data.stores.latents import cache_folder, cache_is_current
    from ups_data.training import ranks
    from ups_data.training.caching import cache_split, check_fit, constituents
    from ups_data.training.frames import open_frames

    autoencoder = load_autoencoder(Path(args.models) / task / "autoencoder.safetensors", device)
    wanted = {"latent_len": args.latent_len, "latent_dim": args.latent_dim}
    asked = knobs.autoencoder.model_copy(update={name: value for name, value in wanted.items() if value})
    check_fit(autoencoder, task, asked, knobs.view)
    given = {"batch": args.batch_size, "dtype": args.dtype}
    latents = knobs.latents.model_copy(update={name: value for name, value in given.items() if value})
    for split in args.splits:
        folder = cache_folder(args.cache_dir, task, split)
        frames = open_frames(args.data, task, split, knobs.kind, knobs.view)
        check_data(autoencoder, task, frames.manifest["key"], args.data)
        current = not args.overwrite and cache_is_current(folder, constituents(autoencoder, frames, latents.dtype))
        if ranks.decided(current):
            say(f"{folder}: already there")
            continue
        manifest = cache_split(
            autoencoder,
            frames,
            folder,
            latents,
            device=device,
            workers=args.workers,
            pin_memory=args.pin_memory,
            label=f"{task} {split}",
        )
        if manifest is None:
            continue
        errors = {name: error for role in manifest["reconstruction"].values() for name, error in role.items()}
        say(
            f"{folder}: {amount(manifest['bytes'])} for {amount(manifest['data_bytes'])} of data "
            f"({manifest['bytes'] / manifest['data_bytes']:.2f}), round-trip nRMSE "
            + ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
        )


if __name__ == "__main__":
    sys.exit(main())
