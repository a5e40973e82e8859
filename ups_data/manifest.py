"""The manifest of a converted dataset: what it holds, where it came from, how it was split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ups_data.errors import UpsDataError
from ups_data.files import read_json
from ups_data.parameters import lacking, values_of
from ups_data.params import Splits

FORMAT, VERSION = "ups-data/manifest", 1
SUFFIX = {"grid": "h5", "mesh": "zarr", "particles": "zarr"}


def content_key(**facts: object) -> str:
    """SHA-256 over everything that determines the data; two conversions with one key are one."""
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def build_manifest(
    *,
    task: str,
    kind: str,
    channels: Sequence[str],
    parameters: Mapping[str, tuple[str, np.ndarray]],
    shape: Mapping[str, object],
    splits: Splits | None,
    groups: Mapping[str, Sequence[str]],
    statistics: Mapping[str, object],
    files: Sequence[Mapping[str, object]],
    shards: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
    **more: object,
) -> dict:
    """Put the manifest together.

    `parameters`: name -> (raw name, value of every sample, NaN where its equation has none);
    `shape`: resolution, frames, time_step, periodic;
    `groups`: split -> group id of every sample in it; `files`: name, size and samples of every source file;
    `shards`: split -> name and samples of its files, for splits that are several;
    `more` must hold `fingerprint`, numbers that change when the data does. The key covers all of it.
    """
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "task": task,
        "kind": kind,
        "channels": list(channels),
        "parameters": {
            name: {"raw_name": raw} | _values(np.asarray(values, dtype=np.float64))
            for name, (raw, values) in parameters.items()
        },
        **shape,
        "protocol": splits.protocol if splits else None,
        "seed": splits.seed if splits else None,
        "splits": {
            name: {
                "samples": len(ids),
                "groups": sorted(set(ids)),
                **({"shards": list(shards[name])} if name in (shards or {}) else {}),
            }
            for name, ids in groups.items()
        },
        "statistics": dict(statistics),
        "source": {"files": [dict(f) for f in files]},
        **more,
    }
    return {**manifest, "key": content_key(**manifest)}


def _values(column: np.ndarray) -> dict[str, object]:
    """The distinct values of a parameter [S] and, where there are any, how many samples have no such parameter."""
    missing = {"missing": count} if (count := lacking(column)) else {}
    return {"values": values_of(column).tolist()} | missing


def manifest_path(folder: str | Path, task: str) -> Path:
    """Where the manifest of a task stands."""
    return Path(folder) / f"{task}_manifest.json"


def read_manifest(folder: str | Path, task: str) -> dict:
    """Read and check the manifest of a task."""
    path = manifest_path(folder, task)
    manifest = read_json(path)
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise UpsDataError(
            f"{path}: got format {manifest.get('format')!r} version {manifest.get('version')!r}, "
            f"expected {FORMAT!r} version {VERSION}; convert again with `dvc repro convert@{task}`"
        )
    if content_key(**{name: value for name, value in manifest.items() if name != "key"}) != manifest.get("key"):
        raise UpsDataError(f"{path} was changed: its key is of other contents; fetch it or convert again")
    return manifest


def store_path(folder: str | Path, task: str, split: str, kind: str) -> Path:
    """Where a split of a task stands: grids in HDF5, meshes and particles in Zarr."""
    return Path(folder) / f"{task}_{split}.{SUFFIX[kind]}"


def check_split(manifest: Mapping, path: Path, split: str) -> None:
    """Raise UpsDataError unless the store at `path` is that split of the conversion that `manifest` describes.

    A store that was put there by hand, or left by another conversion, would be taken for trajectories it does not hold.
    """
    task, held, key = _identity(path)
    name, again = manifest["task"], f"convert again with `dvc repro convert@{manifest['task']}`"
    if key != manifest["key"]:
        raise UpsDataError(
            f"{path} is of another conversion (key {str(key)[:12]}) than {manifest_path(path.parent, name)} "
            f"(key {manifest['key'][:12]}), split {split}; {again}"
        )
    if (task, held) != (name, split):
        raise UpsDataError(f"{path} holds the split {held!r} of {task!r}, expected {split!r} of {name!r}; {again}")


def _identity(path: Path) -> tuple[str, str, str | None]:
    """Task, split and key of the conversion that a store carries: of a grid file in HDF5, of others in Zarr."""
    try:
        if path.suffix == ".zarr":
            facts = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
            return facts["task"], facts["split"], facts["manifest"].get("key")
        import h5py

        first = min(path.glob("*.h5")) if path.is_dir() else path
        with h5py.File(first, "r") as file:
            return file.attrs["task"], file.attrs["split"], json.loads(file["manifest"][()]).get("key")
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UpsDataError(f"{path} is missing or is no converted split ({error}); run `dvc repro convert`") from None
