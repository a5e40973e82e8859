"""Pack a converted dataset into one archive that restores the very same bytes, and write its registry entry.

The archive goes to artifacts/<name>.upk (codec pcodec) or .tar.gz (codec gzip), the entry to docs/registry/<name>.yaml.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import add_flags, run, stage_parser
from ups_data import files, registry
from ups_data.errors import UpsDataError
from ups_data.packaging import package_dataset
from ups_data.params import dataset_params, load_params

EXAMPLE = "python -m stages.package burgers1d --codec gzip --out /tmp/packed --entries /tmp/packed"
SUFFIXES = {"pcodec": "upk", "gzip": "tar.gz"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit status."""
    parser = stage_parser(__doc__, EXAMPLE)
    parser.add_argument("task", help="a dataset of params.yaml, e.g. burgers1d")
    parser.add_argument("--codec", choices=SUFFIXES, help="how to pack (knob package.codec)")
    add_flags(parser, "data", data="the converted splits (data/pdebench)")
    parser.add_argument("--out", default="artifacts", metavar="DIR", help="where the archive goes (artifacts)")
    parser.add_argument(
        "--entries", default=registry.ENTRIES, metavar="DIR", help=f"where the entry goes ({registry.ENTRIES})"
    )
    return run(_work, parser, argv)


def _work(args: argparse.Namespace) -> str:
    knobs = dataset_params(load_params(args.params, args.set), args.task).package
    registered = Path(args.entries).resolve() == Path(registry.ENTRIES).resolve()
    if args.codec and args.codec != knobs.codec and registered:
        raise UpsDataError(
            f"--codec {args.codec} is not the knob package.codec ({knobs.codec}), and {registry.ENTRIES} is for what "
            "the knobs make; give other folders with --out and --entries, or change the knobs codec and suffix"
        )
    if args.codec:
        knobs = knobs.model_copy(update={"codec": args.codec, "suffix": SUFFIXES[args.codec]})
    target, entry = package_dataset(args.task, knobs, Path(args.data), Path(args.out), Path(args.entries))
    size = sum(item.size for item in entry.items())
    packed = entry.archive.size
    made = f"{target}: {files.amount(size)} packed into {files.amount(packed)}, ratio {size / packed:.2f}"
    return f"{made}; next: python -m stages.registry" if registered else made


if __name__ == "__main__":
    sys.exit(main())
