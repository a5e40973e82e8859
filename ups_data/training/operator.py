"""Training the latent operator from the cache: unrolled, judged by the decoded fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ups_data.choice import evenly
from ups_data.errors import UpsDataError
from ups_data.models.autoencoder import Autoencoder
from ups_data.models.grid_autoencoder import from_patches, static_patches
from ups_data.models.operator import (
    FORMAT,
    LatentOperator,
    build_operator,
    check_conditioning,
    conditioning_facts,
    static_facts,
)
from ups_data.params import Train
from ups_data.stores.latents import DTYPES, LatentCache
from ups_data.training.augment import check_augment, draw_moves, move
from ups_data.training.loop import fit, step_generator
from ups_data.training.losses import SMOOTH, SMOOTH_ROLLOUT, relative_error
from ups_data.training.sampling import draw
from ups_data.training.steps import Batch, Matrices, compile_parts

HELD = 2 << 30  # bytes of latents kept in memory; of a larger cache windows are read. A GPU keeps half of what is free
JUDGED = {"cpu": 16, "cuda": 256}  # validation trajectories rolled out at each check
CHECKS = 10  # validations in a training
# Predicted frames of a training window that are decoded, drawn anew each step: decoding takes half the time on a CPU.
LOOKED_AT = {"cpu": 4, "cuda": None}
WHOLE = ("looked_at",)  # what of a batch has no row a sample


class Problem:
    """What the operator learns from one cache: windows of trajectories, or pairs of input and target if static."""

    def __init__(self, cache: LatentCache, autoencoder: Autoencoder, device: torch.device):
        self.cache, self.autoencoder, self.device = cache, autoencoder, device
        self.static = "target" in cache.roles
        self.role = "target" if self.static else "state"
        dtype = DTYPES[cache.manifest["dtype"]]
        size = len(cache.roles) * cache.samples * cache.frames * math.prod(cache.token_grid) * cache.latent_dim
        room = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else HELD
        held = size * dtype.itemsize <= room
        self.held = {role: cache.load(role, dtype).to(device) for role in cache.roles} if held else {}
        self.parameters = torch.as_tensor(cache.parameters, device=device)
        self.parameter_names: list[str] = cache.manifest["parameter_names"]
        if not self.static and cache.frames < 2:
            raise UpsDataError(
                f"{cache.folder}: its trajectories have one frame, expected two at least; lower view.time_stride and "
                "train from the autoencoder on"
            )
        self.time_step = 1.0 if self.static else float(cache.times[1] - cache.times[0])

    def window(self, role: str, samples: Sequence[int], starts: Sequence[int], length: int, stride: int) -> Tensor:
        """Every `stride`-th frame from `start` on, `length` of them, of each sample: float32 [B, length, L, D]."""
        if self.held:
            frames = torch.as_tensor(starts)[:, None] + stride * torch.arange(length)
            return self.held[role][torch.as_tensor(samples)[:, None].to(self.device), frames.to(self.device)].float()
        span = stride * (length - 1) + 1
        rows = [self.cache.read(role, s, t, t + span)[::stride] for s, t in zip(samples, starts, strict=True)]
        return torch.stack(rows).float().to(self.device)

    def batch(self, samples: Sequence[int], starts: Sequence[int], history: int, steps: int, stride: int = 1) -> Batch:
        """`given` [B, H, L, D] and `target` [B, steps, L, D] frames, and what else is known of these samples.

        `parameters` [B, P], `time_step` [B]; as far as there are, `static_fields` [B, L, Q] and, for points,
        `coords`, `mask`, `boundary` (LatentCache.geometry).
        """
        if self.static:
            given, target = (self.window(role, samples, starts, 1, 1) for role in ("input", "target"))
        else:
            window = self.window(self.role, samples, starts, history + steps, stride)
            given, target = window.split([history, steps], dim=1)
        batch = {
            "given": given,
            "target": target,
            "parameters": self.parameters[torch.as_tensor(samples).to(self.device)],
            "time_step": torch.full((len(samples),), stride * self.time_step, device=self.device),
        }
        static = self.cache.static_fields(samples, self.device)
        return (
            batch
            | ({} if static is None else {"static_fields": static})
            | (self.cache.geometry(samples, self.device) or {})
        )

    def error(self, model: LatentOperator, batch: Batch, smooth: float = SMOOTH) -> Tensor:
        """Relative error of the predicted frames, decoded, against the decoded latents of the cache (relative_error).

        Of `looked_at`, where it is in the batch: which of the predicted frames are decoded and compared. The batch is
        moved by `shifts` and `signs` (see augment.py) where those are in it; then `noise` [B, H, L, D] is added to what
        is given.
        """
        given, target, static = batch["given"], batch["target"], batch.get("static_fields")
        steps, looked_at = target.shape[1], batch.get("looked_at")
        target = target if looked_at is None else target[:, looked_at]
        geometry = {name: batch[name] for name in ("coords", "mask", "boundary") if name in batch} or None
        with torch.no_grad():
            truth = decode_frames(self.autoencoder, target, geometry, self.role)
            if "shifts" in batch:
                truth = move(truth, batch["shifts"], batch["signs"])
                given, static = self._moved(given, static, batch)
        if "noise" in batch:
            given = given + batch["noise"]
        prediction = model.rollout(given, batch["parameters"], batch["time_step"], steps, static)
        prediction = prediction if looked_at is None else prediction[:, looked_at]
        fields = decode_frames(self.autoencoder, prediction, geometry, self.role)
        size = self.autoencoder.mean_square(self.role)
        return relative_error(fields, truth, batch.get("mask"), size, smooth)

    def _moved(self, given: Tensor, static: Tensor | None, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Latents of the given frames, and patches of the static fields, where the batch is moved to."""
        fields = move(decode_frames(self.autoencoder, given, None, self.role), batch["shifts"], batch["signs"])
        given = self.autoencoder.encode({"fields": fields.flatten(0, 1)}, self.role).unflatten(0, given.shape[:2])
        if static is None:
            return given, None
        tokens, resolution = self.cache.token_grid, fields.shape[2:-1]
        still = from_patches(static.transpose(1, 2).unflatten(2, tokens), resolution)
        return given, static_patches(move(still[:, None], batch["shifts"], batch["signs"])[:, 0], tokens)


