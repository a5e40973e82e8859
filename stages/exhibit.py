"""Collect a dataset's part of the gallery, data/gallery/<task>.json: pictures, histograms, split proof, rollouts.

python -m stages.exhibit burgers1d
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import add_flags, run, stage_parser
from ups_data import files
from ups_data.params import dataset_params, load_params


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and collect; returns the exit status."""
    parser = stage_parser(__doc__.split("\n\n", 1)[0], "python -m stages.exhibit burgers1d")
    parser.add_argument("task", help="a dataset of params.yaml, converted")
    add_flags(parser, "data", "cache-dir", "reports")
    parser.add_argument("--cards", default="docs/datasets", metavar="DIR", help="folder of the cards (docs/datasets)")
    parser.add_argument("--out", default="data/gallery", metavar="DIR", help="folder of the parts (data/gallery)")
    return run(_work, parser, argv)


def _work(args: argparse.Namespace) -> str:
    dataset_params(load_params(args.params, args.set), args.task)
    from ups_data.gallery.exhibit import exhibit

    card = Path(args.cards) / f"{args.task}.md"
    part = exhibit(args.task, Path(args.data), Path(args.cache_dir), Path(args.reports), card)
    path = Path(args.out) / f"{args.task}.json"
    files.write_json(path, part)
    missing = [name for name in ("latents", "scores", "rollouts") if part[name] is None]
    said = f", without {', '.join(missing)}: not made yet" if missing else ""
    return f"{path}: {files.amount(path.stat().st_size)}{said}; next: python -m stages.gallery"


if __name__ == "__main__":
    sys.exit(main())
