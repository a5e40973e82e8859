"""What every stage script shares: its flags, its way of failing, its last line."""

from __future__ import annotations

import argparse
import errno
import gc
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from types import FrameType

from ups_data import console
from ups_data.errors import UpsDataError

# Before torch is loaded: its threads sleep while they wait. By default they spin, which makes training several times
# slower as soon as anything else runs on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The networks at the default knobs are too small to share among cores: a second thread gains nothing, a second dataset
# beside it does (`make repro`). Set OMP_NUM_THREADS for larger ones.
os.environ.setdefault("OMP_NUM_THREADS", "1")

INTERRUPTED = "interrupted; run the same command again to go on"
# What stops a stage, and what Python does about it if nobody said otherwise.
STOPS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
NO_MEMORY = re.compile("out of memory|can't allocate memory")  # as torch says it
# Flags that several stages have: default, metavar, help.
FLAGS = {
    "params": ("params.yaml", "FILE", "the knobs (params.yaml)"),
    "data": ("data/pdebench", "DIR", "folder of the converted splits"),
    "cache-dir": ("data/latent_cache", "DIR", "folder of the latent caches"),
    "models": ("models", "DIR", "folder of the checkpoints, one a task inside"),
    "reports": ("reports", "DIR", "folder of the results, one a task inside"),
    "device": ("auto", None, "auto (CUDA when there), cpu, cuda or cuda:N"),
}


def stage_parser(doc: str, example: str) -> argparse.ArgumentParser:
    """A parser with the flags all stages have; `example` is a command that runs, shown by --help.

    It starts with `python -m stages.<stage>`, which is what usage and errors call the program.
    """
    parser = argparse.ArgumentParser(
        prog=" ".join(example.split()[:3]),
        description=doc,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, "params")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one knob for this run, e.g. --set datasets.burgers1d.train.steps=100",
    )
    level = parser.add_mutually_exclusive_group()
    level.add_argument(
        "-q", "--quiet", action="store_const", dest="level", const=console.QUIET, help="say only what failed"
    )
    level.add_argument("-v", "--verbose", action="store_const", dest="level", const=console.VERBOSE, help="say more")
    parser.set_defaults(level=console.NORMAL)
    return parser


def add_flags(parser: argparse.ArgumentParser, *names: str, **texts: str) -> None:
    """Add flags of FLAGS; `texts` has the help of those that mean something of their own here."""
    for name in names:
        default, metavar, text = FLAGS[name]
        text = texts.get(name.replace("-", "_"), text)
        parser.add_argument(f"--{name}", default=default, metavar=metavar, help=text)


def repeated(**given: str) -> str:
    """The flags of FLAGS that the next command needs too: those that say something else than the default."""
    flags = {name.replace("_", "-"): value for name, value in given.items()}
    changed = {name: value for name, value in flags.items() if Path(value) != Path(FLAGS[name][0])}
    return "".join(f" --{name} {shlex.quote(value)}" for name, value in changed.items())


def count(text: str) -> int:
    """The type of a flag that takes a whole number from 1."""
    return _whole(text, 1)


def from_zero(text: str) -> int:
    """The type of a flag that takes a whole number from 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from {least}, of nine digits at most")
    return int(text)


def run(work: Callable[[argparse.Namespace], str], parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse, work, and end with one line: what was made and what to do next, or what went wrong.

    `work` returns that last line. Returns the exit status: 0, or 1 after an error, or 130 after Ctrl-C, 143 after
    SIGTERM, 129 after SIGHUP.
    """
    args = parser.parse_args(argv)
    console.set_level(args.level)
    started = time.monotonic()
    _settle(parser.prog)
    try:
        if ending := work(args):
            console.say(f"{ending} ({console.duration(time.monotonic() - started)})")
    except UpsDataError as error:
        return _fail(parser.prog, str(error), 1)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("ups_data", "stages"):
            raise
        return _fail(
            parser.prog, f"{sys.executable} has no package {error.name}; run `make env` and `. .venv/bin/activate`", 1
        )
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        return _fail(parser.prog, INTERRUPTED, 128 + number)
    except (MemoryError, RuntimeError) as error:  # torch has an error of its own for either device
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        return _fail(parser.prog, "not enough memory; use a smaller batch or fewer workers", 1)
    except BrokenPipeError:  # whoever read what is printed went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = error.filename or "the disk"
            return _fail(parser.prog, f"no room left on {where}; nothing half-written is kept: free some room", 1)
        if error.errno == errno.EFBIG:
            remedy = "raise the limit (`ulimit -f`), or write to another disk"
            where = error.filename or "a file"
            return _fail(
                parser.prog,
                f"{where} would be larger than files may be here; nothing half-written is kept: {remedy}",
                1,
            )
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            return _fail(parser.prog, f"may not write or read {error.filename or 'a file'}: {error.strerror}", 1)
        if error.filename is None:
            raise
        return _fail(parser.prog, f"{error.filename}: {error.strerror}; name another file or folder", 1)
    return 0


@cache
def _settle(program: str) -> None:
    """Once a process: keep what is imported; have SIGTERM (batch systems) and SIGHUP (closed terminals) be a Ctrl-C.

    While a module is imported any of them ends the process at once: an exception there may be swallowed, or leave half
    a module, and nothing that is being written is lost that a kill would not lose.
    """
    gc.freeze()  # else garbage is looked for in it again and again, and once more at the end: a tenth of a short stage

    def stop(number: int, frame: FrameType | None) -> None:
        while frame:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os._exit(_fail(program, INTERRUPTED, 128 + number))
            frame = frame.f_back
        raise KeyboardInterrupt(number)

    if threading.current_thread() is threading.main_thread():
        for number, usual in STOPS.items():
            if signal.getsignal(number) in (usual, signal.SIG_DFL):  # not under `nohup`; stages/__init__.py
                signal.signal(number, stop)
                os.register_at_fork(after_in_child=partial(signal.signal, number, usual))


def _fail(program: str, sentence: str, status: int) -> int:
    print(f"{program}: {sentence}", file=sys.stderr, flush=True)
    return status
