"""Plain networks in physical space, one a kind of data: what the latent operator is compared with.

All of them see normalised fields, are conditioned on standardised parameters by adding a learned vector, and
predict the change over one frame (grids, particles) or the solution (meshes).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups_data.errors import UpsDataError
from ups_data.models.checkpoint import load_model, load_weights
from ups_data.models.operator import Conditioning
from ups_data.models.padding import pad_grid

FORMAT = "ups-data/baseline"


class Baseline(nn.Module):
    """What the three share: the configuration, and the normalisation of channels by train's mean and std."""

    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(config[name], dtype=torch.float32), persistent=False)
        self.condition = Conditioning(config, config["width"])


class GridNet(Baseline):
    """Residual convolutions of 5 points with dilations 1, 2, 4, ..: one frame to the next `bundle` frames.

    Fields that do not change in time (a force) are further channels of what it sees; their mean and std stand after
    those of the others.
    """

    def __init__(self, config: dict):
        super().__init__(config)
        width, channels = config["width"], config["channels"]
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(config["periodic"])]
        self.inward = convolution(len(config["mean"]), width, 5)
        self.blocks = nn.ModuleList(convolution(width, width, 5, dilation=2**i) for i in range(config["depth"]))
        self.outward = convolution(width, config["bundle"] * channels, 5)
        _start_at_zero(self.outward)

    def forward(self, frame: Tensor, parameters: Tensor, time_step: Tensor, static_fields: Tensor) -> Tensor:
        """[B, X.., C], [B, P], [B], [B, X.., C'] (C' may be 0) to [B, bundle, X.., C]."""
        periodic = self.config["periodic"]
        seen = torch.cat([frame, static_fields], dim=-1)
        x = self.inward(pad_grid(((seen - self.mean) / self.std).movedim(-1, 1), periodic, 2))
        condition = self.condition(parameters, time_step)
        condition = condition.reshape(*condition.shape, *(1 for _ in periodic))
        for level, block in enumerate(self.blocks):
            x = x + F.gelu(block(pad_grid(x, periodic, 2 * 2**level)) + condition)
        change = self.outward(pad_grid(x, periodic, 2)).unflatten(1, (self.config["bundle"], -1)).movedim(2, -1)
        return frame[:, None] + self.std[: frame.shape[-1]] * change

    def rollout(
        self, frame: Tensor, parameters: Tensor, time_step: Tensor, steps: int, static_fields: Tensor
    ) -> Tensor:
        """The next `steps` frames [B, steps, X.., C], the last one fed back call after call."""
        frames, made = [], 0
        while made < steps:
            frames.append(self(frame, parameters, time_step, static_fields))
            frame = frames[-1][:, -1]
            made += self.config["bundle"]
        return torch.cat(frames, dim=1)[:, :steps]


class MeshNet(Baseline):
    """Message passing over mesh edges: input fields, and whether a node is on the boundary, to target fields."""

    def __init__(self, config: dict):
        super().__init__(config)
        width, dimension = config["width"], config["dimension"]
        self.inward = _perceptron(len(config["inputs"]) + 1, width, width)
        self.messages = nn.ModuleList(
            _perceptron(2 * width + dimension + 1, width, width) for _ in range(config["depth"])
        )
        self.updates = nn.ModuleList(_perceptron(2 * width, width, width) for _ in range(config["depth"]))
        self.outward = _perceptron(width, width, len(config["targets"]))
        for name in ("inputs", "targets"):  # as tensors: a recorded step can copy no list to a GPU
            self.register_buffer(name, torch.tensor(config[name]), persistent=False)

    def forward(self, inputs: Tensor, coords: Tensor, edges: Tensor, boundary: Tensor, parameters: Tensor) -> Tensor:
        """Input fields [B, N, C] on one mesh: coords [N, d], edges [E, 2], boundary [N], to targets [B, N, C']."""
        mean, std = self.mean[self.inputs], self.std[self.inputs]
        marks = boundary.to(inputs.dtype)[None, :, None].expand(*inputs.shape[:2], 1)
        x = self.inward(torch.cat([(inputs - mean) / std, marks], dim=-1))
        x = x + self.condition(parameters, torch.ones_like(inputs[:, 0, 0]))[:, None]
        sender, receiver = torch.cat([edges, edges.flip(1)]).T  # every edge both ways
        offset = (coords[sender] - coords[receiver]) / self.config["edge_length"]
        offset = torch.cat([offset, offset.norm(dim=1, keepdim=True)], dim=1).expand(len(x), -1, -1)
        degree = torch.zeros(len(coords), device=x.device).index_add(0, receiver, torch.ones_like(offset[0, :, 0]))
        for message, update in zip(self.messages, self.updates, strict=True):
            sent = message(torch.cat([x[:, sender], x[:, receiver], offset], dim=-1))
            received = torch.zeros_like(x).index_add(1, receiver, sent) / degree[:, None]
            x = x + update(torch.cat([x, received], dim=-1))
        mean, std = self.mean[self.targets], self.std[self.targets]
        return mean + std * self.outward(x)


