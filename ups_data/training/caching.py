"""Encoding a split into a latent cache: frames of many trajectories at once, read ahead, written in one stream."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ups_data import console
from ups_data.errors import UpsDataError
from ups_data.models.autoencoder import Autoencoder, Frame, refuse_untrained
from ups_data.params import Autoencoder as Knobs
from ups_data.params import Latents, View
from ups_data.stores.latents import DTYPES, write_cache
from ups_data.training.frames import Frames, frame_errors, spread

JUDGED = 4096  # frames, evenly spread, that are decoded again for the round-trip error of a cache


def constituents(autoencoder: Autoencoder, frames: Frames, dtype: str) -> dict[str, str]:
    """Everything a cache of these frames depends on, by name."""
    return autoencoder.constituents() | {"data": frames.manifest["key"], "dtype": dtype}


def check_fit(autoencoder: Autoencoder, task: str, knobs: Knobs, view: View) -> None:
    """Raise UpsDataError unless the trained autoencoder has the latents and the view that are asked for."""
    config = autoencoder.config
    for name in ("latent_len", "latent_dim"):
        asked = getattr(knobs, name)
        if config[name] != asked:
            raise UpsDataError(
                f"{task}: the trained autoencoder has {name} {config[name]}, got {asked}; train one with "
                f"`python -m stages.autoencoder {task} --set datasets.{task}.autoencoder.{name}={asked}`"
            )
    if config["view"] != view.model_dump():
        raise UpsDataError(
            f"{task}: the autoencoder was trained at the view {config['view']}, got {view.model_dump()}; "
            f"train it again with `python -m stages.autoencoder {task}`"
        )


def cache_split(
    autoencoder: Autoencoder,
    frames: Frames,
    folder: str | Path,
    knobs: Latents,
    *,
    device: torch.device,
    workers: int = 1,
    pin_memory: bool = False,
    label: str = "latents",
) -> dict:
    """Encode all frames of a split into `folder`; returns the cache's manifest.

    `workers` threads read ahead, 0 reads in turn; the bytes do not depend on it. Raises UpsDataError for an untrained
    autoencoder.
    """
    config = autoencoder.config
    refuse_untrained(config, label)
    roles = list(autoencoder.roles)
    judged = spread(len(frames), JUDGED)
    errors: dict[str, list[Tensor]] = {role: [] for role in roles}
    dtype = DTYPES[knobs.dtype]

    def batches() -> Iterator[dict[str, Tensor]]:
        blocks = np.array_split(np.arange(len(frames)), math.ceil(len(frames) / knobs.batch))
        with console.progress(label, len(frames), "frame") as bar, torch.inference_mode():
            for index, batch in read_ahead(frames, blocks, roles, workers, pin_memory and device.type == "cuda"):
                encoded = {}
                for role, frame in batch.items():
                    frame = {name: tensor.to(device, non_blocking=True) for name, tensor in frame.items()}
                    encoded[role] = autoencoder.encode(frame, role).to(dtype)
                    chosen = torch.from_numpy(np.isin(index, judged)).to(device)
                    if chosen.any():
                        truth = {name: tensor[chosen] for name, tensor in frame.items()}
                        decoded = autoencoder.decode(encoded[role][chosen].float(), truth, role)
                        errors[role].append(frame_errors(decoded, truth, autoencoder.mean_square(role)).cpu())
                yield encoded
                bar.advance(len(index))

    def finish() -> dict:
        means = {role: torch.cat(parts).mean(dim=0).tolist() for role, parts in errors.items()}
        named = {role: dict(zip(autoencoder.roles[role], values, strict=True)) for role, values in means.items()}
        return {"reconstruction": named}

    return write_cache(
        folder,
        constituents=constituents(autoencoder, frames, knobs.dtype),
        facts={
            "task": config["task"],
            "kind": config["kind"],
            "split": frames.reader.split,
            "token_grid": config["token_grid"],
            "parameter_names": frames.reader.parameter_names,
            "view": config["view"],
            "data_bytes": 4 * sum(frames.values(role) for role in roles),
        },
        arrays={
            "parameters": torch.from_numpy(frames.parameters),
            "times": torch.from_numpy(frames.times),
            **places(autoencoder, frames),
        },
        shape=(frames.samples, frames.frames, math.prod(config["token_grid"]), config["latent_dim"]),
        roles=roles,
        dtype=knobs.dtype,
        shard_bytes=knobs.shard_mb << 20,
        batches=batches(),
        finish=finish,
    )


def read_ahead(
    frames: Frames, blocks: list[np.ndarray], roles: list[str], workers: int, pin: bool
) -> Iterator[tuple[np.ndarray, dict[str, Frame]]]:
    """(frame numbers, role -> frame) of every block in order; `workers` threads are that many blocks ahead."""

    def read(index: np.ndarray) -> dict[str, Frame]:
        batch = {role: frames.read(index, role) for role in roles}
        if pin:
            batch = {role: {name: t.pin_memory() for name, t in frame.items()} for role, frame in batch.items()}
        return batch

    if not workers:
        yield from ((index, read(index)) for index in blocks)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = iter(blocks)
        ahead = deque((index, pool.submit(read, index)) for index in itertools.islice(waiting, workers + 1))
        try:
            while ahead:
                index, batch = ahead.popleft()
                yield index, batch.result()
                ahead.extend((index, pool.submit(read, index)) for index in itertools.islice(waiting, 1))
        finally:
            for _, batch in ahead:
                batch.cancel()


def places(autoencoder: Autoencoder, frames: Frames) -> dict[str, Tensor]:
    """What a reader of the cache needs to decode without the data: see stores/latents.py. Nothing on grids."""
    config = autoencoder.config
    if config["kind"] == "grid":
        return {}
    if config["kind"] == "mesh":
        arrays = {name: getattr(frames, name) for name in ("coords", "mask", "boundary")}
        return {name: torch.from_numpy(a) for name, a in arrays.items()} | {
            "topology": torch.from_numpy(frames.topology_of)
        }
    axes = [
        low + (high - low) * (torch.arange(count) + 0.5) / count
        for (low, high), count in zip(config["box"], config["resolution"], strict=True)
    ]
    coords = torch.cartesian_prod(*axes).reshape(1, -1, len(axes))
    return {
        "coords": coords,
        "mask": torch.ones(coords.shape[:2], dtype=torch.bool),
        "topology": torch.zeros(frames.samples, dtype=torch.int64),
    }