def trained_apart(model: LatentOperator, knobs: Train) -> Matrices:
    """The matrices of the blocks, and how the knobs have them trained."""
    return Matrices(model.matrices(), knobs.optimiser == "muon", knobs.weight_decay)


def decode_frames(autoencoder: Autoencoder, latents: Tensor, geometry: dict[str, Tensor] | None, role: str) -> Tensor:
    """Latents [B, F, L, D] to physical fields [B, F, X.., C]; `geometry`, for points, has one row a sample."""
    batch, frames = latents.shape[:2]
    if geometry is not None:
        geometry = {name: value.repeat_interleave(frames, dim=0) for name, value in geometry.items()}
    return autoencoder.decode(latents.flatten(0, 1), geometry, role).unflatten(0, (batch, frames))


def operator_config(problem: Problem, knobs: Train) -> dict:
    """All that `build_operator` needs, and which autoencoder's latents the weights understand."""
    cache = problem.cache
    fields = cache.static_fields(range(cache.samples))
    return {
        "format": FORMAT,
        "static": problem.static,
        "static_fields": None if fields is None else static_facts(fields),
        "token_grid": list(cache.token_grid),
        "latent_dim": cache.latent_dim,
        "periodic": list(problem.autoencoder.config["periodic"]),
        "history": 1 if problem.static else knobs.history,
        "bundle": 1 if problem.static else knobs.bundle,
        "width": knobs.width,
        "depth": knobs.depth,
        "heads": knobs.heads,
        "time_step": problem.time_step,
        "conditioning": conditioning_facts(problem.parameters.cpu(), problem.time_step, problem.parameter_names),
        "autoencoder": cache.manifest["constituents"]["weights"],
        "steps": knobs.steps,
    }


