"""Converting against `cp` of the same bytes: speed in every layout, and memory.

    python -m bench.convert                     # speed, on files of the size of official ones, written for it
    python -m bench.convert --gb 1.5            # on smaller ones: the start of Python, half a second, tells more
    python -m bench.convert --gb 0 --memory 8   # memory alone, on a sparse file of 8 GB

Everything a conversion does is timed, from the start of Python to the manifest: planning, splits, statistics, finite
checks, and the flush to the disk before a file appears under its name. `cp` does not flush. So there are two pairs,
each of like things: the conversion with its calls for the disk made no-ops from outside against plain `cp`, and the
conversion as it is against `cp` followed by an fsync of the copy, where the disk has its say.

The four take turns, two runs a turn, and the best of each counts: a run is given the memory that another, or one of
its own kind, has just freed, and on a virtual machine that hands free memory back to its host that makes a difference
of a half. The page cache is warm (twice the size of a file should fit in memory), and the disk has nothing left to
write when a run starts. Targets: 0.8 of `cp` for one array, 0.4 for several fields and for groups, less than 1 GiB of
memory for a file of any size. The files packed by lzf are as the official ones are: numbers that do not get smaller,
most chunks stored as they are; `cp` copies them packed, a conversion has HDF5 unpack the others. Python keeps its
bytecode, as it does where nothing forbids it: to compile all packages at every start takes 0.35 s.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from ups_data import files
from ups_data.console import progress
from ups_data.execution import cores

LINE, PLANE = (101, 1024), (101, 128, 128)  # frames and points of a sample
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each layout, and one for memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, help="size of the files (default: as official ones; 0: no speed)")
    parser.add_argument("--only", choices=LAYOUTS, help="one layout instead of all")
    parser.add_argument("--memory", type=float, default=0, metavar="GB", help="size of the file for memory (0: none)")
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="turns of each, two runs a turn")
    parser.add_argument("--folder", help="where there is room for three times the size")
    args = parser.parse_args(argv)
    print(f"{cores()} cores; wall seconds and, in brackets, processor seconds of the best run of {2 * args.repeats}")
    print("each pair: cp, then the conversion, then its speed as a part of that of cp")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for name, (write, official) in LAYOUTS.items() if args.gb != 0 else ():
            if args.only not in (None, name):
                continue
            raw = Path(folder) / "raw"
            raw.mkdir()
            write(raw, (args.gb or official) * 1e9)
            print(compare(name, raw, Path(folder), args.repeats), flush=True)
            shutil.rmtree(raw)
        if args.memory:
            print(memory(Path(folder), args.memory * 1e9))
    return 0


def compare(name: str, raw: Path, folder: Path, repeats: int) -> str:
    """Let `cp` and the conversion take turns on the one file of `raw`; a line of the table."""
    source, copy, out = next(raw.iterdir()), folder / "copy", folder / "out"
    plain = ["cp", str(source), str(copy)]
    commands = {
        "cp": (plain, copy),
        "convert": (command(raw, out, "-c", NO_FLUSH), out),
        "cp, fsync": (["sh", "-c", 'cp "$0" "$1" && sync "$1"', *plain[1:]], copy),
        "convert, fsync": (command(raw, out, "-m", "stages.convert"), out),
    }
    runs: dict[str, list[tuple[float, float]]] = {what: [] for what in commands}
    for what, (arguments, made) in [turn for turn in commands.items() for _ in range(2)] * repeats:
        os.sync()
        runs[what].append(timed(arguments))
        files.remove(made)
    wall = {what: min(wall for wall, _ in found) for what, found in runs.items()}
    work = {what: min(work for _, work in found) for what, found in runs.items()}
    pairs = (("without flush", "cp", "convert"), ("with flush", "cp, fsync", "convert, fsync"))
    texts = [
        f"{pair}: {wall[theirs]:5.2f} ({work[theirs]:5.2f}) {wall[ours]:5.2f} ({work[ours]:5.2f}) = "
        f"{wall[theirs] / wall[ours]:4.2f} of cp"
        for pair, theirs, ours in pairs
    ]
    return f"{name:22} {source.stat().st_size / 1e9:5.2f} GB  " + "   ".join(texts)


NO_FLUSH = """
import os, sys
from stages.convert import main
from ups_data.conversion import blocks
os.fsync = lambda descriptor: None
blocks.SYNC_FILE_RANGE = None
sys.exit(main())
"""


def command(raw: Path, out: Path, *program: str) -> list[str]:
    """Convert whatever is in `raw` as the task advection1d: grouped splits, statistics of train."""
    knobs = {"root": raw, "folder": ".", "pattern": "'*'"}
    changes = [f"--set=datasets.advection1d.convert.{key}={value}" for key, value in knobs.items()]
    return [sys.executable, *program, "advection1d", "-q", f"--out={out}", *changes]


def timed(arguments: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of a command and its children."""
    started = time.perf_counter()
    pid = os.spawnvpe(os.P_NOWAIT, arguments[0], arguments, ENVIRONMENT)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime


# --- memory --------------------------------------------------------------------------------------


