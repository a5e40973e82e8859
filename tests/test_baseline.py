"""The plain networks are trained on the windows that are asked for."""

import pytest
import torch

from ups_data.params import Baseline, View
from ups_data.training.baseline import grid_problem, particle_problem

from .small_data import CPU, TASKS, WRITERS

PROBLEMS = {"grid": (grid_problem, "h5", "fields"), "particles": (particle_problem, "zarr", "velocities")}
EVERY = View(space_stride=1, time_stride=1)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_share_of_the_windows_begins_at_the_first_frame_and_the_others_anywhere(tmp_path, kind):
    WRITERS[kind](tmp_path)
    make, suffix, name = PROBLEMS[kind]
    splits = [tmp_path / f"{TASKS[kind]}_{split}.{suffix}" for split in ("train", "val")]

    def begins_at(share):
        """The first fields of every training window of a batch, as one row each."""
        knobs = Baseline(
            width=4, depth=2, bundle=1, unroll=1, initial=share, steps=1, batch=400, learning_rate=1e-3, seed=0
        )
        windows = make(*splits, knobs, EVERY, CPU).draw(torch.Generator().manual_seed(0))[name]
        return windows[:, 0].flatten(1)

    first = begins_at(1.0).unique(dim=0)
    shares = {}
    for share in (0.0, 0.5):
        same = (begins_at(share)[:, None] == first).all(dim=2)
        shares[share] = same.any(dim=1).float().mean().item()
    anywhere = {"grid": 1 / 8, "particles": 1 / 5}[kind]  # windows of 2 frames in 9, of 3 in 7
    assert shares[0.0] == pytest.approx(anywhere, abs=0.05)
    assert shares[0.5] == pytest.approx(0.5 + 0.5 * anywhere, abs=0.07)
