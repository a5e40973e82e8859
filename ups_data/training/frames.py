"""Frames of converted data as batches of tensors, at the view the models have of it.

Frames of a split are numbered trajectory after trajectory: frame t of sample s is s * frames + t. `read` takes any
numbers; only what it is asked for is read from the disk.
"""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ups_data.errors import UpsDataError
from ups_data.manifest import check_split, read_manifest, store_path
from ups_data.params import View
from ups_data.sources.raw import uneven_step
from ups_data.stores.grid import GridReader

if TYPE_CHECKING:
    from ups_data.stores.packed import PackedReader

Frame = dict[str, Tensor]
SMALLEST = 1e-6  # of a channel's root mean square: smaller fields count as this large in the relative error


class Frames:
    """What all kinds share: the manifest, the roles, how many samples and frames, parameters [S, P], times [T]."""

    def __init__(self, reader: GridReader | PackedReader, frames: int, times: np.ndarray, view: View):
        self.reader, self.view = reader, view
        self.manifest, self.parameters = reader.manifest, np.asarray(reader.parameters, dtype=np.float64)
        self.samples = len(reader)
        self.times = np.asarray(times, dtype=np.float64)[:: view.time_stride]
        self.frames = len(range(0, frames, view.time_stride))
        places = "position" if self.manifest["kind"] == "particles" else ()  # of particles: where fields are, no field
        channels = [name for name in reader.channels if not name.startswith(places)]
        self.roles: dict[str, list[str]] = self.manifest.get("roles") or {"state": channels}
        check_times(self.manifest, self.times)

    def __len__(self) -> int:
        return self.samples * self.frames

    def static_fields(self) -> Tensor | None:
        """The fields of every sample that do not change in time, float32 [S, X.., C']; None where there are none."""
        return None

    def _wide(self, box: list[list[float]]) -> list[list[float]]:
        """The box [[low, high]] an axis. Raises UpsDataError for an axis along which all points lie at one place."""
        for axis, (low, high) in enumerate(box):
            if low == high:
                raise UpsDataError(
                    f"{self.manifest['task']}: all points have {low:g} as coordinate {axis}, expected several values; "
                    "convert files without that axis"
                )
        return box

    def _places(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample and raw frame of every frame number."""
        sample, frame = np.divmod(index, self.frames)
        return sample, frame * self.view.time_stride

    def _runs(self, index: np.ndarray):
        """(rows, sample, raw frames) of frame numbers in a row that belong to one sample."""
        sample, frame = self._places(index)
        for number, rows in groupby(range(len(index)), key=lambda row: sample[row]):
            rows = list(rows)
            yield rows, int(number), frame[rows]


def viewed_points(reader: GridReader, view: View) -> list[int]:
    """Points of the view along every axis. Raises UpsDataError where a period would get a seam."""
    shape = reader.shape[2:-1]
    for points, wraps in zip(shape, reader.manifest["periodic"], strict=True):
        if wraps and points % view.space_stride:
            raise UpsDataError(
                f"view.space_stride of {reader.manifest['task']}: got {view.space_stride}, which does not divide the "
                f"{points} points of a periodic axis: its ends would stand closer together than other neighbours"
            )
    return [-(-points // view.space_stride) for points in shape]


class GridFrames(Frames):
    """Frames {fields: float32 [B, X.., C]} of a grid file, which is mapped into memory."""

    def __init__(self, path: Path, view: View):
        reader = GridReader(path)
        super().__init__(reader, reader.shape[1], reader.time, view)
        self.resolution = viewed_points(reader, view)
        every = slice(None, None, view.space_stride)
        self._view = reader.data[(slice(None), slice(None), *[every] * len(self.resolution))]
        whole = isinstance(self._view, np.ndarray) and self._view.flags.c_contiguous and view.time_stride == 1
        self._flat = self._view.reshape(-1, *self._view.shape[2:]) if whole else None  # by frame number
        self._columns = {r: [reader.channels.index(n) for n in names] for r, names in self.roles.items()}

    def static_fields(self) -> Tensor | None:
        """At the points of the view."""
        if not self.reader.static_channels:
            return None
        every = (slice(None, None, self.view.space_stride),) * len(self.resolution)
        return torch.from_numpy(np.array(self.reader.static[(slice(None), *every)]))

    def read(self, index: np.ndarray, role: str, pin: bool = False) -> Frame:
        """The role's channels of those frames; `pin`: in memory that a GPU fetches from, where it is one copy."""
        columns = self._columns[role]
        every = columns == list(range(self._view.shape[-1]))
        if self._flat is not None and (np.diff(index) == 1).all():  # one piece of the file: many times as fast
            fields = self._flat[index[0] : index[-1] + 1]
            if every:
                copy = torch.empty(fields.shape, pin_memory=pin)
                np.copyto(copy.numpy(), fields)
                return {"fields": copy}
        else:
            fields = self._view[self._places(index)]
        if not every:
            fields = fields[..., columns]
        return {"fields": torch.from_numpy(np.ascontiguousarray(fields, dtype=np.float32))}

    def values(self, role: str) -> int:
        """How many numbers the fields of a role are, all frames together."""
        return len(self) * int(np.prod(self.resolution)) * len(self.roles[role])


class MeshFrames(Frames):
    """Frames of a mesh store, padded to the largest mesh of the split.

    Keys: fields float32 [B, N, C], coords float32 [B, N, d], mask bool [B, N], boundary float32 [B, N], topology [B].
    """

    def __init__(self, path: Path, view: View):
        from ups_data.geometry import boundary_distance
        from ups_data.stores.mesh import MeshStore

        store = MeshStore(path)
        super().__init__(store, store.frames, store.times[0], view)
        self._columns = {r: [store.channels.index(n) for n in names] for r, names in self.roles.items()}
        self.topology_of = np.asarray(store.topology_of, dtype=np.int64)
        topologies = [store.topology(k) for k in range(int(self.topology_of.max()) + 1)]
        self.nodes = np.array([len(t.coords) for t in topologies])
        shape = (len(topologies), int(self.nodes.max()))
        self.coords = np.zeros((*shape, topologies[0].coords.shape[1]), np.float32)
        self.boundary, self.mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
        for k, topology in enumerate(topologies):
            nodes = self.nodes[k]
            self.coords[k, :nodes], self.mask[k, :nodes] = topology.coords, True
            self.boundary[k, :nodes] = boundary_distance(topology.coords, topology.cells)
            # What is decoded at the padding is left out, but must be finite: a place where the decoder has learnt.
            self.coords[k, nodes:], self.boundary[k, nodes:] = self.coords[k, 0], self.boundary[k, 0]

    def extent(self) -> tuple[list[list[float]], int]:
        """The box [[low, high]] an axis that holds all meshes, and the nodes of the largest."""
        nodes = self.coords[self.mask].astype(np.float64)
        box = np.stack([nodes.min(0), nodes.max(0)], axis=1).tolist()
        return self._wide(box), int(self.nodes.max())

    def read(self, index: np.ndarray, role: str, pin: bool = False) -> Frame:
        """The role's channels of those frames, with the meshes they live on."""
        topology = self.topology_of[self._places(index)[0]]
        fields = np.zeros((len(index), self.mask.shape[1], len(self._columns[role])), np.float32)
        for rows, sample, frames in self._runs(index):
            first, last = int(frames.min()), int(frames.max()) + 1
            read = self.reader.fields(sample, first, last)[frames - first]
            fields[rows, : read.shape[1]] = read[..., self._columns[role]]
        frame = {
            "fields": fields,
            "coords": self.coords[topology],
            "mask": self.mask[topology],
            "boundary": self.boundary[topology],
            "topology": topology,
        }
        return {name: torch.from_numpy(array) for name, array in frame.items()}

    def values(self, role: str) -> int:
        """How many numbers the fields of a role are, all frames together."""
        return int(self.nodes[self.topology_of].sum()) * self.frames * len(self.roles[role])


class ParticleFrames(Frames):
    """Frames of a particle store, padded to the largest number of particles of the split.

    Keys: fields (velocities) float32 [B, P, d], coords (positions) float32 [B, P, d], mask bool [B, P].
    """

    def __init__(self, path: Path, view: View):
        from ups_data.stores.particles import ParticleStore

        store = ParticleStore(path)
        super().__init__(store, store.frames, store.times[0], view)
        self.particles = np.array([store.particles(s) for s in range(self.samples)])

    def extent(self) -> tuple[list[list[float]], int]:
        """The box [[low, high]] an axis, and the particles of the largest sample."""
        channels = self.manifest["statistics"]["channels"]
        seen = [channels[name] for name in self.reader.channels if name.startswith("position")]
        box = [
            [0.0, float(period)] if period > 0 else [position["minimum"], position["maximum"]]
            for period, position in zip(self.reader.box[0], seen, strict=True)
        ]
        return self._wide(box), int(self.particles.max())

    def read(self, index: np.ndarray, role: str, pin: bool = False) -> Frame:
        """Positions and velocities in those frames; the one role is `state`."""
        dimension = len(self.roles[role])
        shape = (len(index), int(self.particles.max()))
        frame = {name: np.zeros((*shape, dimension), np.float32) for name in ("fields", "coords")}
        mask = np.zeros(shape, bool)
        for rows, sample, frames in self._runs(index):
            first, last = int(frames.min()), int(frames.max()) + 1
            for name, stored in (("fields", "velocities"), ("coords", "positions")):
                read = self.reader.trajectory(stored, sample, first, last)[frames - first]
                frame[name][rows, : read.shape[1]] = read
            mask[rows, : self.particles[sample]] = True
        return {name: torch.from_numpy(array) for name, array in (frame | {"mask": mask}).items()}

    def values(self, role: str) -> int:
        """How many numbers the fields of a role are, all frames together."""
        return int(self.particles.sum()) * self.frames * len(self.roles[role])


def check_times(manifest: dict, times: np.ndarray) -> None:
    """Raise UpsDataError unless models can learn from frames at these times [T] of the view."""
    task = manifest["task"]
    if "target" in manifest.get("roles", {}) and len(times) > 1:
        raise UpsDataError(
            f"{task}: got {len(times)} frames of inputs and solutions, expected one: models learn what solves a static "
            "problem, not how a solution on a mesh goes on; the data are converted and can be packed"
        )
    if not all(manifest.get("roles", {}).values()):
        raise UpsDataError(
            f"{task}: got no input field, expected one or more beside the solution: models learn what solves a static "
            "problem from its inputs; the data are converted and can be packed"
        )
    if uneven := uneven_step(times):
        raise UpsDataError(
            f"{task}: time: {uneven}; models go on by one time step: convert frames at equal steps, or choose a "
            "view.time_stride that leaves such"
        )


def open_frames(folder: str | Path, task: str, split: str, kind: str, view: View) -> Frames:
    """The frames of a split of a task; a missing or damaged file, or one of other data, is a sentence."""
    path = store_path(folder, task, split, kind)
    frames = {"grid": GridFrames, "mesh": MeshFrames, "particles": ParticleFrames}[kind](path, view)
    check_split(read_manifest(folder, task), path, split)
    return frames


def frame_errors(decoded: Tensor, frame: Frame, mean_square: Tensor) -> Tensor:
    """RMSE over space divided by the target's RMS over space, float64 [B, C]: averaged it is PDEBench's nRMSE."""
    squares, size = (decoded - frame["fields"]).double().square(), frame["fields"].double().square()
    if "mask" in frame:
        squares, size = squares * frame["mask"][..., None], size * frame["mask"][..., None]
    squares, size = squares.flatten(1, -2).sum(dim=1), size.flatten(1, -2).sum(dim=1)
    points = frame["mask"].sum(dim=1, keepdim=True) if "mask" in frame else math.prod(decoded.shape[1:-1])
    return (squares / torch.maximum(size, SMALLEST**2 * mean_square * points)).sqrt()
