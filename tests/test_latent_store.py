"""A stream of latents, cut into shards: as many, of the kind that was announced, or no cache at all."""

import pytest
import torch
from safetensors.torch import load_file

from ups_data.stores import latents


def cache_of(folder, batches, roles=("a", "b")):
    """A cache of 5 trajectories of 3 frames of 2 x 2 numbers, two of them a shard."""
    return latents.write_cache(
        folder, constituents={}, facts={}, arrays={"parameters": torch.zeros(5, 1)}, shape=(5, 3, 2, 2), roles=roles,
        dtype="float16", shard_bytes=100, batches=batches, finish=dict,
    )  # fmt: skip


@pytest.mark.parametrize("frames", [(4, 4, 4), (4, 4, 4, 4), (6, 6, 3, 6), ()])
def test_another_number_of_frames_than_was_announced_is_no_cache(tmp_path, frames):
    batches = ({role: torch.zeros(count, 2, 2) for role in "ab"} for count in frames)
    with pytest.raises(ValueError, match="got other than the 15 frames"):
        cache_of(tmp_path / "cache", batches)
    assert not list(tmp_path.iterdir())


def test_a_role_of_fewer_frames_than_another_is_no_cache(tmp_path):
    batches = ({"a": torch.zeros(5, 2, 2), "b": torch.zeros(count, 2, 2)} for count in (5, 4, 5))
    with pytest.raises(ValueError, match=r"[Oo]utput array is the wrong shape"):
        cache_of(tmp_path / "cache", batches)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_latents_of_another_number_format_are_kept_as_numbers(tmp_path, dtype):
    numbers = torch.arange(60).reshape(15, 2, 2) / 8
    manifest = cache_of(tmp_path / "cache", ({role: part.to(dtype) for role in "ab"} for part in numbers.split(4)))
    assert manifest["shard_samples"] == 2
    shards = [load_file(path) for path in sorted((tmp_path / "cache").glob("latents-*"))]
    for role in "ab":
        assert torch.equal(torch.cat([shard[role] for shard in shards]).flatten(0, 1).float(), numbers)
