"""Converted data as xarray: named dimensions and coordinates, read when asked for.

Every number of the fields stays on disk until it is indexed, so `isel`, `sel` and `.chunk()` (Dask) work on data larger
than memory. Physical parameters (NaN where a sample's equation has none) and origins are coordinates of `sample`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from ups_data.stores.grid import GridReader
from ups_data.stores.mesh import MeshStore
from ups_data.stores.particles import ParticleStore

AXES = ("x", "y", "z")
OPEN = 16  # splits kept open: a notebook looks at a few of them
Reader = GridReader | MeshStore | ParticleStore
_READERS = {"grid": GridReader, "mesh": MeshStore, "particles": ParticleStore}


def label(path: str | Path, kind: str) -> xr.Dataset | xr.DataTree:
    """The split at `path` as a Dataset (grid, particles) or a DataTree with a Dataset a mesh."""
    return {"grid": _grid, "mesh": _meshes, "particles": _particles}[kind](str(path))


def _reader(path: str, kind: str) -> Reader:
    """An open split, in each process for itself: what travels to a Dask worker is a path."""
    return _open(path, kind, Path(path).stat().st_ino)


@lru_cache(OPEN)
def _open(path: str, kind: str, inode: int) -> Reader:
    """`inode`: a file that was replaced is opened anew."""
    return _READERS[kind](path)


@dataclass(frozen=True, eq=False)
class Stored(BackendArray):
    """An array on disk; `samples` are the rows of a packed store (None: all of a grid), `name` the array in it."""

    path: str
    kind: str
    name: str
    shape: tuple[int, ...]
    samples: tuple[int, ...] | None = None
    dtype = np.dtype("f4")  # of every field; xarray asks for it

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> np.ndarray:
        reader = _reader(self.path, self.kind)
        picked, frames, *inside = key
        if isinstance(picked, slice):
            picked = slice(*picked.indices(self.shape[0]))
        if self.samples is None:
            return np.asarray(getattr(reader, self.name)[(picked, frames, *inside)])
        whole = picked if isinstance(picked, slice) else slice(picked, picked + 1)
        blocks = [self._sample(reader, s)[(frames, *inside)] for s in self.samples[whole]]
        stacked = np.stack(blocks) if blocks else np.empty((0, *self.shape[1:]), self.dtype)
        return stacked if isinstance(picked, slice) else stacked[0]

    def _sample(self, reader: MeshStore | ParticleStore, sample: int) -> np.ndarray:
        """A trajectory [T, N, C]; particles that others have more of are NaN."""
        if self.kind == "mesh":
            return reader.fields(sample)
        values = reader.trajectory(self.name, sample)
        missing = self.shape[2] - values.shape[1]
        return np.pad(values, ((0, 0), (0, missing), (0, 0)), constant_values=np.nan) if missing else values


def _lazy(dims: tuple[str, ...], array: Stored) -> xr.Variable:
    return xr.Variable(dims, indexing.LazilyIndexedArray(array))


def _grid(path: str) -> xr.Dataset:
    reader = _reader(path, "grid")
    space = tuple(reader.coordinates)
    fields = {"fields": _lazy(("sample", "time", *space, "channel"), Stored(path, "grid", "data", reader.shape))}
    extra = {}
    if reader.static_channels:
        fields["static"] = _lazy(
            ("sample", *space, "static_channel"), Stored(path, "grid", "static", reader.static.shape)
        )
        extra["static_channel"] = reader.static_channels
    axes = {"time": reader.time, **reader.coordinates, **extra, "channel": reader.channels}
    return xr.Dataset(fields, _with_samples(reader, range(len(reader)), axes, fields), _attributes(reader, "grid"))


def _meshes(path: str) -> xr.DataTree:
    store = _reader(path, "mesh")
    children = {f"mesh_{index}": _mesh(path, store, int(index)) for index in np.unique(store.topology_of)}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=_attributes(store, "mesh")), **children})


def _mesh(path: str, store: MeshStore, index: int) -> xr.Dataset:
    """The samples that live on one topology."""
    samples = np.flatnonzero(store.topology_of == index)
    topology = store.topology(index)
    nodes, dimension = topology.coords.shape
    shape = (len(samples), store.frames, nodes, len(store.channels))
    array = Stored(path, "mesh", "fields", shape, tuple(samples.tolist()))
    places = {axis: ("node", topology.coords[:, i]) for i, axis in enumerate(AXES[:dimension])}
    fields = {
        "fields": _lazy(("sample", "time", "node", "channel"), array),
        "cells": (("cell", "corner"), topology.cells),
    }
    axes = {**_times(store.times[samples]), **places, "channel": store.channels}
    return xr.Dataset(fields, _with_samples(store, samples, axes, fields))


def _particles(path: str) -> xr.Dataset:
    store = _reader(path, "particles")
    samples, dimension = range(len(store)), store.box.shape[1]
    counts = np.diff(store.particle_offsets)
    shape = (len(store), store.frames, int(counts.max(initial=0)), dimension)
    dims = ("sample", "time", "particle", "axis")
    fields = {
        name: _lazy(dims, Stored(path, "particles", name, shape, tuple(samples)))
        for name in ("positions", "velocities")
    }
    fields["box"] = xr.Variable(("sample", "axis"), store.box)
    axes = _times(store.times) | {"axis": list(AXES[:dimension])}
    axes |= {"particles": ("sample", counts), "radius": ("sample", store.radius)}
    return xr.Dataset(fields, _with_samples(store, samples, axes, fields), _attributes(store, "particles"))


def _times(times: np.ndarray) -> dict[str, object]:
    """The time of each frame: a coordinate `time` where all samples share it, else `times` of sample and time."""
    return {"time": times[0]} if (times == times[:1]).all() else {"times": (("sample", "time"), times)}


def _with_samples(
    reader: Reader, samples: range | np.ndarray, axes: Mapping[str, object], fields: Mapping[str, object]
) -> dict[str, object]:
    """All coordinates: beside the axes, of `sample` its number, its initial condition, its origin and its parameters.

    A parameter that has the name of something else here is called parameter_<name>.
    """
    rows = np.asarray(samples, dtype=np.int64)
    names = [file["name"] for file in reader.manifest["source"]["files"]]
    known = dict(axes) | {
        "sample": ("sample", rows),
        "group": ("sample", np.array(reader.groups)[rows]),
        "source_file": ("sample", np.array(names)[reader.source_file[rows]]),
        "source_row": ("sample", reader.source_row[rows]),
    }
    taken = {*known, *fields}
    for i, name in enumerate(reader.parameter_names):
        known[f"parameter_{name}" if name in taken else name] = ("sample", reader.parameters[rows, i])
    return known


def _attributes(reader: Reader, kind: str) -> dict[str, object]:
    facts = {"task": reader.task, "split": reader.split, "kind": kind, "key": reader.manifest["key"]}
    return facts | {name: reader.manifest["roles"][name] for name in ("input", "target") if "roles" in reader.manifest}
