"""The latent cache on disk: encoded trajectories, readable only with the autoencoder that made them.

A folder <task>_<split>:
    manifest.json               what it is, its key and what the key is made of, sizes, the round-trip error
    latents-00000.safetensors   a tensor a role, [samples of the shard, T, L, D], in the cache's dtype
    samples.safetensors         parameters float64 [S, P], times float64 [T]; for points also topology int64 [S] and,
                                of each of the K topologies, coords [K, N, d], mask [K, N] and (meshes) boundary [K, N];
                                particles have one: a regular grid of points to decode at; for grids with fields
                                that do not change in time also static float32 [S, L, Q], the patch of each token
Every file's size and SHA-256 stand in the manifest: a file is checked before the first number of it is used.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import inf, prod
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ups_data import files
from ups_data.errors import UpsDataError
from ups_data.execution import cores
from ups_data.manifest import content_key

FORMAT, VERSION = "ups-data/latents", 2
MANIFEST, SAMPLES = "manifest.json", "samples.safetensors"
KEYS = {  # what a reader takes from the manifest
    *("key", "constituents", "task", "split", "files"),
    *("samples", "frames", "roles", "dtype", "latent_dim", "token_grid", "shard_samples"),
}
BITS = {2: torch.int16, 4: torch.int32}  # whole numbers, by their bytes
OS_ERROR = re.compile(r"os error (\d+)")  # as safetensors tells of one
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Encoder(Protocol):
    """Something that latents come from: it can say what they depend on."""

    def constituents(self) -> dict[str, str]:
        """Name -> value of everything the latents depend on."""


def cache_key(constituents: Mapping[str, str]) -> str:
    """The key of a cache: SHA-256 over weights, config, normaliser, view, data and dtype."""
    return content_key(format=FORMAT, **constituents)


def cache_folder(root: str | Path, task: str, split: str) -> Path:
    """Where the cache of a split stands."""
    return Path(root) / f"{task}_{split}"


# --- writing -------------------------------------------------------------------------------------


def writers() -> int:
    """Shards on their way to the disk at once: a checksum alone is slower than a disk, three fill two cores."""
    return min(6, max(3, cores() // 2))


def write_cache(
    folder: str | Path,
    *,
    constituents: Mapping[str, str],
    facts: Mapping[str, object],
    arrays: Mapping[str, Tensor],
    shape: Sequence[int],
    roles: Sequence[str],
    dtype: str,
    shard_bytes: int,
    batches: Iterable[Mapping[str, Tensor]],
    finish: Callable[[], Mapping[str, object]],
) -> dict:
    """Write a cache atomically; returns its manifest.

    `shape`: samples, frames, tokens, latent_dim; `batches` give, role by role, the latents [b, L, D] of frames one
    after another, sample after sample; `arrays` go to samples.safetensors; `facts`, and what `finish()` returns after
    the last batch, to the manifest. At most twice as many shards as `writers`, and one, are in memory: what is written
    and what it is joined from.
    """
    samples, frames = shape[:2]
    trajectory = int(np.prod(shape[1:])) * len(roles) * DTYPES[dtype].itemsize
    rows = max(1, min(samples, shard_bytes // trajectory))
    size = samples * trajectory + sum(array.nbytes for array in arrays.values())
    files.require_space(Path(folder).parent, int(1.01 * size), f"the latent cache {folder}")
    with files.atomic(folder) as temporary:
        temporary.mkdir()
        _save({name: array.contiguous() for name, array in arrays.items()}, temporary / SAMPLES)
        contents = _write_shards(temporary, batches, shape, roles, DTYPES[dtype], rows)
        contents[SAMPLES] = _identity(temporary / SAMPLES)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **facts,
            **finish(),
            "key": cache_key(constituents),
            "constituents": dict(constituents),
            "samples": samples,
            "frames": frames,
            "latent_dim": shape[3],
            "roles": list(roles),
            "dtype": dtype,
            "shard_samples": rows,
            "files": contents,
            "bytes": sum(entry["size"] for entry in contents.values()),
        }
        (temporary / MANIFEST).write_text(files.to_json(manifest), encoding="utf-8")
    return manifest


def _write_shards(
    folder: Path,
    batches: Iterable[Mapping[str, Tensor]],
    shape: Sequence[int],
    roles: Sequence[str],
    dtype: torch.dtype,
    rows: int,
) -> dict[str, dict]:
    """Cut a stream of frames into files of `rows` trajectories; some are written while the next one comes.

    Returns the identity of each by its name.
    """
    samples, frames, *token = shape
    shards = [min(rows, samples - start) * frames for start in range(0, samples, rows)]
    contents, most = {}, writers()
    underway: deque[tuple[str, Future, dict[str, Tensor]]] = deque()

    def written() -> dict[str, Tensor]:
        """The memory of the oldest shard, once it is on the disk."""
        name, made, memory = underway.popleft()
        contents[name] = made.result()
        return memory

    def room() -> dict[str, Tensor]:
        if len(underway) == most:  # memory that was used before: new pages cost as much as the copy into them
            return written()
        # Of NumPy, which asks for large pages: these come three times as fast.
        memory = {role: np.empty((shards[0], *token), f"i{dtype.itemsize}") for role in roles}
        return {role: torch.from_numpy(bits).view(dtype) for role, bits in memory.items()}

    with ThreadPoolExecutor(most) as pool:
        for number, parts in enumerate(_cut(batches, shards)):
            name, memory = _shard_name(number), room()
            shard = {role: latents[: shards[number]] for role, latents in memory.items()}
            underway.append((name, pool.submit(_write_shard, parts, shard, frames, folder / name), memory))
        while underway:
            written()
    return contents


def _cut(batches: Iterable[Mapping[str, Tensor]], shards: Sequence[int]) -> Iterator[list[Mapping[str, Tensor]]]:
    """So many frames for every shard in turn, in the parts they come in."""
    sizes, parts = iter(shards), []
    left = next(sizes)
    for batch in batches:
        start, stop = 0, len(next(iter(batch.values())))
        while start < stop:
            end = min(start + left, stop)
            parts.append({role: latents[start:end] for role, latents in batch.items()})
            start, left = end, left - (end - start)
            if not left:
                yield parts
                parts, left = [], next(sizes, inf)
    if parts or left != inf:
        raise ValueError(f"got other than the {sum(shards)} frames that were announced")


def _write_shard(
    parts: list[Mapping[str, Tensor]], shard: Mapping[str, Tensor], frames: int, path: Path
) -> dict[str, object]:
    """Join the parts in the memory of `shard`, let them go, and write a file to the disk; returns its identity.

    All this while the next shard comes.
    """
    for role, joined in shard.items():
        np.concatenate([_bits(part[role].to(joined.dtype)) for part in parts], out=_bits(joined))
    parts.clear()
    _save({role: joined.unflatten(0, (-1, frames)) for role, joined in shard.items()}, path)
    with ThreadPoolExecutor(1) as flusher:  # the last shard is waited for: its checksum need not wait for the disk
        flushed = flusher.submit(files.sync, path)
        identity = _identity(path)
        flushed.result()
    return identity


def _bits(latents: Tensor) -> np.ndarray:
    """The same memory as whole numbers, for NumPy, which has no bfloat16."""
    return latents.view(BITS[latents.itemsize]).numpy()


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a file of tensors, as open to others as its folder: safetensors makes files for the owner alone.

    Of a full disk it tells in an error of its own.
    """
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        if found := OS_ERROR.search(str(error)):
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from None
        raise
    path.chmod(path.parent.stat().st_mode & 0o666)


