"""One training step: the loss of a batch, its gradients, an update of the weights.

On the CPU it runs as it is written. On a GPU the networks of these sizes are bound by kernel launches, not by
arithmetic, so the step is recorded once as a CUDA graph for every shape of batch and then replayed; the host only
draws batches, ahead of the device, and never waits for it. What several ranks tell each other is recorded with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ups_data.training import ranks
from ups_data.training.muon import Both, Muon

Batch = dict[str, Tensor]
CLIP = 1.0  # gradient norm: keeps an unrolled loss from throwing the weights away
WEIGHT_DECAY = 1e-5  # a step takes this times the learning rate of every weight away
SHAPES = 64  # that a module may be compiled for
WARM_UP = 3  # steps before a recording: libraries choose their algorithms and compilers compile in them


class Matrices(NamedTuple):
    """Those weights of a model that are trained in a way of their own."""

    weights: Sequence[Tensor] = ()
    muon: bool = False  # or AdamW, as the others
    weight_decay: float = WEIGHT_DECAY


ALL_ALIKE = Matrices()


def make_optimiser(
    model: nn.Module, device: torch.device, matrices: Matrices = ALL_ALIKE
) -> torch.optim.Optimizer | Both:
    """AdamW, and what `matrices` says for the weights in it.

    On a GPU the learning rate is a tensor there, which a recorded step reads, and AdamW one kernel.
    """
    rate = torch.zeros((), device=device) if device.type == "cuda" else 0.0
    inner = {id(matrix) for matrix in matrices.weights}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in inner]
    real = all(parameter.is_floating_point() for parameter in rest)  # complex ones cannot be fused
    options = {"fused": real, "capturable": True} if device.type == "cuda" else {}
    own = {"params": list(matrices.weights), "weight_decay": matrices.weight_decay}
    groups = [{"params": rest}] + ([own] if own["params"] and not matrices.muon else [])
    adamw = torch.optim.AdamW(groups, lr=rate, weight_decay=WEIGHT_DECAY, **options)
    return Both(adamw, Muon(own["params"], rate, matrices.weight_decay)) if matrices.muon else adamw


def set_rate(optimiser: torch.optim.Optimizer | Both, rate: float) -> None:
    """Set the learning rate, in place where it is a tensor."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def compile_parts(parts: Iterable[nn.Module], device: torch.device) -> None:
    """Compile modules in place on a GPU; equal modules (the blocks of a network) are compiled once."""
    if device.type == "cuda":
        # A decoder meets three shapes a stage of unrolling; past the limit (8) PyTorch would run it uncompiled.
        torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
        for part in parts:
            part.compile(dynamic=False)


@contextmanager
def uncompiled(device: torch.device) -> Iterator[None]:
    """Run compiled modules as they are written: to compile them for the shapes of validation takes longer than it."""
    if device.type != "cuda":
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def stepper(
    model: nn.Module, optimiser: torch.optim.Optimizer | Both, loss: Callable[[Batch], Tensor], device: torch.device
) -> Callable[[Batch], Tensor]:
    """The function that trains `model` on a batch and returns its loss, detached."""
    step = plain_step(model, optimiser, loss)
    return Recorded(model, optimiser, step) if device.type == "cuda" else step


def plain_step(
    model: nn.Module, optimiser: torch.optim.Optimizer | Both, loss: Callable[[Batch], Tensor]
) -> Callable[[Batch], Tensor]:
    """A training step as it is written, on any device."""

    def step(batch: Batch) -> Tensor:
        value = loss(batch)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        value = ranks.average_gradients(model, value.detach())
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        return value

    return step


class Recorded:
    """A training step as CUDA graphs, one a shape of batch; `loss` must be a function of the batch's tensors alone."""

    def __init__(self, model: nn.Module, optimiser: torch.optim.Optimizer | Both, step: Callable[[Batch], Tensor]):
        self.model, self.optimiser, self.step = model, optimiser, step
        self.pool = torch.cuda.graph_pool_handle()  # recordings share their memory: one is replayed at a time
        self.recordings: dict[tuple, tuple[Batch, Tensor, torch.cuda.CUDAGraph]] = {}

    def __call__(self, batch: Batch) -> Tensor:
        shape = tuple((name, tuple(tensor.shape)) for name, tensor in batch.items())
        if shape not in self.recordings:
            self.recordings[shape] = self._record(batch)
        inputs, value, graph = self.recordings[shape]
        for name, tensor in batch.items():
            inputs[name].copy_(tensor)
        graph.replay()
        return value.clone()

    def _record(self, batch: Batch) -> tuple[Batch, Tensor, torch.cuda.CUDAGraph]:
        """Warm up and record on copies; weights and moments are afterwards what they were before."""
        inputs = {name: tensor.clone() for name, tensor in batch.items()}
        weights = [tensor.clone() for tensor in self.model.state_dict().values()]
        moments = {p: {k: v.clone() for k, v in state.items()} for p, state in self.optimiser.state.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.step(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.optimiser.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on asking the device: NCCL has one that watches over its messages.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            value = self.step(inputs)
        with torch.no_grad():
            for tensor, kept in zip(self.model.state_dict().values(), weights, strict=True):
                tensor.copy_(kept)
            for parameter, state in self.optimiser.state.items():
                before = moments.get(parameter, {})
                for name, tensor in state.items():
                    tensor.copy_(before[name]) if name in before else tensor.zero_()
        return inputs, value, graph
