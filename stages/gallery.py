"""Put the parts in data/gallery/ together: reports/gallery/index.html, a page that opens from disk, without network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import run, stage_parser
from ups_data import files
from ups_data.errors import UpsDataError
from ups_data.params import load_params


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and write the page; returns the exit status."""
    parser = stage_parser(__doc__, "python -m stages.gallery")
    parser.add_argument("--parts", default="data/gallery", metavar="DIR", help="folder of the parts (data/gallery)")
    parser.add_argument("--out", default="reports/gallery", metavar="DIR", help="folder of the page (reports/gallery)")
    return run(_work, parser, argv)


def _work(args: argparse.Namespace) -> str:
    from ups_data.gallery.page import page

    parts = [Path(args.parts) / f"{task}.json" for task in load_params(args.params, args.set).datasets]
    found = [path for path in parts if path.is_file()]
    if not found:
        raise UpsDataError(f"{args.parts} holds no part of a dataset; run `python -m stages.exhibit TASK` first")
    path, exhibits = Path(args.out) / "index.html", [files.read_json(part) for part in found]
    for part, exhibit in zip(found, exhibits, strict=True):
        if exhibit.get("task") != part.stem:
            raise UpsDataError(f"{part} is no part of the gallery; run `python -m stages.exhibit {part.stem}` again")
    files.write_text(path, page(exhibits))
    many = f"{len(found)} dataset{'s' * (len(found) > 1)}"
    return f"{path}: {many}, {files.amount(path.stat().st_size)}; open it in a browser"


if __name__ == "__main__":
    sys.exit(main())
