"""How fast the latent operator trains: seconds a step, and the share of the GPU's arithmetic that the model uses.

Takes the autoencoder and the cache of a task as the pipeline left them. Prints one JSON line for every number of
unrolled calls and way of running: `plain` (as written), `recorded` (CUDA graphs), `compiled` (and compiled blocks).

    python -m bench.train burgers1d --params configs/burgers1d_gpu.yaml --batches 64 128
    torchrun --nproc_per_node 2 -m bench.train burgers1d --params configs/burgers1d_gpu.yaml --ways compiled

Under torchrun a batch is shared by the processes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ups_data import console
from ups_data.execution import pick_device
from ups_data.models.autoencoder import load_autoencoder
from ups_data.models.operator import LatentOperator, build_operator
from ups_data.params import Train, dataset_params, load_params
from ups_data.stores.latents import open_cache
from ups_data.training import ranks
from ups_data.training.operator import WHOLE, Problem, operator_config, trained_apart, training_batch
from ups_data.training.steps import Batch, compile_parts, make_optimiser, plain_step, set_rate, stepper

WAYS = ("plain", "recorded", "compiled")
STEPS = 30  # timed, after as many as recording and compiling take
PEAK = {"H100": 989e12, "H200": 989e12}  # dense bfloat16 operations a second, by the maker's data sheet


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("task")
    parser.add_argument("--params", default="params.yaml", metavar="FILE")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a knob, as for the stages")
    parser.add_argument("--cache-dir", default="data/latent_cache", metavar="DIR")
    parser.add_argument("--models", default="models", metavar="DIR")
    parser.add_argument("--batches", type=int, nargs="+", help="sizes of a batch (the knob)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    console.set_level(console.QUIET)
    with ranks.joined(pick_device(args.device)) as device:
        for result in rows(args, device):
            if ranks.rank() == 0:
                print(json.dumps(result), flush=True)
    return 0


def rows(args: argparse.Namespace, device: torch.device) -> Iterator[dict]:
    """A row for each way, size of a batch and number of calls."""
    knobs = dataset_params(load_params(args.params, args.set), args.task).train
    autoencoder = load_autoencoder(Path(args.models) / args.task / "autoencoder.safetensors", device)
    problem = Problem(open_cache(args.cache_dir, args.task, "train", autoencoder), autoencoder, device)
    for way in args.ways:
        for batch in args.batches or [knobs.batch]:
            yield from measure(problem, knobs.model_copy(update={"batch": batch}), way, device)


def measure(problem: Problem, knobs: Train, way: str, device: torch.device) -> list[dict]:
    """Seconds a training step, for each number of unrolled calls."""
    torch.manual_seed(0)
    model = build_operator(operator_config(problem, knobs)).to(device)
    if way == "compiled":
        compile_parts([*model.blocks, problem.autoencoder.decoders[problem.role]], device)
    optimiser = make_optimiser(model, device, trained_apart(model, knobs))
    set_rate(optimiser, 1e-4)

    def loss(batch: Batch) -> torch.Tensor:
        return problem.error(model, batch)

    step = plain_step(model, optimiser, loss) if way == "plain" else stepper(model, optimiser, loss, device)
    work = flops(model, problem)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    peak = next((value for key, value in PEAK.items() if key in name), None)
    results = []
    for calls in sorted(set(knobs.unroll)):
        started = time.perf_counter()
        seconds = step_seconds(step, problem, knobs, calls, device)
        rate = 3 * work * calls * knobs.batch / seconds  # backwards costs twice what forwards does
        results.append(
            {
                "device": name,
                "processes": ranks.world(),
                "way": way,
                "batch": knobs.batch,
                "calls": calls,
                "augment": knobs.augment,
                "ms_a_step": round(1e3 * seconds, 3),
                "tflops": round(rate / 1e12, 1),
                "utilisation": round(rate / peak / ranks.world(), 3) if peak else None,
                "ready_after_s": round(time.perf_counter() - started - STEPS * seconds, 1),
                "parameters": sum(p.numel() for p in model.parameters()),
            }
        )
    return results


def step_seconds(
    step: Callable[[Batch], object], problem: Problem, knobs: Train, calls: int, device: torch.device
) -> float:
    """Mean seconds of a step in steady state, drawing its batch included."""

    def one(number: int) -> None:
        step(ranks.own(training_batch(problem, knobs, number, calls * knobs.bundle, knobs.strides[0]), WHOLE))

    for number in range(3):
        one(number)
    _wait(device)
    started = time.perf_counter()
    for number in range(STEPS):
        one(number)
    _wait(device)
    return (time.perf_counter() - started) / STEPS


def flops(model: LatentOperator, problem: Problem) -> int:
    """Operations of one call of the operator for one sample, forwards."""
    history = torch.zeros(1, model.history, *problem.window(problem.role, [0], [0], 1, 1).shape[2:])
    known = problem.parameters[:1], torch.ones(1, device=problem.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain = build_operator(model.config).to(problem.device)
        plain(history.to(problem.device), *known, problem.cache.static_fields([0], problem.device))
    return counter.get_total_flops()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
