"""The plain networks: what they see, and the windows they are trained on."""

import pytest
import torch

from ups_data.models.baselines import MeshNet, ParticleNet
from ups_data.models.operator import conditioning_facts
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


def test_the_mesh_baseline_does_not_depend_on_the_numbering_of_nodes():
    config = {
        "mean": [0.0, 0.0], "std": [1.0, 1.0], "width": 8, "depth": 2, "inputs": [0], "targets": [1], "dimension": 2,
        "edge_length": 0.5, "conditioning": conditioning_facts(torch.zeros(1, 0), 1.0, []),
    }  # fmt: skip
    model = MeshNet(config)
    coords, inputs = torch.rand(5, 2), torch.rand(1, 5, 1)
    edges = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4], [0, 4], [1, 3]])
    boundary = torch.tensor([True, False, True, False, True])
    order = torch.tensor([3, 0, 4, 2, 1])
    renumbered = order.argsort()[edges]
    plain = model(inputs, coords, edges, boundary, torch.zeros(1, 0))
    mixed = model(inputs[:, order], coords[order], renumbered, boundary[order], torch.zeros(1, 0))
    assert torch.allclose(mixed, plain[:, order], atol=1e-5)


def test_the_particle_baseline_sees_neighbours_across_the_seam():
    config = {
        "mean": [0.0, 0.0], "std": [1.0, 1.0], "width": 8, "depth": 1, "dimension": 2, "radius": 0.1,
        "conditioning": conditioning_facts(torch.ones(1, 0), 0.1, []),
    }  # fmt: skip
    model = ParticleNet(config)
    torch.nn.init.normal_(model.outward.weight)
    box, empty, dt = torch.ones(2), torch.ones(1, 0), torch.full((1,), 0.1)
    speeds = torch.tensor([[[0.3, 0.0], [0.0, -0.2]]])
    at_seam, inside = (torch.tensor([[[x, 0.5], [y, 0.5]]]) for x, y in ((0.98, 0.03), (0.48, 0.53)))
    (x, v), (y, w) = (model(places, speeds, speeds, box, empty, dt) for places in (at_seam, inside))
    assert torch.allclose(v, w, atol=1e-5)
    assert torch.allclose((x - y) % 1.0, torch.tensor([0.5, 0.0]).expand_as(x), atol=1e-5)
