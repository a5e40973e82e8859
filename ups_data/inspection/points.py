"""A look at meshes and particles: .npz shards and Zarr stores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ups_data.choice import evenly
from ups_data.errors import UpsDataError
from ups_data.files import amount
from ups_data.inspection.grids import ROUNDED, split_facts, split_problems
from ups_data.inspection.look import Look, Panel, axis_fact, measure, parameter_fact, repeated
from ups_data.sources.npz import NpzFile
from ups_data.sources.raw import left_out
from ups_data.stores import mesh, particles


def look_at_npz(path: Path, full: bool) -> Look:
    """A mesh shard if it has cells, a particle shard if it has positions; anything else is a sentence with its keys."""
    with NpzFile(path) as file:
        shapes = dict(file.shapes)
    if {"coords", "cells"} <= shapes.keys():
        return _mesh_shard(path, full)
    if "positions" in shapes:
        return _particle_shard(path, full)
    there = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "none"
    raise UpsDataError(f"{path}: neither a mesh (coords, cells) nor particles (positions); it has the arrays {there}")


def look_at_zarr(path: Path, full: bool) -> Look:
    """A converted store of ours; another Zarr group is a sentence."""
    try:
        attributes = json.loads((path / "zarr.json").read_text(encoding="utf-8")).get("attributes", {})
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        raise UpsDataError(f"{path}/zarr.json is not JSON; fetch or convert it again") from None
    attributes = attributes if isinstance(attributes, dict) else {}
    kinds = {mesh.FORMAT: _mesh_store, particles.FORMAT: _particle_store}
    if attributes.get("format") not in kinds:
        raise UpsDataError(
            f"{path} is a Zarr v3 group, but no store of meshes or particles: its format is "
            f"{attributes.get('format')!r}, expected {' or '.join(map(repr, kinds))}"
        )
    return kinds[attributes["format"]](path, full)


# --- shards --------------------------------------------------------------------------------------


def _mesh_shard(path: Path, full: bool) -> Look:
    from ups_data.sources.mesh_npz import MeshShard

    with MeshShard(path) as shard:
        nodes, frames = len(shard.topology.coords), len(shard.times)
        found = shard.parameters()
        facts = {
            "channels": ", ".join(shard.channels),
            "roles": "; ".join(f"{role}: {', '.join(names) or 'none'}" for role, names in shard.roles.items()),
            "parameters": parameter_fact(*_constants(found)),
            "mesh": _mesh_fact(shard.topology),
            "time": axis_fact(shard.times) if frames > 1 else "static",
            "samples": str(shard.samples),
        }
        look = Look(f"raw mesh shard, {amount(path.stat().st_size)}", facts)

        def read(sample: int, start: int, stop: int) -> np.ndarray:
            return np.concatenate(list(shard.blocks([sample], shard.channels, stop)))[start:]

        measure(look, shard.channels, shard.samples, frames, nodes * len(shard.channels) * 4, read, full)
        if not look.problems:
            look.add(repeated(shard.groups(range(shard.samples)), range(shard.samples)))
            look.panels = _surfaces(shard.topology, shard.channels, read(0, 0, 1)[0])
        look.add([ROUNDED] * shard.is_float64)
    look.following = "an entry of params.yaml with source: npz (README, Add a dataset)"
    return look


def _particle_shard(path: Path, full: bool) -> Look:
    from ups_data.sources.particles_npz import ParticleShard

    with ParticleShard(path) as shard:
        frames, dimension = len(shard.times), shard.dimension
        facts = {
            "particles": f"{shard.particles} in {dimension} dimensions",
            "parameters": parameter_fact(*_constants(shard.parameters())),
            "box": _box_fact(shard.box),
            "graph": f"{len(shard.indices)} pairs within {shard.radius:g} in the first frame",
            "time": axis_fact(shard.times),
        }
        look = Look(f"raw particle shard, {amount(path.stat().st_size)}", facts)

        def read(sample: int, start: int, stop: int) -> np.ndarray:
            names = ("positions", "velocities")
            return np.concatenate([np.concatenate(list(shard.blocks(name, stop)))[start:] for name in names], axis=-1)

        # One trajectory: read as a whole, so that nothing is streamed twice.
        measure(look, _axes(dimension), 1, frames, max(1, shard.particles * dimension * 8), read, full)
        if not look.problems:
            look.panels = _dots(read(0, 0, frames)[..., :dimension], shard.times)
        look.add([ROUNDED] * shard.is_float64)
        if shard.unread:
            look.add([left_out(shard.unread)])
    look.following = "an entry of params.yaml with source: npz (README, Add a dataset)"
    return look


# --- stores --------------------------------------------------------------------------------------


def _mesh_store(path: Path, full: bool) -> Look:
    store = mesh.MeshStore(path)
    nodes = [store.nodes(sample) for sample in range(len(store))]
    look = _store_look(path, store, f"{len(set(store.topology_of.tolist()))} topologies of {_span(nodes)} nodes")
    frame_bytes = max(nodes) * len(store.channels) * 4
    measure(look, store.channels, len(store), store.frames, frame_bytes, store.fields, full)
    topology = store.topology(int(store.topology_of[0]))
    look.panels = _surfaces(topology, store.channels, store.fields(0, 0, 1)[0])
    return look


def _particle_store(path: Path, full: bool) -> Look:
    store = particles.ParticleStore(path)
    counts, dimension = np.diff(store.particle_offsets).tolist(), store.box.shape[1]
    look = _store_look(path, store, f"{_span(counts)} a trajectory, box {_box_fact(store.box[0])}")

    def read(sample: int, start: int, stop: int) -> np.ndarray:
        names = ("positions", "velocities")
        return np.concatenate([store.trajectory(name, sample, start, stop) for name in names], axis=-1)

    measure(look, _axes(dimension), len(store), store.frames, max(counts) * dimension * 8, read, full)
    look.panels = _dots(store.trajectory("positions", 0), store.times[0])
    return look


def _store_look(path: Path, store: mesh.MeshStore | particles.ParticleStore, places: str) -> Look:
    kind, manifest = store.manifest["kind"], store.manifest
    raw_names = {name: manifest["parameters"][name]["raw_name"] for name in store.parameter_names}
    facts = {
        "channels": ", ".join(store.channels),
        "parameters": parameter_fact(raw_names, store.parameters),
        "particles" if kind == "particles" else "meshes": places,
        "time": axis_fact(store.times[0]) if store.frames > 1 else "static",
        "samples": str(len(store)),
        **split_facts(manifest),
    }
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    look = Look(f"converted {kind}, split {store.split} of {store.task}, {amount(size)}", facts)
    look.add(split_problems(manifest, store.split, store.groups))
    look.following = f"python -m stages.audit {store.task}"
    return look


# --- facts and panels ----------------------------------------------------------------------------


def _constants(found: dict[str, tuple[str, float]]) -> tuple[dict[str, str], np.ndarray]:
    return {name: raw for name, (raw, _) in found.items()}, np.array([[value for _, value in found.values()]])


def _mesh_fact(topology: mesh.Topology) -> str:
    sizes, dimension = topology.sizes, topology.coords.shape[1]
    return f"{sizes['node']} nodes in {dimension} dimensions, {sizes['cell']} triangles, {sizes['edge']} edges"


def _box_fact(box: np.ndarray) -> str:
    return " x ".join(f"{period:g}" if period else "open" for period in box)


def _span(counts: list[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _axes(dimension: int) -> list[str]:
    return [f"{what}_{axis}" for what in ("position", "velocity") for axis in "xyz"[:dimension]]


def _surfaces(topology: mesh.Topology, channels: list[str], values: np.ndarray) -> list[Panel]:
    """The first frame of the first sample on its mesh, seen along z; `values` [N, C]."""
    points = topology.coords[:, :2]
    names = enumerate(channels[:6])
    return [Panel(f"{name}, sample 0", values[:, i], points=points, cells=topology.cells) for i, name in names]


def _dots(positions: np.ndarray, times: np.ndarray) -> list[Panel]:
    """Positions [T, P, D] of the first, middle and last frame, coloured by where each particle started."""
    start = positions[0][:, 0]
    frames = evenly(len(times), 3)
    return [Panel(f"t = {times[t]:.3g}", start, points=positions[t][:, :2]) for t in frames]
