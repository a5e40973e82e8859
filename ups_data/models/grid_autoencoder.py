"""Regular grids to tokens and back: patches, and convolutions over the token grid, in one to three dimensions.

Nothing depends on where a token stands, so on periodic axes a shift of the field by whole patches shifts the
tokens. A linear path runs beside the networks. It starts as the principal components of the patches, the best
linear code there is, and the networks start at zero: training begins at a small error and lowers it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups_data.errors import UpsDataError
from ups_data.models.folding import NO_UNITS, Folded, Units, fold
from ups_data.models.padding import pad_grid

CONVOLUTION = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def token_shape(latent_len: int, extents: Sequence[float], resolution: Sequence[int] | None = None) -> list[int]:
    """Divide a box into `latent_len` patches that are as near to cubes as can be; returns patches an axis.

    With a `resolution` a patch holds a whole number of points. Raises UpsDataError when there is no such division.
    """
    counts = [_divisors(latent_len)] * len(extents) if resolution is None else [_divisors(n) for n in resolution]
    shapes = [shape for shape in itertools.product(*counts) if math.prod(shape) == latent_len]
    if not shapes:
        lengths = {math.prod(shape) for shape in itertools.product(*counts)}
        near = sorted(sorted(lengths, key=lambda n: abs(math.log(n / latent_len)))[:3])
        raise UpsDataError(
            f"autoencoder.latent_len: {latent_len} tokens do not divide "
            f"{' x '.join(map(str, resolution or []))} points into whole patches; use {', '.join(map(str, near))}"
        )

    def flatness(shape: tuple[int, ...]) -> float:
        sides = [extent / count for extent, count in zip(extents, shape, strict=True)]
        return max(sides) / min(sides)

    return list(min(shapes, key=lambda shape: (flatness(shape), shape)))


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def to_patches(fields: Tensor, tokens: Sequence[int]) -> Tensor:
    """[B, X1, .., C] -> [B, points of a patch * C, T1, ..]."""
    batch, *resolution, channels = fields.shape
    axes = len(tokens)
    split = [n for points, count in zip(resolution, tokens, strict=True) for n in (count, points // count)]
    order = [0, *range(2, 2 * axes + 1, 2), 2 * axes + 1, *range(1, 2 * axes, 2)]
    return fields.reshape(batch, *split, channels).permute(order).reshape(batch, -1, *tokens)


def from_patches(patches: Tensor, resolution: Sequence[int]) -> Tensor:
    """The inverse of `to_patches`: [B, points of a patch * C, T1, ..] -> [B, X1, .., C]."""
    batch, _, *tokens = patches.shape
    axes = len(tokens)
    sizes = [points // count for points, count in zip(resolution, tokens, strict=True)]
    order = [0, *(n for axis in range(axes) for n in (2 + axes + axis, 1 + axis)), 1 + axes]
    return patches.reshape(batch, *sizes, -1, *tokens).permute(order).reshape(batch, *resolution, -1)


def static_patches(fields: Tensor, tokens: Sequence[int]) -> Tensor:
    """Fields that do not change in time [B, X.., C] as the numbers of each token's patch: [B, L, Q]."""
    return to_patches(fields, tokens).flatten(2).transpose(1, 2).contiguous()


def spacing(coordinates: Mapping[str, np.ndarray], every: int) -> dict[str, float]:
    """Mean distance from every n-th point to the next along each axis, in the unit of the coordinates."""
    return {axis: every * float(x[-1] - x[0]) / max(1, len(x) - 1) for axis, x in coordinates.items()}


class Convolution(nn.Module):
    """Three points wide along every axis, [B, C, X..] -> [B, C', X..]."""

    def __init__(self, inputs: int, outputs: int, periodic: Sequence[bool]):
        super().__init__()
        self.periodic = tuple(periodic)
        self.kernel = CONVOLUTION[len(periodic)](inputs, outputs, 3)

    def forward(self, grid: Tensor) -> Tensor:
        return self.kernel(pad_grid(grid, self.periodic, 1))


class Block(nn.Module):
    """A residual step: neighbours, a nonlinearity, channels."""

    def __init__(self, width: int, periodic: Sequence[bool]):
        super().__init__()
        self.neighbours = Convolution(width, width, periodic)
        self.channels = CONVOLUTION[len(periodic)](width, width, 1)

    def forward(self, grid: Tensor) -> Tensor:
        return grid + self.channels(F.gelu(self.neighbours(grid)))


