"""Random forced flows in the flat layout of PDEBench's NS_incom files, four trajectories a file.

Each file holds `velocity` [4, T, N, N, 2], `particles` [4, T, N, N, 1] (a carried scalar, in spite of its
name), `force` [4, N, N, 2], `t` [4, T], and the attributes `config` (YAML) and `latestIndex`. The official
files are packed with LZF; these are not, because HDF5's LZF filter starts from uninitialised memory: equal
numbers become unequal bytes, and DVC would see a change where there is none.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import h5py
import numpy as np
import yaml

from ups_data import console, files
from ups_data.execution import pick_device
from ups_data.simulate import sample_folder, workers

if TYPE_CHECKING:
    from ups_data.params import FlowSolver

TRAJECTORIES = 4  # of a file
# Amplitudes in boxes per unit time: the flow turns over a few times in four units of time, and at a
# viscosity of 0.001 it is resolved by 64 points (its Reynolds number is a few hundred).
VELOCITY_RMS, VELOCITY_WAVES = 0.3, 4
FORCE_RMS, FORCE_WAVES = 0.15, 2
SCALAR_RMS, SCALAR_WAVES = 1.0, 4


class Flow(NamedTuple):
    """What determines a file, beside its number."""

    solver: str
    seed: int
    resolution: int
    frames: int
    viscosity: float
    end_time: float
    dtype: str


def write(knobs: FlowSolver, folder: Path, device: str = "auto") -> list[Path]:
    """Write the files into `folder`; files that are there already stay. Returns all paths."""
    flow = Flow(**knobs.model_dump(exclude={"folder", "files"}))
    numbers = {f"ns_incom_inhom_2d_{flow.resolution}-{i}.h5": i for i in range(knobs.files)}
    where = str(pick_device(device))
    made_by = {name: {**flow._asdict(), "file": i} for name, i in numbers.items()}
    frame = TRAJECTORIES * flow.resolution**2 * 3 * np.dtype(flow.dtype).itemsize
    unfinished = sample_folder.claim(folder, made_by, flow.frames * frame)
    with console.progress("simulate navier_stokes", len(unfinished), "files") as bar:
        with workers.pool(len(unfinished), where, ["ups_data.simulate.navier_stokes"]) as team:
            work = partial(_write_numbered, flow, where, folder)
            for name in workers.in_order(team, work, [(name, numbers[name]) for name in unfinished]):
                sample_folder.finish(folder, name)
                bar.advance()
    return [folder / name for name in numbers]


def _write_numbered(flow: Flow, device: str, folder: Path, numbered: tuple[str, int]) -> str:
    name, number = numbered
    write_file(folder / name, flow, number, device)
    return name


def write_file(path: Path, flow: Flow, number: int, device: str = "cpu") -> None:
    """Solve and write file `number` frame by frame; it appears whole or not at all."""
    import torch

    from ups_data.simulate import navier_stokes

    if device == "cpu":
        torch.set_num_threads(1)  # of this worker: the files are what runs in parallel
    n, times = flow.resolution, np.linspace(0, flow.end_time, flow.frames)
    velocity, scalar, force = (field.astype(flow.dtype) for field in initial_fields(flow.seed, number, n))
    with files.atomic(path) as temporary, h5py.File(temporary, "w") as file:
        moving = file.create_dataset("velocity", (TRAJECTORIES, flow.frames, n, n, 2), flow.dtype)
        carried = file.create_dataset("particles", (TRAJECTORIES, flow.frames, n, n, 1), flow.dtype)
        file["force"] = force
        file["t"] = np.tile(times, (TRAJECTORIES, 1)).astype(flow.dtype)
        frames = navier_stokes.solve(velocity, scalar, force, flow.viscosity, times, device)
        for frame, (u, s) in enumerate(frames):
            moving[:, frame] = u.cpu().numpy()
            carried[:, frame, :, :, 0] = s.cpu().numpy()
        file.attrs["config"] = config(flow, number)
        file.attrs["latestIndex"] = flow.frames - 1


def config(flow: Flow, number: int) -> str:
    """The facts of a file as YAML; the viscosity stands under NU, as in the official files."""
    facts = {
        "NU": flow.viscosity,
        "boundary": "periodic",
        "diffusivity": flow.viscosity,
        "domain": [1.0, 1.0],
        "end_time": flow.end_time,
        "file": number,
        "resolution": flow.resolution,
        "scheme": "pseudo-spectral, 2/3 rule, integrating factor, Runge-Kutta 4",
        "seed": flow.seed,
    }
    return yaml.safe_dump(facts, sort_keys=True)


def initial_fields(seed: int, number: int, resolution: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Velocity [4, N, N, 2], scalar [4, N, N] and static force [4, N, N, 2] of file `number`, float64.

    Trajectory i depends on (seed, number, i) alone and is the same function at every resolution. Velocity
    and force are divergence-free; all means are zero.
    """
    velocity, scalar, force = [], [], []
    for trajectory in range(TRAJECTORIES):
        rng = np.random.default_rng([seed, number, trajectory])
        velocity.append(_solenoidal(rng, resolution, VELOCITY_WAVES, VELOCITY_RMS))
        force.append(_solenoidal(rng, resolution, FORCE_WAVES, FORCE_RMS))
        scalar.append(SCALAR_RMS * _modes(rng, resolution, SCALAR_WAVES)[0])
    return np.stack(velocity), np.stack(scalar), np.stack(force)


def _solenoidal(rng: np.random.Generator, resolution: int, waves: int, rms: float) -> np.ndarray:
    """A random divergence-free field [N, N, 2]: (d/dy, -d/dx) of a random stream function."""
    _, along_x, along_y = _modes(rng, resolution, waves)
    field = np.stack([along_y, -along_x], axis=-1)
    return field * (rms / np.sqrt(np.mean(np.sum(field**2, axis=-1))))


def _modes(rng: np.random.Generator, resolution: int, waves: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random smooth field of unit RMS on [N, N] and its derivatives along x and y.

    All modes with 1 <= |k| <= `waves` (k in waves a box) get normal amplitudes that fall as 1/|k|^2.
    """
    x = np.arange(resolution) / resolution
    reach = range(-waves, waves + 1)
    half_plane = [(i, j) for i in range(waves + 1) for j in reach if (i > 0 or j > 0) and i * i + j * j <= waves**2]
    field, along_x, along_y = np.zeros((3, resolution, resolution))
    for i, j in half_plane:
        phase = 2 * np.pi * (i * x[:, None] + j * x[None, :])
        a, b = rng.standard_normal(2) / (i * i + j * j)
        field += a * np.cos(phase) + b * np.sin(phase)
        slope = 2 * np.pi * (b * np.cos(phase) - a * np.sin(phase))
        along_x += i * slope
        along_y += j * slope
    rms = np.sqrt(np.mean(field**2))
    return field / rms, along_x / rms, along_y / rms
