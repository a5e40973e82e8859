"""Augmentation: what moves a trajectory keeps the equation, and the loss of an operator that commutes with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ups_data.errors import UpsDataError
from ups_data.simulate import burgers
from ups_data.training.augment import check_augment, draw_moves, move
from ups_data.training.operator import Problem

from .test_operator import CPU, Plain, operator, rotating_waves

PLACES = torch.arange(64) / 64


def states(count: int) -> torch.Tensor:
    """Smooth states on the periodic line with a mean: [count, 64]."""
    phases = torch.rand(count, 1, generator=torch.Generator().manual_seed(0))
    return 0.3 + torch.sin(2 * torch.pi * (PLACES + phases)) + 0.5 * torch.cos(4 * torch.pi * PLACES - phases)


def test_a_shift_moves_every_frame_of_a_sample_by_that_many_points():
    fields = torch.randn(2, 3, 8, 6, 2, generator=torch.Generator().manual_seed(0))
    moved = move(fields, torch.tensor([[1, 0], [5, 2]]), torch.ones(2, dtype=torch.int64))
    assert torch.equal(moved[0], fields[0].roll(-1, 1))
    assert torch.equal(moved[1], fields[1].roll((-5, -2), (1, 2)))


def test_a_moved_solution_of_burgers_equation_is_the_solution_from_the_moved_state():
    initial, times = states(2), 0.05 * np.arange(4)
    shifts, signs = torch.tensor([[11], [40]]), torch.tensor([1, -1])

    def solve(start):
        return burgers.solve(start.numpy().astype(np.float64), 0.01, times, "cpu")[..., None]

    start = move(initial[:, None, :, None], shifts, signs)[:, 0, :, 0]
    moved = move(solve(initial), shifts, signs)
    assert torch.allclose(solve(start), moved, atol=1e-6)
    assert not torch.allclose(moved[1], solve(initial)[1], atol=0.1)


def test_a_reflection_turns_a_sample_over_and_twice_back():
    fields, none = states(3)[:, None, :, None], torch.zeros(3, 1, dtype=torch.int64)
    signs = torch.tensor([1, -1, -1])
    turned = move(fields, none, signs)
    assert torch.equal(turned[0], fields[0])
    assert torch.equal(turned[1, 0, :, 0], -fields[1, 0, :, 0].flip(0).roll(1))
    assert torch.equal(move(turned, none, signs), fields)


def test_only_periodic_axes_are_shifted_and_only_on_request_is_anything_reflected():
    moves = draw_moves(["shift"], torch.Generator().manual_seed(0), 500, [8, 6], [True, False])
    assert sorted(moves["shifts"][:, 0].unique().tolist()) == list(range(8))
    assert not moves["shifts"][:, 1].any() and (moves["signs"] == 1).all()
    moves = draw_moves(["reflection"], torch.Generator().manual_seed(0), 500, [8], [True])
    assert not moves["shifts"].any() and abs(moves["signs"].double().mean()) < 0.2


def test_the_loss_of_a_shifted_batch_is_that_of_the_batch_for_an_operator_that_commutes_with_shifts(tmp_path):
    problem = Problem(rotating_waves(tmp_path / "waves_train", 4), Plain(), CPU)
    model = operator(latent_dim=2)
    batch = problem.batch([0, 2, 3], [0, 1, 4], 1, 4)
    shifts = {"shifts": torch.tensor([[1], [5], [7]]), "signs": torch.ones(3, dtype=torch.int64)}
    assert torch.allclose(problem.error(model, batch | shifts), problem.error(model, batch), rtol=1e-4)
    turned = shifts | {"signs": -torch.ones(3, dtype=torch.int64)}
    assert not torch.allclose(problem.error(model, batch | turned), problem.error(model, batch), rtol=1e-4)


@pytest.mark.parametrize(
    ("augment", "kind", "periodic", "said"),
    [
        (["shift"], "mesh", [True, True], "needs a grid with a periodic axis"),
        (["shift"], "grid", [False], "needs a grid with a periodic axis"),
        (["reflection"], "grid", [True, True], "for 1D grids"),
    ],
)
def test_a_symmetry_that_the_domain_does_not_have_is_refused(augment, kind, periodic, said):
    with pytest.raises(UpsDataError, match=f"^waves: train.augment.*{said}"):
        check_augment(augment, kind, periodic, "waves")


def test_a_reflection_is_refused_for_fields_and_equations_that_it_does_not_keep():
    with pytest.raises(UpsDataError, match=r"^cfd: .* not the channels density, pressure; take it out"):
        check_augment(["reflection"], "grid", [True], "cfd", ["density", "pressure"], ["shear_viscosity"])
    with pytest.raises(UpsDataError, match=r"^both: .* not an equation with advection_speed; take it out"):
        check_augment(["shift", "reflection"], "grid", [True], "both", ["u"], ["viscosity", "advection_speed"])
    check_augment(["shift", "reflection"], "grid", [True], "burgers", ["u"], ["viscosity"])
