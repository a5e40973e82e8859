"""Training the latent operator from the cache: unrolled, judged by the decoded fields."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ups_data.errors import UpsDataError
from ups_data.models.autoencoder import Autoencoder
from ups_data.models.operator import FORMAT, LatentOperator, build_operator, conditioning_facts
from ups_data.params import Train
from ups_data.stores.latents import LatentCache
from ups_data.training.loop import fit, step_generator
from ups_data.training.losses import relative_error
from ups_data.training.sampling import draw, evenly

HELD = 2 << 30  # bytes of latents kept in memory; a larger cache is read window by window
JUDGED = 16  # validation trajectories rolled out at each check
CHECKS = 10  # validations in a training
LOOKED_AT = 4  # predicted frames of a training window that are decoded, drawn anew each step: half the time of all


class Problem:
    """What the operator learns from one cache: windows of trajectories, or pairs of input and target if static."""

    def __init__(self, cache: LatentCache, autoencoder: Autoencoder, device: torch.device):
        self.cache, self.autoencoder, self.device = cache, autoencoder, device
        self.static = "target" in cache.roles
        self.role = "target" if self.static else "state"
        size = 4 * cache.samples * cache.frames * cache.latent_dim * torch.Size(cache.token_grid).numel()
        held = size <= HELD
        self.held = {role: cache.load(role).float().to(device) for role in cache.roles} if held else {}
        self.parameters = torch.as_tensor(cache.parameters, device=device)
        self.time_step = 1.0 if self.static else float(cache.times[1] - cache.times[0])

    def window(self, role: str, samples: Sequence[int], starts: Sequence[int], length: int, stride: int) -> Tensor:
        """Every `stride`-th frame from `start` on, `length` of them, of each sample: float32 [B, length, L, D]."""
        if self.held:
            frames = torch.as_tensor(starts)[:, None] + stride * torch.arange(length)
            return self.held[role][torch.as_tensor(samples)[:, None], frames]
        span = stride * (length - 1) + 1
        rows = [self.cache.read(role, s, t, t + span)[::stride] for s, t in zip(samples, starts, strict=True)]
        return torch.stack(rows).float().to(self.device)

    def error(
        self,
        model: LatentOperator,
        samples: Sequence[int],
        starts: Sequence[int],
        steps: int,
        stride: int = 1,
        looked_at: Tensor | None = None,
    ) -> Tensor:
        """Relative error of `steps` predicted frames, decoded, against the decoded latents of the cache.

        `looked_at`: which of the predicted frames are decoded and compared; all if None.
        """
        if self.static:
            given, target = (self.window(role, samples, starts, 1, 1) for role in ("input", "target"))
        else:
            window = self.window(self.role, samples, starts, model.history + steps, stride)
            given, target = window.split([model.history, steps], dim=1)
        parameters = self.parameters[torch.as_tensor(samples)]
        time_step = torch.full((len(samples),), stride * self.time_step, device=self.device)
        prediction = model.rollout(given, parameters, time_step, steps)
        if looked_at is not None:
            prediction, target = prediction[:, looked_at], target[:, looked_at]
        geometry = self.cache.geometry(samples, self.device)
        with torch.no_grad():
            truth = decode_frames(self.autoencoder, target, geometry, self.role)
        fields = decode_frames(self.autoencoder, prediction, geometry, self.role)
        mask = None if geometry is None else geometry["mask"]
        return relative_error(fields, truth, mask, self.autoencoder.mean_square(self.role))


def decode_frames(autoencoder: Autoencoder, latents: Tensor, geometry: dict[str, Tensor] | None, role: str) -> Tensor:
    """Latents [B, F, L, D] to physical fields [B, F, X.., C]; `geometry`, for points, has one row a sample."""
    batch, frames = latents.shape[:2]
    if geometry is not None:
        geometry = {name: value.repeat_interleave(frames, dim=0) for name, value in geometry.items()}
    return autoencoder.decode(latents.flatten(0, 1), geometry, role).unflatten(0, (batch, frames))


def operator_config(problem: Problem, knobs: Train) -> dict:
    """All that `build_operator` needs, and which autoencoder's latents the weights understand."""
    cache = problem.cache
    return {
        "format": FORMAT,
        "static": problem.static,
        "token_grid": list(cache.token_grid),
        "latent_dim": cache.latent_dim,
        "periodic": list(problem.autoencoder.config["periodic"]),
        "history": 1 if problem.static else knobs.history,
        "bundle": 1 if problem.static else knobs.bundle,
        "width": knobs.width,
        "depth": knobs.depth,
        "heads": knobs.heads,
        "time_step": problem.time_step,
        "conditioning": conditioning_facts(problem.parameters.cpu(), problem.time_step),
        "autoencoder": cache.manifest["constituents"]["weights"],
        "steps": knobs.steps,
    }


def unrolling(knobs: Train, frames: int, label: str) -> list[tuple[int, int, int]]:
    """(predicted frames, frame stride, frames spanned) of every training step.

    The stages of `unroll` share the steps evenly; the strides take turns. Raises UpsDataError when a window does not
    fit into the trajectories.
    """
    plan = []
    for step in range(knobs.steps):
        steps = knobs.unroll[step * len(knobs.unroll) // knobs.steps] * knobs.bundle
        stride = knobs.strides[step % len(knobs.strides)]
        span = stride * (knobs.history + steps - 1) + 1
        if span > frames:
            raise UpsDataError(
                f"{label}: a window of history {knobs.history} and {steps} predicted frames at stride {stride} spans "
                f"{span} frames, but the trajectories have {frames}; lower unroll, bundle, history or strides"
            )
        plan.append((steps, stride, span))
    return plan


def train_operator(
    autoencoder: Autoencoder,
    train: LatentCache,
    val: LatentCache,
    knobs: Train,
    *,
    state: Path,
    key: str,
    device: torch.device,
    label: str,
) -> tuple[LatentOperator, list]:
    """Fit the operator to a train cache; keep the weights with the smallest error of whole rollouts on `val`.

    The validation error is the relative error of the decoded rollout from the first `history` frames to the last
    frame, over at most 16 evenly spread trajectories. Returns the operator and the learning curve (loop.CURVE).
    """
    problem, judge = (Problem(cache, autoencoder, device) for cache in (train, val))
    torch.manual_seed(knobs.seed)
    model = build_operator(operator_config(problem, knobs)).to(device)
    plan = [(1, 1, 1)] * knobs.steps if problem.static else unrolling(knobs, train.frames, label)
    judged = evenly(val.samples, JUDGED)

    def loss(step: int) -> Tensor:
        steps, stride, span = plan[step]
        generator = step_generator(knobs.seed, step)
        samples, starts = draw(generator, knobs.batch, train.samples, train.frames - span + 1)
        looked_at = torch.randperm(steps, generator=generator)[:LOOKED_AT]
        return problem.error(model, samples, starts, steps, stride, looked_at)

    def validate() -> float:
        steps = 1 if problem.static else val.frames - model.history
        return judge.error(model, judged, [0] * len(judged), steps).item()

    curve = fit(model, loss, validate, knobs, state=state, key=key, label=label, checks=CHECKS)
    return model, curve
