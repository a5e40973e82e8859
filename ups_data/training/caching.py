"""Encoding a split into a latent cache: frames of many trajectories at once, written in one stream.

For a GPU threads read ahead; on a CPU each core reads and encodes blocks of frames of its own. Under `torchrun` the
ranks take the blocks in turn, and rank 0 writes what all of them encode. A block is what is encoded at once however
many cores and ranks there are, so the bytes do not depend on their number.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ups_data import console
from ups_data.choice import evenly
from ups_data.errors import UpsDataError
from ups_data.execution import in_order
from ups_data.models.autoencoder import Autoencoder, Frame, check_view, refuse_untrained
from ups_data.models.grid_autoencoder import static_patches
from ups_data.params import Autoencoder as Knobs
from ups_data.params import Latents, View
from ups_data.stores.latents import DTYPES, write_cache
from ups_data.training import ranks
from ups_data.training.frames import Frames, frame_errors

JUDGED = 1024  # frames, evenly spread, that are decoded again for the round-trip error of a cache
# Of fields, or of the widest layer, that a core encodes at once, at most: with less, many cores wait for each other
# between two operations; with more, they outgrow their caches.
BYTES_AT_ONCE = 8 << 20
READERS, READ_AHEAD = 4, 1 << 30  # threads that read for a GPU, and bytes that they have ready, at most
Block = tuple[np.ndarray, np.ndarray]  # numbers of frames, and which of these are judged
Task = tuple[dict[str, Frame], np.ndarray]  # the frames by role, and which of them are judged
IN_FLIGHT = 2  # blocks of latents on their way to rank 0 while a rank encodes the next one


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
    check_view(autoencoder, task, view)


def cache_split(
    autoencoder: Autoencoder,
    frames: Frames,
    folder: str | Path,
    knobs: Latents,
    *,
    device: torch.device,
    workers: int | None = None,
    pin_memory: bool | None = None,
    label: str = "latents",
) -> dict | None:
    """Encode all frames of a split into `folder`; returns the cache's manifest, on ranks other than 0 None.

    For a GPU `workers` threads read ahead, 0 reads in turn (None: four, fewer where blocks are large), and with
    `pin_memory` (None: yes) it fetches fields and leaves latents in memory that is locked in its place. The bytes
    depend on neither. Raises UpsDataError for an untrained autoencoder and for latents that are not finite.
    """
    config = autoencoder.config
    refuse_untrained(config, label)
    gpu, roles = device.type == "cuda", list(autoencoder.roles)
    size = knobs.batch if gpu else _block(autoencoder, frames, knobs.batch)
    pin = gpu and pin_memory is not False
    blocks = np.array_split(np.arange(len(frames)), math.ceil(len(frames) / size))
    judged = _judged(len(frames), blocks)
    mine = list(zip(blocks, judged, strict=True))[ranks.rank() :: ranks.world()]
    read = partial(_read, frames, roles, pin)
    encode = partial(_encode, autoencoder, dtype=DTYPES[knobs.dtype], device=device)
    if gpu:
        readers = _readers(frames, roles, size) if workers is None else workers
        encoded = _on_gpu(read, encode, mine, readers, device, pin)
    else:
        encoded = _on_cores(read, encode, mine)
    seen: list[Encoded] = []  # of every block all but its latents, looked at in the end

    def batches() -> Iterator[dict[str, Tensor]]:
        with console.progress(label, len(frames), "frame") as bar:
            for index, block in zip(blocks, _gather(encoded, autoencoder, blocks, judged, knobs), strict=True):
                seen.append(block._replace(latents={}))
                yield block.latents
                bar.advance(len(index))

    with closing(encoded):  # whatever happens: their threads end here
        if ranks.rank():
            _send(encoded)
            return None
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
            finish=lambda: {"reconstruction": _round_trip(autoencoder, frames, blocks, seen, knobs.dtype, label)},
        )


def _block(autoencoder: Autoencoder, frames: Frames, batch: int) -> int:
    """Frames that a core encodes at once."""
    config, widest = autoencoder.config, _frame_bytes(frames, list(autoencoder.roles))
    if any(encoder.network is not None for encoder in autoencoder.encoders.values()):
        widest = max(widest, 4 * math.prod(config["token_grid"]) * config["width"])
    return max(1, min(batch, BYTES_AT_ONCE // widest))


def _readers(frames: Frames, roles: list[str], batch: int) -> int:
    """Threads that read ahead for a GPU."""
    return max(1, min(READERS, READ_AHEAD // (batch * _frame_bytes(frames, roles))))


def _frame_bytes(frames: Frames, roles: list[str]) -> int:
    return sum(tensor.nbytes for role in roles for tensor in frames.read(np.arange(1), role).values())


class Encoded(NamedTuple):
    """A block of frames, role by role: latents [b, L, D], the least and the greatest of them [2], and the errors
    float64 [j, C] of those that are judged."""

    latents: dict[str, Tensor]
    extremes: dict[str, Tensor]
    errors: dict[str, Tensor]

    def tensors(self) -> list[Tensor]:
        """All that hold anything, in one order."""
        return [tensor for own in self for tensor in own.values() if tensor.numel()]


def _round_trip(
    autoencoder: Autoencoder,
    frames: Frames,
    blocks: list[np.ndarray],
    seen: list[Encoded],
    dtype: str,
    label: str,
) -> dict[str, dict[str, float]]:
    """nRMSE of the frames that were judged, by role and channel.

    Raises UpsDataError where latents or what is decoded of them are no finite numbers.
    """
    roles = autoencoder.roles
    means = {role: torch.cat([block.errors[role] for block in seen]).mean(dim=0).tolist() for role in roles}
    extremes = torch.stack([bounds for block in seen for bounds in block.extremes.values()])
    spoilt = None
    if not extremes.isfinite().all():
        spoilt = f"some latents are too large for {dtype} or no numbers"
    elif not all(math.isfinite(mean) for own in means.values() for mean in own):
        spoilt = "some frames come out of the decoder as no finite numbers"
    if spoilt:
        _check_finite(frames, blocks, list(roles), label)
        raise UpsDataError(
            f"{label}: {spoilt}; train the autoencoder longer, on more frames or with a lower latent_dim, or set "
            "latents.dtype to float32"
        )
    # Six digits: in which order a sum is added up tells in the eighth.
    return {
        role: {name: float(f"{mean:.6g}") for name, mean in zip(names, means[role], strict=True)}
        for role, names in roles.items()
    }


def _judged(count: int, blocks: list[np.ndarray]) -> list[np.ndarray]:
    """The frames of each block that are decoded again, counted from its first."""
    starts = [int(block[0]) for block in blocks]
    chosen = evenly(count, JUDGED)
    parts = np.split(chosen, np.searchsorted(chosen, starts[1:]))
    return [part - start for part, start in zip(parts, starts, strict=True)]


def _read(frames: Frames, roles: list[str], pin: bool, block: Block) -> Task:
    """The frames of a block, role by role."""
    index, judged = block
    batch = {role: frames.read(index, role, pin) for role in roles}
    if pin:
        batch = {role: {name: t.pin_memory() for name, t in frame.items()} for role, frame in batch.items()}
    return batch, judged


def _read_ahead(read: Callable[[Block], Task], blocks: Iterable[Block], workers: int) -> Generator[Task]:
    """Every block in order; `workers` threads are that many blocks ahead."""
    if not workers:
        yield from map(read, blocks)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from (task for _, task in in_order(pool, read, blocks, workers + 1))


def _on_gpu(
    read: Callable[[Block], Task],
    encode: Callable[[Task], Encoded],
    blocks: Iterable[Block],
    workers: int,
    device: torch.device,
    pin: bool,
) -> Iterator[Encoded]:
    """Every block in the memory of the host, when the next one was begun: the GPU does not wait."""

    def begun(tasks: Iterable[Task]) -> Iterator[tuple[Encoded, torch.cuda.Event]]:
        for task in tasks:
            parts = ({role: _on_its_way(tensor, pin) for role, tensor in part.items()} for part in encode(task))
            yield Encoded(*parts), torch.cuda.current_stream(device).record_event()

    with closing(_read_ahead(read, blocks, workers)) as tasks:
        for (block, left), _ in itertools.pairwise(itertools.chain(begun(tasks), [None])):
            left.synchronize()  # the copies of this block, not what the next one has the GPU do
            yield block


def _on_its_way(tensor: Tensor, pin: bool) -> Tensor:
    """A copy in the memory of the host, whole when the GPU has come to it."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pin).copy_(tensor, non_blocking=True)


