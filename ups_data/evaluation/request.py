"""What a prediction is told and what it gives back, whatever the samples live on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ups_data.errors import UpsDataError
from ups_data.evaluation.forecast import tell_time_step
from ups_data.models.autoencoder import Autoencoder
from ups_data.models.operator import LatentOperator, alternatives, check_positive
from ups_data.sources.raw import uneven_step


def check_even(path: Path, times: np.ndarray) -> None:
    """Raise UpsDataError unless times [T] are evenly spaced: a rollout goes on by one time step."""
    if uneven := uneven_step(times):
        raise UpsDataError(f"{path}: time: {uneven}; a rollout goes on by equal time steps: give frames at equal steps")


@dataclass(frozen=True)
class Request:
    """What is asked for: trained models, and how much of the file."""

    task: str
    autoencoder: Autoencoder
    operator: LatentOperator
    device: torch.device
    given: int  # frames known before the rollout
    stride: int  # frames of the view from one frame of the rollout to the next
    steps: int | None  # frames to predict; None: as many as the file has after the given ones
    samples: int | None  # at most this many
    strides: Sequence[int] = (1,)  # those the operator was trained at

    def check_given(self, path: Path, frames: int) -> int:
        """The steps to predict where the file has `frames`; raises UpsDataError when it has too few to start from."""
        needed = max(self.operator.history, 2 if self.autoencoder.config["kind"] == "particles" else 1)
        if not needed <= self.given <= frames:
            raise UpsDataError(
                f"{path}: --given: got {self.given}, expected {needed} (the frames the models see) to {frames} (the "
                "frames of the file at the view of the models)"
            )
        steps = self.steps or frames - self.given
        if steps < 1:
            raise UpsDataError(f"{path}: all {frames} frames are given; say with --steps how many to predict")
        return steps

    def tell_time_step(self, path: Path, step: float) -> None:
        """Say so where the operator was not trained to go on by so much time."""
        tell_time_step(path.name, step, self.operator.config["time_step"], self.strides)

    def check_parameters(self, path: Path, names: list[str]) -> None:
        """Raise UpsDataError unless the file has the physical parameters of an equation the operator was trained with.

        An operator of before their names were kept knows how many there are.
        """
        facts = self.operator.config["conditioning"]
        known = len(facts["log"]) - 1  # the last one is the time step
        if "equations" in facts and sorted(names) not in facts["equations"]:
            raise UpsDataError(
                f"{path}: got the physical parameters {' and '.join(sorted(names)) or 'none'}, expected "
                f"{alternatives(facts['equations'])}: the operator of {self.task} was trained with other equations"
            )
        if "equations" not in facts and len(names) != known:
            raise UpsDataError(
                f"{path}: got {len(names)} physical parameters ({', '.join(names) or 'none'}), expected {known}: the "
                f"operator of {self.task} was trained with other data"
            )

    def check_values(self, path: Path, names: Sequence[str], values: np.ndarray) -> None:
        """Raise UpsDataError for a parameter, of samples [S, P], that is not finite or lacks the logarithm taken."""
        for name, column in zip(names, values.T, strict=True):
            if (wrong := ~np.isfinite(column)).any():
                raise UpsDataError(f"{path}: {name}: got {column[wrong][0]:g}, expected a number; fetch the file again")
        check_positive(self.operator.config["conditioning"], torch.from_numpy(values), names, path)

    def as_trained(self, names: Sequence[str], values: np.ndarray) -> np.ndarray:
        """The parameters of a file, [S, Q], as the operator takes them, [S, P]: NaN where the file has no such one."""
        known = self.operator.config["conditioning"].get("names", list(names))
        columns = np.full((len(values), len(known)), np.nan)
        columns[:, [known.index(name) for name in names]] = values
        return columns

    def check_channels(self, path: Path, channels: list[str]) -> None:
        """Raise UpsDataError unless the file has the channels that are encoded; it may lack what is solved for."""
        roles = self.autoencoder.roles
        expected = [name for names in roles.values() for name in names]
        enough = roles["input"] if self.operator.static else expected
        if sorted(channels) not in (sorted(expected), sorted(enough)):
            raise UpsDataError(
                f"{path}: got the channels {', '.join(channels) or 'none'}, expected {', '.join(enough)} of {self.task}"
            )

    def spread(self, channels: list[str]) -> np.ndarray:
        """Train's standard deviation of channels [C]."""
        return np.array([self.autoencoder.config["normaliser"][name]["std"] for name in channels])


class Block(NamedTuple):
    """Predicted frames of some samples: arrays [b, n, ..] by name, and their errors [b, n, C] as far as known."""

    samples: slice
    steps: slice
    fields: dict[str, np.ndarray]
    errors: np.ndarray | None


@dataclass(frozen=True)
class Rollout:
    """A rollout that is about to be made: what the file will say, and its blocks one after another."""

    samples: int
    times: np.ndarray  # [N]
    frames: dict[str, tuple[int, ...]]  # name -> shape of one frame
    channels: list[str]
    error_channels: list[str]
    parameters: dict[str, np.ndarray]  # name -> [S]
    blocks: Iterator[Block]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # coordinates and the like