class TokenNetwork(nn.Module):
    """A linear convolution and, beside it, a residual network of `depth` blocks over the token grid, none if 0."""

    def __init__(self, inputs: int, outputs: int, config: dict, depth: int):
        super().__init__()
        periodic, width = config["periodic"], config["width"]
        pointwise = CONVOLUTION[len(periodic)]
        self.linear = Convolution(inputs, outputs, periodic)
        self.network: nn.Sequential | None = None
        if depth:
            blocks = [Block(width, periodic) for _ in range(depth)]
            self.network = nn.Sequential(pointwise(inputs, width, 1), *blocks, pointwise(width, outputs, 1))
        self.folded: Folded | None = None

    def forward(self, grid: Tensor) -> Tensor:
        if self.folded is not None:
            return self.folded(grid)
        return self.linear(grid) if self.network is None else self.linear(grid) + self.network(grid)

    def fold(self, given: Units = NO_UNITS, made: Units = NO_UNITS) -> None:
        """Compute the same in fewer operations from now on; the weights must not change any more.

        From now on it takes its input with the units `given`, and its output has lost those of `made`.
        """
        self.folded = fold(self.linear.kernel, self.network, self.linear.periodic, given, made)

    @torch.no_grad()
    def start(self, matrix: Tensor) -> None:
        """Make it the linear map `matrix` [outputs, inputs] of each token alone; fewer outputs are the first ones."""
        nn.init.zeros_(self.linear.kernel.weight)
        nn.init.zeros_(self.linear.kernel.bias)
        self.linear.kernel.weight[(slice(None), slice(None), *[1] * len(self.linear.periodic))] = matrix
        if self.network is not None:
            nn.init.zeros_(self.network[-1].weight)
            nn.init.zeros_(self.network[-1].bias)


class GridEncoder(TokenNetwork):
    """Grids [B, X.., C] -> tokens [B, L, D]."""

    def __init__(self, config: dict, channels: int):
        patch = channels * math.prod(config["resolution"]) // math.prod(config["token_grid"])
        super().__init__(patch, config["latent_dim"], config, config.get("encoder_depth", config["depth"]))
        self.tokens = config["token_grid"]

    def forward(self, grid: Tensor) -> Tensor:
        return super().forward(to_patches(grid, self.tokens)).flatten(2).transpose(1, 2)

    def fold(self, given: Units = NO_UNITS, made: Units = NO_UNITS) -> None:
        """As of every network; `given` is of channels."""
        points = self.linear.kernel.in_channels // given[0].numel()
        super().fold(tuple(number.repeat(points) for number in given), made)


class GridDecoder(TokenNetwork):
    """Tokens [B, L, D] -> grids [B, X.., C]."""

    def __init__(self, config: dict, channels: int):
        patch = channels * math.prod(config["resolution"]) // math.prod(config["token_grid"])
        super().__init__(config["latent_dim"], patch, config, config["depth"])
        self.tokens, self.resolution = config["token_grid"], config["resolution"]

    def forward(self, latents: Tensor) -> Tensor:
        return from_patches(super().forward(latents.transpose(1, 2).unflatten(2, self.tokens)), self.resolution)


def start_linear(encoder: GridEncoder, decoder: GridDecoder, grids: Tensor) -> None:
    """Start both as the principal components of the patches of `grids` [n, X.., C], with latents of unit variance."""
    patches = to_patches(grids, encoder.tokens).flatten(2).transpose(1, 2).flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    kept = encoder.linear.kernel.out_channels
    # Components without variance (constant or repeated channels) would be divided by zero.
    scale = values.flip(0)[:kept].clamp_min(1e-10 * values[-1].clamp_min(1e-10)).sqrt()
    components = vectors.flip(1)[:, :kept]
    missing = kept - components.shape[1]  # more latents than numbers in a patch
    components, scale = F.pad(components, (0, missing)), F.pad(scale, (0, missing), value=1.0)
    encoder.start((components / scale).T.to(grids.dtype))
    decoder.start((components * scale).to(grids.dtype))
