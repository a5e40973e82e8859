"""Packing against tar: speed and size of both on the same files, in one run.

    python -m bench.packing data/pdebench/burgers1d_train.h5 data/pdebench/advection1d_train.h5

Each line is one file or folder packed alone. Without arguments: all of data/pdebench. The targets: packing
8 times faster than `tar -czf`, unpacking 5 times faster than `tar -xzf`, size 0.30 of it on Burgers, 0.6 on Advection.

An archive is unpacked with checksums and the flush to the disk; `tar -xzf` does neither. So unpacking is compared
twice, each time of like things: with our calls for the disk made no-ops against tar as it is, and as it is against tar
followed by `sync` of what it wrote, where the disk has its say. Every run starts with an idle disk and memory to take.
On a machine that does other work too, read the columns `cpu`: they compare the seconds of all cores that each took.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np

from ups_data import archive, execution

REPEATS = 4  # the best of so many, taken in turns

Cost = tuple[float, float]  # seconds on the wall, seconds of all cores


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line of the table for each file or folder named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="*", help="files and folders (all of data/pdebench)")
    inputs = parser.parse_args(argv).paths
    inputs = inputs or sorted(p for p in Path("data/pdebench").glob("*") if p.suffix != ".json")
    print(f"{execution.cores()} cores; speeds in MB of unpacked data per second, with the times faster than tar;")
    print("cpu: the same if the wall time of each were its processor time spread over the cores it can use")
    speeds = f"{'pack':>12} {'cpu':>6} {'unpack':>12} {'cpu':>6} {'and flush':>12} {'cpu':>6}"
    print(f"{'':26} {'MB':>7} {'tar':>8} {'.upk':>8} {'of tar':>7} {speeds} {'tar.gz pack':>12}")
    with tempfile.TemporaryDirectory(dir=inputs[0].parent if inputs else None) as scratch:
        for path in inputs:
            print(measure(path, Path(scratch)), flush=True)
    return 0


def measure(path: Path, scratch: Path) -> str:
    """Pack and unpack one file or folder by tar and by us; a line of the table."""
    sources = archive.collect(path.parent, [path.name])
    size = sum(p.stat().st_size for p in sources.values()) / 1e6
    packed, plain, tarred = scratch / "a.upk", scratch / "b.tar.gz", scratch / "c.tar.gz"
    out, tar_out = scratch / "out", scratch / "tar_out"
    warm = partial(touch, int(2e6 * size))
    tar_pack, pack, gzip = in_turns(
        lambda: tar("-czf", tarred, "-C", path.parent, path.name),
        lambda: archive.pack(sources, packed),
        lambda: archive.pack(sources, plain, codec="gzip"),
        before=warm,
    )
    tar_unpack, unpack, tar_flushed, flushed = in_turns(
        lambda: tar("-xzf", tarred, "-C", tar_out),
        lambda: unpack_without_disk(packed, out),
        lambda: (tar("-xzf", tarred, "-C", tar_out), flush(tar_out)),
        lambda: archive.extract(packed, out),
        before=lambda: (fresh(tar_out), fresh(out), warm()),
    )
    archive.extract(packed, out)
    tar("-xzf", tarred, "-C", tar_out)
    same = subprocess.run(["diff", "-r", out, tar_out], check=False).returncode == 0
    shutil.rmtree(out)
    shutil.rmtree(tar_out)
    sizes = packed.stat().st_size, tarred.stat().st_size
    return (
        f"{path.name:26} {size:7.1f} {sizes[1] / 1e6:8.2f} {sizes[0] / 1e6:8.2f} {sizes[0] / sizes[1]:7.3f}"
        f" {speed(size, pack, tar_pack)} {speed(size, unpack, tar_unpack)} {speed(size, flushed, tar_flushed)}"
        f" {size / gzip[0]:5.0f}"
        f" ({tar_pack[0] / gzip[0]:3.1f}x)" + ("" if same else "  BYTES DIFFER")
    )


def speed(size: float, ours: Cost, tars: Cost) -> str:
    """MB/s and the times faster than tar, on the wall and by processor time: tar has one core, we have all."""
    return f"{size / ours[0]:5.0f} ({tars[0] / ours[0]:3.1f}x) {execution.cores() * tars[1] / ours[1]:5.1f}x"


def in_turns(*works: Callable[[], object], before: Callable[[], object]) -> list[Cost]:
    """The least of some runs of each, taken in turns, `before` each, untimed: what disturbs one disturbs all."""
    costs = [(float("inf"), float("inf"))] * len(works)
    for _ in range(REPEATS):
        for index, work in enumerate(works):
            before()
            started, used = time.perf_counter(), _processor()
            work()
            cost = time.perf_counter() - started, _processor() - used
            costs[index] = min(costs[index][0], cost[0]), min(costs[index][1], cost[1])
    return costs


def _processor() -> float:
    """Seconds of processor time of this process and its finished children, in user and system mode."""
    who = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN  # os.times() tells hundredths, a small file takes less
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, who))


def fresh(folder: Path) -> None:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def tar(*arguments: object) -> None:
    """Run tar."""
    subprocess.run(["tar", *arguments], check=True)


def touch(size: int) -> None:
    """Start with an idle disk and so much free memory in hand.

    A virtual machine gives to its host what it has not used for some seconds, and to take it back costs more than to
    unpack: without this, what counts is how soon a run comes after another.
    """
    os.sync()
    np.full(size, 1, np.uint8)


def flush(folder: Path) -> None:
    """Wait until the disk has all files of a folder."""
    subprocess.run(["sync", *sorted(path for path in folder.rglob("*") if path.is_file())], check=True)


def unpack_without_disk(packed: Path, out: Path) -> None:
    """Unpack, the calls that wait for the disk made no-ops."""
    with mock.patch("os.fsync", lambda _: None), mock.patch("os.sync", lambda: None):
        archive.extract(packed, out)


if __name__ == "__main__":
    sys.exit(main())
