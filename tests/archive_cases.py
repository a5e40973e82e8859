"""Files on which archives, packages and hydration are tested."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import zarr
from safetensors.numpy import save_file

from ups_data import archive
from ups_data.archive import reader
from ups_data.archive.format import Block, Member
from ups_data.files import write_json
from ups_data.manifest import build_manifest, manifest_path
from ups_data.params import Splits
from ups_data.splits import group_id
from ups_data.statistics import Moments
from ups_data.stores import mesh, packed
from ups_data.stores.grid import create_grid, describe_grid

GOLDEN = Path(__file__).parent / "golden"
CODECS = {"pcodec": ".upk", "gzip": ".tar.gz"}
VERSIONS = {"tiny.upk": 1, "tiny-v2.upk": 2, "tiny-v3.upk": 3, "tiny.tar.gz": 1}
PLAIN = {"compressors": None, "filters": None}  # Zarr arrays as the pipeline writes them


def waves(samples: int, frames: int = 41, points: int = 256) -> np.ndarray:
    """Smooth travelling waves [sample, time, x], float32: what solvers write."""
    s, t, x = np.ogrid[:samples, :frames, :points]
    phase = 2 * np.pi * (x / points - 0.0137 * t * np.sqrt(1 + s))
    return (np.sin(phase) + 0.3 * np.sin(3 * phase + s)).astype("f4")


def blocks_of(path: Path) -> list[Block]:
    """The blocks of an archive, from its index."""
    with open(path, "rb") as file:
        return list(reader.read_index(file, str(path)).blocks)


def zoo(root: Path) -> Path:
    """One file of every kind that is packed, and some that no packer likes."""
    root.mkdir(parents=True)
    with h5py.File(root / "grid.h5", "w") as file:
        file["data"] = waves(8)[..., None]
        file["time"] = np.linspace(0, 2, 41)
        file.create_dataset("chunked", data=waves(4), chunks=(1, 20, 100))
        file.create_dataset("filtered", data=waves(2), chunks=True, compression="gzip")
        file.create_dataset("big_endian", data=np.arange(4096, dtype=">f8"))
        file["manifest"] = np.bytes_(json.dumps({"key": "k"}))
        file.attrs["task"] = "waves"
    group = zarr.create_group(root / "mesh.zarr", attributes={"task": "mesh"})
    fields = group.create_array("fields", shape=(9000, 3), chunks=(1000, 3), shards=(4000, 3), dtype="f4", **PLAIN)
    fields[:] = waves(3, 36, 250).reshape(9000, 3)
    group.create_array("cells", shape=(500, 3), chunks=(500, 3), dtype="i4", **PLAIN)[:] = np.arange(1500).reshape(
        -1, 3
    )
    weights = {"w": waves(2)[0], "half": waves(1)[0].astype("f2"), "b": np.arange(10, dtype="i8"), "one": np.float32(1)}
    save_file({name: np.asarray(value) for name, value in weights.items()}, root / "model.safetensors")
    np.save(root / "array.npy", np.asfortranarray(waves(3)))
    (root / "random.bin").write_bytes(np.random.default_rng(0).bytes(100_000))
    (root / "empty").write_bytes(b"")
    (root / "broken.h5").write_bytes((root / "grid.h5").read_bytes()[:3000])
    (root / "broken.safetensors").write_bytes(b"\xff" * 100)
    (root / "text.json").write_text(json.dumps({str(i): "ü" for i in range(2000)}))
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def pack_all(root: Path, target: Path, **more) -> list[Member]:
    return archive.pack(archive.collect(root, [p.name for p in root.iterdir()]), target, **more)


def golden_files(root: Path, version: int) -> Path:
    """The files in tests/golden/tiny*: made by whole-number arithmetic, the same on every machine."""
    (root / "folder").mkdir(parents=True)
    ramp = (np.arange(6 * 16 * 32) % 97).astype("f4").reshape(6, 16, 32) / 64
    np.save(root / "fields.npy", ramp)
    np.save(root / "folder" / "indices.npy", (np.arange(3000) * 7 % 1013).astype("i4"))
    (root / "notes.txt").write_bytes(b"restores the very same bytes\n" * 40)
    (root / "empty").write_bytes(b"")
    if version > 1:  # a block of each coding
        digests = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(128))
        np.save(root / "noise.npy", np.frombuffer(digests, "<i4"))
        rows, columns = np.ogrid[:64, :64]
        np.save(root / "smooth_down.npy", (rows * rows + columns * 7919 % 1013 * 1000).astype("i4"))
        (root / "squares.txt").write_text("".join(f"{i} squared is {i * i}\n" for i in range(400)))
    if version > 2:  # files large enough for checksums of their own
        rows, columns = np.arange(64, dtype="i4")[:, None], np.arange(256, dtype="i4")
        np.save(root / "large_down.npy", rows * rows + columns * 7919 % 1013 * 1000)
        np.save(root / "large_along.npy", np.cumsum(np.arange(10_000, dtype="i4") * 7919 % 1013, dtype="i4"))
        (root / "large.bin").write_bytes(b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(1100)))
    return root


def converted(folder: Path, task: str, kind: str = "grid", samples: Mapping[str, int] | None = None) -> dict:
    """Splits and manifest as `convert` writes them, with little in them; returns the manifest."""
    samples = samples or {"train": 6, "val": 2, "test": 2}
    folder.mkdir(parents=True, exist_ok=True)
    fields = {name: waves(count) + i for i, (name, count) in enumerate(samples.items())}
    where = [] if kind == "grid" else [_square().coords]
    groups = {name: [group_id(*where, frames[0, :, None]) for frames in data] for name, data in fields.items()}
    told = {name: Moments.of(data.reshape(-1, 1)).to_list() for name, data in fields.items()}
    manifest = build_manifest(
        task=task,
        kind=kind,
        channels=["velocity"],
        parameters={"viscosity": ("Nu", np.array([0.01, 0.1]))},
        shape={"resolution": [256], "frames": 41, "time_step": 0.05, "periodic": [True]},
        splits=Splits(protocol="grouped", seed=0, train=0.6, val=0.2, test=0.2),
        groups=groups,
        statistics={"channels": {"velocity": {"mean": 0.5, "std": 2.0, "minimum": -1.0, "maximum": 1.0}}, "count": 6},
        files=[{"name": "1D/raw.hdf5", "size": 1000, "samples": 10}],
        fingerprint=told if kind == "grid" else {name: [moments] for name, moments in told.items()},
        static_channels=[],
    )
    for split, data in fields.items():
        facts = {"task": task, "split": split, "manifest": manifest}
        if kind == "grid":
            _write_grid(folder / f"{task}_{split}.h5", data[..., None], groups[split], facts)
        else:
            _write_mesh(folder / f"{task}_{split}.zarr", data[..., None], groups[split], facts)
    write_json(manifest_path(folder, task), manifest)
    return manifest


def _write_grid(path: Path, data: np.ndarray, groups: list[str], facts: dict) -> None:
    offset = create_grid(path, data.shape)
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data.astype("<f4").tobytes())
    rows = np.arange(len(data))
    arrays = {"time": 0.05 * np.arange(41), "x": np.arange(256) / 256, "parameters": np.full((len(data), 1), 0.1)}
    arrays |= {"group": np.array(groups, dtype="S32"), "source_file": np.zeros(len(data), "<i4"), "source_row": rows}
    describe_grid(path, arrays=arrays, channels=["velocity"], parameter_names=["viscosity"], **facts)


def _square() -> mesh.Topology:
    """A square of 16 x 16 nodes."""
    coords = np.stack(np.meshgrid(np.arange(16.0), np.arange(16.0)), axis=-1).reshape(-1, 2)
    corner = (16 * np.arange(15)[:, None] + np.arange(15)).reshape(-1, 1)
    return mesh.Topology.of(coords, np.concatenate([np.add(corner, [0, 1, 17]), np.add(corner, [0, 17, 16])]))


def _write_mesh(path: Path, data: np.ndarray, groups: list[str], facts: dict) -> None:
    topology = _square()
    times = 0.05 * np.arange(41)
    samples = [
        mesh.Sample(times=times, parameters=[0.1], group=group, source_file=0, source_row=row, topology=0)
        for row, group in enumerate(groups)
    ]
    mesh.create_mesh(path, [topology.sizes], samples, dimension=2, channels=1)
    (places,), fields = mesh.places(path, [topology.sizes], samples, dimension=2, channels=1)
    for name, run in places.items():
        run.array.write(run.first, getattr(topology, name))
    for sample, place in zip(data, fields, strict=True):
        place["fields"].array.write(place["fields"].first, sample.reshape(-1, 1))
    packed.describe(path, format=mesh.FORMAT, **facts)
