"""Mesh shards, a plain one and real ones, and their conversion, for the tests of meshes."""

import numpy as np

from ups_data.conversion.points import convert_points
from ups_data.files import checksum
from ups_data.params import SPLITS, Convert, Splits
from ups_data.simulate.darcy_mesh import shard as darcy_shard
from ups_data.stores.mesh import MeshStore

TASK = "darcy2d_mesh"
SPLIT = Splits(protocol="grouped", seed=0, train=0.6, val=0.2, test=0.2)


def knobs(root, **changes):
    plain = {"source": "npz", "root": str(root), "folder": "raw", "pattern": "*.npz"}
    return Convert(**plain | {"limit": None, "samples": None, "float64": "round"} | changes)


def convert(root, out="out", **changes):
    return convert_points(TASK, "mesh", knobs(root, **changes), SPLIT, root / out)


def contents(folder):
    return {p.relative_to(folder).as_posix(): checksum(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def stores(folder):
    return {split: MeshStore(folder / f"{TASK}_{split}.zarr") for split in SPLITS}


def plain_shard(**changes):
    """Two triangles and two samples, the least there is."""
    fields = np.arange(8, dtype=np.float32).reshape(2, 4)
    arrays = {
        "coords": np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]]),
        "cells": np.array([[0, 1, 2], [0, 2, 3]], dtype=np.int32),
        "permeability": 1 + fields,
        "solution": fields,
    }
    return {name: value for name, value in (arrays | changes).items() if value is not None}


def real_shards():
    """Three shards of real problems, the last two on one mesh."""
    first = darcy_shard("square", 0.25, 4, (0, 0))
    second, third = darcy_shard("disk", 0.25, 4, (0, 0)), darcy_shard("disk", 0.25, 8, (0, 0))
    tail = {name: third[name][4:] for name in ("permeability", "source", "solution")}
    return [first, second, third | tail]