def _on_cores(
    read: Callable[[Block], Task], encode: Callable[[Task], Encoded], blocks: Iterable[Block]
) -> Iterator[Encoded]:
    """Every block in order, each read and encoded by one core: its products are too small to be shared by several."""
    cores, before = ranks.cores(), torch.get_num_threads()
    torch.set_num_threads(1)  # in this thread and in those that begin from now on
    try:
        with ThreadPoolExecutor(cores) as pool:
            yield from (block for _, block in in_order(pool, lambda block: encode(read(block)), blocks, cores + 1))
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def _encode(autoencoder: Autoencoder, task: Task, dtype: torch.dtype, device: torch.device) -> Encoded:
    """Encode one block, and judge frames of it; nothing here waits for the device."""
    batch, judged = task
    latents, extremes, errors = {}, {}, {}
    chosen = torch.from_numpy(judged).to(device, non_blocking=True)
    for role, frame in batch.items():
        frame = {name: tensor.to(device, non_blocking=True) for name, tensor in frame.items()}
        encoded = autoencoder.encode(frame, role)
        latents[role] = encoded.to(dtype)
        extremes[role] = torch.stack(encoded.aminmax()).to(dtype)
        errors[role] = torch.empty(0, len(autoencoder.roles[role]), dtype=torch.float64)
        if len(judged):
            truth = {name: tensor[chosen] for name, tensor in frame.items()}
            decoded = autoencoder.decode(latents[role][chosen].float(), truth, role)
            errors[role] = frame_errors(decoded, truth, autoencoder.mean_square(role))
    return Encoded(latents, extremes, errors)


