"""Packing against tar: speed and size of both on the same files, in one run.

    python -m bench.packing data/pdebench/burgers1d_train.h5 data/pdebench/advection1d_train.h5

Each line is one file or folder packed alone. Without arguments: all of data/pdebench. The targets: packing
8 times faster than `tar -czf`, unpacking 5 times faster than `tar -xzf`, size 0.30 of it on Burgers, 0.6 on Advection.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ups_data import archive, execution

REPEATS = 3  # the median of so many; tar -czf is timed once, it takes minutes


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line of the table for each file or folder named."""
    named = sys.argv[1:] if argv is None else argv
    inputs = [Path(name) for name in named] or sorted(p for p in Path("data/pdebench").glob("*") if p.suffix != ".json")
    print(f"{execution.cores()} cores; speeds in MB of unpacked data per second, in brackets: times that of tar")
    print(f"{'':32} {'MB':>7} {'tar':>9} {'.upk':>9} {'of tar':>7} {'pack':>14} {'unpack':>14} {'tar.gz pack':>14}")
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
    tar_pack = clock(lambda: tar("-czf", tarred, "-C", path.parent, path.name), 1)
    pack = clock(lambda: archive.pack(sources, packed))
    gzip = clock(lambda: archive.pack(sources, plain, codec="gzip"))
    tar_unpack = clock(lambda: (fresh(tar_out), tar("-xzf", tarred, "-C", tar_out)))
    unpack = clock(lambda: (fresh(out), archive.extract(packed, out)))
    same = subprocess.run(["diff", "-r", out, tar_out], check=False).returncode == 0
    shutil.rmtree(out)
    shutil.rmtree(tar_out)
    sizes = packed.stat().st_size, tarred.stat().st_size
    return (
        f"{path.name:32} {size:7.1f} {sizes[1] / 1e6:9.2f} {sizes[0] / 1e6:9.2f} {sizes[0] / sizes[1]:7.3f}"
        f" {size / pack:6.0f} ({tar_pack / pack:4.1f}x) {size / unpack:6.0f} ({tar_unpack / unpack:4.1f}x)"
        f" {size / gzip:6.0f} ({tar_pack / gzip:4.1f}x)" + ("" if same else "  BYTES DIFFER")
    )


def clock(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds: the median of some runs."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def fresh(folder: Path) -> None:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def tar(*arguments: object) -> None:
    """Run tar."""
    subprocess.run(["tar", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
