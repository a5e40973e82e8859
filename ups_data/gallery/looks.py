"""What a dataset looks like: a trajectory of its test split to play, and a small picture for the index."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from ups_data.gallery import players
from ups_data.manifest import store_path
from ups_data.parameters import in_words
from ups_data.stores.grid import GridReader
from ups_data.stores.mesh import MeshStore
from ups_data.stores.particles import ParticleStore

READERS = {"grid": GridReader, "mesh": MeshStore, "particles": ParticleStore}
COVER_FRAMES = 14  # of the paths on a cover
TWINS = 5  # trajectories from one initial condition drawn together


def open_split(folder: Path, task: str, split: str, kind: str) -> GridReader | MeshStore | ParticleStore:
    """The converted split of a task."""
    return READERS[kind](store_path(folder, task, split, kind))


def look(folder: Path, task: str, manifest: dict) -> tuple[dict, str]:
    """A player of the test split, and the HTML of a picture for the index, which has its name beside it."""
    reader = open_split(folder, task, "test", manifest["kind"])
    return {"grid": _grid, "mesh": _mesh, "particles": _particles}[manifest["kind"]](reader)


def _grid(reader: GridReader) -> tuple[dict, str]:
    if len(reader.shape) == 4:
        shown = _lines(reader)
        return shown, _map_cover(shown)
    frames = players.thinned(reader.shape[1], players.FRAMES)
    field, still = reader.data[0, frames], reader.static[0]
    shown = players.planes_player(field, still, reader.channels, reader.static_channels, reader.time[frames])
    return {**shown, "name": _caption(reader, 0)}, _film_cover(shown)


def _lines(reader: GridReader) -> dict:
    """All trajectories that start from the first sample's state, in the order of their parameters."""
    twins = [s for s, group in enumerate(reader.groups) if group == reader.groups[0]]
    twins = sorted(twins, key=lambda s: tuple(np.nan_to_num(reader.parameters[s], nan=np.inf)))[:TWINS]
    fields = np.stack([reader.data[s] for s in twins])
    names = [_caption(reader, s) for s in twins]
    shown = players.lines_player(fields, names, reader.channels, reader.coordinates["x"], reader.time)
    return {**shown, "name": "one initial condition" + (" under every parameter" if len(twins) > 1 else "")}


def _mesh(store: MeshStore) -> tuple[dict, str]:
    """The first sample of every mesh, all its fields; one slider goes from mesh to mesh."""
    samples = [int(np.flatnonzero(store.topology_of == k)[0]) for k in np.unique(store.topology_of)]
    topologies = [store.topology(int(store.topology_of[s])) for s in samples]
    fields = [store.fields(s, 0, 1)[0] for s in samples]
    panels = []
    for channel, channel_name in enumerate(store.channels):
        values, name = players.logarithms([f[:, channel] for f in fields], channel_name)
        shapes = [(t.coords, t.cells, v) for t, v in zip(topologies, values, strict=True)]
        panels.append(players.meshes(name, shapes, *players.colours_of(np.concatenate(values))))
    raw = store.manifest["source"]["files"]
    labels = [f"{PurePosixPath(raw[int(store.source_file[s])]['name']).stem}, {store.nodes(s)} nodes" for s in samples]
    shown = players.player("Mesh", labels, [{"caption": "", "panels": panels}], name="one sample of every mesh")
    return shown, _film_cover(shown)


def _particles(store: ParticleStore) -> tuple[dict, str]:
    """A trajectory under the least and one under the greatest value of the first parameter."""
    frames = players.thinned(store.frames, players.FRAMES)
    order = np.lexsort((np.arange(len(store)), *store.parameters.T[::-1]))
    samples = sorted({int(order[0]), int(order[-1])}, key=order.tolist().index)
    trajectories = [store.trajectory("positions", s)[frames, :, :2] for s in samples]
    every, box = np.concatenate([places.reshape(-1, 2) for places in trajectories]), store.box[0][:2]
    low, high = np.where(box > 0, 0.0, every.min(axis=0)), np.where(box > 0, box, every.max(axis=0))
    names = [_caption(store, s) for s in samples]
    shown = players.particles_player(trajectories, names, low, high, store.times[0, frames])
    paths = players.tracks(trajectories[0][:COVER_FRAMES], low, high)
    view = f'viewBox="0 0 {players.UNIT} {players.UNIT}" preserveAspectRatio="xMidYMid slice"'
    cover = f'<svg {view} aria-hidden="true"><path class="tracks" d="{paths}"/></svg>'
    return {**shown, "name": "the least and the greatest " + (store.parameter_names or ["sample"])[0]}, cover


def _caption(reader: GridReader | ParticleStore, sample: int) -> str:
    """The parameters of a sample in words."""
    return ", ".join(in_words(reader.parameter_names, reader.parameters[sample], 4)) or f"sample {sample}"


def _map_cover(shown: dict) -> str:
    """The map of the first trajectory."""
    source = next(panel["source"] for row in shown["rows"] for panel in row["panels"] if panel["kind"] == "map")
    return f'<img src="{source}" alt="">'


def _film_cover(shown: dict) -> str:
    """A late frame of the last film."""
    film = shown["rows"][0]["panels"][-1]
    step = film["height"] + 2 * film["pad"]
    look = "strip clear" if film.get("clear") else "strip"
    moved = -100 * (2 * film["frames"] // 3 * step + film["pad"]) / (film["frames"] * step)
    return f'<img class="{look}" style="transform: translateY({moved:.4f}%)" src="{film["source"]}" alt="">'
