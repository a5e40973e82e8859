"""Scattered points to a regular grid of spline coefficients and back.

A field is a sum of cubic B-splines, one a grid cell. From values at points the coefficients follow by least
squares with a thin-plate penalty, which fills the cells that hold no point (P-splines: Eilers and Marx 1996).
Both ways are linear in the values, know nothing of the order of the points, and wrap around periodic axes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Weight of the penalty beside the squared errors at the points. Measured on tracer velocities (256 tracers, 12 x 12
# splines) and Darcy solutions: the field between the tracers is best at 1e-4, the values at the points lose nothing
# that matters, and coefficients of empty cells stay as small as the field.
SMOOTHING = 1e-4
AT_ONCE = 4 << 20  # bytes of products of weights that a CPU makes at once: more outgrow its caches


class SplineGrid(NamedTuple):
    """A regular grid of splines: (low, high) of every axis, splines along it, whether it is periodic."""

    box: Sequence[Sequence[float]]
    splines: Sequence[int]
    periodic: Sequence[bool]


def supports(coords: Tensor, grid: SplineGrid) -> tuple[Tensor, Tensor]:
    """The 4^d splines that are non-zero at each point of `coords` [B, N, d]: flat indices and weights [B, N, 4^d].

    Points outside of the box take the place of their periodic image, or of the box's edge.
    """
    indices = weights = None
    for axis, ((low, high), count, wraps) in enumerate(zip(*grid, strict=True)):
        place = (coords[..., axis] - low) / (high - low)
        # Without a period, one more spline stands on each side of the box.
        place = (place % 1.0) * count if wraps else place.clamp(0.0, 1.0) * (count - 3) + 1.0
        first = place.floor() if wraps else place.floor().clamp(1, count - 3)
        along = (first.long()[..., None] + torch.arange(-1, 3, device=coords.device)) % count
        values = _cubic(place - first)
        if indices is None:
            indices, weights = along, values
        else:
            indices = (indices[..., :, None] * count + along[..., None, :]).flatten(-2)
            weights = (weights[..., :, None] * values[..., None, :]).flatten(-2)
    return indices, weights


def _cubic(t: Tensor) -> Tensor:
    """The four cubic B-splines at the fraction `t` of a cell, [.., 4], adding up to 1."""
    s = 1.0 - t
    return torch.stack([s**3, 4.0 - 6.0 * t**2 + 3.0 * t**3, 4.0 - 6.0 * s**2 + 3.0 * s**3, t**3], dim=-1) / 6.0


def evaluate(coefficients: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """The field at points: coefficients [B, splines.., C] and the points' supports -> [B, N, C]."""
    flat = coefficients.flatten(1, -2)
    picked = flat.gather(1, indices.flatten(1)[..., None].expand(-1, -1, flat.shape[-1]))
    return (picked.unflatten(1, indices.shape[1:]) * weights[..., None]).sum(dim=2)


def fit_frames(fields: Tensor, coords: Tensor, mask: Tensor, topology: Tensor | None, grid: SplineGrid) -> Tensor:
    """The coefficients [B, splines.., C] that are nearest to `fields` [B, N, C] at `coords` [B, N, d].

    `mask` [B, N] is false where a row is padding. Frames with the same number in `topology` [B] have the same coords
    and are solved together.
    """
    if topology is None:
        size = len(fields)
        if fields.device.type == "cpu":
            size = max(1, AT_ONCE // (8 * max(1, coords.shape[1]) * 16 ** coords.shape[2]))
        parts = zip(fields.split(size), mask.split(size), coords.split(size), strict=True)
        return torch.cat([_fit(part, there, *supports(places, grid), grid) for part, there, places in parts])
    result = fields.new_empty(len(fields), *grid.splines, fields.shape[-1])
    for number in topology.unique().tolist():
        members = (topology == number).nonzero().flatten()
        first = members[:1]
        together = fields[members].permute(1, 0, 2).flatten(1)[None]
        solved = _fit(together, mask[first], *supports(coords[first], grid), grid)[0]
        result[members] = solved.unflatten(-1, (len(members), -1)).movedim(-2, 0)
    return result


def _fit(fields: Tensor, mask: Tensor, indices: Tensor, weights: Tensor, grid: SplineGrid) -> Tensor:
    """Normal equations of each frame, in float64: they are ill-conditioned where points lie close together."""
    batch, unknowns = fields.shape[0], math.prod(grid.splines)
    weights = weights.double() * mask[..., None]
    squares = (weights[..., :, None] * weights[..., None, :]).flatten(1)
    places = (indices[..., :, None] * unknowns + indices[..., None, :]).flatten(1)
    matrix = weights.new_zeros(batch, unknowns * unknowns).scatter_add_(1, places, squares)
    penalty = _penalty(tuple(grid.splines), tuple(grid.periodic)).to(matrix.device)
    matrix = matrix.unflatten(1, (unknowns, unknowns)) + SMOOTHING * penalty
    sums = (weights[..., None] * fields[:, :, None, :]).flatten(1, 2)
    right = sums.new_zeros(batch, unknowns, fields.shape[-1])
    right.scatter_add_(1, indices.flatten(1)[..., None].expand_as(sums), sums)
    solution = torch.cholesky_solve(right, torch.linalg.cholesky(matrix))
    return solution.to(fields.dtype).unflatten(1, tuple(grid.splines))


@functools.lru_cache(maxsize=8)
def _penalty(splines: tuple[int, ...], periodic: tuple[bool, ...]) -> Tensor:
    """The summed squares of all second differences of the coefficients, as a matrix: float64 [G, G]."""
    unknowns = math.prod(splines)
    total = 1e-8 * torch.eye(unknowns, dtype=torch.float64)  # solvable even when all points lie on a line
    for pair in itertools.product(range(len(splines)), repeat=2):
        difference = torch.eye(unknowns, dtype=torch.float64).unflatten(1, splines)
        for axis in pair:
            difference = difference.roll(-1, 1 + axis) - difference
            if not periodic[axis]:
                difference = difference.narrow(1 + axis, 0, difference.shape[1 + axis] - 1)
        rows = difference.flatten(1)
        total += rows @ rows.T
    return total
