"""What the operator and the predictors beside it say about the test split, in physical units, a batch at a time.

Predictors: `operator` (latent rollout, decoded), `baseline` (plain network), `persistence` (the last given frame
stays; not for static problems), `mean` (the mean over train), `roundtrip` (the true frames through encoder and
decoder: no latent operator can be expected to do better).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from ups_data import console
from ups_data.errors import UpsDataError

BATCH_VALUES = 1 << 24  # numbers of truth in a batch: 64 MB, and a handful of predictions of that size


@dataclass(frozen=True)
class Forecast:
    """A batch of test samples and what every predictor says: arrays [sample, time, space.., channel].

    For points the space is one axis of nodes or particles. `geometry` holds what the samples share (coordinates of
    the axes or nodes, cells, box), `known` what was given of each beside frames: the input field, the start. `waves`
    are fields on a regular grid [sample, time, space.., channel] to take the spectrum of where the space is none:
    truth, and the predictions that have them.
    """

    samples: list[int]
    truth: np.ndarray
    predictions: dict[str, np.ndarray]
    geometry: dict[str, np.ndarray]
    known: dict[str, np.ndarray] = field(default_factory=dict)
    waves: dict[str, np.ndarray] = field(default_factory=dict)
    periodic: Sequence[bool] = ()  # of the axes of a grid

    def every(self, points: int) -> Forecast:
        """The forecast at every n-th point of a grid. Raises UpsDataError where a period would get a seam."""
        if points == 1:
            return self
        if points >= (most := min(self.truth.shape[2:-1])):
            raise UpsDataError(f"evaluate.points: got {points}, expected 1 to {most - 1}: the view has {most} points")
        for whole, wraps in zip(self.truth.shape[2:-1], self.periodic, strict=False):
            if wraps and whole % points:
                raise UpsDataError(
                    f"evaluate.points: got {points}, expected a divisor of the {whole} points of a periodic axis: its "
                    "ends would stand closer together than other neighbours"
                )
        chosen = (slice(None), slice(None), *[slice(None, None, points)] * (self.truth.ndim - 3))
        predictions = {name: prediction[chosen] for name, prediction in self.predictions.items()}
        axes = {axis: values[::points] for axis, values in self.geometry.items()}
        return replace(self, truth=self.truth[chosen], predictions=predictions, geometry=axes)

    def only(self, row: int) -> Forecast:
        """The forecast of one sample of the batch, copied out of it."""
        predictions = {name: prediction[row : row + 1].copy() for name, prediction in self.predictions.items()}
        known = {name: values[row : row + 1].copy() for name, values in self.known.items()}
        return Forecast([self.samples[row]], self.truth[row : row + 1].copy(), predictions, self.geometry, known)


@dataclass(frozen=True)
class Forecasts:
    """The test split as the metrics see it: what is in the arrays of its forecasts, and the forecasts."""

    channels: list[str]
    spread: np.ndarray  # [C] train's std of each channel: what a small value is small beside
    times: np.ndarray  # [T] of the predicted frames
    parameters: np.ndarray  # [S, P]
    parameter_names: list[str]
    groups: list[str]  # [S] id of each sample's initial condition
    batches: Iterator[Forecast]


def batches(samples: int, values: int) -> Iterator[list[int]]:
    """Consecutive samples, as many as keep the truth of a batch within BATCH_VALUES; `values` are those of one."""
    size = max(1, BATCH_VALUES // values)
    for start in range(0, samples, size):
        yield list(range(start, min(samples, start + size)))


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Off the device, float32."""
    return tensor.float().cpu().numpy()


def tell_time_step(where: str, step: float, frame: float, strides: Sequence[int]) -> None:
    """Say so where a rollout goes on by a time `step` that is none of the `strides` of the training, of a `frame` each.

    The operator is not wrong by that: the time step is an input of its.
    """
    trained = [stride * frame for stride in sorted(set(strides))]
    if not np.isclose(step, trained, rtol=1e-3).any():
        steps = " and ".join(f"{time:.4g}" for time in trained)
        console.say(f"{where}: its time step is {step:.4g}, the operator was trained at {steps}")
