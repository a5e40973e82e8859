"""Forecasts of meshes (static) and particles (carried by the predicted velocity field)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ups_data.evaluation.advection import carry, velocity_at
from ups_data.evaluation.forecast import Forecast, Forecasts, batches, to_numpy
from ups_data.evaluation.metrics import displacement, minimum_image
from ups_data.evaluation.task import Evaluation
from ups_data.stores.mesh import MeshStore
from ups_data.stores.particles import ParticleStore
from ups_data.training.baseline import MESH, MeshTensors, viewed_frames
from ups_data.training.operator import decode_frames


def mesh_forecasts(task: Evaluation) -> Forecasts:
    """Forecast the test split of a static mesh task: input fields to target fields, mesh after mesh."""
    store = MeshStore(task.test)
    tensors = MeshTensors(store, task.device)
    inputs, targets = task.baseline.config["inputs"], task.baseline.config["targets"]
    channels = [store.channels[index] for index in targets]
    means = _train_means(task.train, store, targets)

    def run() -> Iterator[Forecast]:
        for index in np.unique(store.topology_of):
            topology = store.topology(index)
            members = np.flatnonzero(store.topology_of == index)
            for rows in batches(len(members), len(topology.coords) * len(store.channels)):
                samples = members[rows].tolist()
                batch = tensors.batch(samples)
                fields, parameters, mesh = batch["fields"], batch["parameters"], (batch[name] for name in MESH)
                geometry = task.cache.geometry(samples, task.device)
                source, target = (task.latents(role, samples, 0, 1) for role in ("input", "target"))
                solved = task.operator(source, parameters, torch.ones(len(samples), device=task.device))
                truth = to_numpy(fields[:, None][..., targets])
                nodes = truth.shape[2]
                decoded = {
                    name: to_numpy(decode_frames(task.autoencoder, latents, geometry, "target"))[:, :, :nodes]
                    for name, latents in (("operator", solved), ("roundtrip", target))
                }
                plain = task.baseline(fields[..., inputs], *mesh, parameters)
                predictions = {
                    "operator": decoded["operator"],
                    "baseline": to_numpy(plain)[:, None],
                    "mean": np.broadcast_to(means[index], truth.shape),
                    "roundtrip": decoded["roundtrip"],
                }
                known = {store.channels[inputs[0]]: to_numpy(fields[..., inputs[0]])}
                yield Forecast(samples, truth, predictions, vars(topology), known)

    spread = np.array([store.manifest["statistics"]["channels"][name]["std"] for name in channels])
    return Forecasts(channels, spread, np.zeros(1), store.parameters, store.parameter_names, store.groups, run())


def _train_means(train: Path, store: MeshStore, targets: list[int]) -> list[np.ndarray]:
    """For each mesh of `store` train's mean target field on it [N, C], or the mean value where train lacks the mesh."""
    source = MeshStore(train)
    known = {source.topology(k).coords.tobytes(): k for k in range(int(source.topology_of.max()) + 1)}
    facts = [source.manifest["statistics"]["channels"][source.channels[index]]["mean"] for index in targets]
    means = []
    for index in range(int(store.topology_of.max()) + 1):
        coords = store.topology(index).coords
        twin = known.get(coords.tobytes())
        members = np.flatnonzero(source.topology_of == twin) if twin is not None else []
        total = np.zeros((len(coords), len(targets)))
        for sample in members:
            total += source.fields(int(sample))[0][:, targets]
        means.append(total / len(members) if len(members) else total + facts)
    return [mean.astype(np.float32) for mean in means]


