"""Size of archives against `tar -czf` of the same: tiny files, many small ones, repetition, noise, weights, stores.

    python -m bench.archive_sizes

Text is cut from this repository's own files; models and stores are those of the pipeline, where they are there.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ups_data import archive

TEXTS = ((1, 100), (100, 200), (100, 1000), (2000, 100), (2000, 200), (2000, 1000))  # files, bytes of each
PRODUCTS = (
    "models/burgers1d/operator.safetensors",
    "models/darcy2d_mesh/autoencoder.safetensors",
    "data/latent_cache/burgers1d_val",
    "data/pdebench/burgers1d_manifest.json",
    "data/pdebench/darcy2d_mesh_train.zarr",
    "data/pdebench/particles_advect_train.zarr",
)


def main() -> int:
    """Print one line for each case."""
    print(f"{'':40} {'files':>6} {'bytes':>11} {'tar.gz':>10} {'.upk':>10} {'of tar':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for name, path in cases(Path(folder)):
            sources = archive.collect(path.parent, [path.name])
            tarred, packed = Path(folder, "a.tar.gz"), Path(folder, "a.upk")
            subprocess.run(["tar", "-czf", tarred, "-C", path.parent, path.name], check=True)
            archive.pack(sources, packed)
            size, sizes = (
                sum(p.stat().st_size for p in sources.values()),
                (tarred.stat().st_size, packed.stat().st_size),
            )
            share = sizes[1] / sizes[0]
            print(f"{name:40} {len(sources):6} {size:11} {sizes[0]:10} {sizes[1]:10} {share:7.3f}", flush=True)
    return 0


def cases(scratch: Path) -> Iterator[tuple[str, Path]]:
    """A label and a file or folder for each line of the table."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
    text = b"".join(Path(name).read_bytes() for name in listed if name.endswith((".py", ".md", ".yaml")))
    for files, size in TEXTS:
        folder, chosen = scratch / f"{files}x{size}", random.Random(0)
        folder.mkdir()
        for number in range(files):
            start = chosen.randrange(len(text) - size)
            (folder / f"{number:04}.txt").write_bytes(text[start : start + size])
        yield f"text, {size} bytes each", folder
    for name in listed:
        target = scratch / "repository" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(name, target)
    yield "this repository, pictures and all", scratch / "repository"
    made = {
        "one line again and again": b"1.0 2.0 the same line again and again\n" * 800_000,
        "zeros": bytes(100 << 20),
        "random bytes": np.random.default_rng(0).bytes(10 << 20),
        "normal noise, float32, no header": np.random.default_rng(0).normal(size=2_500_000).astype("f4").tobytes(),
    }
    for name, data in made.items():
        (scratch / name).write_bytes(data)
        yield name, scratch / name
    yield from ((name, Path(name)) for name in PRODUCTS if Path(name).exists())


if __name__ == "__main__":
    sys.exit(main())
