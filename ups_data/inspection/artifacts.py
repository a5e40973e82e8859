"""A look at what the pipeline makes of data: archives, latent caches, models."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from ups_data import console
from ups_data.files import amount
from ups_data.inspection.look import Look, Panel, Range, measure, parameter_fact, thin


def look_at_archive(path: Path, full: bool) -> Look:
    """Its members, from the index; with `full` every byte is unpacked and compared with its checksum."""
    from ups_data.archive import reader

    members = reader.members(path)
    size, packed = sum(member.size for member in members), path.stat().st_size
    if full:
        with console.progress("verify", size, "B") as bar:
            reader.verify(path, bar.advance)
    inside: Counter[str] = Counter()
    for member in members:
        inside[member.path.split("/")[0]] += member.size
    facts = {
        "members": f"{len(members)} files, {amount(size)} unpacked, ratio {size / packed:.2f}",
        **{name: amount(total) for name, total in inside.items()},
    }
    look = Look(f"archive, {amount(packed)}", facts)
    look.read = (
        "every byte was unpacked and verified" if full else "only the index was read; --full verifies every byte"
    )
    look.following = f"python -m ups_data.archive extract {path} data/pdebench"
    return look


def look_at_cache(folder: Path, full: bool) -> Look:
    """Shape, encoder, error and size from its manifest, ranges of the latents themselves."""
    from ups_data.stores.latents import LatentCache

    cache = LatentCache(folder)
    manifest = cache.manifest
    tokens = int(np.prod(cache.token_grid))
    errors = {name: error for role in manifest["reconstruction"].values() for name, error in role.items()}
    names = manifest.get("parameter_names") or [f"parameter {i}" for i in range(cache.parameters.shape[1])]
    share = manifest["bytes"] / manifest["data_bytes"]
    facts = {
        "latents": f"{tokens} tokens of {cache.latent_dim} numbers a frame, {manifest['dtype']}",
        "roles": ", ".join(cache.roles),
        "parameters": parameter_fact({name: name for name in names}, cache.parameters),
        "samples": f"{cache.samples} of {cache.frames} frames",
        "size": f"{amount(manifest['bytes'])}, {share:.2f} of the float32 data",
        "round trip": "nRMSE " + ", ".join(f"{name} {error:.2g}" for name, error in errors.items()),
        "key": cache.key,
    }
    look = Look(f"latent cache {folder.name}", facts)

    def read(sample: int, start: int, stop: int) -> np.ndarray:
        return np.stack([cache.read(role, sample, start, stop).numpy() for role in cache.roles], axis=-1)

    frame_bytes = tokens * cache.latent_dim * len(cache.roles) * 4
    measure(look, cache.roles, cache.samples, cache.frames, frame_bytes, read, full)
    if not look.problems:
        flat = read(0, 0, cache.frames)[..., 0].reshape(cache.frames, -1)
        extent = (0.0, float(flat.shape[1]), 0.0, float(cache.frames))
        look.panels = [Panel(f"{cache.roles[0]}, sample 0", thin(flat), extent, ("token x number", "frame"))]
    look.following = f"python -m stages.train {folder.name.rpartition('_')[0]}"
    return look


def look_at_model(path: Path) -> Look:
    """Weights by layer and the configuration in the header; a safetensors file of others has no configuration."""
    from ups_data.models.checkpoint import load_model

    weights, config = load_model(path)
    count = sum(tensor.numel() for tensor in weights.values())
    kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in weights.values())
    facts = {
        "parameters": f"{count} in {len(weights)} tensors, {', '.join(kinds)}",
        **{name: json.dumps(value) for name, value in sorted(config.items()) if isinstance(value, int | float | str)},
    }
    look = Look(f"model, {amount(path.stat().st_size)}", facts)
    look.ranges = {"weights": Range()}
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            look.ranges["weights"].add(tensor.float().numpy(), f"the tensor {name}")
    if look.ranges["weights"].odd:
        found = look.ranges["weights"]
        look.problems.append(f"{found.odd} weights are NaN or infinite, the first in {found.first_odd}")
    return look
