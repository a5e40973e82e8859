"""Training the autoencoder on frames of the train split, chosen on the val split."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ups_data.choice import evenly
from ups_data.models.autoencoder import BOUNDARY, FORMAT, VERSION, Autoencoder, build_autoencoder
from ups_data.models.autoencoder import Frame as Prepared
from ups_data.models.grid_autoencoder import spacing, token_shape
from ups_data.params import Autoencoder as Knobs
from ups_data.training.frames import Frames, frame_errors
from ups_data.training.loop import fit, step_generator
from ups_data.training.losses import relative_error

HELD = 1 << 30  # bytes of frames held on the device; of larger data evenly spread frames are taken
FITTED = 2048  # frames of points held at most: fitting splines to one takes about a millisecond
JUDGED = 256  # validation frames
BLOCK = 256  # frames read and prepared at once
WIDE_RANGE = 100.0  # a positive channel that spans more than this is encoded by its logarithm


def autoencoder_config(task: str, frames: Frames, knobs: Knobs) -> dict:
    """The config of an autoencoder for this data (`Autoencoder`). Raises UpsDataError where latent_len does not fit."""
    manifest, kind = frames.manifest, frames.manifest["kind"]
    if kind == "grid":
        geometry = {
            "resolution": frames.resolution,
            "spacing": spacing(frames.reader.coordinates, frames.view.space_stride),
            "token_grid": token_shape(knobs.latent_len, frames.resolution, frames.resolution),
        }
    else:
        box, points = frames.extent()
        tokens = token_shape(knobs.latent_len, [high - low for low, high in box])
        # About as many splines as points, a whole number of them in a token, and four at least along an axis.
        splines = max(1, int((points / knobs.latent_len) ** (1 / len(box))))
        geometry = {"box": box, "token_grid": tokens, "resolution": [n * max(splines, -(-4 // n)) for n in tokens]}
    return {
        "format": FORMAT,
        "version": VERSION,
        "task": task,
        "kind": kind,
        "roles": frames.roles,
        "normaliser": normaliser(frames),
        "periodic": manifest["periodic"],
        "latent_len": knobs.latent_len,
        "latent_dim": knobs.latent_dim,
        "width": knobs.width,
        "depth": knobs.depth,
        "encoder_depth": knobs.encoder_depth,
        "view": frames.view.model_dump(),
        "data": manifest["key"],
        "steps": 0,
        **geometry,
    }


def normaliser(frames: Frames) -> dict[str, dict]:
    """Mean and spread of every channel from the manifest's train statistics; of its logarithm where that is encoded."""
    facts = {}
    for role, names in frames.roles.items():
        for column, name in enumerate(names):
            channel = frames.manifest["statistics"]["channels"][name]
            facts[name] = {"mean": channel["mean"], "std": channel["std"] or 1.0}
            low, high = channel["minimum"], channel["maximum"]
            if low > 0 and high / low > WIDE_RANGE:
                frame = frames.read(np.array(evenly(len(frames), JUDGED)), role)
                values = frame["fields"][..., column][frame.get("mask", ...)].double().log()
                facts[name]["log"] = {"mean": values.mean().item(), "std": values.std().item(), "floor": low / 100}
    if frames.manifest["kind"] == "mesh":
        distance = np.concatenate([frames.boundary[k][frames.mask[k]] for k in frames.topology_of])
        facts[BOUNDARY] = {"mean": float(distance.mean(dtype=np.float64)), "std": float(distance.std()) or 1.0}
    return facts


@torch.no_grad()
def hold(autoencoder: Autoencoder, frames: Frames, role: str, most: int, device: torch.device) -> Prepared:
    """Evenly spread frames, prepared for training, on the device: as many as there are, `most`, or HELD bytes."""
    size = 4 * math.prod(autoencoder.config["resolution"]) * len(frames.roles[role])
    index = evenly(len(frames), max(1, min(most, HELD // size)))
    parts = []
    for block in np.array_split(index, max(1, math.ceil(len(index) / BLOCK))):
        frame = {name: tensor.to(device) for name, tensor in frames.read(block, role).items()}
        parts.append(autoencoder.prepare(frame, role))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def error(autoencoder: Autoencoder, prepared: Prepared, role: str) -> Tensor:
    """Relative L2 error of the round trip, mean over frames and channels: the loss."""
    offset = autoencoder.offset(role)
    truth = prepared.get("truth", prepared["grid"])
    found = autoencoder.reconstruct(prepared, role)
    mean_square = 1.0 + offset.square()
    return relative_error((found + offset)[:, None], (truth + offset)[:, None], prepared.get("mask"), mean_square)


def train_autoencoder(
    task: str, train: Frames, val: Frames, knobs: Knobs, *, state: Path, key: str, device: torch.device
) -> tuple[Autoencoder, list]:
    """Fit an autoencoder to the train frames and keep the weights that are best on the val frames.

    Returns it with standardised latents, and the learning curve (loop.CURVE; the losses are the relative error,
    summed over the roles).
    """
    config = autoencoder_config(task, train, knobs)
    torch.manual_seed(knobs.seed)
    model = build_autoencoder(config).to(device)
    most = FITTED if model.points else len(train)
    held = {role: hold(model, train, role, most, device) for role in model.roles}
    judged = {role: hold(model, val, role, JUDGED, device) for role in model.roles}
    for role in model.roles:
        model.start(role, held[role]["grid"][:FITTED])
    turning = [] if model.points else [axis for axis, wraps in enumerate(config["periodic"], start=1) if wraps]

    def draw_role(role: str, generator: torch.Generator) -> Prepared:
        rows = torch.randint(len(held[role]["grid"]), (knobs.batch,), generator=generator).to(device)
        batch = {name: tensor[rows] for name, tensor in held[role].items()}
        if turning:  # any shift of a periodic field is as likely as itself, not only one by whole patches
            shifts = [int(torch.randint(config["resolution"][axis - 1], (), generator=generator)) for axis in turning]
            batch["grid"] = batch["grid"].roll(shifts, turning)
        return batch

    def draw(step: int) -> dict[str, Tensor]:
        generator = step_generator(knobs.seed, step)
        drawn = {role: draw_role(role, generator) for role in model.roles}
        return {f"{role}.{name}": tensor for role, batch in drawn.items() for name, tensor in batch.items()}

    def loss(batch: dict[str, Tensor]) -> Tensor:
        return sum(error(model, _under(role, batch), role) for role in model.roles)

    def validate() -> float:
        return sum(error(model, judged[role], role).item() for role in model.roles)

    curve = fit(model, draw, loss, validate, knobs, state=state, key=key, label=f"{task} autoencoder")
    for role in model.roles:
        model.standardise(role, held[role]["grid"])
    return model, curve


def _under(role: str, batch: dict[str, Tensor]) -> Prepared:
    return {name.partition(".")[2]: tensor for name, tensor in batch.items() if name.startswith(f"{role}.")}


@torch.no_grad()
def round_trip(autoencoder: Autoencoder, frames: Frames, device: torch.device) -> dict[str, float]:
    """nRMSE of every channel after encoding and decoding, over at most JUDGED frames evenly spread."""
    errors = {}
    for role, names in autoencoder.roles.items():
        frame = {k: tensor.to(device) for k, tensor in frames.read(np.array(evenly(len(frames), JUDGED)), role).items()}
        decoded = autoencoder.decode(autoencoder.encode(frame, role), frame, role)
        found = frame_errors(decoded, frame, autoencoder.mean_square(role)).mean(dim=0)
        errors |= dict(zip(names, found.tolist(), strict=True))
    return errors
