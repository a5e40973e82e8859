"""Converted data of every kind, small enough to train on in a second, for the tests of models and caches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ups_data.conversion.grid import convert_grid
from ups_data.conversion.points import convert_points
from ups_data.params import Autoencoder, Convert, Latents, Splits, View
from ups_data.simulate import particles
from ups_data.simulate.darcy_mesh import shard as darcy_shard
from ups_data.sources.npz import write_npz
from ups_data.training.autoencoder import train_autoencoder
from ups_data.training.frames import Frames, open_frames

from .raw import convert_knobs, write_one_array

TASKS = {"grid": "advection1d", "mesh": "darcy2d_mesh", "particles": "particles_advect"}
VIEWS = {kind: View(space_stride=2 if kind == "grid" else 1, time_stride=2 if kind != "mesh" else 1) for kind in TASKS}
SPLIT = Splits(protocol="grouped", seed=0, train=0.6, val=0.2, test=0.2)
LATENTS = Latents(dtype="float16", batch=7, shard_mb=1)
CPU = torch.device("cpu")


def knobs(kind: str, **changes: object) -> Autoencoder:
    """A small autoencoder, trained shortly."""
    shape = {"grid": (8, 4), "mesh": (16, 8), "particles": (16, 6)}[kind]
    plain = {"latent_len": shape[0], "latent_dim": shape[1], "width": 16, "depth": 1}
    plain |= {"encoder_depth": int(kind == "particles")}
    training = {"steps": 40, "batch": 16, "learning_rate": 2e-3, "seed": 0}
    return Autoencoder(**plain | training | changes)


def write_grid(root: Path) -> None:
    """Waves of three modes that travel at two speeds: 10 trajectories of 9 frames of 64 points under each."""
    x, t = (np.arange(64) + 0.5) / 64, np.linspace(0, 1, 9)
    for speed in (0.5, 1.0):
        rng = np.random.default_rng(0)  # the same initial conditions under both speeds
        phase = x[None, None] - speed * t[None, :, None]
        waves = sum(
            rng.random((10, 1, 1)) * np.sin(2 * np.pi * (k * phase + rng.random((10, 1, 1)))) for k in (1, 2, 3)
        )
        path = root / "raw" / "grid" / f"1D_Advection_Sols_beta{speed}.hdf5"
        write_one_array(path, (0.5 + waves).astype(np.float32), {"beta": speed})
    convert_grid(TASKS["grid"], convert_knobs(root / "raw" / "grid"), SPLIT, root, workers=1)


def write_mesh(root: Path) -> None:
    """Darcy flow on a square and a disk, 15 coefficient fields each."""
    for index, shape in enumerate(("square", "disk")):
        write_npz(root / "raw" / "mesh" / f"{shape}.npz", darcy_shard(shape, 0.1, 15, (0, index)))
    convert_points(TASKS["mesh"], "mesh", _npz(root, "mesh"), SPLIT, root)


def write_particles(root: Path) -> None:
    """Ten trajectories of about a hundred tracers, 7 frames each; their numbers differ."""
    for index in range(10):
        rng = np.random.default_rng(index)
        flow = particles.random_flow(rng, 20.0)
        start, times = rng.random((100 + index, 2)), np.linspace(0, 0.5, 7)
        write_npz(root / "raw" / "particles" / f"{index}.npz", particles.shard(flow, start, times, 0.1, 20.0))
    convert_points(TASKS["particles"], "particles", _npz(root, "particles"), SPLIT, root)


def _npz(root: Path, kind: str) -> Convert:
    return convert_knobs(root, "*.npz", source="npz", folder=f"raw/{kind}")


WRITERS = {"grid": write_grid, "mesh": write_mesh, "particles": write_particles}


def frames_of(root: Path, kind: str, split: str = "train", view: View | None = None) -> Frames:
    """The frames of a split of that kind's data in `root`."""
    return open_frames(root, TASKS[kind], split, kind, view or VIEWS[kind])


def trained(root: Path, kind: str, **changes: object):
    """An autoencoder trained on that kind's data in `root`, and its learning curve."""
    splits = (frames_of(root, kind, split) for split in ("train", "val"))
    model, curve = train_autoencoder(
        TASKS[kind], *splits, knobs(kind, **changes), state=root / "state" / kind, key="test", device=CPU
    )
    model.config["steps"] = curve[-1][0]
    return model, curve
