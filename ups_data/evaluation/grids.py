"""Forecasts of regular grids."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ups_data.evaluation.forecast import Forecast, Forecasts, batches, to_numpy
from ups_data.evaluation.task import Evaluation
from ups_data.stores.grid import GridReader
from ups_data.training.baseline import grid_window, static_fields, viewed_frames
from ups_data.training.operator import decode_frames


def grid_forecasts(task: Evaluation) -> Forecasts:
    """Forecast the test split of a grid task from its first `given` frames."""
    reader, view, given = GridReader(task.test), task.seen, task.given
    operator, frames = task.operator, viewed_frames(reader.shape[1], view)
    task.check_given(operator.history, frames)
    times = reader.time[:: view.time_stride]
    facts = [reader.manifest["statistics"]["channels"][name] for name in reader.channels]
    means = np.array([fact["mean"] for fact in facts], dtype=np.float32)
    axes = {axis: values[:: view.space_stride] for axis, values in reader.coordinates.items()}

    def run() -> Iterator[Forecast]:
        for samples in batches(len(reader), frames * grid_window(reader, view, 0, 0, 1).size):
            fields = np.stack([grid_window(reader, view, s, 0, frames) for s in samples])
            latents = task.latents("state", samples, given - operator.history, frames)
            known, following = latents[:, : operator.history], latents[:, operator.history :]
            parameters = torch.from_numpy(reader.parameters[samples]).to(task.device)
            dt = torch.full((len(samples),), float(times[1] - times[0]), device=task.device)
            last, truth = fields[:, given - 1 : given], fields[:, given:]
            static = task.cache.static_fields(samples, task.device)
            future = operator.rollout(known, parameters, dt, frames - given, static)
            frame = torch.from_numpy(last[:, 0]).to(task.device)
            # The baseline knows one time step, that of the view: it makes the frames between too.
            still = torch.from_numpy(static_fields(reader, view, samples)).to(task.device)
            plain = task.baseline.rollout(frame, parameters, dt / task.stride, (frames - given) * task.stride, still)
            predictions = {
                "operator": to_numpy(decode_frames(task.autoencoder, future, None, "state")),
                "baseline": to_numpy(plain[:, task.stride - 1 :: task.stride]),
                "persistence": np.broadcast_to(last, truth.shape),
                "mean": np.broadcast_to(means, truth.shape),
                "roundtrip": to_numpy(decode_frames(task.autoencoder, following, None, "state")),
            }
            yield Forecast(samples, truth, predictions, axes, periodic=reader.manifest["periodic"])

    spread = np.array([fact["std"] for fact in facts])
    names = reader.parameter_names
    return Forecasts(reader.channels, spread, times[given:], reader.parameters, names, reader.groups, run())
