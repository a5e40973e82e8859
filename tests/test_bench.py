"""The benchmarks run, on little: what they measure is told by their lines, not here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import full_size

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
SMALL = [
    "simulate.burgers1d.samples=20",
    "simulate.burgers1d.resolution=128",
    "datasets.burgers1d.autoencoder.steps=20",
    "datasets.burgers1d.train.width=32",
    "datasets.burgers1d.train.depth=1",
    "datasets.burgers1d.train.batch=4",
    "datasets.burgers1d.train.steps=6",
]


def bench(name, *arguments):
    """What a benchmark prints, which must end well."""
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_full_size_and_what_goes_on_from_it(tmp_path):
    knobs = [word for knob in SMALL for word in ("--set", knob)]
    config = ROOT / "configs" / "burgers1d_gpu.yaml"
    said = bench("full_size", "--params", config, "--folder", tmp_path, "--device", "cpu", *knobs)
    rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    scores = [row["nrmse"] for row in rows if row.get("model") == "operator"]
    assert {row["given"] for row in rows if row.get("model") == "operator"} == {1, 10}
    again = ["--folder", tmp_path / "other", "--stages", "simulate", "convert", "--score-on", tmp_path]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "models").symlink_to(tmp_path / "models")
    said = bench("full_size", "--params", config, *again, "--device", "cpu", *knobs)
    rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [row["nrmse"] for row in rows if row.get("test_of") == tmp_path.name] == scores
    (tmp_path / "leaking").mkdir()
    again[1] = tmp_path / "leaking"
    command = [sys.executable, "-m", "bench.full_size", "--params", config, *again, "--device", "cpu", *knobs]
    leaking = subprocess.run(
        [*map(str, command), "--set", "datasets.burgers1d.splits.seed=1"], capture_output=True, text=True, cwd=ROOT
    )
    assert leaking.returncode == 1
    assert "of its test split are in train or val of" in leaking.stderr.splitlines()[-1]
    rival = bench(
        "rivals", "--folder", tmp_path, "--minutes", "0.01", "--models", "unet", "--batch", "2", "--device", "cpu"
    )
    assert all(json.loads(line)["nrmse"] > 0 for line in rival.splitlines())
    places = ["--cache-dir", tmp_path / "data/latent_cache", "--models", tmp_path / "models", "--device", "cpu"]
    speed = bench("train", "burgers1d", "--params", config, *knobs, *places, "--ways", "plain")
    assert all(json.loads(line)["ms_a_step"] > 0 for line in speed.splitlines())


def test_loading():
    found = json.loads(bench("loading", "--samples", 20))
    assert min(found["gigabytes_per_second"].values()) > 0
    assert min(found["microseconds"].values()) > 0


def test_a_training_of_so_many_minutes_that_was_interrupted_keeps_its_steps(tmp_path, monkeypatch):
    measured = iter([100, 90, 80])
    monkeypatch.setattr(full_size, "steps_in", lambda *args: next(measured))
    task, dataset = full_size.the_dataset(full_size.CONFIG, ())
    state = tmp_path / ".state/train" / task / "0123" / "state.safetensors"
    state.parent.mkdir(parents=True)

    def steps(minutes):
        return full_size.steps_for(minutes, tmp_path, task, dataset, None)

    assert steps(5) == 100
    state.touch()
    assert steps(5) == 100
    assert steps(4) == 90
    state.unlink()
    assert steps(4) == 80


def test_latents():
    found = json.loads(bench("latents", "--samples", "4", "--device", "cpu"))
    assert found["cache_against"].keys() == {"cache", "trajectories", "frames", "limit"}


def test_convert():
    said = bench("convert", "--gb", "0.1", "--repeats", "1", "--memory", "0.1", "--only", "groups-lzf-lines")
    assert said.count("of cp ") == 1 and "MiB held by all processes" in said


def test_packing(tmp_path):
    np.save(tmp_path / "numbers.npy", np.linspace(0, 1, 1 << 20))  # less takes no time that could be told
    assert "numbers.npy" in bench("packing", tmp_path / "numbers.npy")


def test_simulate_burgers():
    assert json.loads(bench("simulate_burgers", "--samples", "2", "--device", "cpu"))