def memory(folder: Path, size: float) -> str:
    """Convert a file of holes; the most memory that all processes held together."""
    (folder / "raw").mkdir()
    write_sparse(folder / "raw", size)
    running = subprocess.Popen(command(folder / "raw", folder / "out", "-m", "stages.convert"))
    most = [0.0]

    def watch() -> None:
        while running.poll() is None:
            most[0] = max(most[0], sum(map(resident, family(running.pid))))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = running.wait()
    watcher.join()
    if status:
        raise SystemExit("the conversion failed")
    return f"memory: {size / 1e9:.1f} GB converted, at most {most[0] / 2**20:.0f} MiB held by all processes together"


def family(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from family(int(child))


def resident(pid: int) -> int:
    """Bytes of memory of a process, what it shares with others counted in full."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


# --- raw files -----------------------------------------------------------------------------------


def waves(count: int, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Smooth random samples, float32 [frames, points..]."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 2 * np.pi, int(np.prod(shape[1:])), endpoint=False)
    t = np.linspace(0, 2 * np.pi, shape[0])[:, None]
    modes = np.stack([f(k * x - t) for k in (1, 2, 3) for f in (np.sin, np.cos)]).astype(np.float32).reshape(6, -1)
    with progress("write raw samples", count, "samples") as bar:
        for _ in range(count):
            yield (rng.normal(size=6).astype(np.float32) @ modes).reshape(shape)
            bar.advance()


def write_one_array(raw: Path, size: float) -> None:
    """Advection's layout: `tensor` [N, T, X]."""
    count = int(size / (4 * np.prod(LINE)))
    with h5py.File(raw / "1D_Advection_Sols_beta0.4.hdf5", "w") as file:
        data = file.create_dataset("tensor", (count, *LINE), "<f4")
        for row, values in enumerate(waves(count, LINE)):
            data[row] = values
        write_axes(file)


def write_fields(raw: Path, size: float) -> None:
    """Compressible flow on a line: three arrays, which become the channels of one."""
    count = int(size / (12 * np.prod(LINE)))
    with h5py.File(raw / "1D_CFD_Rand_Eta0.1_Zeta0.1_periodic_Train.hdf5", "w") as file:
        fields = [file.create_dataset(name, (count, *LINE), "<f4") for name in ("density", "pressure", "Vx")]
        for row, values in enumerate(waves(count, LINE)):
            for index, field in enumerate(fields):
                field[row] = values + index
        write_axes(file)


def write_groups(raw: Path, size: float) -> None:
    """Shallow water: a group a sample."""
    write_samples(raw / "2D_rdb_NA_NA.h5", PLANE, "xy", size, {})


def write_packed_planes(raw: Path, size: float) -> None:
    """Diffusion-reaction: a group a sample, its numbers packed by lzf; `size` is that of the numbers."""
    write_samples(raw / "2D_diff-react_NA_NA.h5", PLANE, "xy", size, {"compression": "lzf"}, channels=2)


def write_packed_lines(raw: Path, size: float) -> None:
    """Diffusion-sorption: the same with small samples."""
    write_samples(raw / "1D_diff-sorp_NA_NA.h5", LINE, "x", size, {"compression": "lzf"})


def write_samples(path: Path, shape: tuple[int, ...], axes: str, size: float, packing: dict, channels: int = 1) -> None:
    """A group a sample: `data` [T, X.., C], `grid`, the attribute `config`."""
    count = int(size / (4 * channels * np.prod(shape)))
    with h5py.File(path, "w") as file:
        for row, values in enumerate(waves(count, shape)):
            group = file.create_group(f"{row:04d}")
            group.create_dataset("data", data=np.stack([values] * channels, axis=-1), **packing)
            group["grid/t"] = np.linspace(0, 1, shape[0], dtype=np.float32)
            for axis, points in zip(axes, shape[1:], strict=True):
                group[f"grid/{axis}"] = np.linspace(0, 1, points, dtype=np.float32)
            group.attrs["config"] = "sim: {}\n"


def write_sparse(raw: Path, size: float) -> None:
    """Advection's layout with holes for all but the first number of every sample."""
    count = int(size / (4 * np.prod(LINE)))
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(raw / "1D_Advection_Sols_beta0.4.hdf5", "w") as file:
        space = h5py.h5s.create_simple((count, *LINE))
        data = h5py.Dataset(h5py.h5d.create(file.id, b"tensor", h5py.h5t.IEEE_F32LE, space, layout))
        data[:, 0, 0] = np.arange(count)
        write_axes(file)


def write_axes(file: h5py.File) -> None:
    """Coordinates, one time too many as in the official files."""
    file["x-coordinate"] = ((np.arange(LINE[1]) + 0.5) / LINE[1]).astype(np.float32)
    file["t-coordinate"] = (0.01 * np.arange(LINE[0] + 1)).astype(np.float32)
    if "tensor" in file:
        file.attrs["beta"] = 0.4


# What writes such a file, and how many GB an official one has (three fields: 12.4, of planes: 13.2).
LAYOUTS: dict[str, tuple[Callable[[Path, float], None], float]] = {
    "one-array": (write_one_array, 8.2),
    "three-fields": (write_fields, 8.2),
    "groups": (write_groups, 6.2),
    "groups-lzf-planes": (write_packed_planes, 6.6),
    "groups-lzf-lines": (write_packed_lines, 4.2),
}


if __name__ == "__main__":
    sys.exit(main())
