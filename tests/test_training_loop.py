"""A run that is killed goes on along the same curve; weights are read back as they were written, or not at all."""

import os
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from ups_data.choice import evenly
from ups_data.errors import UpsDataError
from ups_data.execution import pick_device
from ups_data.manifest import content_key
from ups_data.models.checkpoint import load_model, save_model, weights_id
from ups_data.params import Optimiser
from ups_data.training import loop, muon
from ups_data.training.publish import publish, state_folder
from ups_data.training.steps import Matrices, make_optimiser, plain_step, set_rate

KNOBS = Optimiser(steps=40, batch=8, learning_rate=1e-2, seed=3)


class Killed(Exception):
    pass


def regression(state, key="k", knobs=KNOBS, die_at=None, factor=1.0):
    """Fit a line; `die_at` stops the run in the middle of that step."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def draw(step):
        if step == die_at:
            raise Killed
        return {"x": torch.randn(knobs.batch, 3, generator=loop.step_generator(knobs.seed, step))}

    def loss(batch):
        return factor * ((model(batch["x"]) - batch["x"].sum(1, keepdim=True)) ** 2).mean()

    def validate():
        return (model.weight - 1).abs().sum().item()

    return model, loop.fit(model, draw, loss, validate, knobs, state=state, key=key, label="line")


@pytest.fixture(autouse=True)
def save_at_every_step(monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)


def test_another_seed_draws_other_batches_at_every_step():
    drawn = {
        (seed, step): torch.rand(2, generator=loop.step_generator(seed, step)) for seed in (0, 1, 2) for step in (0, 1)
    }
    assert len({tuple(numbers.tolist()) for numbers in drawn.values()}) == len(drawn)
    assert torch.equal(drawn[1, 1], torch.rand(2, generator=loop.step_generator(1, 1)))


def test_a_killed_run_follows_the_same_curve(tmp_path):
    whole, curve = regression(tmp_path / "whole")
    for die_at in (7, 23, 31):
        with pytest.raises(Killed):
            regression(tmp_path / "cut", die_at=die_at)
    resumed, again = regression(tmp_path / "cut")
    assert again == curve
    assert weights_id(resumed.state_dict()) == weights_id(whole.state_dict())


def test_the_moments_of_a_resumed_run_lie_in_memory_as_its_weights_do(tmp_path, monkeypatch):
    """A fused update on a GPU refuses others; networks of planes have their channels last."""
    optimisers = []

    def kept(model, device, matrices):
        optimisers.append(make_optimiser(model, device, matrices))
        return optimisers[-1]

    monkeypatch.setattr(loop, "make_optimiser", kept)

    def planes(die_at=None):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)

        def draw(step):
            if step == die_at:
                raise Killed
            return {"x": torch.randn(2, 3, 5, 5, generator=loop.step_generator(0, step))}

        def loss(batch):
            return model(batch["x"]).square().mean()

        curve = loop.fit(model, draw, loss, lambda: 0.0, KNOBS, state=tmp_path, key="k", label="planes")
        return model, curve

    with pytest.raises(Killed):
        planes(die_at=7)
    model, _ = planes()
    assert len(optimisers) == 2
    for name in ("exp_avg", "exp_avg_sq"):
        assert optimisers[1].state[model.weight][name].stride() == model.weight.stride() == (27, 1, 9, 3)


def test_the_environment_names_the_device_where_no_flag_does(monkeypatch):
    monkeypatch.setenv("UPS_DEVICE", "abacus")
    with pytest.raises(UpsDataError, match="got 'abacus', expected auto, cpu"):
        pick_device("auto")
    assert pick_device("cpu") == torch.device("cpu")


def test_a_gpu_is_told_to_add_in_one_order(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # what a user has set stays
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        pick_device("cpu")
        assert not torch.are_deterministic_algorithms_enabled()
        pick_device("cuda")
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_gpu_is_told_not_to_round_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    libraries = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [library.allow_tf32 for library in libraries]
    for library in libraries:
        library.allow_tf32 = True
    try:
        pick_device("cuda")
        assert not any(library.allow_tf32 for library in libraries)
    finally:
        torch.use_deterministic_algorithms(False)
        for library, value in zip(libraries, before, strict=True):
            library.allow_tf32 = value


def test_a_state_of_other_knobs_is_not_gone_on_with(tmp_path):
    with pytest.raises(Killed):
        regression(tmp_path, key="old", die_at=30, factor=2.0)
    _, curve = regression(tmp_path, key="new")
    assert curve == regression(tmp_path / "fresh")[1]


def test_trainings_of_one_task_at_once_keep_their_own_states(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (state_folder("train", "line", content_key(seed=seed)) for seed in (1, 2))
    with pytest.raises(Killed):
        regression(first, key="first", die_at=30)
    model, curve = regression(second, key="second")

    def end():
        places = {"models": tmp_path / "m", "reports": tmp_path / "r", "state": second}
        publish(Mock(), "operator", lambda path: save_model(path, model.state_dict(), {}), curve, **places)

    end()
    assert (first / "state.safetensors").is_file() and not second.exists()
    os.utime(first / "state.safetensors", (0, 0))  # nothing went on with it for years
    end()
    assert not first.exists()


def test_a_step_follows_a_steep_gradient_no_further_than_one_of_norm_one():
    model = nn.Linear(3, 2, bias=False)
    before = model.weight.detach().clone()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    plain_step(model, optimiser, lambda batch: 1e4 * model(batch["x"]).square().sum())({"x": torch.ones(4, 3)})
    assert (model.weight - before).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_the_rate_warms_up_and_falls_to_a_hundredth():
    knobs = Optimiser(steps=1000, batch=1, learning_rate=1.0, seed=0)
    rates = [loop.learning_rate(step, knobs) for step in range(1001)]
    warm = rates.index(max(rates))
    assert 0 < rates[0] < 0.1 and max(rates) == 1.0 and 0 < warm < 100
    assert rates[1000] == pytest.approx(0.01)
    assert rates[: warm + 1] == sorted(rates[: warm + 1]) and rates[warm:] == sorted(rates[warm:], reverse=True)


def test_a_damaged_state_is_no_state(tmp_path):
    with pytest.raises(Killed):
        regression(tmp_path, die_at=30)
    (tmp_path / "state.safetensors").write_bytes(b"half")
    assert regression(tmp_path)[1] == regression(tmp_path / "fresh")[1]


def test_the_curve_is_told_while_it_grows(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(loop.tracking, "curve", lambda header, rows: told.append((header, len(rows))))
    _, curve = regression(tmp_path)
    assert len(curve) > 1 and told == [(loop.CURVE, rows) for rows in range(1, len(curve) + 1)]


def test_the_weights_with_the_lowest_validation_error_are_kept(tmp_path):
    model, curve = regression(tmp_path)
    assert (model.weight - 1).abs().sum().item() == min(row[2] for row in curve)


def test_a_loss_that_is_not_finite_is_a_sentence(tmp_path):
    with pytest.raises(UpsDataError, match=r"line: the loss is nan at step 2; lower the learning_rate"):
        regression(tmp_path, factor=float("nan"))


def validated_by(values, state):
    """Train a single weight; the checks give these values. Returns the model, the weights at each check, the curve."""
    model, seen = nn.Linear(1, 1), []

    def validate():
        seen.append(model.weight.item())
        return values[len(seen) - 1]

    knobs = Optimiser(steps=len(values), batch=2, learning_rate=0.1, seed=0)
    rows = {"x": torch.ones(2, 1)}
    curve = loop.fit(
        model, lambda step: rows, lambda batch: model(batch["x"]).square().mean(), validate, knobs,
        state=state, key="k", label="line", checks=len(values),
    )  # fmt: skip
    return model, seen, curve


@pytest.mark.parametrize("first", [float("nan"), float("inf")])
def test_a_rollout_that_diverges_at_first_does_not_keep_the_weights_it_had_then(tmp_path, first):
    model, seen, curve = validated_by([first, 0.5, 0.2, 0.3], tmp_path)
    assert model.weight.item() == seen[2]
    assert loop.lowest(curve) == 0.2


def test_weights_whose_rollouts_all_diverge_are_refused(tmp_path):
    with pytest.raises(UpsDataError, match="never finite; lower the learning_rate"):
        validated_by([float("nan"), float("inf")], tmp_path)


def test_equal_weights_are_equal_bytes_and_are_read_back(tmp_path):
    weights = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.float16)}
    save_model(tmp_path / "one", weights, {"width": 3})
    save_model(tmp_path / "two", dict(reversed(weights.items())), {"width": 3})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    read, config = load_model(tmp_path / "one")
    assert config == {"width": 3} and weights_id(read) == weights_id(weights)


@pytest.mark.parametrize("damage", ["missing", "truncated", "pickle"])
def test_a_model_that_cannot_be_trusted_is_refused(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    save_model(path, {"a": torch.ones(100)}, {})
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        torch.save({"a": torch.ones(3)}, path)
    with pytest.raises(UpsDataError, match=str(path)):
        load_model(path)


# --- Muon ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 16), (16, 6), (9, 9)])
def test_newton_schulz_brings_singular_values_near_one_and_keeps_the_directions(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    found = muon.polar(matrices)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    along = (u.mT @ found @ v.mT).abs()  # of U V^T, whose singular vectors are those of the matrices
    assert torch.allclose(along, torch.diag_embed(along.diagonal(dim1=1, dim2=2)), atol=1e-4)


def test_a_matrix_without_a_gradient_does_not_move():
    assert muon.polar(torch.zeros(2, 4, 3)).abs().max() == 0


def test_an_update_is_as_large_as_the_learning_rate_says_whatever_the_gradient():
    for scale in (1e-6, 1.0, 1e6):
        matrix = nn.Parameter(torch.zeros(64, 32))
        matrix.grad = scale * torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
        muon.Muon([matrix], 0.01, 0.0).step()
        assert matrix.square().mean().sqrt().item() == pytest.approx(0.01 * muon.RMS, rel=0.3)


def test_muon_trains_its_matrices_and_adamw_the_rest(tmp_path):
    target, offset = torch.randn(24, 24, generator=torch.Generator().manual_seed(5)) / 5, torch.linspace(-1, 1, 24)
    torch.manual_seed(0)
    model = nn.Linear(24, 24)

    def validate():
        return max((model.weight - target).abs().max().item(), (model.bias - offset).abs().max().item())

    curve = loop.fit(
        model,
        lambda step: {"x": torch.randn(8, 24, generator=loop.step_generator(0, step))},
        lambda batch: (model(batch["x"]) - batch["x"] @ target.T - offset).square().mean(),
        validate,
        Optimiser(steps=200, batch=8, learning_rate=5e-2, seed=0),
        state=tmp_path,
        key="k",
        label="matrix",
        matrices=Matrices([model.weight], muon=True),
    )
    assert curve[-1][2] < 0.1


@pytest.mark.parametrize("of_muon", [True, False])
def test_weight_decay_takes_away_from_the_matrices_alone(of_muon):
    model = nn.Linear(4, 4)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimiser = make_optimiser(model, torch.device("cpu"), Matrices([model.weight], of_muon, weight_decay=0.5))
    set_rate(optimiser, 0.1)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimiser.step()
    assert torch.allclose(model.weight, before["weight"] * (1 - 0.1 * 0.5), atol=1e-6)
    assert torch.allclose(model.bias, before["bias"], atol=1e-5)


@pytest.mark.parametrize("count", range(1, 12))
def test_what_is_chosen_evenly_reaches_from_the_first_to_the_last(count):
    for total in range(count, 40):
        chosen = evenly(total, count)
        assert len(chosen) == len(set(chosen)) == count
        assert chosen[0] == 0 and (chosen[-1] == total - 1 or count == 1)
    assert evenly(count, 100) == list(range(count)) and evenly(count, 0) == []


def test_what_is_chosen_evenly_is_all_or_as_many_as_asked():
    assert evenly(5, 10) == [0, 1, 2, 3, 4]
    assert evenly(100, 4) == [0, 33, 66, 99]
    assert evenly(5, 3) == [0, 2, 4] and evenly(1, 3) == [0]
