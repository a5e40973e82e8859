"""A run that is killed goes on along the same curve; weights are read back as they were written, or not at all."""

import pytest
import torch
from torch import nn

from ups_data.errors import UpsDataError
from ups_data.models.checkpoint import load_model, save_model, weights_id
from ups_data.params import Optimiser
from ups_data.training import loop

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
def save_at_every_check(monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)


def test_a_killed_run_follows_the_same_curve(tmp_path):
    whole, curve = regression(tmp_path / "whole")
    for die_at in (7, 23, 31):
        with pytest.raises(Killed):
            regression(tmp_path / "cut", die_at=die_at)
    resumed, again = regression(tmp_path / "cut")
    assert again == curve
    assert weights_id(resumed.state_dict()) == weights_id(whole.state_dict())


def test_a_state_of_other_knobs_is_not_gone_on_with(tmp_path):
    with pytest.raises(Killed):
        regression(tmp_path, key="old", die_at=30)
    _, curve = regression(tmp_path, key="new")
    assert curve == regression(tmp_path / "fresh")[1]


def test_a_damaged_state_is_no_state(tmp_path):
    with pytest.raises(Killed):
        regression(tmp_path, die_at=30)
    (tmp_path / "state.safetensors").write_bytes(b"half")
    assert regression(tmp_path)[1] == regression(tmp_path / "fresh")[1]


def test_the_weights_with_the_lowest_validation_error_are_kept(tmp_path):
    model, curve = regression(tmp_path)
    assert (model.weight - 1).abs().sum().item() == min(row[2] for row in curve)


def test_a_loss_that_is_not_finite_is_a_sentence(tmp_path):
    with pytest.raises(UpsDataError, match=r"line: the loss is nan at step 2; lower the learning_rate"):
        regression(tmp_path, factor=float("nan"))


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
