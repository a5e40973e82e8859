"""Size of archives against `tar -czf` of the same: tiny files, many small ones, repetition, noise, weights, stores.

    python -m bench.archive_sizes

Text is cut from this repository's own files; models and stores are those of the pipeline, where they are there.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np

from ups_data import archive

COUNTS, SIZES = (1, 100, 2000), (0, 10, 30, 100, 200, 1000)  # files of a folder, bytes of each
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
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
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
    yield from ((name, folder) for name, folder in tiny_files(scratch, text))
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
    for name, numbers in arrays(np.random.default_rng(0)).items():
        np.save(scratch / f"{name}.npy", numbers)
        yield name, scratch / f"{name}.npy"
    for name, numbers in (("equal", np.random.default_rng(0).random(2000)), ("unlike", None)):
        folder = scratch / f"300 small arrays, {name}"
        folder.mkdir()
        for number in range(300):
            own = np.random.default_rng(number).random(2000) if numbers is None else numbers
            np.save(folder / f"{number}.npy", own)
        yield folder.name, folder
    yield from ((name, Path(name)) for name in PRODUCTS if Path(name).exists())


def arrays(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Numbers of which all or some are found again by deflate."""
    noise = random.normal(size=2_000_000).astype("f4")
    part, rows, islands = noise.copy(), noise.reshape(-1, 1000).copy(), np.zeros(4_000_000, "f4")
    part[600_000:800_000] = np.tile(noise[:2000], 100)
    rows[1::3] = rows[::3][: len(rows[1::3])]
    for start in random.integers(0, 3_999_000, 60):
        islands[start : start + 500] = noise[:500]
    return {
        "noise": noise,
        "a tenth recurs every 8 kB": part,
        "every third row again": rows,
        "zeros with islands": islands,
        "200 values": random.normal(size=200)[random.integers(0, 200, 500_000)],
        "3000 values": random.normal(size=3000)[random.integers(0, 3000, 600_000)],
        "decimals": np.round(random.normal(size=500_000), 2),
        "small integers": random.integers(0, 50, 500_000),
        "any integers": random.integers(0, 1 << 32, 1_000_000, dtype="u4"),
    }


def tiny_files(scratch: Path, text: bytes) -> Iterator[tuple[str, Path]]:
    """Folders of text and of random bytes, under numbers and under long paths that have nothing in common."""
    for count, size, kind, paths in product(COUNTS, SIZES, ("text", "random"), ("short", "long", "deep")):
        folder, chosen = scratch / f"{count}x{size}-{kind}-{paths}", random.Random(0)
        for number in range(count):
            path = folder / path_of(number, paths, chosen)
            path.parent.mkdir(parents=True, exist_ok=True)
            start = chosen.randrange(len(text) - size)
            path.write_bytes(text[start : start + size] if kind == "text" else chosen.randbytes(size))
        yield f"{kind}, {size} bytes each, {paths} paths", folder


def path_of(number: int, kind: str, chosen: random.Random) -> str:
    """The path of a file: a number, 80 random digits, or ten folders deep."""
    if kind == "long":
        return f"{chosen.randbytes(40).hex()}.txt"
    folders = (f"{chosen.randrange(3)}/" for _ in range(10 if kind == "deep" else 0))
    return "".join(folders) + f"{number:04}.txt"


if __name__ == "__main__":
    sys.exit(main())
