"""The latent operator: from the last latent frames to the next ones, under given physical parameters.

A transformer over the token grid. On periodic axes every part of it (attention by relative position,
circular convolution, pointwise layers) commutes with shifts of the grid, as the equations do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups_data.errors import UpsDataError
from ups_data.models.checkpoint import load_model, load_weights, weights_id
from ups_data.models.padding import pad_grid

FORMAT = "ups-data/operator"
CONVOLUTION = {1: (nn.Conv1d, 7), 2: (nn.Conv2d, 5), 3: (nn.Conv3d, 3)}  # and its taps, by number of token axes


class Conditioning(nn.Module):
    """Physical parameters [B, P] and time step [B] to a vector [B, width].

    Both enter as logarithms, standardised over the training data: their effects are multiplicative.
    A parameter that is not positive throughout enters as it is. One that some training samples do not have, being of
    another equation, is NaN there: it enters as 0, and a further input says whether it is there, 1 or 0.
    """

    def __init__(self, config: dict, width: int):
        super().__init__()
        facts = config["conditioning"]
        for name in ("log", "mean", "std"):
            self.register_buffer(name, torch.tensor(facts[name], dtype=torch.float64), persistent=False)
        optional = facts.get("optional", [])
        self.register_buffer("optional", torch.tensor(optional, dtype=torch.int64), persistent=False)
        inputs = len(facts["log"]) + len(optional)
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, parameters: Tensor, time_step: Tensor) -> Tensor:
        values = torch.cat([parameters.double(), time_step.double()[:, None]], dim=1)
        values = torch.where(self.log > 0, values.clamp_min(1e-300).log(), values)
        values = (values - self.mean) / self.std
        if len(self.optional):
            some = values.index_select(1, self.optional)
            there = ~some.isnan()
            values = values.index_copy(1, self.optional, some.masked_fill(~there, 0.0))
            values = torch.cat([values, there.double()], dim=1)
        return self.layers(values.float())


def conditioning_facts(parameters: Tensor, time_step: float, names: Sequence[str]) -> dict:
    """Which columns of (parameters [S, P], time step) enter as logarithms, and their mean and spread.

    Also the `names` of the parameters and which of them go together, being of one of the `equations`; where some are
    missing (NaN), which columns are `optional`.
    """
    times = torch.full((len(parameters), 1), time_step, dtype=torch.float64)
    values = torch.cat([parameters.double(), times], dim=1)
    missing = values.isnan()
    log = ((values > 0) | missing).all(dim=0)
    values = torch.where(log, values.clamp_min(1e-300).log(), values)
    mean, std = values.mean(dim=0), values.std(dim=0, correction=0)
    optional = missing.any(dim=0).nonzero().flatten().tolist()
    for column in optional:
        known = values[~missing[:, column], column]
        mean[column] = known.mean() if len(known) else 0.0
        std[column] = known.std(correction=0) if len(known) else 1.0
    # A column that never varies gets spread 1: it enters as 0, and as the log ratio when it does vary later.
    largest = values.nan_to_num().abs().amax(dim=0)  # the mean of equal numbers may be off by rounding
    std = torch.where(std > 1e-9 * largest, std, torch.ones_like(std))
    facts = {"log": log.double().tolist(), "mean": mean.tolist(), "std": std.tolist(), "names": list(names)}
    return facts | {"equations": equations(parameters, names)} | ({"optional": optional} if optional else {})


def equations(parameters: Tensor, names: Sequence[str]) -> list[list[str]]:
    """The names of the parameters that samples [S, P] have together, once for each such set."""
    sets = {tuple(there) for there in (~parameters.isnan()).tolist()}
    return sorted(sorted(name for name, there in zip(names, own, strict=True) if there) for own in sets)


def check_conditioning(facts: dict, parameters: Tensor, names: Sequence[str], where: object) -> None:
    """Raise UpsDataError where samples [S, P] have parameters that no training sample has together, or no logarithm."""
    known = facts.get("equations", [sorted(names)])  # a model of before the names were kept takes what it is given
    strange = [own for own in equations(parameters, names) if own not in known]
    if strange:
        raise UpsDataError(
            f"{where}: some samples have the parameters {alternatives(strange[:1])}, those of train have "
            f"{alternatives(known)}; change splits.seed or take more samples, so that train has every equation"
        )
    check_positive(facts, parameters, names, where)


def check_positive(facts: dict, parameters: Tensor, names: Sequence[str], where: object) -> None:
    """Raise UpsDataError where a parameter that enters as its logarithm has none in samples [S, P]; NaN is missing."""
    logarithms = dict(zip(facts.get("names", names), facts["log"], strict=False))
    for name, column in zip(names, parameters.T, strict=True):
        if logarithms.get(name) and (wrong := column <= 0).any():
            raise UpsDataError(
                f"{where}: {name}: got {column[wrong][0].item():g}, expected a positive number: it was positive "
                "throughout the training of the model, which takes its logarithm; leave these samples out or train on "
                "some that have it"
            )


def alternatives(sets: Sequence[Sequence[str]]) -> str:
    """Sets of parameters in a sentence: `advection_speed or viscosity`."""
    return " or ".join(" and ".join(own) or "none" for own in sets)


class Surroundings(nn.Module):
    """Patches of the fields that do not change in time (a force) [B, L, Q] to what they add to each token."""

    def __init__(self, facts: dict, width: int):
        super().__init__()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(facts[name]), persistent=False)
        self.layer = nn.Linear(len(facts["mean"]), width)

    def forward(self, patches: Tensor) -> Tensor:
        return self.layer((patches - self.mean) / self.std)


def static_facts(patches: Tensor) -> dict:
    """Mean and spread of every number of the patches [S, L, Q] of static fields."""
    flat = patches.double().flatten(0, 1)
    std = flat.std(dim=0, correction=0)
    return {"mean": flat.mean(dim=0).tolist(), "std": torch.where(std > 0, std, torch.ones_like(std)).tolist()}


def rotary_angles(token_grid: Sequence[int], periodic: Sequence[bool], pairs: int) -> Tensor:
    """Angles [L, pairs] of the rotary positions; the pairs are dealt out over the axes.

    On a periodic axis of n tokens the frequencies are whole harmonics 2 pi k / n, so the distance across the
    seam is a distance like any other; elsewhere the longest wave is two lengths of the axis.
    """
    axes = torch.meshgrid(*(torch.arange(n) for n in token_grid), indexing="ij")
    columns = []
    for pair in range(pairs):
        axis, harmonic = pair % len(token_grid), pair // len(token_grid) + 1
        period = token_grid[axis] * (1 if periodic[axis] else 2)
        columns.append(2 * math.pi * harmonic / period * axes[axis].reshape(-1))
    return torch.stack(columns, dim=1).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + d/2}) of the last axis of x [.., L, d]; cos and sin [L, d] hold each angle twice."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Block(nn.Module):
    """Depthwise convolution, attention and a pointwise network, each scaled and shifted by the conditioning."""

    def __init__(self, width: int, heads: int, token_grid: Sequence[int], periodic: Sequence[bool]):
        super().__init__()
        self.heads, self.token_grid, self.periodic = heads, tuple(token_grid), tuple(periodic)
        convolution, taps = CONVOLUTION[len(token_grid)]
        self.taps = min(taps, 2 * ((min(token_grid) + 1) // 2) - 1)  # a short axis is not wrapped around twice
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.near = convolution(width, width, self.taps, groups=width)
        self.mix = nn.Linear(width, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def matrices(self) -> list[Tensor]:
        """The weights that act on tokens, [out, in]."""
        return [layer.weight for layer in (self.mix, self.qkv, self.out, self.wide[0], self.wide[2])]

    def forward(self, x: Tensor, condition: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, L, width] to the same, under the condition [B, width]."""
        scales, shifts = (
            self.modulation(condition)[:, None].unflatten(-1, (2, 3, -1)).unbind(2)
        )  # each [B, 1, 3, width]
        (first, second, third), (a, b, c) = (1 + scales).unbind(2), shifts.unbind(2)
        x = x + self.mix(F.gelu(self._convolve(torch.addcmul(a, _norm(x), first))))
        x = x + self._attend(torch.addcmul(b, _norm(x), second), cos, sin)
        return x + self.wide(torch.addcmul(c, _norm(x), third))

    def _convolve(self, x: Tensor) -> Tensor:
        if x.is_cuda and self.periodic == (True,):
            return self._convolve_ring(x)
        grid = x.transpose(1, 2).unflatten(2, self.token_grid)  # [B, width, L..]
        grid = pad_grid(grid, self.periodic, self.taps // 2)
        return self.near(grid).flatten(2).transpose(1, 2)

    def _convolve_ring(self, x: Tensor) -> Tensor:
        """The same as a sum of turned copies, which a compiler makes one kernel of; libraries want transposes."""
        weight, half = self.near.weight[:, 0], self.taps // 2
        total = self.near.bias.expand_as(x)
        for tap in range(self.taps):
            total = torch.addcmul(total, x.roll(half - tap, dims=1), weight[:, tap])
        return total

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, heads, L, d]
        q, k = rotate(parts[:2], cos, sin).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, parts[2]).transpose(1, 2).flatten(2))


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


