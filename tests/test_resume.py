"""A training that is killed in mid-run ends in the bytes of one that was not, on the CPU and on a GPU.

What is killed is a process of its own: `python -m tests.test_resume ROOT OUT DEVICE`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from ups_data.execution import pick_device
from ups_data.files import checksum, write_json
from ups_data.models.autoencoder import load_autoencoder, save_autoencoder
from ups_data.models.checkpoint import save_model
from ups_data.stores.latents import open_cache
from ups_data.training import loop
from ups_data.training.caching import cache_split
from ups_data.training.operator import train_operator

from .small_data import CPU, LATENTS, TASKS, frames_of, trained, write_grid
from .two_ranks import OPERATOR

STEPS, KILLS = 60, 3
KNOBS = OPERATOR.model_copy(update={"steps": STEPS, "augment": ["shift"], "weight_decay": 0.1})
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def train(root: Path, out: Path, device: torch.device) -> None:
    """Train an operator on the caches in `root`; its weights and curve go to `out`, its state too, after every step."""
    loop.SAVE_EVERY = 0.0
    autoencoder = load_autoencoder(root / "autoencoder.safetensors", device)
    caches = [open_cache(root, TASKS["grid"], split, autoencoder) for split in ("train", "val")]
    model, curve = train_operator(
        autoencoder, *caches, KNOBS, state=out / "state", key="test", device=device, label="operator"
    )
    save_model(out / "operator.safetensors", model.state_dict(), {})
    write_json(out / "curve.json", curve)


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.test_resume", *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def step_of(state: Path) -> int:
    """How far a training is, as its saved state says."""
    try:
        with safe_open(state / "state.safetensors", framework="pt") as file:
            return int(file.metadata()["step"])
    except (SafetensorError, OSError, RuntimeError):  # RuntimeError: it was replaced between two looks at it
        return 0


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Data, a trained autoencoder and caches."""
    root = tmp_path_factory.mktemp("resume")
    write_grid(root)
    model, curve = trained(root, "grid", steps=5)
    save_autoencoder(root / "autoencoder.safetensors", model, curve[-1][0])
    model = load_autoencoder(root / "autoencoder.safetensors")
    for split in ("train", "val"):
        cache_split(model, frames_of(root, "grid", split), root / f"{TASKS['grid']}_{split}", LATENTS, device=CPU)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_a_training_killed_again_and_again_ends_in_the_same_bytes(root, tmp_path, device):
    assert start(root, tmp_path / "whole", device).wait() == 0
    for step in sorted(random.Random(0).sample(range(2, STEPS - 5), KILLS)):
        process = start(root, tmp_path / "killed", device)
        while step_of(tmp_path / "killed/state") < step:
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed/operator.safetensors").exists()
    assert start(root, tmp_path / "killed", device).wait() == 0
    for name in ("operator.safetensors", "curve.json"):
        assert checksum(tmp_path / "killed" / name) == checksum(tmp_path / "whole" / name), name


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]), pick_device(sys.argv[3]))
