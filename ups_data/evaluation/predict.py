"""Rollouts from a raw file with trained models, streamed into an HDF5 file.

    data         float32 [S, N, X.., C]   grids: the N predicted frames of each of S samples
                 float32 [S, N, nodes, C] meshes; N = 1: static problems have no time
    positions, velocities  float32 [S, N, P, D]   particles, in place of data; positions inside the box
    time         float64 [N]              of the predicted frames, in the file's unit
    parameters   float64 [S, Q]           physical parameters
    error        float64 [S, N, C]        nRMSE where the file has the truth, NaN where it has not; particles: of the
                                          displacements and velocities
    x, y, z      float64                  coordinates of grids; meshes have coords [nodes, d] and cells [M, 3],
                                          particles box [D]
Attributes: format "ups-data/rollout", version, task, source (name of the raw file), given (frames that were known),
autoencoder and operator (SHA-256 of their weights), and as JSON channels, error_channels, parameter_names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch

from ups_data import console, files
from ups_data.errors import UpsDataError
from ups_data.models.autoencoder import Autoencoder, load_autoencoder
from ups_data.models.checkpoint import weights_id
from ups_data.models.operator import LatentOperator, load_operator

FORMAT, VERSION = "ups-data/rollout", 1


@dataclass(frozen=True)
class Request:
    """What is asked for: trained models, and how much of the file."""

    task: str
    autoencoder: Autoencoder
    operator: LatentOperator
    device: torch.device
    given: int  # frames known before the rollout
    stride: int  # frames of the view from one frame of the rollout to the next
    steps: int | None  # frames to predict; None: as many as the file has after the given ones
    samples: int | None  # at most this many

    def check_given(self, path: Path, frames: int) -> int:
        """The steps to predict where the file has `frames`; raises UpsDataError when it has too few to start from."""
        needed = max(self.operator.history, 2 if self.autoencoder.config["kind"] == "particles" else 1)
        if not needed <= self.given <= frames:
            raise UpsDataError(
                f"{path}: --given: got {self.given}, expected {needed} (the frames the models see) to {frames} (the "
                "frames of the file at the view of the models)"
            )
        steps = self.steps or frames - self.given
        if steps < 1:
            raise UpsDataError(f"{path}: all {frames} frames are given; say with --steps how many to predict")
        return steps

    def check_parameters(self, path: Path, names: list[str]) -> None:
        """Raise UpsDataError unless the file has as many physical parameters as the operator was trained with."""
        known = len(self.operator.config["conditioning"]["log"]) - 1  # the last one is the time step
        if len(names) != known:
            raise UpsDataError(
                f"{path}: got {len(names)} physical parameters ({', '.join(names) or 'none'}), expected {known}: the "
                f"operator of {self.task} was trained with other data"
            )

    def check_channels(self, path: Path, channels: list[str]) -> None:
        """Raise UpsDataError unless the file has the channels that the autoencoder encodes."""
        expected = [name for names in self.autoencoder.roles.values() for name in names]
        if sorted(channels) != sorted(expected):
            raise UpsDataError(
                f"{path}: got the channels {', '.join(channels)}, expected {', '.join(expected)} of {self.task}"
            )

    def spread(self, channels: list[str]) -> np.ndarray:
        """Train's standard deviation of channels [C]."""
        return np.array([self.autoencoder.config["normaliser"][name]["std"] for name in channels])


class Block(NamedTuple):
    """Predicted frames of some samples: arrays [b, n, ..] by name, and their errors [b, n, C] as far as known."""

    samples: slice
    steps: slice
    fields: dict[str, np.ndarray]
    errors: np.ndarray | None


@dataclass(frozen=True)
class Rollout:
    """A rollout that is about to be made: what the file will say, and its blocks one after another."""

    samples: int
    times: np.ndarray  # [N]
    frames: dict[str, tuple[int, ...]]  # name -> shape of one frame
    channels: list[str]
    error_channels: list[str]
    parameters: dict[str, np.ndarray]  # name -> [S]
    blocks: Iterator[Block]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # coordinates and the like


def load_request(
    task: str,
    models: Path,
    device: torch.device,
    *,
    given: int,
    stride: int = 1,
    steps: int | None = None,
    samples: int | None = None,
) -> Request:
    """Open the trained models of a task; raises UpsDataError when they are missing or do not belong together."""
    autoencoder = load_autoencoder(models / task / "autoencoder.safetensors", device)
    operator = load_operator(models / task / "operator.safetensors", device)
    if operator.config["autoencoder"] != weights_id(autoencoder.state_dict()):
        raise UpsDataError(
            f"{models / task / 'operator.safetensors'} was trained on the latents of another autoencoder; "
            f"train it again with `python -m stages.train {task}`"
        )
    return Request(task, autoencoder, operator, device, given, stride, steps, samples)


def predict(source: Path, out: Path, request: Request) -> dict[str, float | int | None]:
    """Roll out the samples of a raw file into `out`, atomically; returns samples, steps and the mean nRMSE or None.

    Raises UpsDataError for a file that does not fit the models, and leaves `out` as it was.
    """
    from ups_data.evaluation.predict_grid import grid_rollout
    from ups_data.evaluation.predict_points import mesh_rollout, particle_rollout

    kind = request.autoencoder.config["kind"]
    opener = {"grid": grid_rollout, "mesh": mesh_rollout, "particles": particle_rollout}[kind]
    with torch.inference_mode(), opener(source, request) as rollout:
        frames = sum(int(np.prod(shape)) for shape in rollout.frames.values())
        size = 4 * rollout.samples * len(rollout.times) * frames
        files.require_space(out.parent, int(1.01 * size), f"the rollout {out}")
        with files.atomic(out) as temporary:
            error = _write(temporary, source, request, rollout)
    return {"samples": rollout.samples, "steps": len(rollout.times), "nrmse": error}


def _write(path: Path, source: Path, request: Request, rollout: Rollout) -> float | None:
    """Write the blocks as they come; returns the mean of the errors that are known."""
    shape = rollout.samples, len(rollout.times)
    # The earliest format: its object headers hold no times, so equal rollouts are equal bytes.
    with h5py.File(path, "w", libver=("earliest", "latest")) as file:
        for name, frame in rollout.frames.items():
            file.create_dataset(name, (*shape, *frame), "<f4")
        errors = np.full((*shape, len(rollout.error_channels)), np.nan)
        with console.progress(f"predict {request.task}", rollout.samples * shape[1], "frame") as bar:
            for block in rollout.blocks:
                for name, values in block.fields.items():
                    file[name][block.samples, block.steps] = values
                if block.errors is not None:
                    errors[block.samples, block.steps][:, : block.errors.shape[1]] = block.errors
                bar.advance(int(np.prod(next(iter(block.fields.values())).shape[:2])))
        parameters = np.array(list(rollout.parameters.values()), dtype=np.float64).reshape(-1, rollout.samples).T
        arrays = {"time": rollout.times, "parameters": parameters, "error": errors} | rollout.arrays
        for name, values in sorted(arrays.items()):
            file.create_dataset(name, data=values)
        attributes = {
            "format": FORMAT,
            "version": VERSION,
            "task": request.task,
            "source": source.name,
            "given": 0 if request.operator.static else request.given,
            "autoencoder": weights_id(request.autoencoder.state_dict()),
            "operator": weights_id(request.operator.state_dict()),
            "channels": json.dumps(rollout.channels),
            "error_channels": json.dumps(rollout.error_channels),
            "parameter_names": json.dumps(list(rollout.parameters)),
        }
        file.attrs.update(attributes)
    known = errors[np.isfinite(errors)]
    return float(known.mean()) if known.size else None
