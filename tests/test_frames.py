"""What models can learn from: frames that are no such thing are refused, and padding is decoded where fields are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ups_data.conversion.points import convert_points
from ups_data.errors import UpsDataError
from ups_data.models.autoencoder import build_autoencoder
from ups_data.params import View, load_params
from ups_data.simulate import particles
from ups_data.simulate.darcy_mesh import shard as darcy_shard
from ups_data.sources.npz import write_npz
from ups_data.training.autoencoder import autoencoder_config
from ups_data.training.baseline import train_baseline
from ups_data.training.frames import Frames, MeshFrames, open_frames

from .raw import convert_knobs
from .small_data import CPU, SPLIT, TASKS, knobs, write_mesh

EVERY = View(space_stride=1, time_stride=1)
PARAMS = Path(__file__).parents[1] / "params.yaml"


def convert(root: Path, kind: str) -> None:
    convert_points("task", kind, convert_knobs(root / "raw", "*.npz", source="npz"), SPLIT, root)


def read(root: Path, kind: str, view: View = EVERY) -> Frames:
    return open_frames(root, "task", "train", kind, view)


def learn_plainly(root: Path, kind: str) -> None:
    splits = [root / f"task_{split}.zarr" for split in ("train", "val")]
    plain = load_params(PARAMS).datasets[TASKS[kind]].baseline
    train_baseline(kind, *splits, plain, EVERY, state=root / "state", key="k", device=CPU, label="task")


def write_cooling(root: Path) -> None:
    """Heat on a square that cools down over five frames, under ten conductivities."""
    shard = darcy_shard("square", 0.2, 10, (0, 0))
    heat = shard["solution"][:, None] * np.exp(-np.arange(5.0))[:, None]
    kept = {name: shard[name] for name in ("coords", "cells", "permeability")}
    write_npz(root / "raw" / "mesh.npz", kept | {"times": np.arange(5.0), "heat": heat.astype(np.float32)})


def write_tracers(root: Path, times: list[float], count: int = 40, width: float = 1.0) -> None:
    """Ten trajectories; those of another width without a box around."""
    for index in range(10):
        rng = np.random.default_rng(index)
        flow = particles.random_flow(rng, 20.0)
        shard = particles.shard(flow, rng.random((count, 2)), np.array(times), 0.1, 20.0)
        if width != 1:
            graph = ("box", "edges", "indptr", "indices")
            shard = {name: values for name, values in shard.items() if name not in graph}
            shard["positions"] = shard["positions"] * np.float32([width, 1])
        write_npz(root / "raw" / f"{index}.npz", shard)


@pytest.mark.parametrize("take", [read, learn_plainly])
def test_how_a_solution_on_a_mesh_goes_on_is_not_taken_for_a_static_problem(tmp_path, take):
    write_cooling(tmp_path)
    convert(tmp_path, "mesh")
    with pytest.raises(
        UpsDataError, match=r"^task: got 5 frames of inputs and solutions, expected one: .*can be packed"
    ):
        take(tmp_path, "mesh")


def test_a_solution_without_inputs_is_no_problem_to_learn(tmp_path):
    shard = darcy_shard("square", 0.2, 10, (0, 0))
    write_npz(tmp_path / "raw" / "mesh.npz", {name: shard[name] for name in ("coords", "cells", "solution")})
    convert(tmp_path, "mesh")
    with pytest.raises(UpsDataError, match=r"^task: got no input field, expected one or more beside the solution"):
        read(tmp_path, "mesh")


@pytest.mark.parametrize(("particles", "width"), [(40, 1.0), (40, 6.0), (9, 1.0), (400, 2.0)])
@pytest.mark.parametrize("latent_len", [36, 9, 4])
def test_few_particles_have_a_whole_number_of_splines_in_a_token(tmp_path, particles, width, latent_len):
    write_tracers(tmp_path, [0, 0.1, 0.2], particles, width)
    convert(tmp_path, "particles")
    frames = read(tmp_path, "particles")
    shape = knobs("particles", latent_len=latent_len)
    model = build_autoencoder(autoencoder_config("task", frames, shape)).eval()
    frame = frames.read(np.arange(3), "state")
    assert model.encode(frame, "state").shape == (3, latent_len, shape.latent_dim)


@pytest.mark.parametrize("take", [read, learn_plainly])
def test_particles_at_uneven_times_are_not_learnt_as_if_they_were_even(tmp_path, take):
    write_tracers(tmp_path, [0, 0.02, 0.04, 0.06, 0.3, 0.32])
    convert(tmp_path, "particles")
    with pytest.raises(UpsDataError, match=r"^task: time: the step to frame 4 is 0.24, expected 0.02 .*equal steps"):
        take(tmp_path, "particles")


def test_a_view_may_leave_even_times_of_uneven_ones(tmp_path):
    write_tracers(tmp_path, [0, 0.05, 0.2, 0.25, 0.4, 0.45])
    convert(tmp_path, "particles")
    frames = read(tmp_path, "particles", View(space_stride=1, time_stride=2))
    assert frames.times == pytest.approx([0, 0.2, 0.4])


def test_a_plane_in_space_without_extent_along_an_axis_is_a_sentence(tmp_path):
    shard = darcy_shard("square", 0.2, 10, (0, 0))
    flat = {"coords": np.pad(shard["coords"], ((0, 0), (0, 1)))}
    write_npz(
        tmp_path / "raw" / "mesh.npz", {name: shard[name] for name in ("cells", "permeability", "solution")} | flat
    )
    convert(tmp_path, "mesh")
    with pytest.raises(UpsDataError, match=r"^task: all points have 0 as coordinate 2, expected several values"):
        read(tmp_path, "mesh").extent()


def test_the_padding_of_a_small_mesh_lies_on_the_mesh(tmp_path):
    write_mesh(tmp_path)
    frames = open_frames(tmp_path, TASKS["mesh"], "train", "mesh", EVERY)
    assert isinstance(frames, MeshFrames) and not frames.mask.all()
    for coords, boundary, mask in zip(frames.coords, frames.boundary, frames.mask, strict=True):
        real = {(*place, far) for place, far in zip(coords[mask].tolist(), boundary[mask].tolist(), strict=True)}
        assert {(*place, far) for place, far in zip(coords.tolist(), boundary.tolist(), strict=True)} == real
