"""Every stage may be killed at any moment: its outputs are the old or the new ones, and the next run ends alike."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
KILLS = 3  # moments a stage is killed at, drawn over the time it takes
TINY = {
    "simulate": {
        "burgers1d": {"samples": 8, "values": [0.01, 1.0], "resolution": 64, "frames": 11},
        "darcy2d_mesh": {"shapes": ["square"], "meshes_per_shape": 2, "samples": 6, "spacing": 0.1},
        "particles_advect": {"samples": 6, "particles": 32, "frames": 6},
    },
    "datasets": {
        "burgers1d": {
            "view": {"space_stride": 1, "time_stride": 1},
            "autoencoder": {"latent_len": 8, "width": 16, "depth": 1, "steps": 30, "batch": 8},
            "train": {"width": 16, "depth": 1, "bundle": 2, "unroll": [1, 2], "steps": 30, "batch": 4},
            "baseline": {"width": 8, "depth": 2, "bundle": 2, "unroll": 2, "steps": 30, "batch": 4},
            "evaluate": {"given": 1, "pictures": 1},
        }
    },
}
BURGERS = "burgers1d"
PDEBENCH = "data/pdebench/"
# stage, task, what it makes, a knob that changes it
CASES = [
    ("simulate", BURGERS, ["data/raw/1D/Burgers/Train"], "simulate.burgers1d.seed=1"),
    ("simulate", "darcy2d_mesh", ["data/raw/mesh/darcy2d"], "simulate.darcy2d_mesh.seed=1"),
    ("simulate", "particles_advect", ["data/raw/particles/advect"], "simulate.particles_advect.seed=1"),
    *(
        (
            "convert",
            task,
            [
                *(f"{PDEBENCH}{task}_{split}.{kind}" for split in ("train", "val", "test")),
                f"{PDEBENCH}{task}_manifest.json",
            ],
            f"datasets.{task}.splits.seed=3",
        )
        for task, kind in ((BURGERS, "h5"), ("darcy2d_mesh", "zarr"), ("particles_advect", "zarr"))
    ),
    ("autoencoder", BURGERS, ["models/burgers1d/autoencoder.safetensors"], "datasets.burgers1d.autoencoder.seed=1"),
    (
        "latents",
        BURGERS,
        [f"data/latent_cache/burgers1d_{s}" for s in ("train", "val", "test")],
        "datasets.burgers1d.latents.dtype=float32",
    ),
    ("train", BURGERS, ["models/burgers1d/operator.safetensors"], "datasets.burgers1d.train.seed=1"),
    ("baseline", BURGERS, ["models/burgers1d/baseline.safetensors"], "datasets.burgers1d.baseline.seed=1"),
    ("evaluate", BURGERS, ["reports/burgers1d"], "datasets.burgers1d.evaluate.pictures=2"),
    ("package", BURGERS, ["artifacts", "docs/registry"], "datasets.burgers1d.package.description=Other"),
]


# Flags without which a stage refuses to replace what other knobs made.
REPLACE = {"latents": ["--overwrite"]}


def start(stage: str, task: str, folder: Path, *flags: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "UPS_DEVICE": "cpu"}
    command = [sys.executable, "-m", f"stages.{stage}", task, "-q", *flags]
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, stderr=subprocess.PIPE)


def finish(stage: str, task: str, folder: Path, *flags: str) -> None:
    process = start(stage, task, folder, *flags)
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()


def digests(folder: Path, outs: list[str]) -> dict[str, dict[str, str]]:
    """The visible files of every output, by the output they belong to."""
    found = {}
    for out in outs:
        top = folder / out
        paths = sorted(p for p in top.rglob("*") if p.is_file()) if top.is_dir() else [top] * top.is_file()
        names = {p.relative_to(folder).as_posix(): p for p in paths}
        visible = {name: p for name, p in names.items() if not any(part.startswith(".") for part in name.split("/"))}
        found[out] = {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in visible.items()}
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder where every stage has run once."""
    folder = tmp_path_factory.mktemp("made")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, tasks in TINY.items():
        for task, knobs in tasks.items():
            for name, value in knobs.items():
                old = params[section][task][name]
                params[section][task][name] = old | value if isinstance(old, dict) else value
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for stage, task, _, _ in CASES:
        finish(stage, task, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "task", "outs", "change"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_a_stage_killed_at_any_moment_leaves_old_or_new_and_goes_on_to_the_same_end(
    made, tmp_path, stage, task, outs, change
):
    before, whole = tmp_path / "before", tmp_path / "whole"
    shutil.copytree(made, before)
    if stage == "simulate":  # it replaces no raw data: `dvc repro` removes them first
        shutil.rmtree(before / outs[0])
    old, flags = digests(before, outs), ["--set", change, *REPLACE.get(stage, [])]
    shutil.copytree(before, whole)
    began = time.monotonic()
    finish(stage, task, whole, *flags)
    lasted, new = time.monotonic() - began, digests(whole, outs)
    assert new != old
    moments = random.Random(f"{stage} {task}")
    for kill in range(KILLS):
        folder = tmp_path / str(kill)
        shutil.copytree(before, folder)
        process = start(stage, task, folder, *flags)
        try:
            process.communicate(timeout=lasted * moments.uniform(0.2, 1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        for out, found in digests(folder, outs).items():
            files = {name for state in (old, new) for name in state[out]}
            for name in files & set(found):  # a file is never mixed, nor half written; a folder may be absent
                assert found[name] in (old[out].get(name), new[out].get(name)), name
            assert set(found) <= files
        finish(stage, task, folder, *flags)
        assert digests(folder, outs) == new
