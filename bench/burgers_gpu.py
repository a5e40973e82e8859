"""Burgers' equation at full size on one GPU: simulate, convert, autoencoder, latents, train; then PDEBench's protocol.

Runs the stages with configs/burgers1d_gpu.yaml in a folder of its own, and goes on where an earlier run of it stopped.
`--minutes` sets the training time of the operator: the speed is measured first. Prints one JSON line a step.

    python -m bench.burgers_gpu --folder /tmp/burgers --minutes 15
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ups_data import console
from ups_data.execution import pick_device
from ups_data.models.autoencoder import Autoencoder, load_autoencoder
from ups_data.models.operator import LatentOperator, load_operator
from ups_data.params import dataset_params, load_params
from ups_data.stores.grid import GridReader

ROOT = Path(__file__).resolve().parents[1]
TASK, CONFIG = "burgers1d", ROOT / "configs" / "burgers1d_gpu.yaml"
STRIDE = 5  # frames between those of the protocol
GIVEN, POINTS = (10, 1), (1, 4)  # frames given; errors at every n-th point
STAGES = ("simulate", "convert", "autoencoder", "latents", "train")
FLAGS = {"latents": ["--workers", "4", "--pin-memory", "--overwrite"]}
BATCH = 100  # trajectories rolled out at once
Predict = Callable[[Tensor, int], Tensor]  # (frame [B, X], steps) -> the next frames of the protocol [B, steps, X]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run what is asked for, print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--folder", type=Path, default=Path("burgers_gpu"), help="where everything is written")
    parser.add_argument("--minutes", type=float, help="of training (default: the steps of the configuration)")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES), help="which of them (all)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a knob, as for the stages")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    console.set_level(console.QUIET)
    args.folder.mkdir(parents=True, exist_ok=True)
    knobs = list(args.set)
    for stage in args.stages:
        if stage == "train" and args.minutes:
            knobs.append(f"datasets.{TASK}.train.steps={steps_in(args.minutes, args.folder, knobs, args.device)}")
        seconds = run_stage(stage, args.folder, knobs, args.device)
        print(json.dumps({"stage": stage, "seconds": round(seconds, 1)}), flush=True)
    if "train" in args.stages:
        for row in evaluate(args.folder, pick_device(args.device)):
            print(json.dumps(row), flush=True)
    return 0


def run_stage(stage: str, folder: Path, knobs: Sequence[str], device: str) -> float:
    """Run a stage in `folder`; returns its seconds. Raises CalledProcessError when it fails."""
    command = [sys.executable, "-m", f"stages.{stage}", TASK, "--params", str(CONFIG), *FLAGS.get(stage, [])]
    command += [] if stage == "convert" else ["--device", device]
    command += [word for knob in knobs for word in ("--set", knob)]
    started = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return time.perf_counter() - started


def steps_in(minutes: float, folder: Path, knobs: Sequence[str], device: str) -> int:
    """Training steps that take that long, all stages of unrolling in equal numbers."""
    from bench.train import measure
    from ups_data.stores.latents import open_cache
    from ups_data.training.operator import Problem

    where = pick_device(device)
    autoencoder = load_autoencoder(folder / "models" / TASK / "autoencoder.safetensors", where)
    problem = Problem(open_cache(folder / "data/latent_cache", TASK, "val", autoencoder), autoencoder, where)
    train = dataset_params(load_params(CONFIG, knobs), TASK).train
    seconds = {row["calls"]: row["ms_a_step"] / 1e3 for row in measure(problem, train, "compiled", where)}
    return int(60 * minutes / (sum(seconds[calls] for calls in train.unroll) / len(train.unroll)))


# --- the protocol --------------------------------------------------------------------------------


def test_frames(folder: Path, device: torch.device) -> Tensor:
    """The frames of the protocol of the test split: float32 [S, T, X]."""
    reader = GridReader(folder / "data" / "pdebench" / f"{TASK}_test.h5")
    return torch.from_numpy(reader.data[:, ::STRIDE, :, 0].copy()).to(device)


def errors(prediction: Tensor, truth: Tensor) -> Tensor:
    """PDEBench's nRMSE of each trajectory: RMSE over space / RMS of the target over space, mean over steps."""
    difference = (prediction - truth).double().square().mean(dim=-1).sqrt()
    return (difference / truth.double().square().mean(dim=-1).sqrt()).mean(dim=1)


@torch.inference_mode()
def protocol(name: str, frames: Tensor, predict: Predict) -> list[dict]:
    """Roll out from the last of the frames given to the end: a row a number of frames given and of points."""
    rows = []
    for given in GIVEN:
        truth = frames[:, given:]
        parts = [predict(block[:, given - 1], truth.shape[1]) for block in frames.split(BATCH)]
        prediction = torch.cat(parts)
        rows += [
            {"model": name, "given": given, "every_point": n} | _summary(errors(prediction[..., ::n], truth[..., ::n]))
            for n in POINTS
        ]
    return rows


def _summary(found: Tensor) -> dict:
    """Mean over trajectories, and half the width of its 95 % confidence interval."""
    half = 1.96 * found.std() / len(found) ** 0.5
    return {"nrmse": float(f"{found.mean():.4g}"), "plus_minus": float(f"{half:.2g}"), "trajectories": len(found)}


def persistence(frame: Tensor, steps: int) -> Tensor:
    """Nothing changes."""
    return frame[:, None].expand(-1, steps, -1)


def rollout(operator: LatentOperator, autoencoder: Autoencoder, parameters: Tensor, time_step: float) -> Predict:
    """What the operator says; all trajectories have the same `parameters` [P]."""

    def predict(frame: Tensor, steps: int) -> Tensor:
        latents = autoencoder.encode({"fields": frame[..., None]}, "state").half().float()[:, None]
        known = parameters.expand(len(frame), -1), torch.full((len(frame),), time_step, device=frame.device)
        future = operator.rollout(latents, *known, steps)
        return autoencoder.decode(future.flatten(0, 1), None, "state")[..., 0].unflatten(0, (len(frame), steps))

    return predict


@torch.inference_mode()
def evaluate(folder: Path, device: torch.device) -> list[dict]:
    """Operator, its floor (the round trip of the true frames) and persistence under the protocol."""
    frames = test_frames(folder, device)
    models = folder / "models" / TASK
    autoencoder = load_autoencoder(models / "autoencoder.safetensors", device)
    operator = load_operator(models / "operator.safetensors", device)
    reader = GridReader(folder / "data" / "pdebench" / f"{TASK}_test.h5")
    parameters = torch.from_numpy(reader.parameters[0]).to(device)
    time_step = float(reader.time[STRIDE] - reader.time[0])
    rows = protocol("operator", frames, rollout(operator, autoencoder, parameters, time_step))
    rows += protocol("persistence", frames, persistence)
    decoded = [
        autoencoder.decode(autoencoder.encode({"fields": block[..., None]}, "state").half().float(), None, "state")
        for block in frames.flatten(0, 1).split(4096)
    ]
    trip = errors(torch.cat(decoded)[..., 0].unflatten(0, frames.shape[:2]), frames)
    return [*rows, {"model": "roundtrip", "every_point": 1} | _summary(trip)]


if __name__ == "__main__":
    sys.exit(main())