def _shard_name(index: int) -> str:
    return f"latents-{index:05d}.safetensors"


def _identity(path: Path) -> dict[str, object]:
    return {"size": path.stat().st_size, "sha256": files.checksum(path)}


# --- reading -------------------------------------------------------------------------------------


def read_cache_manifest(folder: str | Path) -> dict:
    """The manifest of a cache; a missing cache or one of another format is a sentence."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UpsDataError(f"{folder} is missing or no latent cache; {_remedy(folder)}")
    manifest = files.read_json(path)
    got = manifest.get("format"), manifest.get("version")
    if got != (FORMAT, VERSION):
        raise UpsDataError(
            f"{path}: got format {got[0]!r} version {got[1]}, expected {FORMAT!r} version {VERSION}; {_remedy(folder)}"
        )
    if lacking := sorted(KEYS - set(manifest)):
        raise UpsDataError(f"{path}: got no {', '.join(lacking)}; {_remedy(folder)}")
    return manifest


def differences(manifest: Mapping, expect: Mapping[str, str]) -> list[str]:
    """The names of the constituents that are not what is expected."""
    return sorted(name for name, value in expect.items() if manifest["constituents"].get(name) != value)


def cache_is_current(folder: str | Path, expect: Mapping[str, str]) -> bool:
    """Whether a whole cache with exactly these constituents is there.

    Raises UpsDataError, naming what differs, for one that was made from something else.
    """
    if not Path(folder).exists():
        return False
    cache = LatentCache(folder)
    stale = differences(cache.manifest, expect)
    if stale:
        raise UpsDataError(f"{folder} is there, made with another {', another '.join(stale)}; {_remedy(folder)}")
    return True


def open_cache(root: str | Path, task: str, split: str, encoder: Encoder) -> LatentCache:
    """The cache of a split, which must come from this autoencoder as it is now, and from no other split."""
    cache = LatentCache(cache_folder(root, task, split), expect=encoder.constituents())
    owner, held = cache.manifest["task"], cache.manifest["split"]
    if (owner, held) != (task, split):
        raise UpsDataError(
            f"{cache.folder} holds the latents of the split {held!r} of {owner!r}, expected {split!r} of {task!r}; "
            f"{_remedy(cache.folder)}"
        )
    return cache


class LatentCache:
    """An open cache: samples, frames, roles, token_grid, latent_dim, parameters [S, P], times [T], key, manifest.

    `expect` holds constituents (see `cache_key`) the cache must have been made from, any number of them. Shards are
    mapped into memory when first read, in each process for itself. Raises UpsDataError for a cache that is missing,
    damaged or stale; a stale one is told by the names of what differs.
    """

    def __init__(self, folder: str | Path, expect: Mapping[str, str] | None = None):
        self.folder = Path(folder)
        self.manifest = read_cache_manifest(folder)
        stale = differences(self.manifest, expect or {})
        if stale:
            raise UpsDataError(
                f"{folder} is stale: its latents were made with another {', another '.join(stale)} "
                f"than the autoencoder at hand; {_remedy(folder)}"
            )
        self.key: str = self.manifest["key"]
        self.samples: int = self.manifest["samples"]
        self.frames: int = self.manifest["frames"]
        self.latent_dim: int = self.manifest["latent_dim"]
        self.roles: list[str] = self.manifest["roles"]
        self.token_grid: tuple[int, ...] = tuple(self.manifest["token_grid"])
        self._starts = list(range(0, self.samples, self.manifest["shard_samples"]))
        for name, entry in self.manifest["files"].items():
            size = (self.folder / name).stat().st_size if (self.folder / name).is_file() else None
            if size != entry["size"]:
                got = "no file" if size is None else f"{size} bytes"
                raise UpsDataError(
                    f"{self.folder / name}: got {got}, expected {entry['size']} bytes; {_remedy(folder)}"
                )
        self._checked: set[str] = set()
        self._open: dict[int, safe_open] = {}
        self._arrays = load_file(self._verified(SAMPLES))
        self.parameters: np.ndarray = self._arrays["parameters"].numpy()
        self.times: np.ndarray = self._arrays["times"].numpy()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}

    def __len__(self) -> int:
        return self.samples

    def read(self, role: str, sample: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Latents of frames start..stop of a sample: float32 [t, L, D]."""
        stop = self.frames if stop is None else stop
        if role not in self.roles or not (0 <= sample < self.samples and 0 <= start < stop <= self.frames):
            raise UpsDataError(
                f"{self.folder}: got role {role!r}, sample {sample}, frames {start}..{stop}; expected a role of "
                f"{', '.join(self.roles)}, a sample below {self.samples} and frames within 0..{self.frames}"
            )
        shard = bisect_right(self._starts, sample) - 1
        return self._shard(shard).get_slice(role)[sample - self._starts[shard], start:stop].float()

    def load(self, role: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """All latents of a role: [S, T, L, D]."""
        latents = torch.empty(self.samples, self.frames, prod(self.token_grid), self.latent_dim, dtype=dtype)
        for shard, start in enumerate(self._starts):
            rows = self._shard(shard).get_tensor(role)
            latents[start : start + len(rows)] = rows
        return latents

    def geometry(self, samples: Sequence[int], device: torch.device | str = "cpu") -> dict[str, Tensor] | None:
        """Where the fields of samples can be decoded: coords [B, N, d], mask [B, N], boundary [B, N]; None on grids.

        Meshes give their nodes, particles a regular grid of points.
        """
        if "topology" not in self._arrays:
            return None
        topology = self._arrays["topology"][torch.as_tensor(samples)]
        names = [name for name in ("coords", "mask", "boundary") if name in self._arrays]
        return {name: self._arrays[name][topology].to(device) for name in names}

    def static_fields(self, samples: Sequence[int], device: torch.device | str = "cpu") -> Tensor | None:
        """Patches of the fields that do not change in time, float32 [B, L, Q]; None where there are none."""
        return self._arrays["static"][torch.as_tensor(samples)].to(device) if "static" in self._arrays else None

    def _shard(self, index: int) -> safe_open:
        if index not in self._open:
            path = self._verified(_shard_name(index))
            try:
                self._open[index] = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise UpsDataError(f"{path} cannot be read ({error}); {_remedy(self.folder)}") from None
        return self._open[index]

    def _verified(self, name: str) -> Path:
        path = self.folder / name
        if name not in self._checked:
            if files.checksum(path) != self.manifest["files"][name]["sha256"]:
                raise UpsDataError(f"{path} is corrupt: its bytes are not those written; {_remedy(self.folder)}")
            self._checked.add(name)
        return path


def _remedy(folder: str | Path) -> str:
    task, _, split = Path(folder).name.rpartition("_")
    return f"encode again with `python -m stages.latents {task} --splits {split} --overwrite` or `dvc repro`"
