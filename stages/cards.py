"""Write the card of a dataset, docs/datasets/<task>.md: what its manifest, registry entry and hand-written part say.

W&B and the gallery show it.

    python -m stages.cards burgers1d
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import add_flags, run, stage_parser
from ups_data import cards, registry
from ups_data.catalogue import all_entries, read_catalogue
from ups_data.manifest import read_manifest
from ups_data.params import dataset_params, load_params


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and write the card; returns the exit status."""
    parser = stage_parser(__doc__.split("\n\n", 1)[0], "python -m stages.cards burgers1d")
    parser.add_argument("task", help="a dataset of params.yaml, converted")
    add_flags(parser, "data", data="folder of the manifest (data/pdebench)")
    parser.add_argument("--entries", default=registry.ENTRIES, metavar="DIR", help=f"entries ({registry.ENTRIES})")
    parser.add_argument("--out", default=str(cards.CARDS), metavar="DIR", help=f"folder of the cards ({cards.CARDS})")
    return run(_work, parser, argv)


def _work(args: argparse.Namespace) -> str:
    params = load_params(args.params, args.set)
    knobs = dataset_params(params, args.task)
    manifest = read_manifest(args.data, args.task)
    name = knobs.package.name
    packed = Path(args.entries) / f"{name}.yaml"
    entry = registry.read_registry(packed).get(name) if packed.is_file() else None
    published = {file.path: file.size for file in all_entries(read_catalogue())}
    origin = cards.origin_of(manifest, knobs, params, published)
    part = cards.part_of(args.task, knobs.convert.folder)
    path = cards.write_card(args.out, args.task, cards.card(part, manifest, origin, name, entry))
    return f"{path}: {part.title}, {(origin or 'foreign').lower()} data; next: python -m stages.exhibit {args.task}"


if __name__ == "__main__":
    sys.exit(main())
