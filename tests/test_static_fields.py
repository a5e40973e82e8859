"""Fields that do not change in time (a force): stored with the data, cached with the latents, seen by the models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ups_data.models.autoencoder import build_autoencoder
from ups_data.models.baselines import GridNet
from ups_data.models.grid_autoencoder import from_patches
from ups_data.models.operator import conditioning_facts, static_facts
from ups_data.params import Autoencoder, Latents, View
from ups_data.stores.grid import create_grid, describe_grid
from ups_data.stores.latents import LatentCache
from ups_data.training.autoencoder import autoencoder_config
from ups_data.training.baseline import static_fields
from ups_data.training.caching import cache_split
from ups_data.training.frames import GridFrames

from .test_operator import CPU, operator

VIEW = View(space_stride=2, time_stride=1)
SHAPE = (3, 2, 16, 16, 1)  # samples, frames, x, y, channels
KNOWN = torch.ones(2, 1), torch.full((2,), 0.05)


@pytest.fixture
def forced(tmp_path) -> GridFrames:
    """Frames of a square with a force of two components in every sample."""
    path, rng = tmp_path / "forced_train.h5", np.random.default_rng(0)
    offset = create_grid(path, SHAPE)
    data = np.memmap(path, dtype="<f4", mode="r+", offset=offset, shape=SHAPE)
    data[:] = rng.standard_normal(SHAPE)
    data.flush()
    manifest = {
        "kind": "grid", "task": "forced", "key": "forced", "periodic": [True, True],
        "static_channels": ["force_x", "force_y"],
        "splits": {},
        "statistics": {"channels": {"u": {"mean": 0.0, "std": 1.0, "minimum": -4.0, "maximum": 4.0}}},
    }  # fmt: skip
    arrays = {
        "time": np.arange(2.0), "x": np.arange(16.0), "y": np.arange(16.0), "parameters": np.ones((3, 1)),
        "group": np.full(3, b"0" * 32), "source_file": np.zeros(3, "i4"), "source_row": np.arange(3),
    }  # fmt: skip
    describe_grid(
        path, arrays=arrays, task="forced", split="train", channels=["u"], parameter_names=["viscosity"],
        manifest=manifest, static=iter(rng.standard_normal((3, 16, 16, 2)).astype(np.float32)),
    )  # fmt: skip
    return GridFrames(path, VIEW)


def test_the_cache_holds_the_static_fields_of_the_view_patch_by_patch(forced, tmp_path):
    size = {"latent_len": 16, "latent_dim": 2, "width": 8, "depth": 1, "encoder_depth": 0}
    knobs = Autoencoder(**size, steps=1, batch=1, learning_rate=1e-3, seed=0)
    autoencoder = build_autoencoder(autoencoder_config("forced", forced, knobs) | {"steps": 1})
    latents = Latents(dtype="float16", batch=4, shard_mb=1)
    cache_split(autoencoder, forced, tmp_path / "forced_cache", latents, device=CPU)
    patches = LatentCache(tmp_path / "forced_cache").static_fields([2, 0])
    assert patches.shape == (2, 16, 2 * 2 * 2)
    fields = from_patches(patches.transpose(1, 2).unflatten(2, (4, 4)), [8, 8])
    assert np.array_equal(fields.numpy(), forced.reader.static[[2, 0], ::2, ::2])
    assert np.array_equal(fields.numpy(), static_fields(forced.reader, VIEW, [2, 0]))


def forced_operator(patches: torch.Tensor):
    return operator((4, 4), (True, True), static_fields=static_facts(patches))


def test_the_operator_sees_static_fields_and_moves_with_them():
    patches = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    model, state = forced_operator(patches), torch.randn(2, 1, 16, 4, generator=torch.Generator().manual_seed(1))
    predicted = model.rollout(state, *KNOWN, 3, patches)
    assert not torch.allclose(predicted, model.rollout(state, *KNOWN, 3, 0 * patches), atol=1e-2)

    def shift(tokens, axis):
        return tokens.unflatten(axis, (4, 4)).roll((1, 2), (axis, axis + 1)).flatten(axis, axis + 1)

    shifted = model.rollout(shift(state, 2), *KNOWN, 3, shift(patches, 1))
    assert torch.allclose(shifted, shift(predicted, 2), atol=1e-4)


def test_static_fields_are_given_if_and_only_if_they_were_learnt():
    patches = torch.randn(2, 16, 8)
    with pytest.raises(ValueError, match="if and only if it was trained with them"):
        forced_operator(patches)(torch.zeros(2, 1, 16, 4), *KNOWN)
    with pytest.raises(ValueError, match="if and only if it was trained with them"):
        operator((4, 4), (True, True))(torch.zeros(2, 1, 16, 4), *KNOWN, patches)


def test_the_baseline_sees_static_fields():
    torch.manual_seed(0)
    config = {
        "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "channels": 1, "periodic": [True, True], "bundle": 2,
        "width": 4, "depth": 1, "conditioning": conditioning_facts(torch.tensor([[0.1], [1.0]]), 0.05, ["viscosity"]),
    }  # fmt: skip
    model, frame, force = GridNet(config), torch.zeros(2, 8, 8, 1), torch.randn(2, 8, 8, 2)
    torch.nn.init.normal_(model.outward.weight)
    made = model.rollout(frame, *KNOWN, 3, force)
    assert made.shape == (2, 3, 8, 8, 1)
    assert not torch.allclose(made, model.rollout(frame, *KNOWN, 3, 0 * force), atol=1e-2)
