"""The autoencoder of every kind of data: fields to tokens of a few numbers each, and back.

    grids      fields -> patches -> network -> tokens, and back
    points     (meshes and particles) values at points -> spline coefficients on a regular grid -> as grids

A role names the channels that are encoded together: `state` for what develops in time, `input` and `target` for a
static problem. Every role has its own encoder and decoder. A frame is a dict of tensors: grids have `fields`
[B, X.., C]; points have `fields` [B, N, C], `coords` [B, N, d], `mask` [B, N] (false where a row is padding) and, on
meshes, `boundary` [B, N] (distance to the boundary) and `topology` [B] (equal numbers: equal coords).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ups_data.errors import UpsDataError
from ups_data.models import splines
from ups_data.models.checkpoint import load_model, load_weights, save_model, weights_id
from ups_data.models.folding import NO_UNITS, Units
from ups_data.models.grid_autoencoder import GridDecoder, GridEncoder, start_linear
from ups_data.params import View

FORMAT, VERSION = "ups-data/autoencoder", 1
LARGE_MEAN = 10  # spreads: taken off by a kernel, it puts latents off by 4e-6 of their spread; float16 by 2e-4
BOUNDARY = "boundary"  # encoded beside the fields of a mesh: from it a model of the latents knows the domain
TINY = 1e-30  # keeps the logarithm of the channels whose logarithm is not wanted finite
Frame = dict[str, Tensor]


class Autoencoder(nn.Module):
    """Built by `build_autoencoder` from a JSON-able config:

    task, kind, view, data (key of the training data); roles {role: [channel]}; normaliser {channel: {mean, std}}, and
    {log: {mean, std, floor}} where the logarithm is encoded; latent_len, latent_dim, width, depth (of the
    decoder), encoder_depth (without it: depth); token_grid and resolution (points or splines an axis); periodic an
    axis; box [[low, high]] an axis (points alone); spacing {axis: distance of the view's points} (grids alone, not in
    checkpoints of before it was kept); steps (how long it was trained).
    """

    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        self.roles: dict[str, list[str]] = config["roles"]
        self.points = config["kind"] != "grid"
        self.logarithms: dict[str, bool] = {}  # role -> whether the logarithm of a channel is encoded
        self.raw: dict[str, bool] = {}  # role -> whether a frozen encoder takes the fields with their units
        self.encoders, self.decoders = nn.ModuleDict(), nn.ModuleDict()
        for role in self.roles:
            names = self._encoded(role)
            self.encoders[role], self.decoders[role] = GridEncoder(config, len(names)), GridDecoder(config, len(names))
            facts = [config["normaliser"][name] for name in names]
            network = [fact.get("log", fact) for fact in facts]
            self._constant(f"{role}_mean", [fact["mean"] for fact in network])
            self._constant(f"{role}_std", [fact["std"] for fact in network])
            self.logarithms[role] = any("log" in fact for fact in facts)
            small = all(abs(fact["mean"]) <= LARGE_MEAN * fact["std"] for fact in network)
            self.raw[role] = small and not self.points and not self.logarithms[role]
            self._constant(f"{role}_floor", [fact["log"]["floor"] if "log" in fact else 0.0 for fact in facts])
            self._constant(f"{role}_mean_square", [fact["mean"] ** 2 + fact["std"] ** 2 for fact in facts])
            self.register_buffer(f"{role}_latent_mean", torch.zeros(config["latent_dim"]))
            self.register_buffer(f"{role}_latent_std", torch.ones(config["latent_dim"]))
        if len(config["periodic"]) == 2:
            self.to(memory_format=torch.channels_last)  # convolutions in half the time on the CPU

    def _constant(self, name: str, values: list[float]) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def _encoded(self, role: str) -> list[str]:
        """The channels of a role, and the boundary where a model has to learn the domain from its latents."""
        return self.roles[role] + [BOUNDARY] * (self.config["kind"] == "mesh" and role != "target")

    def encode(self, frame: Frame, role: str) -> Tensor:
        """Latents [B, L, D] of a frame with the role's channels, each of about zero mean and unit variance."""
        encoder = self.encoders[role]
        if encoder.folded is not None:  # units are in its kernels
            return encoder(frame["fields"] if self.raw[role] else self.prepare(frame, role)["grid"])
        latents = encoder(self.prepare(frame, role)["grid"])
        return (latents - self.get_buffer(f"{role}_latent_mean")) / self.get_buffer(f"{role}_latent_std")

    def _units(self, of: str) -> Units:
        return self.get_buffer(f"{of}_mean"), self.get_buffer(f"{of}_std")

    def decode(self, latents: Tensor, frame: Frame | None, role: str) -> Tensor:
        """Fields in physical units: [B, X.., C] on a grid (frame None), [B, N, C] at a frame's coords."""
        latents = latents * self.get_buffer(f"{role}_latent_std") + self.get_buffer(f"{role}_latent_mean")
        fields = self._at_points(self.decoders[role](latents), frame)
        fields = fields * self.get_buffer(f"{role}_std") + self.get_buffer(f"{role}_mean")
        floor = self.get_buffer(f"{role}_floor")
        if self.logarithms[role]:
            fields = torch.where(floor > 0, fields.exp(), fields)
        return fields[..., : len(self.roles[role])]

    def prepare(self, frame: Frame, role: str) -> Frame:
        """All of encoding that has no weights: `grid` [B, X.., C] for the encoder, normalised.

        For points also `truth` [B, N, C] (normalised, the boundary as its last channel where it is encoded), `coords`
        and `mask`; on grids `grid` is the truth.
        """
        fields = frame["fields"]
        if len(self._encoded(role)) > len(self.roles[role]):
            fields = torch.cat([fields, frame[BOUNDARY][..., None]], dim=-1)
        floor = self.get_buffer(f"{role}_floor")
        if self.logarithms[role]:
            fields = torch.where(floor > 0, fields.clamp_min(floor.clamp_min(TINY)).log(), fields)
        fields = (fields - self.get_buffer(f"{role}_mean")) / self.get_buffer(f"{role}_std")
        if not self.points:
            return {"grid": fields}
        fields = fields * frame["mask"][..., None]
        grid = splines.fit_frames(fields, frame["coords"], frame["mask"], frame.get("topology"), self._splines())
        return {"grid": grid, "truth": fields, "coords": frame["coords"], "mask": frame["mask"]}

    def reconstruct(self, prepared: Frame, role: str) -> Tensor:
        """Encode and decode a prepared frame: normalised, channels as in its truth; before `freeze`."""
        return self._at_points(self.decoders[role](self.encoders[role](prepared["grid"])), prepared)

    def _at_points(self, grid: Tensor, frame: Frame | None) -> Tensor:
        return splines.evaluate(grid, *splines.supports(frame["coords"], self._splines())) if self.points else grid

    def _splines(self) -> splines.SplineGrid:
        return splines.SplineGrid(self.config["box"], self.config["resolution"], self.config["periodic"])

    def mean_square(self, role: str) -> Tensor:
        """Mean square of each channel over the training data, in physical units: [C]."""
        return self.get_buffer(f"{role}_mean_square")[: len(self.roles[role])]

    def offset(self, role: str) -> Tensor:
        """What a normalised field of zero stands for, in units of the normaliser's spread: [C]."""
        return self.get_buffer(f"{role}_mean") / self.get_buffer(f"{role}_std")

    def start(self, role: str, grids: Tensor) -> None:
        """Start a role's networks as the principal components of the patches of prepared `grids` [n, X.., C]."""
        start_linear(self.encoders[role], self.decoders[role], grids)

    @torch.no_grad()
    def standardise(self, role: str, grids: Tensor) -> None:
        """Set mean and spread of the latents to those of prepared `grids` [n, X.., C], before `freeze`."""
        blocks = [self.encoders[role](block).flatten(0, 1).double() for block in grids.split(256)]
        latents = torch.cat(blocks)
        self.get_buffer(f"{role}_latent_mean").copy_(latents.mean(dim=0))
        self.get_buffer(f"{role}_latent_std").copy_(latents.std(dim=0).clamp_min(1e-6))

    def freeze(self) -> Autoencoder:
        """Make a trained autoencoder ready for use where it is: its weights take no gradients, a CPU has them folded.

        What is saved and what the latents depend on stays the same. On a GPU a training step through a folded decoder
        took four times as long (27.7 in place of 6.8 ms on an H200).
        """
        if next(self.parameters()).device.type == "cpu":
            for role, encoder in self.encoders.items():
                given = self._units(role) if self.raw[role] else NO_UNITS
                encoder.fold(given, self._units(f"{role}_latent"))
                self.decoders[role].fold()
        return self.eval().requires_grad_(False)

    def constituents(self) -> dict[str, str]:
        """What the latents depend on, by name: weights, config, normaliser, view, data."""
        config = {key: value for key, value in self.config.items() if key not in ("normaliser", "view", "data")}
        view = self.config["view"]
        return {
            "weights": weights_id(self.state_dict()),
            "config": _digest(config),
            "normaliser": _digest(self.config["normaliser"]),
            "view": f"every {view['space_stride']}. point, every {view['time_stride']}. frame",
            "data": self.config["data"],
        }