class LatentOperator(nn.Module):
    """`history` latent frames to the next `bundle`; for a static problem the input's latents to the target's."""

    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        width, heads = config["width"], config["heads"]
        grid, periodic = config["token_grid"], config["periodic"]
        self.history, self.bundle, self.static = config["history"], config["bundle"], config["static"]
        latent = config["latent_dim"]
        self.condition = Conditioning(config, width)
        self.inward = nn.Linear(self.history * latent, width)
        self.surroundings = Surroundings(config["static_fields"], width) if config.get("static_fields") else None
        self.blocks = nn.ModuleList(Block(width, heads, grid, periodic) for _ in range(config["depth"]))
        self.norm = nn.LayerNorm(width)
        self.outward = nn.Linear(width, self.bundle * latent)
        # Only a bounded domain has a place of its own for each token; a periodic one looks the same everywhere.
        self.place = None if all(periodic) else nn.Parameter(0.02 * torch.randn(math.prod(grid), width))
        angles = rotary_angles(grid, periodic, width // heads // 2).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        nn.init.zeros_(self.outward.weight)  # an untrained operator predicts persistence
        nn.init.zeros_(self.outward.bias)

    def matrices(self) -> list[Tensor]:
        """The matrices inside the blocks, which the optimiser Muon is made for."""
        return [matrix for block in self.blocks for matrix in block.matrices()]

    def forward(
        self, history: Tensor, parameters: Tensor, time_step: Tensor, static_fields: Tensor | None = None
    ) -> Tensor:
        """[B, H, L, D], [B, P], [B] and, where the data have static fields, their patches [B, L, Q] to [B, K, L, D].

        Time-dependent problems predict the change since the last frame.
        """
        if (static_fields is None) != (self.surroundings is None):
            raise ValueError("static fields are given to an operator if and only if it was trained with them")
        condition = self.condition(parameters, time_step)
        x = self.inward(history.transpose(1, 2).flatten(2))  # B H L D -> B L (H D)
        if self.place is not None:
            x = x + self.place
        if self.surroundings is not None:
            x = x + self.surroundings(static_fields)
        # bfloat16 has three digits. They are enough to learn from, if what the blocks add to and the ways in and out
        # stay float32; a rollout needs more and has time for it: rounded, smooth fields are a thousandth off after some
        # calls.
        rounded = self.training and history.device.type == "cuda"
        with torch.autocast(history.device.type, torch.bfloat16, enabled=rounded):
            for block in self.blocks:
                x = block(x, condition, self.cos, self.sin)
        change = self.outward(self.norm(x))
        change = change.unflatten(-1, (self.bundle, -1)).transpose(1, 2)  # B L (K D) -> B K L D
        return change if self.static else history[:, -1:] + change

    def rollout(
        self,
        history: Tensor,
        parameters: Tensor,
        time_step: Tensor,
        steps: int,
        static_fields: Tensor | None = None,
    ) -> Tensor:
        """The next `steps` frames [B, steps, L, D], fed back call after call."""
        frames, made = [], 0
        while made < steps:
            frames.append(self(history, parameters, time_step, static_fields))
            history = torch.cat([history, frames[-1]], dim=1)[:, -self.history :]
            made += self.bundle
        return torch.cat(frames, dim=1)[:, :steps]


def build_operator(config: dict) -> LatentOperator:
    """A fresh operator; raises UpsDataError when the width cannot be shared out over the heads."""
    axes = len(config["token_grid"])
    if config["width"] % (2 * axes * config["heads"]):
        raise UpsDataError(
            f"train.width: got {config['width']}, expected a multiple of {2 * axes * config['heads']} "
            f"(2 x {axes} token axes x {config['heads']} heads); change width or heads"
        )
    return LatentOperator(config)


def load_operator(path: str | Path, device: torch.device, autoencoder: nn.Module | None = None) -> LatentOperator:
    """The trained operator in evaluation mode.

    Raises UpsDataError when the file is no operator, or one that was trained on the latents of another autoencoder.
    """
    weights, config = load_model(path)
    if config.get("format") != FORMAT:
        raise UpsDataError(f"{path}: got {config.get('format')!r}, expected {FORMAT!r}; train it with `stages.train`")
    if autoencoder is not None and config["autoencoder"] != weights_id(autoencoder.state_dict()):
        raise UpsDataError(
            f"{path} was trained on the latents of another autoencoder; "
            f"train it again with `python -m stages.train {Path(path).parent.name}`"
        )
    model = LatentOperator(config)
    load_weights(model, weights, path)
    return model.to(device).eval()
