"""A look at HDF5 files: raw ones of any source, and converted grids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from ups_data.catalogue import all_entries, read_catalogue, twins
from ups_data.choice import evenly
from ups_data.errors import UpsDataError
from ups_data.files import amount
from ups_data.inspection.look import (
    BUDGET,
    FIRST_FRAMES,
    Look,
    Panel,
    axis_fact,
    measure,
    parameter_fact,
    repeated,
    thin,
)
from ups_data.params import SPLITS
from ups_data.sources.grids import open_raw
from ups_data.sources.raw import RawFile, left_out, uneven_step
from ups_data.splits import group_id
from ups_data.stores.grid import FORMAT, GridReader

Read = Callable[[int, int, int], np.ndarray]  # (sample, start, stop) -> frames [t, X.., C]
ROUNDED = "float64 numbers: a conversion rounds them to float32 (knob convert.float64)"
SOLVED = 0.01  # a residual above this share of the source is no solution


def look_at_hdf5(path: Path, full: bool) -> Look:
    """A converted grid if its attributes say so, else a raw file."""
    try:
        with h5py.File(path, "r") as file:
            converted = file.attrs.get("format") == FORMAT
    except OSError as error:
        reason = "truncated" if "truncated" in str(error) else "damaged"
        raise UpsDataError(f"{path} is {reason} ({str(error).splitlines()[0]}); fetch it again") from None
    return look_at_grid(path, full) if converted else _raw(path, full)


# --- raw -----------------------------------------------------------------------------------------


def _raw(path: Path, full: bool) -> Look:
    with open_raw(path) as raw, h5py.File(path, "r") as file:
        source = "The Well" if "dimensions" in file else "PDEBench"
        rows = range(raw.samples) if full else evenly(raw.samples, FIRST_FRAMES)
        values = np.array([raw.values(row) for row in rows], dtype=np.float64).reshape(len(rows), -1)
        facts = {
            "channels": ", ".join(raw.channels + tuple(f"{name} (static)" for name in raw.static_channels)),
            "parameters": parameter_fact(raw.parameters, values),
            **_shape_facts(raw.coordinates, raw.periodic, raw.time, raw.samples),
            "stored": _stored(file, source),
        }
        look = Look(f"raw file of {source}, {amount(path.stat().st_size)}", facts)
        if unread := raw.unread():
            look.add([left_out(unread)])
        look.add(_odd_parameters(raw, rows, values))
        look.add(_odd_axes({**raw.coordinates, "time": raw.time}))
        frame_bytes = int(np.prod(raw.space)) * len(raw.channels) * (8 if raw.is_float64 else 4)
        measure(look, raw.channels, raw.samples, raw.frames, frame_bytes, raw.read, full)
        some = evenly(raw.samples, min(FIRST_FRAMES, max(2, BUDGET // frame_bytes)))
        look.add(_starts(raw, rows if full else some))
        look.add(_remarks(raw))
        look.add(_official(path, look.facts))
        look.panels = panels(raw.channels, raw.coordinates, raw.time, raw.read)
    look.following = f"python -m stages.convert --pattern '{path}' --out data/pdebench/mydata_train.h5"
    return look


def _shape_facts(
    coordinates: dict[str, np.ndarray], periodic: Sequence[bool], time: np.ndarray, samples: int
) -> dict[str, str]:
    axes = zip(coordinates.items(), periodic, strict=True)
    grid = "; ".join(f"{axis} {axis_fact(values)}{', periodic' if wraps else ''}" for (axis, values), wraps in axes)
    return {"grid": grid, "time": axis_fact(time) if len(time) > 1 else "static", "samples": str(samples)}


def _stored(file: h5py.File, source: str) -> str:
    """Type, chunks and compression of the largest array, and how many others stand beside it."""
    arrays: list[h5py.Dataset] = []
    file.visititems(lambda _, node: arrays.append(node) if isinstance(node, h5py.Dataset) else None)
    largest = max(arrays, key=lambda data: data.nbytes)
    layout = f"chunks {largest.chunks}" if largest.chunks else "contiguous"
    return f"{largest.name} {largest.dtype} {largest.shape}, {layout}, {largest.compression or 'not compressed'}"


def _odd_parameters(raw: RawFile, rows: Sequence[int], values: np.ndarray) -> Iterator[str]:
    """Parameters [sample, P] of those rows that are no numbers."""
    for name, column in zip(raw.parameters, values.T, strict=True):
        if not np.isfinite(column).all():
            at = int(np.argmin(np.isfinite(column)))
            yield f"{name} is {column[at]} in sample {rows[at]}: the conversion refuses it"


def _odd_axes(axes: dict[str, np.ndarray]) -> Iterator[str]:
    for name, values in axes.items():
        if not np.isfinite(values).all():
            yield f"{name}: a coordinate is NaN or infinite"
        elif np.any(np.diff(values) <= 0):
            yield f"{name}: the coordinates do not ascend"
        elif name == "time" and (uneven := uneven_step(values)):
            yield f"{name}: {uneven}"


def _starts(raw: RawFile, rows: Sequence[int]) -> Iterator[str]:
    """Samples that start alike, by the channels that make an initial condition."""
    chosen = [raw.channels.index(name) for name in raw.grouped_by]
    groups = [group_id(raw.read(row, 0, 1)[0][..., chosen]) for row in rows]
    yield from repeated(groups, list(rows))


def _remarks(raw: RawFile) -> Iterator[str]:
    if raw.is_float64:
        yield ROUNDED
    if raw.residual is not None:
        worst = max(raw.residual(row) for row in evenly(raw.samples, 4))
        if worst > SOLVED:
            yield f"the solution leaves {worst:.1%} of the source (worst of a few samples): it is not the steady state"


def _official(path: Path, facts: dict[str, str]) -> Iterator[str]:
    """What the catalogue says of a file of that name: its size there, its twins."""
    try:
        entries = all_entries(read_catalogue())
    except UpsDataError:
        return
    entry = next((e for e in entries if path.resolve().as_posix().endswith(f"/{e.path}")), None)
    if entry is None:
        return
    same = entry.size == path.stat().st_size
    size = amount(entry.size) if entry.size else "unknown size"
    facts["official"] = f"{entry.path}, {size}" + ("" if same else ": this one has another size (a sample, or cut)")
    others = [other.path for other in twins(entries).get(entry.md5, []) if other != entry]
    if same and others:
        yield f"the official file is one body with {', '.join(others)}: a split by file would leak"


# --- converted -----------------------------------------------------------------------------------


def look_at_grid(path: Path, full: bool) -> Look:
    """A converted split: one file, or a folder of them."""
    reader = GridReader(path)
    manifest = reader.manifest
    raw_names = {name: manifest["parameters"][name]["raw_name"] for name in reader.parameter_names}
    facts = {
        "channels": ", ".join(reader.channels + [f"{name} (static)" for name in reader.static_channels]),
        "parameters": parameter_fact(raw_names, reader.parameters),
        **_shape_facts(reader.coordinates, manifest["periodic"], reader.time, len(reader)),
        **split_facts(manifest),
    }
    size = sum(file.stat().st_size for file in path.glob("*.h5")) if path.is_dir() else path.stat().st_size
    look = Look(f"converted grid, split {reader.split} of {reader.task}, {amount(size)}", facts)
    look.add(split_problems(manifest, reader.split, reader.groups))
    read = _reader_of(reader)
    samples, frames, *space = reader.shape[:-1]
    frame_bytes = int(np.prod(space)) * len(reader.channels) * 4
    measure(look, reader.channels, samples, frames, frame_bytes, read, full)
    look.panels = panels(reader.channels, reader.coordinates, reader.time, read)
    look.following = f"python -m stages.audit {reader.task}"
    return look


def _reader_of(reader: GridReader) -> Read:
    return lambda sample, start, stop: np.asarray(reader.data[sample, start:stop])


def split_facts(manifest: dict) -> dict[str, str]:
    """How a converted dataset was split, and its key."""
    splits = manifest["splits"]
    counts = ", ".join(f"{name} {splits[name]['samples']}" for name in SPLITS if name in splits)
    files = manifest["source"]["files"]
    size = sum(file["size"] for file in files)
    return {
        "splits": f"{counts} samples, {manifest['protocol'] or 'as they came'}",
        "made from": f"{len(files)} files, {amount(size)}, first {files[0]['name']}" if files else "nothing known",
        "key": manifest["key"],
    }


def split_problems(manifest: dict, split: str, groups: Sequence[str]) -> Iterator[str]:
    """What the stored groups say against the manifest: leaks, and groups it does not list."""
    listed = {name: set(facts["groups"]) for name, facts in manifest["splits"].items()}
    here = set(groups)
    for name, others in listed.items():
        if name != split and here & others:
            yield f"{len(here & others)} initial conditions stand in {name} too"
    if not here <= listed.get(split, here):
        yield f"its initial conditions are not those that its manifest lists for {split}"


# --- the picture ---------------------------------------------------------------------------------


def panels(channels: Sequence[str], coordinates: dict[str, np.ndarray], time: np.ndarray, read: Read) -> list[Panel]:
    """The first sample: over x and time in one dimension, else its first, middle and last frame (the middle z)."""
    axes = list(coordinates.values())
    frame_of = _frame_1d if len(axes) == 1 else _frames_2d
    try:
        return frame_of(channels[:4], axes, time, read)
    except (UpsDataError, OSError):
        return []  # already a problem: reading stopped


def _frame_1d(channels: Sequence[str], axes: list[np.ndarray], time: np.ndarray, read: Read) -> list[Panel]:
    times = evenly(len(time), 256)
    rows = np.concatenate([read(0, t, t + 1) for t in times]).astype(np.float32)
    extent = (axes[0][0], axes[0][-1], time[0], time[-1])
    return [Panel(f"{name}, sample 0", thin(rows[..., i]), extent, ("x", "time")) for i, name in enumerate(channels)]


def _frames_2d(channels: Sequence[str], axes: list[np.ndarray], time: np.ndarray, read: Read) -> list[Panel]:
    extent = (axes[0][0], axes[0][-1], axes[1][0], axes[1][-1])
    made = []
    for index, name in enumerate(channels):
        for t in evenly(len(time), 3):
            values = read(0, t, t + 1)[0][..., index].astype(np.float32)
            plane = values[..., values.shape[2] // 2] if values.ndim == 3 else values
            when = f", t = {time[t]:.3g}" if len(time) > 1 else ""
            made.append(Panel(f"{name}{when}", thin(plane).T, extent))
    return made