def build_autoencoder(config: dict) -> Autoencoder:
    """An untrained autoencoder; its weights come from torch's global generator."""
    return Autoencoder(config)


def save_autoencoder(path: str | Path, autoencoder: Autoencoder, steps: int) -> None:
    """Write the weights, and the config with the number of steps they were trained for."""
    save_model(path, autoencoder.state_dict(), autoencoder.config | {"steps": steps})


def load_autoencoder(path: str | Path, device: torch.device | str = "cpu") -> Autoencoder:
    """Read a trained autoencoder, frozen and ready to encode.

    Raises UpsDataError for a file that is missing, damaged, of another kind, or an autoencoder that was never trained.
    """
    weights, config = load_model(path)
    if (config.get("format"), config.get("version")) != (FORMAT, VERSION):
        raise UpsDataError(
            f"{path}: got format {config.get('format')!r} version {config.get('version')}, "
            f"expected {FORMAT!r} version {VERSION}; train it again with `python -m stages.autoencoder TASK`"
        )
    refuse_untrained(config, str(path))
    autoencoder = Autoencoder(config)
    load_weights(autoencoder, weights, path)
    return autoencoder.to(device).freeze()


def check_view(autoencoder: Autoencoder, task: str, view: View) -> None:
    """Raise UpsDataError unless the autoencoder was trained at the view that is asked for."""
    if autoencoder.config["view"] != view.model_dump():
        raise UpsDataError(
            f"{task}: the autoencoder was trained at the view {autoencoder.config['view']}, got {view.model_dump()}; "
            f"train it again with `python -m stages.autoencoder {task}`"
        )


def check_data(autoencoder: Autoencoder, task: str, key: str, folder: str | Path) -> None:
    """Raise UpsDataError unless the autoencoder was trained on the conversion with that key, which is in `folder`."""
    if autoencoder.config["data"] != key:
        raise UpsDataError(
            f"{folder}: {task} was converted anew since its models were trained; train them again with "
            f"`python -m stages.autoencoder {task}` and what follows it, or `dvc repro`"
        )


def refuse_untrained(config: Mapping, where: str) -> None:
    """Raise UpsDataError for an autoencoder that was trained for no step: its latents mean nothing."""
    if config["steps"] < 1:
        raise UpsDataError(
            f"{where}: this autoencoder was trained for 0 steps; "
            f"train it with `python -m stages.autoencoder {config['task']}`"
        )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
