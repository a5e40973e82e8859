"""Look into archives and unpack them: `python -m ups_data.archive extract burgers1d_subset_v1.upk data/pdebench`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ups_data.archive import reader
from ups_data.errors import UpsDataError


def main(argv: Sequence[str] | None = None) -> int:
    """`list`, `verify` or `extract` an archive; 0, or 1 with a sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m ups_data.archive", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("list", "size, SHA-256 and path of each member"), ("verify", "unpack all, write nothing")):
        commands.add_parser(name, help=text).add_argument("archive", metavar="FILE")
    taken = commands.add_parser("extract", help="verify and restore into a folder")
    taken.add_argument("archive", metavar="FILE")
    taken.add_argument("folder", metavar="DIR")
    taken.add_argument("only", nargs="*", metavar="MEMBER", help="files or folders to restore (all)")
    args = parser.parse_args(argv)
    try:
        if args.command == "list":
            for member in reader.members(args.archive):
                print(f"{member.size:>14}  {member.sha256}  {member.path}")
        elif args.command == "verify":
            print(f"{args.archive}: {_count(reader.verify(args.archive))} verified")
        else:
            print(f"{args.folder}: {_count(reader.extract(args.archive, args.folder, args.only))} restored")
    except UpsDataError as error:
        print(f"ups_data.archive: {error}", file=sys.stderr)
        return 1
    return 0


def _count(members: Sequence[reader.Member]) -> str:
    return f"{len(members)} files, {sum(m.size for m in members)} bytes,"


if __name__ == "__main__":
    sys.exit(main())
