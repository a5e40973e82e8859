"""A dataset at full size on one GPU: simulate, convert, autoencoder, latents, train; then PDEBench's protocol.

Runs the stages with a params file of one dataset in a folder of its own, and goes on where an earlier run of it
stopped. All sections `simulate` of the file are made, as a dataset can have several. `--minutes` sets the
training time of an operator: the speed is measured first. With several `--seeds` an operator is trained and scored for
each. `--score-on` scores the operator on test trajectories that another run of it made. Prints one JSON line a step.

    python -m bench.full_size --params configs/burgers1d_gpu.yaml --folder /tmp/burgers --minutes 1 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ups_data import console, files
from ups_data.execution import pick_device
from ups_data.models.autoencoder import Autoencoder, load_autoencoder
from ups_data.models.operator import LatentOperator, load_operator
from ups_data.params import Dataset, load_params
from ups_data.stores.grid import GridReader

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "burgers1d_gpu.yaml"
STAGES = ("simulate", "convert", "autoencoder", "latents", "train")
FLAGS = {"latents": ["--overwrite"]}
AT_ONCE = 5  # sections that are simulated at once: half of the time of one is the start of its process
BATCH = 100  # trajectories rolled out at once
# (frame [B, X], steps, which trajectories) -> the next frames of the protocol [B, steps, X]
Predict = Callable[[Tensor, int, slice], Tensor]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run what is asked for, print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--params", type=Path, default=CONFIG, metavar="FILE", help="knobs with one dataset in them")
    parser.add_argument("--folder", type=Path, default=Path("full_size"), help="where everything is written")
    parser.add_argument("--minutes", type=float, help="of training, each seed (default: the steps of the params)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the operators")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES), help="which of them (all)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a knob, as for the stages")
    parser.add_argument("--score-on", type=Path, nargs="+", default=[], metavar="FOLDER", help="of other runs")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    console.set_level(console.QUIET)
    args.folder.mkdir(parents=True, exist_ok=True)
    params, knobs = args.params.resolve(), list(args.set)
    task, dataset = the_dataset(params, knobs)
    for stage in args.stages:
        if stage != "train":
            sections = load_params(params, knobs).simulate if stage == "simulate" else [task]
            started = time.perf_counter()
            run = partial(run_stage, stage, params=params, folder=args.folder, knobs=knobs, device=args.device)
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(run, sections))
            print(json.dumps({"stage": stage, "seconds": round(time.perf_counter() - started, 1)}), flush=True)
    if "train" in args.stages:
        where = pick_device(args.device)
        test = Test(args.folder, task, dataset, where)
        for row in [*test.score("persistence", persistence), test.round_trip()]:
            print(json.dumps(row), flush=True)
        if args.minutes:
            knobs.append(f"datasets.{task}.train.steps={steps_for(args.minutes, args.folder, task, dataset, where)}")
        for seed in args.seeds:
            mine = [*knobs, f"datasets.{task}.train.seed={seed}"]
            seconds = run_stage("train", task, params, args.folder, mine, args.device)
            steps = the_dataset(params, mine)[1].train.steps
            facts = {"seed": seed, "steps": steps, "train_seconds": round(seconds, 1)}
            for row in test.score("operator", test.rollout()):
                print(json.dumps(row | facts), flush=True)
    for folder in args.score_on:
        check_unseen(task, args.folder, folder)
        test = Test(folder, task, dataset, pick_device(args.device), models=args.folder)
        for row in test.score("operator", test.rollout()):
            print(json.dumps(row | {"test_of": folder.name}), flush=True)
    return 0


def the_dataset(params: Path, knobs: Sequence[str]) -> tuple[str, Dataset]:
    """Name and knobs of the one dataset of a params file."""
    datasets = load_params(params, knobs).datasets
    if len(datasets) != 1:
        raise SystemExit(f"{params}: got the datasets {', '.join(datasets)}, expected one; see configs/ for such files")
    return next(iter(datasets.items()))


def check_unseen(task: str, folder: Path, other: Path) -> None:
    """Stop where an initial condition of the test split in `other` stands in train or val of `folder`."""
    known = {group for split in ("train", "val") for group in _split(folder, task, split).groups}
    if shared := known & set(_split(other, task, "test").groups):
        raise SystemExit(f"{other}: {len(shared)} initial conditions of its test split are in train or val of {folder}")


def _split(folder: Path, task: str, split: str) -> GridReader:
    return GridReader(folder / "data" / "pdebench" / f"{task}_{split}.h5")


def run_stage(stage: str, task: str, params: Path, folder: Path, knobs: Sequence[str], device: str) -> float:
    """Run a stage in `folder`; returns its seconds. Raises CalledProcessError when it fails."""
    command = [sys.executable, "-m", f"stages.{stage}", task, "--params", str(params), *FLAGS.get(stage, [])]
    command += [] if stage == "convert" else ["--device", device]
    command += [word for knob in knobs for word in ("--set", knob)]
    started = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return time.perf_counter() - started


def steps_for(minutes: float, folder: Path, task: str, dataset: Dataset, device: torch.device) -> int:
    """Steps that take that long; those of a training that was interrupted, so that it goes on and is not begun anew."""
    note, states = folder / "steps.json", (folder / ".state/train" / task).glob("*/state.safetensors")
    asked = {"minutes": minutes, "knobs": dataset.train.model_dump()}
    if any(states) and note.is_file() and (known := files.read_json(note))["asked"] == asked:
        return known["steps"]
    steps = steps_in(minutes, folder, task, dataset, device)
    files.write_json(note, {"asked": asked, "steps": steps})
    return steps


def steps_in(minutes: float, folder: Path, task: str, dataset: Dataset, device: torch.device) -> int:
    """Training steps that take that long, all stages of unrolling in equal numbers."""
    from bench.train import measure
    from ups_data.stores.latents import open_cache
    from ups_data.training.operator import Problem

    autoencoder = load_autoencoder(folder / "models" / task / "autoencoder.safetensors", device)
    problem = Problem(open_cache(folder / "data/latent_cache", task, "val", autoencoder), autoencoder, device)
    unroll = dataset.train.unroll
    seconds = {row["calls"]: row["ms_a_step"] / 1e3 for row in measure(problem, dataset.train, "compiled", device)}
    return int(60 * minutes / (sum(seconds[calls] for calls in unroll) / len(unroll)))


# --- the protocol --------------------------------------------------------------------------------


class Test:
    """The test split under the protocol of a dataset's knobs `evaluate`, on a device."""

    def __init__(self, folder: Path, task: str, dataset: Dataset, device: torch.device, models: Path | None = None):
        self.knobs, self.device, self.models = dataset.evaluate, device, (models or folder) / "models" / task
        reader = _split(folder, task, "test")
        stride = self.knobs.stride
        self.frames = torch.from_numpy(reader.data[:, ::stride, :, 0].copy()).to(device)  # [S, T, X]
        self.parameters = torch.from_numpy(reader.parameters).to(device)  # [S, P]
        self.names = reader.parameter_names
        self.time_step = float(reader.time[stride] - reader.time[0])

    @torch.inference_mode()
    def score(self, name: str, predict: Predict) -> list[dict]:
        """Roll out from the last of the frames given to the end: a row a number of frames given and of points."""
        rows = []
        for given in self.knobs.given:
            truth = self.frames[:, given:]
            parts = [
                predict(self.frames[start : start + BATCH, given - 1], truth.shape[1], slice(start, start + BATCH))
                for start in range(0, len(truth), BATCH)
            ]
            prediction = torch.cat(parts)
            for n in self.knobs.points:
                found = errors(prediction[..., ::n], truth[..., ::n])
                rows.append({"model": name, "given": given, "every_point": n} | self._summary(found))
        return rows

    def _summary(self, found: Tensor) -> dict:
        """Mean over trajectories with half the width of its 95 % confidence interval, median, and mean of each value.

        By every parameter that tells trajectories apart: one that has several values, or that only some have.
        """
        half = 1.96 * found.std() / len(found) ** 0.5
        row = {"nrmse": float(f"{found.mean():.4g}"), "plus_minus": float(f"{half:.2g}")}
        row |= {"median": float(f"{found.median():.4g}"), "trajectories": len(found)}
        for name, column in zip(self.names, self.parameters.T, strict=True):
            there = ~column.isnan()  # not where the equation of a trajectory has no such parameter
            values = column[there].unique().tolist()
            if len(values) + (not there.all()) > 1:
                row[f"by_{name}"] = {f"{v:.4g}": float(f"{found[column == v].mean():.4g}") for v in values}
        return row

    def rollout(self) -> Predict:
        """What the trained operator says."""
        autoencoder = load_autoencoder(self.models / "autoencoder.safetensors", self.device)
        operator: LatentOperator = load_operator(self.models / "operator.safetensors", self.device, autoencoder)

        def predict(frame: Tensor, steps: int, which: slice) -> Tensor:
            latents = _coded(autoencoder, frame)[:, None]
            known = self.parameters[which], torch.full((len(frame),), self.time_step, device=self.device)
            future = operator.rollout(latents, *known, steps)
            return autoencoder.decode(future.flatten(0, 1), None, "state")[..., 0].unflatten(0, (len(frame), steps))

        return predict

    @torch.inference_mode()
    def round_trip(self) -> dict:
        """The floor: the true frames encoded and decoded."""
        autoencoder = load_autoencoder(self.models / "autoencoder.safetensors", self.device)
        blocks = self.frames.flatten(0, 1).split(4096)
        decoded = torch.cat([autoencoder.decode(_coded(autoencoder, block), None, "state") for block in blocks])
        found = errors(decoded[..., 0].unflatten(0, self.frames.shape[:2]), self.frames)
        return {"model": "roundtrip", "every_point": 1} | self._summary(found)


def _coded(autoencoder: Autoencoder, frames: Tensor) -> Tensor:
    """Latents of frames [B, X], rounded as the cache does: float32 [B, L, D]."""
    return autoencoder.encode({"fields": frames[..., None]}, "state").half().float()


def errors(prediction: Tensor, truth: Tensor) -> Tensor:
    """PDEBench's nRMSE of each trajectory: RMSE over space / RMS of the target over space, mean over steps."""
    difference = (prediction - truth).double().square().mean(dim=-1).sqrt()
    return (difference / truth.double().square().mean(dim=-1).sqrt()).mean(dim=1)


def persistence(frame: Tensor, steps: int, which: slice) -> Tensor:
    """Nothing changes."""
    return frame[:, None].expand(-1, steps, -1)


if __name__ == "__main__":
    sys.exit(main())
