"""Say what a raw or converted file holds: its family, channels, parameters, resolution, ranges and problems.

Takes HDF5 files of any family, .npz shards, Zarr stores, archives, latent caches and models, told by their content.
A sample of the numbers is read, with --full all of them; memory stays bounded. On a terminal a sketch is shown.

    python -m stages.inspect data/raw/1D/Burgers/Train/1D_Burgers_Sols_Nu0.001.hdf5 --picture /tmp/burgers.png
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import repeated, run, stage_parser
from ups_data import console
from ups_data.errors import UpsDataError
from ups_data.inspection import inspect
from ups_data.inspection.look import Look
from ups_data.manifest import manifest_path

EXAMPLE = "python -m stages.inspect data/pdebench/burgers1d_test.h5 --picture /tmp/burgers.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and look; returns the exit status."""
    parser = stage_parser(__doc__.split("\n\n", 1)[0], EXAMPLE)
    parser.add_argument("file", help="a file, a .zarr folder or the folder of a latent cache")
    parser.add_argument("--full", action="store_true", help="read every number, not a sample of them")
    parser.add_argument("--picture", metavar="FILE.png", help="draw it there too")
    return run(_work, parser, argv)


def _work(args: argparse.Namespace) -> str:
    if args.picture and not args.picture.endswith(".png"):
        raise UpsDataError(f"--picture {args.picture}: expected a file ending in .png")
    look = inspect(args.file, args.full)
    print(describe(args.file, look))
    drawn = ""
    if look.panels:
        from ups_data.inspection.draw import save_picture, sketch

        if sys.stdout.isatty() and not console.is_quiet():
            print(f"\n{sketch(look.panels[0], _columns())}\n")
        if args.picture:
            save_picture(args.picture, look.panels, f"{Path(args.file).name}\n{look.what}")
            drawn = f", drawn in {args.picture}"
    elif args.picture:
        console.say(f"there is no picture of this: {look.what.split(',')[0]}")
    counted = f"{len(look.problems)} problems" if len(look.problems) != 1 else "1 problem"
    following = _following(args.file, look)
    return f"{args.file}: {counted}{drawn}" + (f"; next: {following}" if following else "")


def _columns() -> int:
    """The width of a sketch: 64, or what a narrow terminal has room for beside the words `first` and `last`."""
    return min(64, max(16, shutil.get_terminal_size().columns - len("first ")))


def _following(file: str, look: Look) -> str:
    """The command that goes on from here; an audit needs the manifest beside it, which --pattern does not make."""
    command, _, task = look.following.rpartition(" ")
    if command != "python -m stages.audit":
        return look.following
    folder = Path(file).parent
    return look.following + repeated(data=str(folder)) if manifest_path(folder, task).is_file() else ""


def describe(name: str, look: Look) -> str:
    """The look as text: facts, the ranges as a table, problems."""
    width = max(map(len, look.facts), default=0)
    lines = [f"{name}: {look.what}", *(f"  {fact:<{width}}  {text}" for fact, text in look.facts.items())]
    if look.ranges:
        longest = max(12, *map(len, look.ranges))
        lines += ["", f"  {'':<{longest}} {'minimum':>12} {'maximum':>12} {'mean':>12} {'std':>12}"]
        for channel, found in look.ranges.items():
            numbers = (found.minimum, found.maximum, found.mean, found.std) if found.count else (float("nan"),) * 4
            lines.append(f"  {channel:<{longest}} " + " ".join(f"{number:>12.5g}" for number in numbers))
    lines += [f"  ({look.read})", ""]
    lines += [f"  ! {problem}" for problem in look.problems] or ["  nothing odd was found"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
