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
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import torch

from ups_data import console, files
from ups_data.evaluation.request import Request, Rollout
from ups_data.models.autoencoder import load_autoencoder
from ups_data.models.checkpoint import weights_id
from ups_data.models.operator import load_operator
from ups_data.stores.grid import writing

FORMAT, VERSION = "ups-data/rollout", 1
METADATA = 1 << 16  # bytes of a rollout's file beside its fields, or a few less


def load_request(
    task: str,
    models: Path,
    device: torch.device,
    *,
    given: int,
    stride: int = 1,
    steps: int | None = None,
    samples: int | None = None,
    strides: Sequence[int] = (1,),
) -> Request:
    """Open the trained models of a task; raises UpsDataError when they are missing or do not belong together."""
    autoencoder = load_autoencoder(models / task / "autoencoder.safetensors", device)
    operator = load_operator(models / task / "operator.safetensors", device, autoencoder)
    return Request(task, autoencoder, operator, device, given, stride, steps, samples, strides)


def predict(source: Path, out: Path, request: Request) -> dict[str, float | int | None]:
    """Roll out the samples of a raw file into `out`, atomically; returns samples, steps and the mean nRMSE or None.

    Raises UpsDataError for a file that does not fit the models, and leaves `out` as it was.
    """
    from ups_data.evaluation.predict_grid import grid_rollout
    from ups_data.evaluation.predict_points import mesh_rollout, particle_rollout

    files.check_file(out, [source])
    kind = request.autoencoder.config["kind"]
    opener = {"grid": grid_rollout, "mesh": mesh_rollout, "particles": particle_rollout}[kind]
    with torch.inference_mode(), opener(source, request) as rollout:
        frames = sum(int(np.prod(shape)) for shape in rollout.frames.values())
        size = 4 * rollout.samples * len(rollout.times) * frames
        files.require_space(out.parent, int(1.01 * size), f"the rollout {out}")
        with files.atomic(out) as temporary:
            _check_room(temporary, int(1.01 * size) + METADATA, out)
            error = _write(temporary, out, source, request, rollout)
    return {"samples": rollout.samples, "steps": len(rollout.times), "nrmse": error}


def _check_room(path: Path, size: int, out: Path) -> None:
    """Take and give back the room that `out` will need: HDF5 does not survive a file that may not grow further."""
    try:
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out)) from None


@contextmanager
def _created(path: Path, out: Path) -> Iterator[h5py.File]:
    """A new HDF5 file; what the system refuses on opening and closing is said of `out`."""
    # The earliest format: its object headers hold no times, so equal rollouts are equal bytes.
    with writing(out):
        file = h5py.File(path, "w", libver=("earliest", "latest"))
    try:
        yield file
    finally:
        with writing(out):
            file.close()


def _write(path: Path, out: Path, source: Path, request: Request, rollout: Rollout) -> float | None:
    """Write the blocks as they come; returns the mean of the errors that are known."""
    shape = rollout.samples, len(rollout.times)
    with _created(path, out) as file:
        for name, frame in rollout.frames.items():
            file.create_dataset(name, (*shape, *frame), "<f4")
        errors = np.full((*shape, len(rollout.error_channels)), np.nan)
        with console.progress(f"predict {request.task}", rollout.samples * shape[1], "frame") as bar:
            for block in rollout.blocks:
                with writing(out):
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
