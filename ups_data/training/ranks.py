"""Several processes as one: what `torchrun` starts, on the cores or GPUs of one host or of several.

    torchrun --nproc_per_node 4 -m stages.latents burgers1d

Each process is a rank with a device of its own. Where no torchrun is at work there is one rank, and nothing here
does anything.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ups_data import console, execution
from ups_data.errors import UpsDataError


def rank() -> int:
    """The number of this process; rank 0 writes the outputs."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def cores() -> int:
    """Cores of this host for each of its processes."""
    beside = int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_initialized() else 1
    return max(1, execution.cores() // beside)


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did; yields this rank's device.

    Ranks other than 0 are quiet. CPU tensors travel by gloo, those of a GPU by NCCL.
    """
    if not dist.is_torchelastic_launched():
        yield device
        return
    local = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UpsDataError(
                f"torchrun started process {local + 1} on a host with {torch.cuda.device_count()} GPUs; "
                "lower --nproc_per_node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
    if rank():
        console.set_level(console.QUIET)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def decided(value: bool) -> bool:
    """What rank 0 says, on every rank: for choices that hang on what is on its disk."""
    if world() == 1:
        return value
    said = torch.tensor([value], dtype=torch.uint8)
    dist.broadcast(said, src=0)
    return bool(said.item())


def agree(number: int) -> bool:
    """Whether all ranks have the same number."""
    if world() == 1:
        return True
    ends = torch.tensor([number, -number])
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    return bool(ends[0] == -ends[1])


def share(batch: int) -> slice:
    """This rank's part of a batch; raises UpsDataError unless the batch can be shared out evenly."""
    if batch % world():
        raise UpsDataError(f"batch: got {batch}, expected a multiple of the {world()} processes")
    part = batch // world()
    return slice(rank() * part, (rank() + 1) * part)


def own(batch: dict[str, Tensor], whole: Collection[str]) -> dict[str, Tensor]:
    """This rank's rows of the tensors of a batch; of those named in `whole`, whose rows are no samples, all."""
    return {name: tensor if name in whole else tensor[share(len(tensor))] for name, tensor in batch.items()}


def average_gradients(model: nn.Module, loss: Tensor) -> Tensor:
    """Give every rank the mean of all ranks' gradients: those of a loss that is a mean over the whole batch.

    Returns the mean of the ranks' losses.
    """
    if world() == 1:
        return loss
    gradients = [weights.grad for weights in model.parameters() if weights.grad is not None]
    # One message in place of many small ones.
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), loss.view(1)])
    dist.all_reduce(flat)
    flat /= world()
    for gradient, mean in zip(gradients, flat[:-1].split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
    return flat[-1].clone()
