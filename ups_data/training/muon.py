"""Muon: momentum whose singular values are made equal, for the matrices inside a network.

K. Jordan and others, 2024, https://kellerjordan.github.io/posts/muon; the scale that lets it share the learning rate of
AdamW is from J. Liu and others, 2025, arXiv:2502.16982. `torch.optim.Muon` does the same matrix by matrix, with a
learning rate on the host: hundreds of launches a step that no CUDA graph can hold. Here matrices of one shape go
together.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MOMENTUM = 0.95
ITERATIONS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # p(s) = a s + b s^3 + c s^5, five times, takes (0, 1] near 1
RMS = 0.2  # of an update, as AdamW's are
TINY = 1e-7


class Muon(torch.optim.Optimizer):
    """Updates of matrices [m, n]: the polar factor of their momentum, scaled to a root mean square of RMS x `lr`."""

    def __init__(self, matrices: Iterable[Tensor], lr: float | Tensor, weight_decay: float):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        for group in self.param_groups:
            for matrix in group["params"]:
                self.state[matrix]["momentum"] = torch.zeros_like(matrix)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every matrix by its gradient."""
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[Tensor]] = {}
            for matrix in group["params"]:
                alike.setdefault(tuple(matrix.shape), []).append(matrix)
            for shape, matrices in alike.items():
                gradients = [matrix.grad for matrix in matrices]
                momenta = [self.state[matrix]["momentum"] for matrix in matrices]
                torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
                ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's
                updates = polar(torch.stack(ahead)) * (-RMS * max(shape) ** 0.5 * group["lr"])
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, list(updates.unbind()))


def polar(matrices: Tensor) -> Tensor:
    """Matrices [k, m, n] with their singular values brought near 1 by Newton-Schulz iterations; zero stays zero."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / (wide.square().sum(dim=(1, 2), keepdim=True).sqrt() + TINY)
    if x.device.type == "cuda":
        x = x.bfloat16()  # three digits are enough here
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.to(matrices.dtype)
    return x if matrices.shape[1] <= matrices.shape[2] else x.mT


class Both:
    """Two optimisers that share out the parameters of a model, used as one."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict]:
        """The groups of both."""
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, dict]:
        """The moments of both, by parameter."""
        return {p: part.state[p] for part in self.parts for group in part.param_groups for p in group["params"]}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        """Update all parameters."""
        for part in self.parts:
            part.step()
