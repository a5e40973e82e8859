"""The latent operator: symmetries of its parts, what it learns from a cache, and a killed training going on."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ups_data.errors import UpsDataError
from ups_data.models.checkpoint import save_model
from ups_data.models.operator import (
    FORMAT,
    build_operator,
    check_conditioning,
    conditioning_facts,
    load_operator,
    rotary_angles,
    rotate,
)
from ups_data.params import Train
from ups_data.stores.latents import LatentCache, write_cache
from ups_data.training import loop
from ups_data.training.losses import SMOOTH_ROLLOUT, relative_error
from ups_data.training.operator import Problem, train_operator, training_batch, unrolling

CPU = torch.device("cpu")
KNOBS = {
    "width": 16, "depth": 1, "heads": 2, "history": 1, "bundle": 2, "unroll": [1, 2], "strides": [1],
    "initial": 0.0, "noise": 0.0, "optimiser": "muon", "weight_decay": 0.0, "augment": [],
    "steps": 60, "batch": 8, "learning_rate": 1e-2, "seed": 0,
}  # fmt: skip


def operator(token_grid=(8,), periodic=(True,), static=False, **more):
    """An operator with random weights throughout: a fresh one predicts no change."""
    config = KNOBS | {
        "token_grid": token_grid, "periodic": periodic, "latent_dim": 4, "static": static, "format": FORMAT,
        "conditioning": conditioning_facts(torch.tensor([[0.1], [1.0]]), 0.05, ["viscosity"]),
    } | more  # fmt: skip
    torch.manual_seed(0)
    model = build_operator(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model.eval()


class Plain:
    """Stands for an autoencoder whose latents are the field itself, one point a token."""

    def __init__(self, periodic=(True,)):
        self.config = {"kind": "grid", "periodic": list(periodic), "resolution": [8]}
        self.decoders, self.roles = {"state": torch.nn.Identity()}, {"state": ["u", "v"]}

    def encode(self, frame, role):
        return frame["fields"]

    def decode(self, latents, frame, role):
        return latents

    def mean_square(self, role):
        return torch.ones(2)


def rotating_waves(folder, samples, frames=12, tokens=8, seed=0) -> LatentCache:
    """A cache of waves that turn by a phase of their own speed a frame: (cos, sin) in two numbers a token."""
    generator = torch.Generator().manual_seed(seed)
    speed = torch.rand(samples, generator=generator) + 0.5
    phase = torch.rand(samples, generator=generator) * 2 * math.pi
    place = 2 * math.pi * torch.arange(tokens) / tokens
    angle = place + phase[:, None, None] - 0.4 * speed[:, None, None] * torch.arange(frames)[:, None]
    latents = torch.stack([angle.cos(), angle.sin()], dim=-1)  # [S, T, L, 2]
    write_cache(
        folder,
        constituents={"weights": "plain", "data": str(seed)},
        facts={"token_grid": [tokens], "task": "waves", "split": "train", "parameter_names": ["speed"]},
        arrays={"parameters": speed[:, None].double(), "times": 0.1 * torch.arange(frames).double()},
        shape=(samples, frames, tokens, 2),
        roles=["state"],
        dtype="float32",
        shard_bytes=1 << 20,
        batches=({"state": block} for block in latents.flatten(0, 1).split(50)),
        finish=dict,
    )
    return LatentCache(folder)


@pytest.fixture
def caches(tmp_path):
    return [
        rotating_waves(tmp_path / f"waves_{split}", n, seed=k)
        for k, (split, n) in enumerate((("train", 64), ("val", 8)))
    ]


def fit(caches, state, **more):
    knobs = Train(**(KNOBS | more))
    return train_operator(Plain(), *caches, knobs, state=state, key="waves", device=CPU, label="waves")


@pytest.mark.parametrize("grid", [(8,), (6, 4)])
def test_on_periodic_axes_a_shift_of_the_tokens_shifts_the_prediction(grid):
    model = operator(grid, (True,) * len(grid), width=16)
    tokens = torch.randn(3, 1, math.prod(grid), 4, generator=torch.Generator().manual_seed(1))
    shifts, axes = list(range(1, len(grid) + 1)), list(range(2, 2 + len(grid)))

    def shift(z):
        return z.unflatten(2, grid).roll(shifts, axes).flatten(2, 1 + len(grid))

    known = torch.tensor([[0.1], [0.5], [1.0]]), torch.full((3,), 0.05)
    assert torch.allclose(model(shift(tokens), *known), shift(model(tokens, *known)), atol=1e-4)
    assert not torch.allclose(model(shift(tokens), *known), model(tokens, *known), atol=1e-2)


def test_on_a_ring_turned_copies_are_the_convolution():
    block = operator(token_grid=(16,)).blocks[0]
    x = torch.randn(2, 16, 16)
    assert torch.allclose(block._convolve_ring(x), block._convolve(x), atol=1e-5)


def test_on_bounded_axes_place_matters():
    model = operator((8,), (False,))
    tokens = torch.ones(1, 1, 8, 4)
    prediction = model(tokens, torch.ones(1, 1), torch.full((1,), 0.05))
    assert prediction.std(dim=2).max() > 1e-3


def test_rotary_distances_are_the_same_across_the_seam():
    angles = rotary_angles((8,), (True,), 4).repeat(1, 2)
    query, key = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(2))
    turned_q, turned_k = (rotate(x.expand(8, 8), angles.cos(), angles.sin()) for x in (query, key))
    scores = turned_q @ turned_k.T
    for distance in range(8):
        same = [scores[i, (i + distance) % 8].item() for i in range(8)]
        assert max(same) - min(same) < 1e-5


def test_a_fresh_operator_predicts_persistence():
    config = operator().config
    state = torch.randn(2, 1, 8, 4)
    prediction = build_operator(config)(state, torch.ones(2, 1), torch.full((2,), 0.05))
    assert torch.equal(prediction, state.expand(-1, 2, -1, -1))


def test_a_rollout_is_calls_fed_back_and_cut_to_length():
    model = operator()
    state, known = torch.randn(2, 1, 8, 4), (torch.ones(2, 1), torch.full((2,), 0.05))
    first = model(state, *known)
    second = model(first[:, -1:], *known)
    assert torch.equal(model.rollout(state, *known, 3), torch.cat([first, second[:, :1]], dim=1))


def test_parameters_and_time_step_both_matter_and_enter_by_their_ratio():
    model = operator()
    state = torch.randn(1, 1, 8, 4)

    def predict(parameter, time_step):
        return model(state, torch.tensor([[parameter]]), torch.tensor([time_step]))

    assert not torch.allclose(predict(0.1, 0.05), predict(1.0, 0.05), atol=1e-3)
    assert not torch.allclose(predict(0.1, 0.05), predict(0.1, 0.1), atol=1e-3)
    facts = conditioning_facts(torch.tensor([[0.001], [0.1], [10.0]]), 0.05, ["viscosity"])
    assert facts["log"] == [1.0, 1.0]
    assert facts["mean"][0] == pytest.approx(math.log(0.1), rel=1e-5)
    assert conditioning_facts(torch.tensor([[-1.0], [1.0]]), 0.05, ["speed"])["log"] == [0.0, 1.0]
    tiny = conditioning_facts(torch.tensor([[0.0], [1e-9]]), 0.05, ["eta"])
    assert tiny["std"] == pytest.approx([5e-10, 1.0])  # small, and yet it varies


def test_samples_with_a_parameter_that_has_no_logarithm_are_refused():
    positive, signed = (conditioning_facts(torch.tensor([[low], [1.0]]), 0.05, ["speed"]) for low in (0.5, -1.0))
    zero = torch.tensor([[0.2], [0.0]])
    with pytest.raises(UpsDataError, match=r"test: speed: got 0, expected a positive number: it was positive thr"):
        check_conditioning(positive, zero, ["speed"], "test")
    check_conditioning(positive, zero[:1], ["speed"], "test")
    check_conditioning(signed, zero, ["speed"], "test")
    missing = positive | {"equations": [["speed"], []]}
    check_conditioning(missing, torch.tensor([[torch.nan]]), ["speed"], "test")


def test_training_beats_persistence_by_far_on_waves_of_many_speeds(caches, tmp_path):
    _, curve = fit(caches, tmp_path / "state")
    # Persistence of a wave that turns all the way round errs by 4 / pi of its size on average.
    assert min(row[2] for row in curve) < 0.5


def test_a_killed_training_goes_on_to_the_same_curve_and_weights(caches, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)  # save at every step
    whole, curve = fit(caches, tmp_path / "whole", steps=20)
    draw_at = loop.step_generator

    def kill_at(seed, step):
        if step == 15:
            raise KeyboardInterrupt
        return draw_at(seed, step)

    monkeypatch.setattr("ups_data.training.operator.step_generator", kill_at)
    with pytest.raises(KeyboardInterrupt):
        fit(caches, tmp_path / "killed", steps=20)
    steps = []
    monkeypatch.setattr(
        "ups_data.training.operator.step_generator", lambda seed, step: steps.append(step) or draw_at(seed, step)
    )
    resumed, again = fit(caches, tmp_path / "killed", steps=20)
    assert steps[0] == 15  # where it was killed, between two checks
    assert again == curve
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_operators_learn_by_the_loss_that_leaves_small_errors_alone(caches, tmp_path, monkeypatch):
    seen = []

    def noted(*given):
        seen.append((given[4:], torch.is_grad_enabled()))
        return relative_error(*given)

    monkeypatch.setattr("ups_data.training.operator.relative_error", noted)
    fit(caches, tmp_path, steps=4)
    assert {given for given, learning in seen if learning} == {(SMOOTH_ROLLOUT,)}


def test_windows_are_read_from_the_cache_as_they_are_held_in_memory(caches, monkeypatch):
    from ups_data.training import operator as training

    held = training.Problem(caches[0], Plain(), CPU)
    monkeypatch.setattr(training, "HELD", 0)
    read = training.Problem(caches[0], Plain(), CPU)
    window = ("state", [3, 0, 63], [1, 0, 5], 3, 2)
    assert held.held and not read.held
    assert torch.equal(held.window(*window), read.window(*window))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_the_windows_begins_at_the_first_frame_and_the_others_anywhere(caches, share):
    problem, knobs = Problem(caches[0], Plain(), CPU), Train(**(KNOBS | {"initial": share, "batch": 4000}))
    batch, first = training_batch(problem, knobs, 0, 4, 1), caches[0].load("state", torch.float32)[:, 0]
    begins_there = (batch["given"][:, 0, None] == first).all(dim=(2, 3)).any(dim=1).float().mean().item()
    assert begins_there == pytest.approx(share + (1 - share) / 8, abs=0.03)  # 8 of the 12 frames begin windows of 5


def test_noise_is_on_the_frames_given_in_training_alone_and_the_same_for_a_step(caches):
    problem, knobs = Problem(caches[0], Plain(), CPU), Train(**(KNOBS | {"noise": 0.1, "batch": 200}))
    batch, again, other = (training_batch(problem, knobs, step, 4, 1) for step in (0, 0, 1))
    plain = training_batch(problem, Train(**(KNOBS | {"batch": 200})), 0, 4, 1)
    assert all(torch.equal(batch[name], plain[name]) for name in plain) and set(batch) - set(plain) == {"noise"}
    assert torch.equal(batch["noise"], again["noise"]) and not torch.equal(batch["noise"], other["noise"])
    assert batch["noise"].std().item() == pytest.approx(0.1, rel=0.02)
    seen = []

    def rollout(given, parameters, time_step, steps, static):
        seen.append(given)
        return given[:, -1:].expand(-1, steps, -1, -1)

    errors = [problem.error(SimpleNamespace(rollout=rollout), one).item() for one in (batch, plain)]
    assert torch.equal(seen[0], batch["given"] + batch["noise"]) and torch.equal(seen[1], batch["given"])
    assert errors[0] != errors[1]


def test_windows_that_do_not_fit_the_trajectories_are_refused():
    knobs = Train(**(KNOBS | {"unroll": [8]}))
    with pytest.raises(UpsDataError, match=r"spans 17 frames, but the trajectories have 12; lower unroll"):
        unrolling(knobs, 12, "waves")


def test_a_stride_that_a_short_training_does_not_come_to_must_fit_too():
    assert unrolling(Train(**(KNOBS | {"steps": 1, "strides": [1, 11], "history": 1, "unroll": [1]})), 12, "waves")
    with pytest.raises(UpsDataError, match=r"at stride 12 span 13 frames, but the trajectories have 12; lower"):
        unrolling(Train(**(KNOBS | {"steps": 1, "strides": [1, 12], "history": 1, "unroll": [1]})), 12, "waves")


def test_an_operator_whose_weights_are_not_those_of_its_config_is_a_sentence(tmp_path):
    model = operator()
    weights = model.state_dict()
    weights.pop("inward.weight")
    save_model(tmp_path / "operator.safetensors", weights, model.config)
    with pytest.raises(UpsDataError, match=r"do not fit the config .*inward\.weight.*train it again"):
        load_operator(tmp_path / "operator.safetensors", CPU)


def test_a_width_that_the_heads_cannot_share_is_refused():
    with pytest.raises(UpsDataError, match=r"train.width: got 18, expected a multiple of 4"):
        operator(width=18)


def test_a_file_of_another_kind_is_no_operator(tmp_path):
    save_model(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {"format": "ups-data/baseline"})
    with pytest.raises(UpsDataError, match="'ups-data/baseline', expected 'ups-data/operator'"):
        load_operator(tmp_path / "x.safetensors", CPU)


def test_an_operator_read_back_predicts_the_same(tmp_path):
    model = operator()
    save_model(tmp_path / "operator.safetensors", model.state_dict(), model.config)
    known = torch.randn(1, 1, 8, 4), torch.ones(1, 1), torch.full((1,), 0.05)
    assert torch.equal(load_operator(tmp_path / "operator.safetensors", CPU)(*known), model(*known))


def test_the_relative_error_ignores_padding_and_scales_with_the_error():
    target = torch.randn(2, 3, 5, 2, generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    spoilt = torch.where(mask[:, None, :, None], 1.1 * target, torch.full_like(target, 1e3))
    assert relative_error(spoilt, target, mask, torch.ones(2)).item() == pytest.approx(0.1, rel=2e-2)
    assert np.isclose(relative_error(target, target, None, torch.ones(2)).item(), 0.0, atol=1e-3)
    nothing = torch.zeros(1, 1, 8, 1)  # a frame of zeros: a hundredth of the channel's RMS stands for its size
    assert relative_error(nothing + 0.5, nothing, None, torch.tensor([4.0])).item() == pytest.approx(25.0, rel=1e-6)


def test_in_training_small_errors_pull_by_their_size_and_large_ones_all_alike():
    target = torch.randn(1, 1, 64, 1, generator=torch.Generator().manual_seed(4))

    def pull(error: float) -> float:
        prediction = ((1 + error) * target).requires_grad_()
        relative_error(prediction, target, None, target.square().mean()[None], SMOOTH_ROLLOUT).backward()
        return prediction.grad.norm().item()

    assert pull(1e-4) == pytest.approx(10 * pull(1e-5), rel=0.05)
    assert pull(1e-1) == pytest.approx(pull(1e-2), rel=0.05)


def test_a_frame_that_has_nearly_died_out_is_held_to_its_own_size():
    target = torch.randn(1, 1, 64, 1, generator=torch.Generator().manual_seed(4))
    mean_square = target.square().mean()[None]
    frames = (target, target / 20)
    large, small = (relative_error(1.0003 * frame, frame, None, mean_square, SMOOTH_ROLLOUT).item() for frame in frames)
    assert small == pytest.approx(large, rel=0.05)