class ParticleNet(Baseline):
    """Acceleration of every particle from its own motion and the moments of its neighbours' motion."""

    def __init__(self, config: dict):
        super().__init__(config)
        width, d = config["width"], config["dimension"]
        self.inward = _perceptron(4 * d + d * d, width, width)
        self.layers = nn.ModuleList(_perceptron(width, width, width) for _ in range(config["depth"]))
        self.outward = nn.Linear(width, d)
        _start_at_zero(self.outward)

    def forward(
        self, positions: Tensor, velocities: Tensor, before: Tensor, box: Tensor, parameters: Tensor, time_step: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Positions and velocities [B, P, d] of a frame, and velocities of the one before, to those of the next.

        `box` [d]: periods, 0 where there is none. Positions move by the trapezoid rule and are wrapped into the box.
        """
        v, change = velocities / self.std, (velocities - before) / self.std
        near = _minimum_image(positions[:, None] - positions[:, :, None], box)  # [B, P, P, d], from row to column
        weight = (near.square().sum(-1) < self.config["radius"] ** 2).to(v.dtype)
        weight = weight / weight.sum(-1, keepdim=True)  # a particle is its own neighbour: never 0 / 0
        mean_v, mean_change = weight @ v, weight @ change
        near = near / self.config["radius"]
        mean_near = torch.einsum("bpq,bpqd->bpd", weight, near)
        shear = torch.einsum("bpq,bpqd,bqe->bpde", weight, near, v) - mean_near[..., None] * mean_v[..., None, :]
        x = self.inward(torch.cat([v, change, mean_v - v, mean_change - change, shear.flatten(2)], dim=-1))
        x = x + self.condition(parameters, time_step)[:, None]
        for layer in self.layers:
            x = x + layer(x)
        following = velocities + self.std * (change + self.outward(x))
        moved = positions + 0.5 * time_step[:, None, None] * (velocities + following)
        return torch.where(box > 0, torch.remainder(moved, torch.where(box > 0, box, 1.0)), moved), following

    def rollout(
        self, positions: Tensor, velocities: Tensor, box: Tensor, parameters: Tensor, time_step: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        """The last two known frames [B, 2, P, d] carried on: positions and velocities [B, steps, P, d]."""
        x, before, v = positions[:, -1], *velocities[:, -2:].unbind(1)
        xs, vs = [], []
        for _ in range(steps):
            (x, following), before = self(x, v, before, box, parameters, time_step), v
            v = following
            xs.append(x)
            vs.append(v)
        return torch.stack(xs, dim=1), torch.stack(vs, dim=1)


NETWORKS = {"grid": GridNet, "mesh": MeshNet, "particles": ParticleNet}


def load_baseline(path: str | Path, device: torch.device) -> Baseline:
    """The trained network in evaluation mode; raises UpsDataError when the file is no baseline."""
    weights, config = load_model(path)
    if config.get("format") != FORMAT:
        raise UpsDataError(
            f"{path}: got {config.get('format')!r}, expected {FORMAT!r}; train it with `stages.baseline`"
        )
    model = NETWORKS[config["kind"]](config)
    load_weights(model, weights, path)
    return model.to(device).eval()


def _perceptron(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))


def _start_at_zero(layer: nn.Module) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def _minimum_image(difference: Tensor, box: Tensor) -> Tensor:
    return difference - box * torch.round(difference / torch.where(box > 0, box, math.inf))