def _send(blocks: Iterator[Encoded]) -> None:
    """Send a rank's blocks to rank 0; the next one is encoded while the last ones are on their way."""
    sent: deque[list[dist.Work]] = deque()
    for block in blocks:
        # As bytes: gloo does not know every number format.
        sent.append([dist.isend(_bytes(tensor), dst=0) for tensor in block.tensors()])
        while len(sent) > IN_FLIGHT:
            _wait(sent.popleft())
    while sent:
        _wait(sent.popleft())


def _wait(sent: list[dist.Work]) -> None:
    for work in sent:
        work.wait()


def _gather(
    own: Iterator[Encoded],
    autoencoder: Autoencoder,
    blocks: list[np.ndarray],
    judged: list[np.ndarray],
    knobs: Latents,
) -> Iterator[Encoded]:
    """All blocks in order on rank 0: its own, and what the others send."""
    config = autoencoder.config
    token = math.prod(config["token_grid"]), config["latent_dim"]
    for number, (index, chosen) in enumerate(zip(blocks, judged, strict=True)):
        source = number % ranks.world()
        if source == 0:
            yield next(own)
            continue
        block = Encoded(
            {role: torch.empty(len(index), *token, dtype=DTYPES[knobs.dtype]) for role in autoencoder.roles},
            {role: torch.empty(2, dtype=DTYPES[knobs.dtype]) for role in autoencoder.roles},
            {role: torch.empty(len(chosen), len(n), dtype=torch.float64) for role, n in autoencoder.roles.items()},
        )
        for tensor in block.tensors():
            dist.recv(_bytes(tensor), src=source)
        yield block


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a tensor as one row of bytes."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def places(autoencoder: Autoencoder, frames: Frames) -> dict[str, Tensor]:
    """What a reader of the cache needs beside latents, to decode or predict: see stores/latents.py."""
    config = autoencoder.config
    if config["kind"] == "grid":
        static = frames.static_fields()
        return {} if static is None else {"static": static_patches(static, config["token_grid"])}
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


def _check_finite(frames: Frames, blocks: Sequence[np.ndarray], roles: Sequence[str], label: str) -> None:
    """Raise UpsDataError for the first frame that has something else than numbers: training is not to blame then."""
    for block in blocks:
        for role in roles:
            finite = frames.read(block, role)["fields"].isfinite().flatten(1).all(dim=1)
            if not finite.all():
                sample, frame = divmod(int(block[int(finite.int().argmin())]), frames.frames)
                raise UpsDataError(
                    f"{label}: frame {frame} of sample {sample} of {frames.reader.path} holds more than finite "
                    "numbers; fetch it again or convert again"
                )
