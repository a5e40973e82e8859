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
    return manifest
