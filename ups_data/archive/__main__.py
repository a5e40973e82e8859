"""Look into archives and unpack them: `python -m ups_data.archive extract burgers1d_subset_v1.upk data/pdebench`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from ups_data.archive import reader
from ups_data.errors import UpsDataError


def main(argv: Sequence[str] | None = None) -> int:
    """`list`, `verify` or `extract` an archive; 0, or 1 with a sentence on standard error, or 130 after Ctrl-C."""
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
        _work(args)
        sys.stdout.flush()  # here, where a reader that went away is expected, and not at the interpreter's end
    except UpsDataError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again", 128 + signal.SIGINT)
    except BrokenPipeError:  # whoever read what is printed went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except MemoryError:
        return _fail(f"{args.archive}: its index needs more memory than there is; refused", 1)
    except OSError as error:  # a folder that may not be written, a disk that filled up meanwhile
        where = error.filename or getattr(args, "folder", args.archive)
        return _fail(f"{where}: {error.strerror}; name another file or folder, or mend that", 1)
    return 0


def _work(args: argparse.Namespace) -> None:
    if args.command == "list":
        for member in reader.members(args.archive):
            print(f"{member.size:>14}  {member.sha256}  {member.path}")
    elif args.command == "verify":
        print(f"{args.archive}: {_count(reader.verify(args.archive))} verified")
    else:
        print(f"{args.folder}: {_count(reader.extract(args.archive, args.folder, args.only))} restored")


def _fail(sentence: str, status: int) -> int:
    print(f"ups_data.archive: {sentence}", file=sys.stderr)
    return status


def _count(members: Sequence[reader.Member]) -> str:
    return f"{len(members)} files, {sum(m.size for m in members)} bytes,"


if __name__ == "__main__":
    sys.exit(main())
