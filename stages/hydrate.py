"""Bring published datasets to this machine: archive from cache, DVC remote or W&B, verified, unpacked, published.

Only what has its checksum is ever visible under --root; what is there already and is right stays.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import run, stage_parser
from ups_data import console
from ups_data.hydrate import Places, find_version, hydrate
from ups_data.params import SPLITS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit status."""
    parser = stage_parser(__doc__, "python -m stages.hydrate burgers1d_subset_v1 --split test --root data/pdebench")
    parser.add_argument("names", nargs="+", metavar="NAME", help="datasets of docs/dataset_registry.yaml")
    parser.add_argument("--split", action="append", default=[], choices=SPLITS, help="only this split (repeatable)")
    parser.add_argument("--version", metavar="V", help="as of the dataset's git tag, e.g. v1.0.0")
    parser.add_argument("--root", default="data/pdebench", metavar="DIR", help="where the data goes (data/pdebench)")
    parser.add_argument("--cache", default="artifacts/cache", metavar="DIR", help="archives at hand (artifacts/cache)")
    parser.add_argument(
        "--from", dest="source", default="dvc", choices=["dvc", "wandb"], help="whom to ask for an archive (dvc)"
    )
    parser.add_argument("--remote", metavar="NAME", help="the DVC remote to ask (its default)")
    return run(_work, parser, argv)


def _work(args: argparse.Namespace) -> str:
    places = Places(root=Path(args.root), cache=Path(args.cache))
    for name in args.names:  # a name that is wrong is told before the first one is fetched
        find_version(name, args.version, places.repository)
    for name in args.names:
        console.say(hydrate(name, tuple(args.split), places, args.version, args.remote, args.source))
    # DVC goes on from whole datasets that stand where its pipeline keeps them.
    follows = not args.split and Path(args.root) == Places.root and Path("dvc.lock").is_file()
    pipeline = "dvc repro --allow-missing after a change of params.yaml, or " if follows else ""
    root = "" if Path(args.root) == Places.root else f", root={args.root!r}"
    opened = f"ups_data.open_dataset({args.names[0]!r}{root})"
    return f"hydrated {', '.join(args.names)}; next: {pipeline}in Python: {opened}"


if __name__ == "__main__":
    sys.exit(main())
