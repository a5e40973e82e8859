"""How fast a split is encoded into a latent cache, against loops that save one file a trajectory.

One loop encodes a trajectory at a time, one a frame at a time; they take fewer of them. All encode the same synthetic
trajectories with the same autoencoder to latents of the same shape and dtype, in one run and in turn: the loops with
its networks as they are trained, as one would write such a loop, the cache with them frozen, as the project uses them
(models/folding.py). It is not trained, which costs and saves no time. In turn with them, the limit: the same bytes
brought to the device and, at once, as many as the cache has written and flushed, in files as large, by as many threads.
What each of them wrote is deleted before it begins again, which is not timed. Prints one JSON line.

    python -m bench.latents --device cpu
    python -m bench.latents --samples 8000 --full     # a GPU, at the size of PDEBench's files
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from ups_data import console
from ups_data.execution import pick_device
from ups_data.models.autoencoder import Autoencoder, build_autoencoder
from ups_data.params import Autoencoder as Knobs
from ups_data.params import Latents, View
from ups_data.stores.grid import create_grid, describe_grid
from ups_data.stores.latents import writers
from ups_data.training.autoencoder import autoencoder_config
from ups_data.training.caching import cache_split
from ups_data.training.frames import GridFrames

# Frames, points and channels, and the knobs of params.yaml: PDEBench's view of Burgers' equation.
SHAPE = (41, 256, 1)
SIZE = {"latent_len": 32, "latent_dim": 4, "width": 48, "depth": 2, "encoder_depth": 0}
KNOBS = Knobs(**SIZE, steps=1, batch=64, learning_rate=1e-3, seed=0)
# All of its file, and the knobs of configs/burgers1d_gpu.yaml.
FULL_SHAPE = (201, 1024, 1)
FULL = KNOBS.model_copy(update={"latent_len": 64, "latent_dim": 14, "depth": 1, "encoder_depth": 1})
REPEATS = 3
FEWER = {"trajectories": 512, "frames": 32}  # that a loop takes at most
PIECE = 32 << 20  # bytes brought to the device at once


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--samples", type=int, help="trajectories (10000; full size: 1000)")
    parser.add_argument("--full", action="store_true", help="trajectories of 201 x 1024 in place of 41 x 256")
    parser.add_argument("--encoder-depth", type=int, help="blocks of the encoder's network (0; full size: 1)")
    parser.add_argument("--batch-size", type=int, help="frames encoded at once by the cache (4096; full size: 8192)")
    parser.add_argument("--workers", type=int, help="threads that read ahead for a GPU (4)")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    console.set_level(console.QUIET)
    device = pick_device(args.device)
    shape, size = (FULL_SHAPE, FULL) if args.full else (SHAPE, KNOBS)
    samples = args.samples or (1000 if args.full else 10000)
    if args.encoder_depth is not None:
        size = size.model_copy(update={"encoder_depth": args.encoder_depth})
    with tempfile.TemporaryDirectory() as folder:
        frames = GridFrames(synthetic(Path(folder), (samples, *shape)), View(space_stride=1, time_stride=1))
        config = autoencoder_config("bench", frames, size) | {"steps": 1}
        as_trained = build_autoencoder(config).to(device).eval().requires_grad_(False)
        autoencoder = build_autoencoder(config).to(device).freeze()
        knobs = Latents(dtype="float16", batch=args.batch_size or (8192 if args.full else 4096), shard_mb=64)
        noise = os.urandom(knobs.shard_mb << 20)
        made = 2 * samples * shape[0] * size.latent_len * size.latent_dim
        ways: dict[str, Callable[[Path], object]] = {
            "cache": lambda to: cache_split(autoencoder, frames, to, knobs, device=device, workers=args.workers),
            "trajectories": lambda to: one_by_one(as_trained, frames, to, device, frames.frames, FEWER["trajectories"]),
            "frames": lambda to: one_by_one(as_trained, frames, to, device, 1, FEWER["frames"]),
            "limit": lambda to: limit(frames, made, noise, to, device),
        }
        seconds = {name: [] for name in ways}
        for _ in range(REPEATS):
            for name, work in ways.items():
                shutil.rmtree(Path(folder) / name, ignore_errors=True)
                started = time.perf_counter()
                work(Path(folder) / name)
                seconds[name].append(time.perf_counter() - started)
    best = {name: min(times) for name, times in seconds.items()}
    rates = {name: min(samples, FEWER.get(name, samples)) / value for name, value in best.items()}
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "trajectories": samples,
        "trajectories_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "cache_against": {name: float(f"{rates['cache'] / rate:.3g}") for name, rate in rates.items()},
    }
    print(json.dumps(result))
    return 0


def one_by_one(
    autoencoder: Autoencoder,
    frames: GridFrames,
    folder: Path,
    device: torch.device,
    together: int,
    most: int,
) -> None:
    """Encode a trajectory, `together` frames at once, save it to a file of its own, go on.

    At `most` so many of them. Without the round-trip error that the cache tells.
    """
    folder.mkdir(exist_ok=True)
    for sample in range(min(frames.samples, most)):
        index = np.arange(sample * frames.frames, (sample + 1) * frames.frames)
        fields = frames.read(index, "state")["fields"].to(device)
        with torch.inference_mode():
            parts = [autoencoder.encode({"fields": part}, "state") for part in fields.split(together)]
            latents = torch.cat(parts).half()
        save_file({"state": latents.cpu().contiguous()}, folder / f"{sample:05d}.safetensors")


def limit(frames: GridFrames, made: int, shard: bytes, folder: Path, device: torch.device) -> None:
    """Bring all fields to the device and write `made` bytes, shard after shard, both at once and nothing else."""
    folder.mkdir()

    def write(start: int) -> None:
        with open(folder / str(start), "wb") as file:
            file.write(shard[: made - start])
            file.flush()
            os.fsync(file.fileno())

    with ThreadPoolExecutor(writers()) as pool:
        written = pool.map(write, range(0, made, len(shard)))
        fetch(frames, device)
        list(written)  # raises what a thread has raised


def fetch(frames: GridFrames, device: torch.device) -> None:
    """Bring all fields to the device: page-locked memory, and two pieces, of which one is filled and one copied."""
    fields = frames.reader.data.reshape(-1)
    pinned = [torch.empty(PIECE // 4, pin_memory=device.type == "cuda") for _ in range(2)]
    there = torch.empty(PIECE // 4, device=device)
    for number, start in enumerate(range(0, len(fields), PIECE // 4)):
        piece = fields[start : start + PIECE // 4]
        held = pinned[number % 2][: len(piece)]
        np.copyto(held.numpy(), piece)
        there[: len(piece)].copy_(held, non_blocking=True)
        if device.type == "cuda" and number % 2:
            torch.cuda.synchronize(device)  # the two pieces are free again
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def synthetic(folder: Path, shape: tuple[int, ...]) -> Path:
    """A converted grid file of smooth random waves [S, T, X, 1]."""
    path, channels = folder / "bench_train.h5", ["u"]
    samples, frames, points, _ = shape
    offset = create_grid(path, shape)
    rng, x = np.random.default_rng(0), np.linspace(0, 2 * np.pi, points, endpoint=False)
    data = np.memmap(path, dtype="<f4", mode="r+", offset=offset, shape=shape)
    for sample in range(samples):
        phase = np.linspace(0, 1 + rng.random(), frames)[:, None]
        data[sample, ..., 0] = np.sin(x + phase) + 0.3 * np.sin(3 * x - phase * rng.random())
    data.flush()
    manifest = {
        "kind": "grid",
        "task": "bench",
        "key": "bench",
        "splits": {},
        "periodic": [True],
        "static_channels": [],
        "statistics": {"channels": {"u": {"mean": 0.0, "std": 0.74, "minimum": -1.3, "maximum": 1.3}}},
    }
    arrays = {
        "time": np.arange(frames) * 0.05,
        "x": x,
        "parameters": np.zeros((samples, 1)),
        "group": np.full(samples, b"0" * 32),
        "source_file": np.zeros(samples, "i4"),
        "source_row": np.arange(samples),
    }
    describe_grid(
        path, arrays=arrays, task="bench", split="train", channels=channels, parameter_names=["p"], manifest=manifest
    )
    return path


if __name__ == "__main__":
    sys.exit(main())
