"""Rollouts of .npz shards: static problems on meshes, and particles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ups_data.errors import UpsDataError
from ups_data.evaluation.advection import carry
from ups_data.evaluation.forecast import batches, to_numpy
from ups_data.evaluation.metrics import displacement, fold, minimum_image, nrmse
from ups_data.evaluation.request import Block, Request, Rollout, check_even
from ups_data.geometry import boundary_distance
from ups_data.sources.mesh_npz import MeshShard
from ups_data.sources.particles_npz import ParticleShard
from ups_data.sources.raw import AXES

OUTSIDE = 0.01  # of the box's extent along an axis: by so much a point may lie beyond it, being taken to the edge


@contextmanager
def mesh_rollout(path: Path, request: Request) -> Iterator[Rollout]:
    """The solutions on a mesh shard, which is open while they are made; UpsDataError for one that does not fit."""
    with MeshShard(path, solved=False) as shard:
        if len(shard.times) > 1:
            raise UpsDataError(f"{path}: got {len(shard.times)} frames, expected a static problem (no key times)")
        request.check_channels(path, shard.channels)
        _check_inside(path, "coords", shard.topology.coords, request)
        found = _parameters(path, shard, request)
        samples = min(shard.samples, request.samples or shard.samples)
        channels, coords = request.autoencoder.roles["target"], shard.topology.coords
        yield Rollout(
            samples=samples,
            times=np.zeros(1),
            frames={"data": (len(coords), len(channels))},
            channels=channels,
            error_channels=channels,
            parameters={name: np.full(samples, value) for name, (_, value) in found.items()},
            blocks=_solutions(shard, request, channels, samples, [value for _, value in found.values()]),
            arrays={"coords": coords, "cells": shard.topology.cells},
        )


def _check_inside(path: Path, name: str, points: np.ndarray, request: Request) -> None:
    """Refuse points [.., d] outside of the models' box, whose edge they would be moved to; a period has no outside."""
    box, periodic = np.array(request.autoencoder.config["box"]), request.autoencoder.config["periodic"]
    if points.shape[-1] != len(box):
        raise UpsDataError(f"{path}: {name}: got {points.shape[-1]} dimensions, expected {len(box)} of {request.task}")
    points = points.reshape(-1, len(box))
    for axis, (low, high), wraps, own in zip(AXES, box, periodic, points.T, strict=False):
        slack = OUTSIDE * (high - low)
        if not wraps and (own.min() < low - slack or own.max() > high + slack):
            raise UpsDataError(
                f"{path}: {name}: got {axis} from {own.min():g} to {own.max():g}, expected {low:g} to {high:g}, where "
                f"the data of the training lie; move and scale the file, or train {request.task} on such data"
            )


def _parameters(path: Path, shard: MeshShard | ParticleShard, request: Request) -> dict[str, tuple[str, float]]:
    """The physical parameters of a shard, which the operator can do with."""
    found = shard.parameters()
    request.check_parameters(path, list(found))
    values = np.array([[value for _, value in found.values()]], dtype=np.float64)
    request.check_values(path, list(found), values)
    return found


def _solutions(
    shard: MeshShard, request: Request, channels: list[str], samples: int, values: list[float]
) -> Iterator[Block]:
    inputs, topology = request.autoencoder.roles["input"], shard.topology
    known = set(channels) <= set(shard.channels)
    names = [*inputs, *(channels if known else [])]
    coords = torch.from_numpy(topology.coords.astype(np.float32))
    distance = torch.from_numpy(boundary_distance(topology.coords, topology.cells).astype(np.float32))
    for rows in batches(samples, len(coords) * len(names)):
        fields = np.concatenate(list(shard.blocks(rows, names, frames=1)))
        size = len(rows)
        frame = {
            "fields": torch.from_numpy(np.ascontiguousarray(fields[..., : len(inputs)])),
            "coords": coords.expand(size, -1, -1),
            "mask": torch.ones(size, len(coords), dtype=torch.bool),
            "boundary": distance.expand(size, -1),
            "topology": torch.zeros(size, dtype=torch.int64),
        }
        frame = {name: tensor.to(request.device) for name, tensor in frame.items()}
        parameters = torch.tensor(values, dtype=torch.float64, device=request.device).expand(size, -1)
        latents = request.autoencoder.encode(frame, "input")[:, None]
        solved = request.operator(latents, parameters, torch.ones(size, device=request.device))
        made = to_numpy(request.autoencoder.decode(solved[:, 0], frame, "target"))[:, None]
        truth = fields[:, None, :, len(inputs) :]
        errors = nrmse(made, truth, request.spread(channels)) if known else None
        yield Block(slice(rows[0], rows[-1] + 1), slice(0, 1), {"data": made}, errors)


