"""Error measures of predicted fields; arrays are [sample, time, space.., channel], results [sample, time, channel].

nRMSE is PDEBench's (Takamoto et al. 2022): the RMSE over space divided by the target's RMS over space at that
step, then the mean over samples, steps and channels. A mean of these arrays over all axes is that number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

BANDS = {"low": (0, 4), "mid": (5, 12), "high": (13, None)}  # whole wavenumbers, PDEBench's fRMSE bands
FLAT = 0.01  # a target whose RMS is below this share of the channel's spread: relative errors mean little there
FLOOR = 1e-6  # share of the spread below which a denominator is not taken: keeps a zero target finite


def root_mean_square(values: np.ndarray) -> np.ndarray:
    """RMS over space: [S, T, X.., C] to [S, T, C], in float64."""
    return np.sqrt(np.square(values, dtype=np.float64).mean(axis=tuple(range(2, values.ndim - 1))))


def rmse(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """RMSE over space, in the field's own unit: [S, T, C]."""
    return root_mean_square(np.asarray(prediction, np.float64) - target)


def relative(errors: np.ndarray, size: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Errors [S, T, C, ..] over the target's RMS `size` [S, T, C]; `spread` [C] (train's std) bounds it from below.

    A spread of 0, of a channel that is constant throughout train, counts as 1, as it does where models normalise.
    """
    spread = np.asarray(spread)
    size = np.maximum(size, FLOOR * np.where(spread > 0, spread, 1.0))
    return errors / size.reshape(size.shape + (1,) * (errors.ndim - size.ndim))


def nrmse(prediction: np.ndarray, target: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """PDEBench's nRMSE of each sample, step and channel: [S, T, C]."""
    return relative(rmse(prediction, target), root_mean_square(target), spread)


def flat_frames(size: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Where the target's RMS `size` [S, T, C] is almost nothing beside the channel's spread [C]: bool [S, T, C]."""
    return size < FLAT * np.asarray(spread)


def wavenumber_shells(shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Of a real grid's Fourier coefficients (as `rfftn` has them): the shell floor(|k|) and the multiplicity of each.

    The half of the coefficients that `rfftn` leaves out are conjugates of others: those count twice.
    """
    last = np.arange(shape[-1] // 2 + 1)
    axes = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in shape[:-1]), last, indexing="ij")
    shells = np.floor(np.sqrt(sum(k**2 for k in axes)) + 1e-9).astype(np.int64)
    alone = (last == 0) | (2 * last == shape[-1])
    return shells, np.broadcast_to(np.where(alone, 1.0, 2.0), shells.shape)


def shell_power(fields: np.ndarray) -> np.ndarray:
    """Mean square over space by shell floor(|k|), k in cycles a box: [S, T, X.., C] to [S, T, C, K].

    The shells add up to the mean square over space (Parseval).
    """
    space = tuple(range(2, fields.ndim - 1))
    shape = [fields.shape[axis] for axis in space]
    shells, multiplicity = wavenumber_shells(shape)
    power = np.square(np.abs(np.fft.rfftn(np.asarray(fields, np.float64), axes=space)))
    power *= multiplicity[..., None] / np.prod(shape, dtype=np.float64) ** 2
    return sum_by_shell(np.moveaxis(power, -1, 2).reshape(*power.shape[:2], power.shape[-1], -1), shells.ravel())


def sum_by_shell(power: np.ndarray, shells: np.ndarray) -> np.ndarray:
    """Sum modes [.., N] of shells [N] to [.., K]; a shell without a mode has none."""
    order = np.argsort(shells, kind="stable")
    found, starts = np.unique(shells[order], return_index=True)
    sums = np.zeros((*power.shape[:-1], int(found[-1]) + 1))
    sums[..., found] = np.add.reduceat(power[..., order], starts, axis=-1)
    return sums


def band_rmse(power: np.ndarray) -> np.ndarray:
    """RMSE by band [.., 3] of an error's power by shell [.., K]; squares of the three add up to the squared RMSE."""
    ends = [power.shape[-1] if high is None else high + 1 for _, high in BANDS.values()]
    bands = [power[..., low:end].sum(axis=-1) for (low, _), end in zip(BANDS.values(), ends, strict=True)]
    return np.sqrt(np.stack(bands, axis=-1))


def minimum_image(difference: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The shortest of the periodic copies of a difference of positions [.., d]; `box` has the periods, 0 for none."""
    box = np.asarray(box)
    return difference - box * np.round(difference / np.where(box > 0, box, np.inf))


def fold(positions: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Positions [.., d] inside the periodic box [d]; along an axis without a period (0) they stay where they are."""
    box = np.asarray(box)
    return np.where(box > 0, np.mod(positions, np.where(box > 0, box, 1.0)), positions)


def displacement(positions: np.ndarray, start: np.ndarray, box: np.ndarray) -> np.ndarray:
    """How far particles have gone since `start` [S, P, d], counted across the box's seams.

    `positions` [S, T, P, d] follow `start` frame by frame; a particle moves less than half a box a frame.
    """
    path = np.concatenate([start[:, None], positions], axis=1).astype(np.float64)
    return np.cumsum(minimum_image(np.diff(path, axis=1), box), axis=1)


def laplacian_modes(laplacian: np.ndarray, area: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors [N, N] (columns) of a mesh's Laplacian, a dense matrix, and the shell floor(|k|) of each.

    They are to the mesh what Fourier modes are to a periodic box: -lap u = k^2 u, with every node standing for an
    equal share of the `area`. An eigenvalue is (2 pi times the wavenumber a unit of length) squared.
    """
    # torch's solver and not numpy's: its threads sleep while they wait (see stages/common.py).
    scaled = torch.from_numpy(laplacian * (len(laplacian) / area))
    values, vectors = (part.numpy() for part in torch.linalg.eigh(scaled))
    return vectors, np.floor(np.sqrt(np.maximum(values, 0.0)) / (2 * np.pi) + 1e-9).astype(np.int64)


def mesh_shell_power(fields: np.ndarray, vectors: np.ndarray, shells: np.ndarray) -> np.ndarray:
    """Mean square over nodes by shell of Laplacian modes: [S, T, N, C] to [S, T, C, K]; the shells add up to it."""
    modes = np.square(np.moveaxis(np.asarray(fields, np.float64), 2, -1) @ vectors) / fields.shape[2]
    return sum_by_shell(modes, shells)
