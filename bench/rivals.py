"""FNO and U-Net on the data, the minutes and the recipe of the latent operator (bench/full_size.py), on one GPU.

They work on fields in physical space: one frame to the next 8 of the protocol as residuals, unrolled 1, 2 and 4 times,
the same loss, augmentation, schedule and choice by validation. Prints one JSON line a result. Needs neuraloperator.

    python -m bench.rivals --folder /tmp/burgers --minutes 15 --models fno unet
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.full_size import CONFIG, Test, the_dataset
from ups_data import console
from ups_data.choice import evenly
from ups_data.execution import pick_device
from ups_data.params import Optimiser
from ups_data.stores.grid import GridReader
from ups_data.training.augment import draw_moves, move
from ups_data.training.loop import fit, step_generator
from ups_data.training.losses import SMOOTH_ROLLOUT, relative_error
from ups_data.training.sampling import draw
from ups_data.training.steps import Batch, make_optimiser, set_rate, stepper

TASK, DATASET = the_dataset(CONFIG, ())
STRIDE = DATASET.evaluate.stride
BUNDLE, CALLS = 8, (1, 2, 4)
JUDGED = 256  # validation trajectories


class Knobs(Optimiser):
    """Of a training of theirs."""

    initial: float  # share of the windows that begin at the first frame


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train, evaluate, print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--folder", type=Path, default=Path("full_size"), help="where bench.full_size wrote")
    parser.add_argument("--minutes", type=float, default=15.0, help="of training, each")
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--initial", type=float, default=DATASET.train.initial, help="as train.initial")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    console.set_level(console.QUIET)
    device = pick_device(args.device)
    # `pick_device` forbids this rounding. A rival errs far more than it, and its users would let it have the speed.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    test = Test(args.folder, TASK, DATASET, device)
    splits = {split: load(args.folder, split, device) for split in ("train", "val")}
    for name in args.models:
        torch.manual_seed(0)
        model = Rival(NETWORKS[name](), splits["train"]).to(device)
        started = time.perf_counter()
        knobs = Knobs(steps=1, batch=args.batch, learning_rate=args.learning_rate, seed=0, initial=args.initial)
        steps = steps_in(args.minutes, model, splits["train"], knobs)
        curve = train(model, splits, knobs.model_copy(update={"steps": steps}), args.folder / "state" / name)
        facts = {
            "minutes": round((time.perf_counter() - started) / 60, 2),
            "steps": steps,
            "parameters": sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters()),
            "validation": min(row[2] for row in curve),
        }
        for row in test.score(name, lambda frame, steps, _, model=model: model.rollout(frame, steps)):
            print(json.dumps(row | facts), flush=True)
    return 0


def load(folder: Path, split: str, device: torch.device) -> Tensor:
    """All frames of a split on the device: float32 [S, T, X]."""
    return torch.tensor(GridReader(folder / "data/pdebench" / f"{TASK}_{split}.h5").data[..., 0], device=device)


# --- the networks --------------------------------------------------------------------------------


class Rival(nn.Module):
    """A network [B, 1, X] -> [B, BUNDLE, X] as a predictor of the next frames: normalised, residual, fed back."""

    def __init__(self, network: nn.Module, train: Tensor):
        super().__init__()
        self.network = network
        sample = train[:256]
        self.register_buffer("mean", sample.mean())
        self.register_buffer("std", sample.std())

    def forward(self, frame: Tensor) -> Tensor:
        """[B, X] to the next frames [B, BUNDLE, X]."""
        return frame[:, None] + self.std * self.network(((frame - self.mean) / self.std)[:, None]).float()

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """The weights alone: neuraloperator puts its settings beside them."""
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name != "_metadata"}

    def rollout(self, frame: Tensor, steps: int) -> Tensor:
        """The next `steps` frames [B, steps, X]."""
        frames = []
        for _ in range(-(-steps // BUNDLE)):
            frames.append(self(frame))
            frame = frames[-1][:, -1]
        return torch.cat(frames, dim=1)[:, :steps]


def fno(modes: int, width: int) -> nn.Module:
    """Fourier neural operator of four layers; no coordinates, for the domain is periodic."""
    from neuralop.models import FNO

    return FNO(
        n_modes=(modes,),
        hidden_channels=width,
        in_channels=1,
        out_channels=BUNDLE,
        n_layers=4,
        positional_embedding=None,
    )


class UNet(nn.Module):
    """Four levels down and up again, two circular convolutions of 3 points a level, as in PDEBench."""

    def __init__(self, width: int = 64, levels: int = 4):
        super().__init__()
        sizes = [width * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([1, *sizes[:-1]], sizes, strict=True))
        self.widen = nn.ModuleList(nn.ConvTranspose1d(b, a, 2, stride=2) for a, b in pairwise(sizes))
        self.up = nn.ModuleList(_double(2 * size, size) for size in sizes[:-1])
        self.outward = nn.Conv1d(width, BUNDLE, 1)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, X] to [B, BUNDLE, X]."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
            kept = []
            for level, block in enumerate(self.down):
                x = block(x if level == 0 else F.max_pool1d(x, 2))
                kept.append(x)
            for level in reversed(range(len(self.up))):
                x = self.up[level](torch.cat([self.widen[level](x), kept[level]], dim=1))
        return self.outward(x.float())


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers = []
    for size in (inputs, outputs):
        layers += [
            nn.Conv1d(size, outputs, 3, padding=1, padding_mode="circular"),
            nn.GroupNorm(8, outputs),
            nn.GELU(),
        ]
    return nn.Sequential(*layers)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "fno-pdebench": lambda: fno(modes=24, width=20),  # 12 modes, as neuraloperator counts both signs
    "fno": lambda: fno(modes=256, width=96),
    "unet": UNet,
}


# --- training ------------------------------------------------------------------------------------


def batch_of(train: Tensor, knobs: Knobs, step: int, calls: int) -> Batch:
    """Windows of frames 5 apart and how they are moved, drawn as those of the operator are."""
    generator, length = step_generator(knobs.seed, step), calls * BUNDLE + 1
    span = STRIDE * (length - 1) + 1
    rows, starts = draw(generator, knobs.batch, len(train), train.shape[1] - span + 1, knobs.initial)
    frames = torch.tensor(starts)[:, None] + STRIDE * torch.arange(length)
    moves = draw_moves(("shift", "reflection"), generator, knobs.batch, [train.shape[2]], [True])
    window = train[torch.tensor(rows)[:, None].to(train.device), frames.to(train.device)]
    return {"fields": window} | {name: tensor.to(train.device) for name, tensor in moves.items()}


def loss_of(model: Rival, batch: Batch) -> Tensor:
    """Relative error of the rollout from the first frame."""
    fields = batch["fields"][..., None]
    if "shifts" in batch:
        fields = move(fields, batch["shifts"], batch["signs"])
    made = model.rollout(fields[:, 0, :, 0], fields.shape[1] - 1)[..., None]
    return relative_error(made, fields[:, 1:], None, (model.mean**2 + model.std**2)[None], SMOOTH_ROLLOUT)


def steps_in(minutes: float, model: Rival, train: Tensor, knobs: Knobs) -> int:
    """Training steps that take that long, all stages of unrolling in equal numbers; the weights stay as they are."""
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimiser = make_optimiser(model, train.device)
    set_rate(optimiser, 1e-6)
    step = stepper(model, optimiser, lambda batch: loss_of(model, batch), train.device)
    total = 0.0
    for calls in CALLS:
        for timed in (3, 20):
            started = time.perf_counter()
            for number in range(timed):
                value = step(batch_of(train, knobs, number, calls))
            value.item()  # waits for the device
        total += (time.perf_counter() - started) / timed
    model.load_state_dict(kept)
    return max(len(CALLS), int(60 * minutes / (total / len(CALLS))))


def train(model: Rival, splits: dict[str, Tensor], knobs: Knobs, state: Path) -> list:
    """Fit by the loop of the pipeline; returns the learning curve."""
    judged = splits["val"][evenly(len(splits["val"]), JUDGED)][:, ::STRIDE]
    return fit(
        model,
        lambda step: batch_of(splits["train"], knobs, step, CALLS[step * len(CALLS) // knobs.steps]),
        lambda batch: loss_of(model, batch),
        lambda: loss_of(model, {"fields": judged}).item(),
        knobs,
        state=state,
        key=f"{type(model.network).__name__} {knobs}",
        label=type(model.network).__name__,
        checks=10,
    )


if __name__ == "__main__":
    sys.exit(main())
