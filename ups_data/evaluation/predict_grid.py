"""Rollouts of raw files on grids: of every layout that `sources.grids` opens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ups_data.errors import UpsDataError
from ups_data.evaluation.forecast import BATCH_VALUES, batches, to_numpy
from ups_data.evaluation.metrics import nrmse
from ups_data.evaluation.request import Block, Request, Rollout, check_even
from ups_data.models.grid_autoencoder import spacing, static_patches
from ups_data.sources.grids import open_raw
from ups_data.sources.raw import RawFile
from ups_data.training.operator import decode_frames


class Seen:
    """A raw file as the models see it: every n-th point and frame, float32, channels in the models' order."""

    def __init__(self, raw: RawFile, request: Request):
        view = request.autoencoder.config["view"]
        self.raw, self.every = raw, slice(None, None, view["space_stride"])
        self.stride = view["time_stride"] * request.stride
        self.step = self._time_step(request)
        self.times = raw.time[:: self.stride]
        self.resolution = [len(range(0, points, view["space_stride"])) for points in raw.space]

    def _time_step(self, request: Request) -> float:
        """Time from one frame of the rollout to the next; that of the operator where the file has a single frame."""
        times = self.raw.time
        if len(times) > self.stride:
            return float(times[self.stride] - times[0])
        if len(times) > 1:  # fewer frames than one step of the rollout goes over
            return float(times[1] - times[0]) * self.stride
        return request.operator.config["time_step"] * request.stride

    def fields(self, row: int, start: int, stop: int, channels: list[str]) -> np.ndarray:
        """Frames start..stop of a sample: [stop - start, X.., C]."""
        first, end = start * self.stride, (stop - 1) * self.stride + 1
        values = self.raw.read(row, first, end)[(slice(None, None, self.stride), *[self.every] * len(self.resolution))]
        values = values[..., [self.raw.channels.index(name) for name in channels]].astype(np.float32)
        self._check_finite(row, values)
        return values

    def _check_finite(self, row: int, values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            raise UpsDataError(f"{self.raw.path}: sample {row} has numbers that are not finite; fetch the file again")

    def static(self, rows: list[int], request: Request) -> Tensor | None:
        """The patches of the fields that do not change in time [B, L, Q], where the operator wants them."""
        if not request.operator.config.get("static_fields"):
            return None
        space = (self.every,) * len(self.resolution)
        fields = np.stack([self.raw.read_static(row)[space] for row in rows]).astype(np.float32)
        for row, values in zip(rows, fields, strict=True):
            self._check_finite(row, values)
        return static_patches(torch.from_numpy(fields), request.autoencoder.config["token_grid"]).to(request.device)


@contextmanager
def grid_rollout(path: Path, request: Request) -> Iterator[Rollout]:
    """The rollout of a raw grid file, open while it is made; raises UpsDataError for one that does not fit."""
    with open_raw(path) as raw:
        seen, static = Seen(raw, request), request.operator.static
        _check(raw, seen, request)
        channels = request.autoencoder.roles["target" if static else "state"]
        steps = 1 if static else request.check_given(path, len(seen.times))
        start = 0 if static else request.given
        samples = min(raw.samples, request.samples or raw.samples)
        values = np.array([raw.values(row) for row in range(samples)], dtype=np.float64).reshape(samples, -1)
        request.check_values(path, list(raw.parameters), values)
        known = request.as_trained(list(raw.parameters), values)
        every = request.autoencoder.config["view"]["space_stride"]
        yield Rollout(
            samples=samples,
            times=np.zeros(1) if static else seen.times[0] + seen.step * np.arange(start, start + steps),
            frames={"data": (*seen.resolution, len(channels))},
            channels=channels,
            error_channels=channels,
            parameters=dict(zip(raw.parameters, values.T, strict=True)),
            blocks=_blocks(seen, request, channels, known, start, steps),
            arrays={axis: points[::every] for axis, points in raw.coordinates.items()},
        )


def _check(raw: RawFile, seen: Seen, request: Request) -> None:
    config = request.autoencoder.config
    request.check_channels(raw.path, list(raw.channels))
    request.check_parameters(raw.path, list(raw.parameters))
    for what, got, expected in (
        ("resolution", seen.resolution, list(config["resolution"])),
        ("periodic axes", list(raw.periodic), list(config["periodic"])),
    ):
        if got != expected:
            raise UpsDataError(f"{raw.path}: {what}: got {got} at the view of the models, expected {expected}")
    apart, trained = spacing(raw.coordinates, config["view"]["space_stride"]), config.get("spacing", {})
    for axis in sorted(apart.keys() & trained.keys()):
        if not np.isclose(apart[axis], trained[axis], rtol=1e-3):
            raise UpsDataError(
                f"{raw.path}: {axis}: got points {apart[axis]:.6g} apart at the view of the models, expected "
                f"{trained[axis]:.6g}: the domain has another size; train {request.task} on such data"
            )
    if request.operator.config.get("static_fields") and not raw.static_channels:
        raise UpsDataError(f"{raw.path}: has no fields that stay as they are (a force), but the operator wants them")
    if not request.operator.static:
        check_even(raw.path, seen.times)
        request.tell_time_step(raw.path, seen.step)


def _blocks(
    seen: Seen, request: Request, channels: list[str], values: np.ndarray, start: int, steps: int
) -> Iterator[Block]:
    """Samples a batch at a time, their frames as many at a time as a batch may hold."""
    frame = int(np.prod(seen.resolution)) * len(channels)
    role = "target" if request.operator.static else "state"
    for rows in batches(len(values), frame * max(steps, request.operator.history)):
        latents = _future(seen, request, rows, values[rows], steps)
        size = max(1, BATCH_VALUES // (frame * len(rows)))
        for first in range(0, steps, size):
            stop = min(first + size, steps)
            made = to_numpy(decode_frames(request.autoencoder, latents[:, first:stop], None, role))
            known = min(stop, len(seen.times) - start)
            errors = None
            if known > first:
                truth = np.stack([seen.fields(row, start + first, start + known, channels) for row in rows])
                errors = nrmse(made[:, : known - first], truth, request.spread(channels))
            yield Block(slice(rows[0], rows[-1] + 1), slice(first, stop), {"data": made}, errors)


def _future(seen: Seen, request: Request, rows: list[int], values: np.ndarray, steps: int) -> Tensor:
    """Latents of the predicted frames: [B, steps, L, D]."""
    autoencoder, operator = request.autoencoder, request.operator
    parameters = torch.from_numpy(values).to(request.device)
    role = "input" if operator.static else "state"
    start, stop = (0, 1) if operator.static else (request.given - operator.history, request.given)
    fields = np.stack([seen.fields(row, start, stop, autoencoder.roles[role]) for row in rows])
    frames = {"fields": torch.from_numpy(fields).flatten(0, 1).to(request.device)}
    known = autoencoder.encode(frames, role).unflatten(0, (len(rows), stop - start))
    if operator.static:
        return operator(known, parameters, torch.ones(len(rows), device=request.device))
    time_step = torch.full((len(rows),), seen.step, device=request.device)
    return operator.rollout(known, parameters, time_step, steps, seen.static(rows, request))
