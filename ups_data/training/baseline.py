"""Training the plain networks in physical space, straight from the converted data."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ups_data.choice import evenly
from ups_data.errors import UpsDataError
from ups_data.geometry import boundary_edges
from ups_data.models.baselines import FORMAT, NETWORKS
from ups_data.models.operator import check_conditioning, conditioning_facts
from ups_data.params import Baseline, View
from ups_data.stores.grid import GridReader
from ups_data.stores.mesh import MeshStore
from ups_data.stores.particles import ParticleStore
from ups_data.training.frames import check_times, viewed_points
from ups_data.training.loop import fit, step_generator
from ups_data.training.losses import relative_error
from ups_data.training.sampling import draw

HELD = 1 << 30  # bytes of trajectories kept in memory while drawing windows from a packed store
JUDGED = 8  # validation trajectories (of every mesh, if meshes) looked at in each check
HORIZON = 4  # validation rolls out this many times the frames of the training unroll
CHECKS = 10  # validations in a training
MESH = ("coords", "edges", "boundary")  # a mesh as MeshNet takes it
Reader = GridReader | MeshStore | ParticleStore


class Problem(NamedTuple):
    """What `train_baseline` needs of a kind of data: the network, batches of train, its loss on a batch, and on val."""

    model: nn.Module
    draw: Callable[[torch.Generator], dict[str, Tensor]]
    loss: Callable[[dict[str, Tensor]], Tensor]
    validate: Callable[[], Tensor]


def train_baseline(
    kind: str,
    train: Path,
    val: Path,
    knobs: Baseline,
    view: View,
    *,
    state: Path,
    key: str,
    device: torch.device,
    label: str,
) -> tuple[nn.Module, list]:
    """Fit the plain network of that kind to a converted train split; keep the weights that are best on val.

    Validation rolls out four times as far as training does. Returns the network and the learning curve (loop.CURVE).
    """
    torch.manual_seed(knobs.seed)
    problem = {"grid": grid_problem, "mesh": mesh_problem, "particles": particle_problem}[kind](
        train, val, knobs, view, device
    )
    curve = fit(
        problem.model,
        lambda step: problem.draw(step_generator(knobs.seed, step)),
        problem.loss,
        lambda: problem.validate().item(),
        knobs,
        state=state,
        key=key,
        label=label,
        checks=CHECKS,
        whole=MESH if kind == "mesh" else (),
    )
    return problem.model, curve


# --- grids ---------------------------------------------------------------------------------------


def grid_window(reader: GridReader, view: View, sample: int, start: int, frames: int) -> np.ndarray:
    """Frames start, start + 1, .. of the view of one trajectory: float32 [frames, X.., C]."""
    axes = len(reader.shape) - 3
    times = slice(start * view.time_stride, (start + frames - 1) * view.time_stride + 1, view.time_stride)
    return reader.data[(sample, times, *(slice(None, None, view.space_stride),) * axes)]


def static_fields(reader: GridReader, view: View, samples: list[int]) -> np.ndarray:
    """The fields of samples that do not change in time, at the points of the view: float32 [B, X.., C']."""
    every = (slice(None, None, view.space_stride),) * (len(reader.shape) - 3)
    return reader.static[samples][(slice(None), *every)]


def viewed_frames(frames: int, view: View) -> int:
    """How many frames the view leaves."""
    return (frames - 1) // view.time_stride + 1


def grid_problem(train: Path, val: Path, knobs: Baseline, view: View, device: torch.device) -> Problem:
    """One frame to the next `bundle`, fed back `unroll` times."""
    readers = {"train": GridReader(train), "val": GridReader(val)}
    reader = readers["train"]
    frames = viewed_frames(reader.shape[1], view)
    if frames < 2:
        raise UpsDataError(
            f"{train} has one frame, there is nothing to roll out: baseline and evaluate of a static problem are for "
            "the kind mesh; see darcy2d_mesh in docs/families.md"
        )
    _check_reach(knobs.depth, reader, view)
    unroll = _fits(knobs.unroll * knobs.bundle, 1, frames, "unroll or bundle")
    time_step = float(reader.time[view.time_stride] - reader.time[0])
    mean, std = _normaliser(reader.manifest, reader.channels + reader.static_channels)
    config = _config("grid", knobs, reader, time_step, mean, std)
    config |= {"channels": len(reader.channels), "periodic": reader.manifest["periodic"], "bundle": knobs.bundle}
    judge = torch.from_numpy(readers["val"].parameters)
    check_conditioning(config["conditioning"], judge, reader.parameter_names, val)
    model = NETWORKS["grid"](config).to(device)
    squares = (np.square(mean) + np.square(std))[: len(reader.channels)]
    mean_square = torch.tensor(squares, dtype=torch.float32, device=device)

    def batch(split: str, samples: list[int], starts: list[int], steps: int) -> dict[str, Tensor]:
        source = readers[split]
        windows = [grid_window(source, view, s, t, steps + 1) for s, t in zip(samples, starts, strict=True)]
        return {
            "fields": torch.from_numpy(np.stack(windows)).to(device),
            "parameters": torch.from_numpy(source.parameters[samples]).to(device),
            "static": torch.from_numpy(static_fields(source, view, samples)).to(device),
        }

    def loss(batch: dict[str, Tensor]) -> Tensor:
        fields = batch["fields"]
        dt = torch.full((len(fields),), time_step, device=device)
        made = model.rollout(fields[:, 0], batch["parameters"], dt, fields.shape[1] - 1, batch["static"])
        return relative_error(made, fields[:, 1:], None, mean_square)

    def draw_batch(generator: torch.Generator) -> dict[str, Tensor]:
        return batch("train", *draw(generator, knobs.batch, len(reader), frames - unroll, knobs.initial), unroll)

    judged = evenly(len(readers["val"]), JUDGED)
    horizon = min(HORIZON * unroll, frames - 1)
    return Problem(model, draw_batch, loss, lambda: loss(batch("val", judged, [0] * len(judged), horizon)))


# --- meshes --------------------------------------------------------------------------------------


def mesh_problem(train: Path, val: Path, knobs: Baseline, view: View, device: torch.device) -> Problem:
    """Input fields to target fields; a batch is samples of one mesh."""
    stores = {"train": MeshStore(train), "val": MeshStore(val)}
    store = stores["train"]
    check_times(store.manifest, store.times[0, :: view.time_stride])
    meshes = {split: MeshTensors(s, device) for split, s in stores.items()}
    mean, std = _normaliser(store.manifest, store.channels)
    lengths = [meshes["train"].edge_length(k) for k in np.unique(store.topology_of)]
    config = _config("mesh", knobs, store, 1.0, mean, std) | {
        "inputs": [store.channels.index(name) for name in store.manifest["roles"]["input"]],
        "targets": [store.channels.index(name) for name in store.manifest["roles"]["target"]],
        "dimension": int(store.topology(0).coords.shape[1]),
        "edge_length": float(np.mean(lengths)),
    }
    model = NETWORKS["mesh"](config).to(device)
    squares = (np.square(mean) + np.square(std))[config["targets"]]
    mean_square = torch.tensor(squares, dtype=torch.float32, device=device)
    members = {
        split: [np.flatnonzero(s.topology_of == k) for k in np.unique(s.topology_of)] for split, s in stores.items()
    }

    def loss(batch: dict[str, Tensor]) -> Tensor:
        fields = batch["fields"]
        prediction = model(fields[..., model.inputs], *(batch[name] for name in MESH), batch["parameters"])
        return relative_error(prediction[:, None], fields[:, None][..., model.targets], None, mean_square)

    def draw_batch(generator: torch.Generator) -> dict[str, Tensor]:
        own = members["train"][int(torch.randint(len(members["train"]), (1,), generator=generator))]
        rows = torch.randint(len(own), (knobs.batch,), generator=generator).numpy()
        return meshes["train"].batch(own[rows].tolist())

    def validate() -> Tensor:
        return torch.stack([loss(meshes["val"].batch(own[:JUDGED].tolist())) for own in members["val"]]).mean()

    return Problem(model, draw_batch, loss, validate)


class MeshTensors:
    """The samples and meshes of a store as tensors on a device; what fits is kept."""

    def __init__(self, store: MeshStore, device: torch.device):
        self.store, self.device = store, device
        largest = max(store.nodes(s) for s in range(len(store)))
        self.fields = lru_cache(max(1, HELD // (4 * largest * len(store.channels))))(lambda s: store.fields(s)[0])
        self.mesh = lru_cache(None)(self._mesh)

    def _mesh(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates [N, d], edges [E, 2] and boundary marks [N] of a mesh."""
        topology = self.store.topology(index)
        boundary = np.zeros(len(topology.coords), dtype=bool)
        boundary[boundary_edges(topology.cells)] = True
        arrays = topology.coords.astype(np.float32), topology.edges.astype(np.int64), boundary
        return tuple(torch.from_numpy(array).to(self.device) for array in arrays)

    def edge_length(self, index: int) -> float:
        """Mean length of a mesh's edges."""
        coords, edges, _ = self.mesh(index)
        return (coords[edges[:, 0]] - coords[edges[:, 1]]).norm(dim=1).mean().item()

    def batch(self, samples: list[int]) -> dict[str, Tensor]:
        """Fields [B, N, C], parameters [B, P] and the mesh of samples that live on one."""
        return {
            "fields": torch.from_numpy(np.stack([self.fields(s) for s in samples])).to(self.device),
            "parameters": torch.from_numpy(self.store.parameters[samples]).to(self.device),
            **dict(zip(MESH, self.mesh(int(self.store.topology_of[samples[0]])), strict=True)),
        }


# --- particles -----------------------------------------------------------------------------------


def particle_problem(train: Path, val: Path, knobs: Baseline, view: View, device: torch.device) -> Problem:
    """Two frames to the next, fed back over `unroll` frames; the error is that of the velocities."""
    stores = {"train": ParticleStore(train), "val": ParticleStore(val)}
    store = stores["train"]
    frames = viewed_frames(store.frames, view)
    check_times(store.manifest, store.times[0, :: view.time_stride])
    unroll = _fits(knobs.unroll, 2, frames, "unroll")
    time_step = float(store.times[0, view.time_stride] - store.times[0, 0])
    names = [name for name in store.channels if name.startswith("velocity")]
    mean, std = _normaliser(store.manifest, names)
    config = _config("particles", knobs, store, time_step, mean, std)
    config |= {"dimension": len(names), "radius": float(store.radius.mean())}
    model = NETWORKS["particles"](config).to(device)
    mean_square = torch.tensor(np.square(mean) + np.square(std), dtype=torch.float32, device=device)
    box = torch.tensor(store.box[0], dtype=torch.float32, device=device)
    size = 8 * store.frames * len(names) * max(store.particles(s) for s in range(len(store)))

    @lru_cache(max(1, HELD // size))
    def trajectory(split: str, sample: int) -> tuple[np.ndarray, np.ndarray]:
        names = ("positions", "velocities")
        return tuple(stores[split].trajectory(name, sample)[:: view.time_stride] for name in names)

    def batch(split: str, samples: list[int], starts: list[int], steps: int) -> dict[str, Tensor]:
        windows = [[a[t : t + steps + 2] for a in trajectory(split, s)] for s, t in zip(samples, starts, strict=True)]
        count = min(len(positions[0]) for positions, _ in windows)  # trajectories may differ in particles
        positions, velocities = (
            torch.from_numpy(np.stack([window[which][:, :count] for window in windows])).to(device) for which in (0, 1)
        )
        parameters = torch.from_numpy(stores[split].parameters[samples]).to(device)
        return {"positions": positions, "velocities": velocities, "parameters": parameters}

    def loss(batch: dict[str, Tensor]) -> Tensor:
        positions, velocities = batch["positions"], batch["velocities"]
        dt = torch.full((len(positions),), time_step, device=device)
        steps = positions.shape[1] - 2
        _, made = model.rollout(positions[:, :2], velocities[:, :2], box, batch["parameters"], dt, steps)
        return relative_error(made, velocities[:, 2:], None, mean_square)

    def draw_batch(generator: torch.Generator) -> dict[str, Tensor]:
        drawn = draw(generator, knobs.batch, len(store), frames - 1 - unroll, knobs.initial)
        return batch("train", *drawn, unroll)

    judged = evenly(len(stores["val"]), JUDGED)
    horizon = min(HORIZON * unroll, frames - 2)
    return Problem(model, draw_batch, loss, lambda: loss(batch("val", judged, [0] * len(judged), horizon)))


# --- shared --------------------------------------------------------------------------------------


def _config(kind: str, knobs: Baseline, train: Reader, time_step: float, mean: np.ndarray, std: np.ndarray) -> dict:
    return {
        "format": FORMAT,
        "kind": kind,
        "width": knobs.width,
        "depth": knobs.depth,
        "steps": knobs.steps,
        "mean": mean.tolist(),
        "std": std.tolist(),
        "time_step": time_step,
        "conditioning": conditioning_facts(torch.from_numpy(train.parameters), time_step, train.parameter_names),
    }


def _normaliser(manifest: dict, channels: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Train's mean and std of the channels; a constant channel gets std 1."""
    facts = [manifest["statistics"]["channels"][name] for name in channels]
    std = np.array([fact["std"] for fact in facts])
    return np.array([fact["mean"] for fact in facts]), np.where(std > 0, std, 1.0)


def _fits(steps: int, given: int, frames: int, knobs: str) -> int:
    """The predicted frames of a training window, if it fits the trajectories of the view."""
    if given + steps > frames:
        raise UpsDataError(
            f"baseline: a window of {given} given and {steps} predicted frames does not fit trajectories of {frames}; "
            f"lower baseline.{knobs}"
        )
    return steps


def _check_reach(depth: int, reader: GridReader, view: View) -> None:
    """Raise UpsDataError where a convolution would go around a periodic axis and meet itself."""
    reach = 2 * 2 ** (depth - 1)
    for points, wraps in zip(viewed_points(reader, view), reader.manifest["periodic"], strict=True):
        if wraps and points < reach:
            raise UpsDataError(
                f"baseline.depth: got {depth}, whose convolutions reach {reach} points to each side, but the view has "
                f"{points} along a periodic axis; lower it"
            )