@contextmanager
def particle_rollout(path: Path, request: Request) -> Iterator[Rollout]:
    """The rollout of a particle shard, one trajectory; raises UpsDataError for one that does not fit."""
    with ParticleShard(path) as shard:
        velocities = request.autoencoder.roles["state"]
        if len(velocities) != shard.dimension:
            raise UpsDataError(f"{path}: got {shard.dimension} dimensions, expected {len(velocities)}")
        _check_box(shard, request)
        found = _parameters(path, shard, request)
        stride = request.autoencoder.config["view"]["time_stride"]
        times = shard.times[::stride]
        check_even(path, times)
        steps = request.check_given(path, len(times))
        step = float(times[1] - times[0])
        request.tell_time_step(path, step)
        yield Rollout(
            samples=1,
            times=times[0] + step * np.arange(request.given, request.given + steps),
            frames=dict.fromkeys(("positions", "velocities"), (shard.particles, shard.dimension)),
            channels=velocities,
            error_channels=[name.replace("velocity", "displacement") for name in velocities] + velocities,
            parameters={name: np.array([value]) for name, (_, value) in found.items()},
            blocks=_trajectory(shard, request, stride, step, steps, [value for _, value in found.values()]),
            arrays={"box": shard.box},
        )


def _check_box(shard: ParticleShard, request: Request) -> None:
    """Refuse other periods than those of the models, into whose box every position is folded."""
    low, high = np.array(request.autoencoder.config["box"]).T
    trained = np.where(request.autoencoder.config["periodic"], high - low, 0.0)
    if not np.allclose(shard.box, trained, rtol=1e-3):
        raise UpsDataError(
            f"{shard.path}: box: got {shard.box.tolist()}, expected {trained.tolist()}, the periods of the training "
            f"(0: none); give positions and velocities in its unit of length, or train {request.task} on such data"
        )


def _trajectory(
    shard: ParticleShard, request: Request, stride: int, step: float, steps: int, values: list[float]
) -> Iterator[Block]:
    x, v = (np.concatenate(list(shard.blocks(name)))[None, ::stride] for name in ("positions", "velocities"))
    given, history, device = request.given, request.operator.history, request.device
    seen = slice(given - history, given)
    _check_inside(shard.path, "positions", x[0, seen], request)
    frame = {
        "fields": torch.from_numpy(np.ascontiguousarray(v[0, seen])),
        "coords": torch.from_numpy(np.ascontiguousarray(x[0, seen])),
        "mask": torch.ones(history, shard.particles, dtype=torch.bool),
    }
    known = request.autoencoder.encode({name: tensor.to(device) for name, tensor in frame.items()}, "state")[None]
    parameters = torch.tensor([values], dtype=torch.float64, device=device)
    future = request.operator.rollout(known, parameters, torch.full((1,), step, device=device), steps)
    last = (torch.from_numpy(array[:, given - 1].copy()).to(device) for array in (x, v))
    places, speeds = map(to_numpy, carry(request.autoencoder, future, *last, step, shard.box))
    truth = x[:, given : given + steps], v[:, given : given + steps]
    errors = _errors(request, x[:, given - 1], truth, (places, speeds), step, shard.box) if truth[0].size else None
    fields = {"positions": fold(places, shard.box), "velocities": speeds}
    yield Block(slice(0, 1), slice(0, steps), fields, errors)


def _errors(request: Request, start: np.ndarray, truth: tuple, made: tuple, step: float, box: np.ndarray) -> np.ndarray:
    """nRMSE of displacements and velocities [1, known steps, 2 D], as `evaluation.points` has them."""
    (x, v), known = truth, truth[0].shape[1]
    places, speeds = (values[:, :known] for values in made)
    went = displacement(x, start, box)
    target = np.concatenate([went, v], axis=-1)
    prediction = np.concatenate([went + minimum_image(places - x, box), speeds], axis=-1)
    spread = request.spread(request.autoencoder.roles["state"])
    return nrmse(prediction, target, np.concatenate([step * spread, spread]))
