"""What an evaluation works on: the converted splits, the cached latents of the test split, the trained models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ups_data.errors import UpsDataError
from ups_data.manifest import check_split, read_manifest, store_path
from ups_data.models.autoencoder import Autoencoder, check_data, check_view, load_autoencoder
from ups_data.models.baselines import Baseline, load_baseline
from ups_data.models.operator import LatentOperator, load_operator
from ups_data.params import Dataset, View
from ups_data.stores.latents import LatentCache, open_cache


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated on which data."""

    manifest: dict
    train: Path
    test: Path
    cache: LatentCache
    autoencoder: Autoencoder
    operator: LatentOperator
    baseline: Baseline
    view: View  # of the models
    given: int  # frames known before the rollout starts
    stride: int  # frames of the view from one frame of the rollout to the next
    device: torch.device

    @property
    def seen(self) -> View:
        """The points and frames of the stored data that the evaluation looks at."""
        return View(space_stride=self.view.space_stride, time_stride=self.view.time_stride * self.stride)

    def latents(self, role: str, samples: Sequence[int], start: int, stop: int) -> Tensor:
        """Cached latents of the rollout's frames start..stop: float32 [B, stop - start, L, D]."""
        first, end = start * self.stride, (stop - 1) * self.stride + 1
        rows = [self.cache.read(role, sample, first, end)[:: self.stride] for sample in samples]
        return torch.stack(rows).float().to(self.device)

    def check_given(self, needed: int, frames: int) -> None:
        """Raise UpsDataError unless `given` is what the models need and leaves a frame to predict."""
        if not needed <= self.given < frames:
            raise UpsDataError(
                f"evaluate.given: got {self.given}, expected {needed} (the frames the models see) to {frames - 1}"
            )


def open_evaluation(
    task: str, knobs: Dataset, data: Path, cache: Path, models: Path, device: torch.device
) -> Evaluation:
    """Open all that a task's evaluation needs.

    Raises UpsDataError when something is missing, or does not belong to the rest: the truth is read from the data, and
    latents of other trajectories, or at another view, would be compared with it as if they were its own.
    """
    manifest = read_manifest(data, task)
    autoencoder = load_autoencoder(models / task / "autoencoder.safetensors", device)
    check_view(autoencoder, task, knobs.view)
    latents = open_cache(cache, task, "test", autoencoder)
    check_data(autoencoder, task, manifest["key"], data)
    operator = load_operator(models / task / "operator.safetensors", device, autoencoder)
    baseline = load_baseline(models / task / "baseline.safetensors", device)
    made_from = {"data": manifest["key"], "view": knobs.view.model_dump()}
    if any(baseline.config.get(name) != value for name, value in made_from.items()):
        raise UpsDataError(
            f"{models / task / 'baseline.safetensors'} was trained on other data or at another view; train it again "
            f"with `python -m stages.baseline {task}`"
        )
    train, test = (store_path(data, task, split, knobs.kind) for split in ("train", "test"))
    check_split(manifest, test, "test")
    if knobs.kind == "mesh":  # of the others train is not read
        check_split(manifest, train, "train")
    return Evaluation(
        manifest=manifest,
        train=train,
        test=test,
        cache=latents,
        autoencoder=autoencoder,
        operator=operator,
        baseline=baseline,
        view=knobs.view,
        given=knobs.evaluate.given[0],
        stride=knobs.evaluate.stride,
        device=device,
    )
