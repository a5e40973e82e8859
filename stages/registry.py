"""Merge the entries in docs/registry/ and where W&B has them (docs/mirror/) into docs/dataset_registry.yaml."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from stages.common import run, stage_parser
from ups_data import registry


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit status."""
    parser = stage_parser(__doc__, "python -m stages.registry")
    parser.add_argument("--entries", default=registry.ENTRIES, metavar="DIR", help=f"entries ({registry.ENTRIES})")
    parser.add_argument("--mirror", default=registry.MIRROR, metavar="DIR", help=f"W&B records ({registry.MIRROR})")
    parser.add_argument("--out", default=registry.REGISTRY, metavar="FILE", help=f"registry ({registry.REGISTRY})")
    return run(_work, parser, argv)


def _work(args: argparse.Namespace) -> str:
    entries = registry.merge(args.entries, args.out, args.mirror)
    return f"{args.out}: {len(entries)} datasets: {', '.join(entries)}; next: make push"


if __name__ == "__main__":
    sys.exit(main())
