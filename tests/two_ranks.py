"""What tests/test_ranks.py starts under torchrun and as one process: caches, and short trainings of every model.

torchrun --standalone --nproc-per-node 2 -m tests.two_ranks ROOT OUT cpu
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ups_data.execution import pick_device
from ups_data.files import write_json
from ups_data.models.autoencoder import load_autoencoder, save_autoencoder
from ups_data.models.checkpoint import save_model
from ups_data.params import Baseline, Train
from ups_data.stores.latents import open_cache
from ups_data.training import ranks
from ups_data.training.autoencoder import train_autoencoder
from ups_data.training.baseline import train_baseline
from ups_data.training.caching import cache_split
from ups_data.training.operator import train_operator

from .small_data import LATENTS, TASKS, VIEWS, frames_of, knobs
from .test_training_loop import regression

STEPS = {"steps": 6, "batch": 4, "learning_rate": 2e-3, "seed": 0}
OPERATOR = Train(
    **STEPS, width=16, depth=1, heads=2, history=1, bundle=1, unroll=[1, 2], strides=[1],
    initial=0.5, noise=0.02, optimiser="muon", weight_decay=0.0, augment=[],
)  # fmt: skip
BASELINE = Baseline(**STEPS, width=8, depth=2, bundle=1, unroll=1, initial=0.0)


def work(root: Path, out: Path, device: torch.device) -> None:
    """Cache and train what stands in `root`; rank 0 writes into `out`."""
    curves = {}
    autoencoder = load_autoencoder(root / "models" / TASKS["grid"] / "autoencoder.safetensors", device)
    for kind in ("grid", "mesh"):
        model = load_autoencoder(root / "models" / TASKS[kind] / "autoencoder.safetensors", device)
        for split in ("train", "val"):
            cache = out / "cache" / f"{TASKS[kind]}_{split}"
            cache_split(model, frames_of(root, kind, split), cache, LATENTS, device=device)
    ranks.decided(True)  # rank 0 has published the caches
    fresh, curves["autoencoder"] = train_autoencoder(
        TASKS["grid"], frames_of(root, "grid"), frames_of(root, "grid", "val"), knobs("grid", **STEPS),
        state=out / "state" / "autoencoder", key="test", device=device,
    )  # fmt: skip
    caches = [open_cache(out / "cache", TASKS["grid"], split, autoencoder) for split in ("train", "val")]
    operator, curves["operator"] = train_operator(
        autoencoder, *caches, OPERATOR, state=out / "state" / "operator", key="test", device=device, label="operator"
    )
    splits = [root / f"{TASKS['mesh']}_{split}.zarr" for split in ("train", "val")]
    baseline, curves["baseline"] = train_baseline(
        "mesh", *splits, BASELINE, VIEWS["mesh"], state=out / "state" / "baseline", key="test", device=device, label="b"
    )
    if ranks.rank() == 0:
        save_autoencoder(out / "autoencoder.safetensors", fresh, 6)
        save_model(out / "operator.safetensors", operator.state_dict(), {})
        save_model(out / "baseline.safetensors", baseline.state_dict(), {})
        write_json(out / "curves.json", curves)


if __name__ == "__main__":
    with ranks.joined(pick_device(sys.argv[3])) as place:
        if sys.argv[1] == "apart":
            regression(Path(sys.argv[2]) / str(ranks.rank()))
        else:
            work(Path(sys.argv[1]), Path(sys.argv[2]), place)