def particle_forecasts(task: Evaluation) -> Forecasts:
    """Forecast the test split of a particle task: how far each particle goes from the last given frame, how fast.

    Channels are the components of the displacement, whose errors are those of the positions by the nearest
    periodic image, and of the velocity. Persistence keeps every velocity and moves straight on; the round trip
    decodes velocities where the particles truly are, and adds them up to displacements by the trapezoid rule.
    """
    store, stride = ParticleStore(task.test), task.view.time_stride
    frames, times = viewed_frames(store.frames, task.view), store.times[0, ::stride]
    task.check_given(max(2, task.operator.history), frames)
    counts = np.diff(store.particle_offsets)
    box = store.box[0]

    def run() -> Iterator[Forecast]:
        for count in np.unique(counts):
            members = np.flatnonzero(counts == count)
            for rows in batches(len(members), frames * int(count) * 2 * len(box)):
                samples = members[rows].tolist()
                x, v = (
                    np.stack([store.trajectory(name, s)[::stride] for s in samples])
                    for name in ("positions", "velocities")
                )
                start, following = x[:, task.given - 1], x[:, task.given :]
                went = displacement(following, start, box)

                parameters = torch.from_numpy(store.parameters[samples]).to(task.device)
                dt = torch.full((len(samples),), float(times[1] - times[0]), device=task.device)
                latents = task.latents("state", samples, task.given - task.operator.history, frames)
                known, ahead = latents.split([task.operator.history, frames - task.given], dim=1)
                future = task.operator.rollout(known, parameters, dt, frames - task.given)
                moves = _move_particles(task, (future, ahead), x, v, dt, box, parameters)
                predictions = {
                    name: np.concatenate([went + minimum_image(places - following, box), speeds], axis=-1)
                    for name, (places, speeds) in moves.items()
                }
                predictions["mean"] = np.zeros_like(predictions["operator"])
                truth = np.concatenate([went, v[:, task.given :]], axis=-1)
                waves = {
                    name: _velocity_grid(task, samples, tokens)
                    for name, tokens in (("truth", ahead), ("operator", future))
                }
                yield Forecast(samples, truth, predictions, {"box": box}, {"start": start}, waves)

    speeds = [name for name in store.channels if name.startswith("velocity")]
    facts = [store.manifest["statistics"]["channels"][name]["std"] for name in speeds]
    channels = [name.replace("velocity", "displacement") for name in speeds] + speeds
    spread = np.concatenate([float(times[1] - times[0]) * np.array(facts), facts])
    names = store.parameter_names
    return Forecasts(channels, spread, times[task.given :], store.parameters, names, store.groups, run())


def _velocity_grid(task: Evaluation, samples: list[int], latents: Tensor) -> np.ndarray:
    """The velocity field that latents [B, F, L, D] stand for, on the regular grid of the cache: [B, F, X.., d]."""
    fields = decode_frames(task.autoencoder, latents, task.cache.geometry(samples, task.device), "state")
    return to_numpy(fields.unflatten(2, task.autoencoder.config["resolution"]))


def _move_particles(
    task: Evaluation,
    latents: tuple[Tensor, Tensor],
    x: np.ndarray,
    v: np.ndarray,
    time_step: Tensor,
    box: np.ndarray,
    parameters: Tensor,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Positions and velocities [B, steps, P, d] by every predictor; x and v [B, T, P, d] are the true ones.

    `latents`: those of the predicted frames by the operator, and the true ones.
    """
    given, steps, dt = task.given, x.shape[1] - task.given, time_step[0].item()
    future, following = latents
    known, motion = torch.from_numpy(x[:, :given]).to(task.device), torch.from_numpy(v[:, :given]).to(task.device)
    period = torch.tensor(box, dtype=torch.float32, device=task.device)
    carried = carry(task.autoencoder, future, known[:, -1], motion[:, -1], dt, box)
    plain = task.baseline.rollout(known, motion, period, parameters, time_step, steps)
    places = torch.from_numpy(x[:, given:]).to(task.device)
    trip = [velocity_at(task.autoencoder, following[:, step], places[:, step], box) for step in range(steps)]
    speeds = np.concatenate([v[:, given - 1 : given], to_numpy(torch.stack(trip, dim=1))], axis=1)
    travel = np.arange(1, steps + 1)[:, None, None] * dt * v[:, given - 1 : given]
    return {
        "operator": tuple(map(to_numpy, carried)),
        "baseline": tuple(map(to_numpy, plain)),
        "persistence": (x[:, given - 1 : given] + travel, np.broadcast_to(v[:, given - 1 : given], travel.shape)),
        "roundtrip": (
            x[:, given - 1 : given] + np.cumsum(0.5 * dt * (speeds[:, :-1] + speeds[:, 1:]), axis=1),
            speeds[:, 1:],
        ),
    }