def unrolling(knobs: Train, frames: int, label: str) -> list[tuple[int, int]]:
    """(predicted frames, frame stride) of every training step.

    The stages of `unroll` share the steps evenly; the strides take turns. Raises UpsDataError when a window does not
    fit into the trajectories.
    """
    plan = []
    for step in range(knobs.steps):
        steps = knobs.unroll[step * len(knobs.unroll) // knobs.steps] * knobs.bundle
        stride = knobs.strides[step % len(knobs.strides)]
        span = _span(knobs.history, steps, stride)
        if span > frames:
            raise UpsDataError(
                f"{label}: a window of history {knobs.history} and {steps} predicted frames at stride {stride} spans "
                f"{span} frames, but the trajectories have {frames}; lower unroll, bundle, history or strides"
            )
        plan.append((steps, stride))
    # What is validated goes at the largest stride, which few steps do not come to.
    if (span := _span(knobs.history, 1, max(knobs.strides))) > frames:
        raise UpsDataError(
            f"{label}: history {knobs.history} and a predicted frame at stride {max(knobs.strides)} span {span} "
            f"frames, but the trajectories have {frames}; lower history or strides"
        )
    return plan


def training_batch(problem: Problem, knobs: Train, step: int, steps: int, stride: int) -> Batch:
    """The batch of a training step (Problem.batch), what of it is looked at, and where it is moved to."""
    config, device = problem.autoencoder.config, problem.device
    history = 1 if problem.static else knobs.history
    starts = 1 if problem.static else problem.cache.frames - _span(history, steps, stride) + 1
    generator = step_generator(knobs.seed, step)
    drawn = draw(generator, knobs.batch, problem.cache.samples, starts, knobs.initial)
    batch = problem.batch(*drawn, history, steps, stride)
    order = torch.randperm(steps, generator=generator)
    if (count := LOOKED_AT[device.type]) is not None:
        batch["looked_at"] = order[:count]
    if knobs.augment:
        moves = draw_moves(knobs.augment, generator, knobs.batch, config["resolution"], config["periodic"])
        batch |= {name: tensor.to(device) for name, tensor in moves.items()}
    if knobs.noise:
        batch["noise"] = (knobs.noise * torch.randn(batch["given"].shape, generator=generator)).to(device)
    return batch


def _span(history: int, steps: int, stride: int) -> int:
    """Frames of a trajectory that a window goes over."""
    return stride * (history + steps - 1) + 1


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
    frame, at the largest of the strides, over evenly spread trajectories. Returns the operator and the learning curve
    (loop.CURVE).
    """
    problem, judge = (Problem(cache, autoencoder, device) for cache in (train, val))
    config = autoencoder.config
    fields = autoencoder.roles[problem.role], problem.parameter_names
    check_augment(knobs.augment, config["kind"], config["periodic"], label, *fields)
    torch.manual_seed(knobs.seed)
    model = build_operator(operator_config(problem, knobs)).to(device)
    check_conditioning(model.config["conditioning"], judge.parameters, judge.parameter_names, f"{label}: val")
    compile_parts([*model.blocks, autoencoder.decoders[problem.role]], device)
    plan = [(1, 1)] * knobs.steps if problem.static else unrolling(knobs, train.frames, label)
    judged = evenly(val.samples, JUDGED[device.type])

    def validate() -> float:
        stride = max(knobs.strides)
        steps = 1 if problem.static else (val.frames - 1) // stride + 1 - model.history
        return judge.error(model, judge.batch(judged, [0] * len(judged), model.history, steps, stride)).item()

    curve = fit(
        model,
        lambda step: training_batch(problem, knobs, step, *plan[step]),
        lambda batch: problem.error(model, batch, SMOOTH_ROLLOUT),
        validate,
        knobs,
        state=state,
        key=key,
        label=label,
        checks=CHECKS,
        whole=WHOLE,
        matrices=trained_apart(model, knobs),
    )
    return model, curve
