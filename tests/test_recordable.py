"""A training step can be recorded on a GPU: it makes no tensor of the host's numbers and asks none of its own.

A CUDA graph takes neither. Here every step runs on the CPU, where both would go unnoticed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stages import autoencoder, baseline, latents, train
from ups_data.training import loop

from .gallery_cases import TASKS, write_data

PARAMS = Path(__file__).parents[1] / "params.yaml"
aten = torch.ops.aten
FROM_HOST = {aten.lift_fresh.default, aten.lift_fresh_copy.default, aten.lift.default}
TO_HOST = {aten._local_scalar_dense.default, aten.nonzero.default, aten._unique2.default}
KNOBS = {
    "view": {"space_stride": 1, "time_stride": 1},
    "autoencoder": {"latent_len": 16, "latent_dim": 4, "width": 8, "depth": 1, "steps": 2, "batch": 4},
    "train": {"width": 16, "depth": 1, "heads": 2, "bundle": 1, "unroll": "[1]", "steps": 2, "batch": 4},
    "baseline": {"width": 8, "depth": 2, "bundle": 1, "unroll": 1, "steps": 2, "batch": 4},
}


class Recording(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in FROM_HOST, f"{function}: a tensor of the host's numbers"
        chosen = args[1] if function is aten.index.Tensor else ()
        masks = any(index is not None and index.dtype == torch.bool for index in chosen)
        assert function not in TO_HOST and not masks, f"{function}: the host waits for a number"
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("recordable")
    write_data(root / "data")
    return root


@pytest.fixture
def recorded(monkeypatch):
    """How many steps ran as if they were recorded."""
    count = []

    def stepper(model, optimiser, loss, device):
        def step(batch):
            with Recording():
                value = loss(batch)
                value.backward()
            count.append(value.item())
            optimiser.step()  # by its kernels for a GPU there, which are torch's
            optimiser.zero_grad()
            return value.detach()

        return step

    monkeypatch.setattr(loop, "stepper", stepper)
    return count


def test_what_a_recording_refuses():
    x = torch.arange(6.0).reshape(2, 3)
    with Recording():
        assert (x + 1)[:, 1:].sum().shape == ()
        for spoilt in (lambda: x[:, [0, 2]], lambda: x * torch.tensor([1.0, 2, 3]), x.sum().item, lambda: x[x > 2]):
            with pytest.raises(AssertionError, match="host"):
                spoilt()


@pytest.mark.parametrize("task", TASKS)
def test_every_training_of_a_kind_can_be_recorded(root, recorded, monkeypatch, tmp_path, task):
    monkeypatch.chdir(tmp_path)  # .state lies in the current folder
    knobs = KNOBS if task == "advection1d" else KNOBS | {"train": KNOBS["train"] | {"augment": "[]"}}
    sets = [f"datasets.{task}.{part}.{name}={value}" for part, own in knobs.items() for name, value in own.items()]
    common = [task, "--params", str(PARAMS), "--device", "cpu", "-q", *(w for knob in sets for w in ("--set", knob))]
    models = ["--models", str(root / "models")]
    data, cache = (["--data", str(root / "data")], ["--cache-dir", str(root / "cache")])
    reports = ["--reports", str(tmp_path / "reports")]
    assert autoencoder.main([*common, *models, *data, *reports]) == 0
    assert len(recorded) == 2
    assert latents.main([*common, *models, *data, *cache]) == 0
    assert train.main([*common, *models, *cache, *reports]) == 0
    assert baseline.main([*common, *models, *data, *reports]) == 0
    assert len(recorded) == 6
