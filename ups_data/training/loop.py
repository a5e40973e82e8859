"""The training loop: AdamW or Muon on a warm-up and cosine schedule, the best weights by validation, resumable.

A step's batch depends on the seed and the step number alone, so a run that was killed and goes on draws the
same batches and follows the same curve.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ups_data import console, files
from ups_data.errors import UpsDataError
from ups_data.params import Optimiser
from ups_data.training import ranks, tracking
from ups_data.training.muon import Both
from ups_data.training.steps import ALL_ALIKE, Batch, Matrices, make_optimiser, set_rate, stepper, uncompiled

APART = 0x9E3779B1  # 2^32 over the golden ratio: its multiples, and so the steps of two seeds, lie far apart in 32 bits
WARM_UP = 0.05  # share of the steps over which the learning rate rises
SAVE_EVERY = 30.0  # seconds of work that a kill costs at most; the curve does not depend on it
CURVE = ("step", "train_loss", "val_loss", "learning_rate")


def step_generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one training step: the same whether the run was interrupted or not, others for another seed."""
    return torch.Generator().manual_seed((APART * seed + step) % (1 << 32))  # torch takes the lower 32 bits alone


def learning_rate(step: int, knobs: Optimiser) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    warm = max(1, int(WARM_UP * knobs.steps))
    if step < warm:
        return knobs.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, knobs.steps - warm)
    return knobs.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def lowest(curve: Sequence[Sequence[float]]) -> float:
    """The lowest validation error; that of a rollout which diverged is not finite and none to choose by."""
    return min((row[2] for row in curve if math.isfinite(row[2])), default=math.nan)


@dataclass
class _Run:
    """How far a training is, beside the weights and the moments of the optimiser."""

    step: int = 0
    curve: list[tuple[int, float, float, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)  # weights, as of the first check on
    losses: list[Tensor] = field(default_factory=list)  # since the last check


def fit(
    model: nn.Module,
    draw: Callable[[int], Batch],
    loss: Callable[[Batch], Tensor],
    validate: Callable[[], float],
    knobs: Optimiser,
    *,
    state: Path,
    key: str,
    label: str,
    checks: int = 20,
    whole: Collection[str] = (),
    matrices: Matrices = ALL_ALIKE,
) -> list[tuple[int, float, float, float]]:
    """Train `model` in place and leave its best weights in it.

    `draw(step)` gives the batch of that step, `loss(batch)` a scalar that depends on the batch's tensors and the
    weights alone (a GPU records the step: see training/steps.py); `validate()` is called `checks` times and the
    weights with the lowest value are kept. `state` is a folder for resuming: it is used when its key is `key`,
    replaced when not, and removed by the caller when the outputs are published. Returns the learning curve: rows of
    CURVE. Raises UpsDataError when the loss is not finite, or the validation error at no check is.

    Under torchrun every rank draws the same batch and trains on its share of it; `whole` names the tensors of a batch
    that all ranks need, because their rows are no samples. Rank 0 saves the state. `matrices`: weights trained
    in a way of their own.
    """
    device = next(model.parameters()).device
    optimiser = make_optimiser(model, device, matrices)
    run = _resume(model, optimiser, state, key, label)
    if not ranks.agree(run.step):
        raise UpsDataError(f"{label}: not every process sees the state in {state}; they all need the same folder")
    every = max(1, knobs.steps // checks)
    advance = stepper(model, optimiser, loss, device)
    saved = time.monotonic()
    with console.progress(label, knobs.steps, "step") as bar:
        bar.advance(run.step)
        while run.step < knobs.steps:
            rate = learning_rate(run.step, knobs)
            set_rate(optimiser, rate)
            model.train()
            run.losses.append(advance(ranks.own(draw(run.step), whole)))
            run.step += 1
            bar.advance(1, f"loss {run.curve[-1][1]:.3g}" if run.curve else "")
            if run.step % every == 0 or run.step == knobs.steps:
                mean = torch.stack(run.losses).mean().item()
                run.losses.clear()
                if not math.isfinite(mean):
                    raise UpsDataError(f"{label}: the loss is {mean} at step {run.step}; lower the learning_rate")
                model.eval()
                with torch.no_grad(), uncompiled(device):
                    value = float(validate())
                run.curve.append((run.step, mean, value, rate))
                tracking.curve(CURVE, run.curve)
                if value <= lowest(run.curve) or not run.best:
                    run.best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            if time.monotonic() - saved > SAVE_EVERY and ranks.rank() == 0:
                _save(model, optimiser, run, state, key)
                saved = time.monotonic()
    if math.isnan(lowest(run.curve)):
        raise UpsDataError(f"{label}: the validation error was never finite; lower the learning_rate")
    model.load_state_dict(run.best)
    model.eval()
    return run.curve


def _save(model: nn.Module, optimiser: torch.optim.Optimizer | Both, run: _Run, state: Path, key: str) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in run.best.items()}
    tensors |= {"losses": torch.stack(run.losses)} if run.losses else {}
    moments = optimiser.state
    for name, parameter in model.named_parameters():
        tensors |= {f"moments.{name}/{what}": value for what, value in moments[parameter].items()}
    header = {"key": key, "step": str(run.step), "curve": json.dumps(run.curve)}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with files.atomic(state / "state.safetensors") as temporary:
        temporary.write_bytes(save(tensors, header))


def _resume(model: nn.Module, optimiser: torch.optim.Optimizer | Both, state: Path, key: str, label: str) -> _Run:
    """An interrupted run with this key, its weights in the model, or a fresh start."""
    path = state / "state.safetensors"
    if not path.is_file():
        return _Run()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
        if header["key"] != key:
            return _Run()
        tensors = load_file(path)
    except (SafetensorError, KeyError, OSError):
        return _Run()  # a damaged state is no state: start again
    model.load_state_dict(_under("model.", tensors))
    device = next(model.parameters()).device
    parameters, moments = dict(model.named_parameters()), optimiser.state
    for name, tensor in _under("moments.", tensors).items():
        name, _, what = name.partition("/")
        parameter = parameters[name]
        # As it lies in memory, so do its moments: the update on a GPU asks for that.
        place = torch.empty_like(parameter) if tensor.shape == parameter.shape else tensor.to(device)
        moments[parameter][what] = place.copy_(tensor)
    step = int(header["step"])
    console.say(f"{label}: going on from step {step}")
    best = {name: tensor.to(device) for name, tensor in _under("best.", tensors).items()}
    losses = list(tensors["losses"].to(device)) if "losses" in tensors else []
    return _Run(step, [tuple(row) for row in json.loads(header["curve"])], best, losses)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
