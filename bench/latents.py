"""How fast a split is encoded into a latent cache, against a loop that encodes and saves one trajectory at a time.

Both encode the same synthetic trajectories with the same autoencoder to latents of the same shape and dtype, in one
run and in turn; the autoencoder is not trained, which costs and saves no time. Prints one JSON line.

    python -m bench.latents --samples 512 --device cpu
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
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
from ups_data.training.autoencoder import autoencoder_config
from ups_data.training.caching import cache_split
from ups_data.training.frames import GridFrames

SHAPE = (41, 256, 1)  # frames, points, channels: PDEBench's view of Burgers' equation
KNOBS = Knobs(
    latent_len=32, latent_dim=4, width=48, depth=2, steps=1, batch=64, learning_rate=1e-3, seed=0
)  # params.yaml's
REPEATS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--samples", type=int, default=512, help="trajectories of 41 x 256")
    parser.add_argument("--batch-size", type=int, default=512, help="frames encoded at once by the cache")
    parser.add_argument("--workers", type=int, default=1, help="threads that read ahead")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    console.set_level(console.QUIET)
    device = pick_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        frames = GridFrames(synthetic(Path(folder), args.samples), View(space_stride=1, time_stride=1))
        config = autoencoder_config("bench", frames, KNOBS) | {"steps": 1}
        autoencoder = build_autoencoder(config).to(device).eval().requires_grad_(False)
        knobs = Latents(dtype="float16", batch=args.batch_size, shard_mb=256)
        ways: dict[str, Callable[[], object]] = {
            "cache": lambda: cache_split(
                autoencoder, frames, Path(folder) / "cache", knobs, device=device, workers=args.workers
            ),
            "loop": lambda: one_by_one(autoencoder, frames, Path(folder) / "loop", device),
        }
        seconds = {name: [] for name in ways}
        for _ in range(REPEATS):
            for name, work in ways.items():
                started = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - started)
    best = {name: min(times) for name, times in seconds.items()}
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "trajectories": args.samples,
        "trajectories_per_second": {name: round(args.samples / value, 1) for name, value in best.items()},
        "ratio": round(best["loop"] / best["cache"], 2),
    }
    print(json.dumps(result))
    return 0


def one_by_one(autoencoder: Autoencoder, frames: GridFrames, folder: Path, device: torch.device) -> None:
    """Encode a trajectory, save it to a file of its own, go on; without the round-trip error that the cache tells."""
    folder.mkdir(exist_ok=True)
    for sample in range(frames.samples):
        index = np.arange(sample * frames.frames, (sample + 1) * frames.frames)
        fields = frames.read(index, "state")["fields"].to(device)
        with torch.inference_mode():
            latents = autoencoder.encode({"fields": fields}, "state").half()
        save_file({"state": latents.cpu().contiguous()}, folder / f"{sample:05d}.safetensors")


def synthetic(folder: Path, samples: int) -> Path:
    """A converted grid file of smooth random waves."""
    path, channels = folder / "bench_train.h5", ["u"]
    frames, points, _ = SHAPE
    offset = create_grid(path, (samples, *SHAPE))
    rng, x = np.random.default_rng(0), np.linspace(0, 2 * np.pi, points, endpoint=False)
    data = np.memmap(path, dtype="<f4", mode="r+", offset=offset, shape=(samples, *SHAPE))
    for sample in range(samples):
        phase = np.linspace(0, 1 + rng.random(), frames)[:, None]
        data[sample, ..., 0] = np.sin(x + phase) + 0.3 * np.sin(3 * x - phase * rng.random())
    data.flush()
    manifest = {
        "kind": "grid",
        "key": "bench",
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
