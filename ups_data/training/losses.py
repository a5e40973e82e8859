"""The error that models are trained on and chosen by: the relative L2 error of physical fields."""

from __future__ import annotations

from torch import Tensor

SMALL = 1e-4  # of a channel's mean square: bounds the denominator where a frame is nearly zero
SMOOTH = 1e-8  # added to a square of a relative error: keeps the root's gradient finite where the error is zero
# The same where rollouts are learnt: errors below a thousandth of a frame's size pull less the smaller they are.
# Else the smooth fields, which are nearly right and many, pull in every step as hard as the few with shocks.
# Of each frame's size, not of the channel's: fields that have nearly died out are scored by their own.
SMOOTH_ROLLOUT = 1e-6


def relative_error(
    prediction: Tensor, target: Tensor, mask: Tensor | None, mean_square: Tensor, smooth: float = SMOOTH
) -> Tensor:
    """Mean over samples, frames and channels of |prediction - target| / |target|, fields [B, F, X.., C].

    `smooth` is added to each square: relative errors below its root pull by their size.
    `mask` [B, N] marks the real points of fields [B, F, N, C] padded to one length; `mean_square` [C] is that of
    each channel over the training data.
    """
    squares, size = (prediction - target).square(), target.square()
    if mask is not None:
        weights = (mask / mask.sum(dim=1, keepdim=True))[:, None, :, None]
        squares, size = (squares * weights).sum(dim=2), (size * weights).sum(dim=2)
    else:
        squares, size = squares.flatten(2, -2).mean(dim=2), size.flatten(2, -2).mean(dim=2)
    return (squares / (size + SMALL * mean_square) + smooth).sqrt().mean()
