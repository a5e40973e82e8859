"""How fast training gets its latents from a cache: all of it into memory, and random windows of 8 frames.

Against the limits of the machine, in turns: a copy of as many bytes in memory, a read of as many of the same file. The
page cache is warm; shards are opened and their checksums taken before (`opening`), once in a process.

    python -m bench.loading                 # 2,000 trajectories as configs/burgers1d_gpu.yaml has them: 0.7 GB
    python -m bench.loading --samples 8000  # all of its train split
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ups_data.stores.latents import LatentCache, write_cache

FRAMES, TOKENS, NUMBERS = 201, 64, 14
WINDOW, WINDOWS = 8, 5000
REPEATS = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--samples", type=int, default=2000, help="trajectories")
    parser.add_argument("--folder", help="where there is room for the cache")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write(Path(folder) / "bench_train", args.samples)
        started = time.perf_counter()
        cache = LatentCache(Path(folder) / "bench_train")
        latents = cache.load("state", torch.float16)
        opening = time.perf_counter() - started
        whole = fastest(
            {
                "load": lambda: cache.load("state", torch.float16),
                "memory copy": lambda: latents.clone(),
                "trajectories": lambda: [cache.read("state", sample) for sample in range(args.samples)],
            }
        )
        window, read = windows(cache, Path(folder) / "bench_train" / "latents-00000.safetensors")
    size = latents.nbytes
    result = {
        "gigabytes": round(size / 1e9, 2),
        "gigabytes_per_second": {name: round(size / 1e9 / seconds, 2) for name, seconds in whole.items()}
        | {"opening": round(size / 1e9 / opening, 2)},
        "microseconds": {f"window of {WINDOW}": round(1e6 * window, 1), "read of as many bytes": round(1e6 * read, 1)},
    }
    print(json.dumps(result))
    return 0


def write(folder: Path, samples: int) -> None:
    """A cache of random latents."""

    def batches() -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(samples):
            yield {"state": torch.randn(FRAMES, TOKENS, NUMBERS, generator=generator).half()}

    write_cache(
        folder,
        constituents={"weights": "none"},
        facts={"task": "bench", "split": "train", "token_grid": [TOKENS]},
        arrays={"parameters": torch.zeros(samples, 1).double(), "times": torch.arange(FRAMES).double()},
        shape=(samples, FRAMES, TOKENS, NUMBERS),
        roles=["state"],
        dtype="float16",
        shard_bytes=256 << 20,
        batches=batches(),
        finish=dict,
    )


def fastest(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of the fastest of some runs of each, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, work in ways.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return {name: min(times) for name, times in seconds.items()}


def windows(cache: LatentCache, file: Path) -> tuple[float, float]:
    """Median seconds of a random window, and of a read of as many bytes at a random place of a shard."""
    rng = np.random.default_rng(0)
    size = WINDOW * TOKENS * NUMBERS * 2
    descriptor = os.open(file, os.O_RDONLY)
    ours, theirs = [], []
    for _ in range(WINDOWS):
        sample, start = int(rng.integers(cache.samples)), int(rng.integers(cache.frames - WINDOW))
        at = int(rng.integers(file.stat().st_size - size))
        began = time.perf_counter()
        cache.read("state", sample, start, start + WINDOW)
        between = time.perf_counter()
        os.pread(descriptor, size, at)
        ours.append(between - began)
        theirs.append(time.perf_counter() - between)
    os.close(descriptor)
    return float(np.median(ours)), float(np.median(theirs))


if __name__ == "__main__":
    sys.exit(main())
