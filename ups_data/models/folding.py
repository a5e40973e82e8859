"""A trained token network for use: what is linear between two nonlinearities multiplied out, an encoder's units too.

The stream h of a residual network is a sum of matrices times its input x and its nonlinearities g: h1 = W0 x + Wc1 g1.
What reads it, a convolution or the last layer, can take x and g instead, through a product of both matrices, or h
itself once that is computed: `fold` takes what has the fewest multiply-adds. The results are those of the network up
to rounding: a periodic or repeated margin is the same before and after a layer that sees each token alone, its bias
included. For CPUs, which are bound by arithmetic.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups_data.models.padding import pad_grid

# A line of tokens is a plane of one row: for planes the CPU has faster convolutions, with the channels last.
CONVOLVE = {1: F.conv2d, 2: F.conv2d, 3: F.conv3d}
LAYOUT = {1: torch.channels_last, 2: torch.channels_last, 3: torch.contiguous_format}
Kernels = dict[int, Tensor]  # of a value (0: the input, n: what step n - 1 makes): [outputs, channels, taps..]
Units = tuple[Tensor, Tensor]  # mean and spread, one each or one a channel: (x - mean) / spread has none
NO_UNITS: Units = torch.zeros(()), torch.ones(())


class Step(nn.Module):
    """The sum of convolutions of several values and of one value as it is; with a GELU where one follows."""

    def __init__(self, kernels: Kernels, bias: Tensor, kept: int | None = None, gelu: bool = False):
        super().__init__()
        self.taken, self.kept, self.gelu = tuple(kernels), kept, gelu
        self.wide = {value for value, kernel in kernels.items() if kernel.shape[-1] > 1}  # these need a margin
        self.axes = next(iter(kernels.values())).dim() - 2
        for value, kernel in kernels.items():
            kernel = kernel.unsqueeze(2) if self.axes == 1 else kernel
            self._constant(f"kernel{value}", kernel.float().contiguous(memory_format=LAYOUT[self.axes]))
        self._constant("bias", bias.float())

    def _constant(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)  # a checkpoint is of the weights it was made from

    def forward(self, values: Sequence[Tensor], padded: Sequence[Tensor]) -> Tensor:
        total, bias = None if self.kept is None else values[self.kept], self.get_buffer("bias")
        for value in self.taken:
            kernel = self.get_buffer(f"kernel{value}")
            term = CONVOLVE[self.axes]((padded if value in self.wide else values)[value], kernel, bias)
            total, bias = term if total is None else total + term, None
        return F.gelu(total) if self.gelu else total


class Folded(nn.Module):
    """[B, C, X..] -> [B, C', X..], as linear(x) + network(x) of a TokenNetwork whose weights stay as they are.

    The first `ahead` convolutions, and the last layer if `last`, take the input and the nonlinearities in place of the
    stream. Without a network it is the one convolution, in the layout that is fast. The network it stands for takes its
    input without the units `given`, and its output loses the units `made`.
    """

    def __init__(
        self,
        linear: nn.Module,
        network: nn.Sequential | None,
        periodic: Sequence[bool],
        given: Units,
        made: Units,
        ahead: int,
        last: bool,
    ):
        super().__init__()
        self.periodic = (None, *periodic) if len(periodic) == 1 else tuple(periodic)
        self.steps = nn.ModuleList()
        kernel, bias = _without(given, *_weights(linear))
        kernels: Kernels = {}
        if network is not None:
            kernels, more = self._through(network, given, ahead, last)
            bias = bias + more
        if last:  # two kernels of the input are one
            kernel = kernel + F.pad(kernels[0], [1] * 2 * len(periodic))
        mean, spread = (number.double() for number in made)
        kernels = {value: _over(spread, part, axis=0) for value, part in (kernels | {0: kernel}).items()}
        self.steps.append(Step(kernels, (bias - mean) / spread))
        self.padded = {value for step in self.steps for value in step.wide}

    def _through(self, network: nn.Sequential, given: Units, ahead: int, last: bool) -> tuple[Kernels, Tensor]:
        """Append the steps of a network but its last layer, which is returned."""
        first, *blocks, out = network
        stream = Stream(self.steps, *_without(given, *_weights(first)))
        for number, block in enumerate(blocks):
            kernels, bias = stream.read(*_weights(block.neighbours.kernel), folded=number < ahead)
            self.steps.append(Step(kernels, bias, gelu=True))
            stream.add(len(self.steps), *_weights(block.channels))
        return stream.read(*_weights(out), folded=last)

    @property
    def multiply_adds(self) -> int:
        """For every token: a kernel has as many numbers."""
        return sum(tensor.numel() for name, tensor in self.named_buffers() if not name.endswith("bias"))

    def forward(self, grid: Tensor) -> Tensor:
        line = grid.dim() == 3
        values, padded = [grid.unsqueeze(2) if line else grid], []
        for step in self.steps:
            padded.append(pad_grid(values[-1], self.periodic, 1) if len(padded) in self.padded else values[-1])
            values.append(step(values, padded))
        return values[-1].squeeze(2) if line else values[-1]


def fold(
    linear: nn.Module, network: nn.Sequential | None, periodic: Sequence[bool], given: Units, made: Units
) -> Folded:
    """The form with the fewest multiply-adds; the network as it is, layer by layer, is among them."""
    ways = [(0, False)] if network is None else itertools.product(range(len(network) - 1), (False, True))
    forms = (Folded(linear, network, periodic, given, made, *way) for way in ways)
    return min(forms, key=lambda folded: folded.multiply_adds)


class Stream:
    """The stream of a residual network as matrices times values, and the last of those values that is all of it."""

    def __init__(self, steps: nn.ModuleList, matrix: Tensor, bias: Tensor):
        self.steps = steps
        self.maps, self.bias = {0: matrix}, bias
        self.computed: int | None = None  # the value that was the stream, and what came to it since
        self.since, self.since_bias = self.maps, bias

    def add(self, value: int, matrix: Tensor, bias: Tensor) -> None:
        """The stream goes on: plus `matrix` times a value, plus `bias`."""
        self.maps, self.since = self.maps | {value: matrix}, self.since | {value: matrix}
        self.bias, self.since_bias = self.bias + bias, self.since_bias + bias

    def read(self, kernel: Tensor, bias: Tensor, folded: bool) -> tuple[Kernels, Tensor]:
        """Kernels and bias that give what these give of the stream, which a step more computes unless `folded`."""
        if folded:
            products = {value: _after(kernel, matrix) for value, matrix in self.maps.items()}
            return products, bias + kernel.flatten(2).sum(2) @ self.bias
        self.steps.append(Step(self.since, self.since_bias, self.computed))
        self.computed, self.since, self.since_bias = len(self.steps), {}, torch.zeros_like(self.since_bias)
        return {self.computed: kernel}, bias


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel [outputs, channels, taps..] and bias [outputs] of a convolution, in float64 until all is multiplied."""
    return layer.weight.detach().double(), layer.bias.detach().double()


def _without(units: Units, kernel: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Kernel and bias that give of numbers with units what these give of numbers without."""
    mean, spread = (number.double() for number in units)
    kernel = _over(spread, kernel, axis=1)
    return kernel, bias - (kernel.flatten(2).sum(2) * mean).sum(1)


def _over(spread: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """The kernel divided by one number for each of its outputs (axis 0) or channels (axis 1)."""
    return (kernel.transpose(axis, -1) / spread).transpose(axis, -1)


def _after(kernel: Tensor, matrix: Tensor) -> Tensor:
    """The kernel of a convolution after a layer of one tap."""
    return torch.einsum("ow...,wi->oi...", kernel, matrix.flatten(1))
