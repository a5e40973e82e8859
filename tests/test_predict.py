"""A rollout of a raw file is the rollout that the evaluation scores, in a file that plain h5py reads."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
import yaml

from stages import predict as stage
from ups_data.conversion.grid import convert_grid
from ups_data.errors import UpsDataError
from ups_data.evaluation.predict_grid import Seen
from ups_data.evaluation.request import check_even
from ups_data.files import checksum
from ups_data.models.autoencoder import load_autoencoder, save_autoencoder
from ups_data.models.checkpoint import save_model, weights_id
from ups_data.models.operator import build_operator, conditioning_facts, load_operator
from ups_data.sources.npz import NpzFile, write_npz
from ups_data.training.autoencoder import train_autoencoder
from ups_data.training.frames import open_frames

from .raw import convert_knobs, write_darcy, write_one_array
from .small_data import CPU, SPLIT, TASKS, VIEWS, WRITERS, knobs, trained

PARAMS = Path(__file__).parents[1] / "params.yaml"
SIZE = {"width": 16, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Raw files of every kind, autoencoders trained on them, and operators with random weights."""
    root = tmp_path_factory.mktemp("predict")
    for kind, task in TASKS.items():
        WRITERS[kind](root)
        model, curve = trained(root, kind, steps=15)
        save_autoencoder(root / "models" / task / "autoencoder.safetensors", model, curve[-1][0])
        save_operator(root / "models" / task, kind, model)
    return root


def save_operator(folder, kind, autoencoder):
    config = autoencoder.config
    parameters = {
        "grid": torch.tensor([[0.5], [1.0]]),
        "mesh": torch.zeros(2, 0),
        "particles": torch.tensor([[20.0]]),
        "static grid": torch.tensor([[1.0]]),
    }
    names = {"grid": ["advection_speed"], "particles": ["beta"], "static grid": ["source_strength"]}
    static, time_step = kind in ("mesh", "static grid"), {"grid": 0.02, "particles": 1 / 6}.get(kind, 1.0)
    torch.manual_seed(0)
    operator = build_operator(
        SIZE
        | {
            "format": "ups-data/operator", "static": static, "token_grid": config["token_grid"],
            "latent_dim": config["latent_dim"], "periodic": config["periodic"], "history": 1 if static else 2,
            "bundle": 1 if static else 2, "time_step": time_step, "steps": 1,
            "conditioning": conditioning_facts(parameters[kind], time_step, names.get(kind, [])),
            "autoencoder": weights_id(autoencoder.state_dict()),
        }
    )  # fmt: skip
    torch.nn.init.normal_(operator.outward.weight, std=0.02)  # untrained it would predict that nothing changes
    save_model(folder / "operator.safetensors", operator.state_dict(), operator.config)


def roll_out(root, kind, file, out, *flags):
    """Run the stage; returns its exit status."""
    where = ["--task", TASKS[kind], "--models", str(root / "models"), "--params", str(PARAMS), "--device", "cpu", "-q"]
    return stage.main([str(file), "--out", str(out), *where, *flags])


def models(root, kind):
    folder = root / "models" / TASKS[kind]
    return load_autoencoder(folder / "autoencoder.safetensors"), load_operator(folder / "operator.safetensors", CPU)


def grid_file(root):
    return root / "raw" / "grid" / "1D_Advection_Sols_beta0.5.hdf5"


@torch.inference_mode()
def test_the_frames_are_those_of_encode_roll_out_decode(root, tmp_path):
    assert roll_out(root, "grid", grid_file(root), tmp_path / "r.h5", "--given", "2") == 0
    with h5py.File(grid_file(root)) as raw, h5py.File(tmp_path / "r.h5") as made:
        fields = raw["tensor"][:, ::2, ::2]  # the models' view: 5 frames of 32 points
        autoencoder, operator = models(root, "grid")
        known = autoencoder.encode({"fields": torch.from_numpy(fields[3, :2, :, None])}, "state")[None]
        future = operator.rollout(known, torch.tensor([[0.5]]), torch.tensor([0.02]), 3)
        expected = autoencoder.decode(future[0], None, "state").numpy()
        assert made["data"].shape == (10, 3, 32, 1)
        assert made["data"][3] == pytest.approx(expected, abs=1e-5)
        error = np.sqrt(np.square(expected[..., 0] - fields[3, 2:]).mean(-1) / np.square(fields[3, 2:]).mean(-1))
        assert made["error"][3, :, 0] == pytest.approx(error, rel=1e-4)
        assert made["time"][:] == pytest.approx([0.04, 0.06, 0.08])
        assert made["parameters"][:, 0] == pytest.approx(0.5)
        assert json.loads(made.attrs["parameter_names"]) == ["advection_speed"]
        assert (made.attrs["format"], made.attrs["given"]) == ("ups-data/rollout", 2)


def test_beyond_the_end_of_the_file_there_is_no_error_to_tell(root, tmp_path):
    flags = ("--given", "2", "--steps", "7", "--samples", "2")
    assert roll_out(root, "grid", grid_file(root), tmp_path / "r.h5", *flags) == 0
    with h5py.File(tmp_path / "r.h5") as made:
        assert made["data"].shape == (2, 7, 32, 1)
        assert np.isfinite(made["data"][:]).all()
        assert np.isfinite(made["error"][:, :3]).all()
        assert np.isnan(made["error"][:, 3:]).all()


def test_the_given_frames_alone_are_enough(root, tmp_path):
    with h5py.File(grid_file(root)) as raw:
        whole = raw["tensor"][:]
    short = tmp_path / grid_file(root).name
    write_one_array(short, whole[:, :3], {"beta": 0.5})
    for name, file in (("short", short), ("whole", grid_file(root))):
        assert roll_out(root, "grid", file, tmp_path / f"{name}.h5", "--given", "2", "--steps", "3") == 0
    with h5py.File(tmp_path / "short.h5") as short, h5py.File(tmp_path / "whole.h5") as whole:
        assert np.array_equal(short["data"], whole["data"])
        assert np.isnan(short["error"][:]).all()


@pytest.mark.parametrize("beta", [0.0, -20.0])
def test_a_parameter_that_has_no_logarithm_is_a_sentence(root, tmp_path, capsys, beta):
    with np.load(root / "raw/particles/3.npz") as shard:
        write_npz(tmp_path / "p.npz", dict(shard) | {"beta": np.float64(beta)})
    assert roll_out(root, "particles", tmp_path / "p.npz", tmp_path / "r.h5", "--given", "2") == 1
    assert f"p.npz: beta: got {beta:g}, expected a positive number" in capsys.readouterr().err
    assert not (tmp_path / "r.h5").exists()


def test_particles_in_another_box_are_a_sentence(root, tmp_path, capsys):
    with np.load(root / "raw/particles/3.npz") as shard:
        arrays = dict(shard)
    arrays = {name: values for name, values in arrays.items() if name not in ("indptr", "indices", "edges")}
    larger = {name: 2 * arrays[name] for name in ("positions", "velocities", "radius", "box")}
    for changes, got in ((larger, "[2.0, 2.0]"), ({"box": 0 * arrays["box"]}, "[0.0, 0.0]")):
        write_npz(tmp_path / "p.npz", arrays | changes)
        assert roll_out(root, "particles", tmp_path / "p.npz", tmp_path / "r.h5", "--given", "2") == 1
        assert f"p.npz: box: got {got}, expected [1.0, 1.0], the periods of the training" in capsys.readouterr().err


def test_another_time_step_of_particles_is_told(root, tmp_path, capsys):
    with np.load(root / "raw/particles/3.npz") as shard:
        arrays = dict(shard)
    for factor, told in ((1, False), (10, True)):
        write_npz(tmp_path / "p.npz", arrays | {"times": factor * arrays["times"]})
        where = ["--task", TASKS["particles"], "--models", str(root / "models"), "--params", str(PARAMS)]
        assert stage.main([str(tmp_path / "p.npz"), "--out", str(tmp_path / "r.h5"), *where, "--given", "2"]) == 0
        said = "p.npz: its time step is 1.667, the operator was trained at 0.1667"
        assert (said in capsys.readouterr().out) == told


@pytest.mark.parametrize(("stride", "strides", "told"), [(2, "[1]", True), (2, "[1,2]", False), (1, "[2]", True)])
def test_a_stride_that_was_not_trained_is_told(root, tmp_path, capsys, stride, strides, told):
    where = ["--task", TASKS["grid"], "--models", str(root / "models"), "--params", str(PARAMS), "--given", "2"]
    knobs = {"evaluate.stride": stride, "train.strides": strides}
    sets = [part for name, value in knobs.items() for part in ("--set", f"datasets.{TASKS['grid']}.{name}={value}")]
    assert stage.main([str(grid_file(root)), "--out", str(tmp_path / "r.h5"), *where, *sets]) == 0
    assert ("its time step is 0.0" in capsys.readouterr().out) == told


def test_a_force_with_numbers_that_are_not_finite_is_a_sentence():
    force = np.zeros((2, 8, 1))
    force[1, 3] = np.nan
    raw = SimpleNamespace(path="flow.h5", time=np.arange(3.0), space=[8], read_static=lambda row: force[row])
    autoencoder = SimpleNamespace(config={"view": {"space_stride": 1, "time_stride": 1}, "token_grid": [4]})
    operator = SimpleNamespace(config={"static_fields": {"mean": [0.0], "std": [1.0]}, "time_step": 1.0})
    request = SimpleNamespace(autoencoder=autoencoder, operator=operator, stride=1, device=CPU)
    assert Seen(raw, request).static([0], request).shape == (1, 4, 2)
    with pytest.raises(UpsDataError, match=r"flow\.h5: sample 1 has numbers that are not finite"):
        Seen(raw, request).static([0, 1], request)


@pytest.mark.parametrize("frames", [1, 2])
def test_a_single_frame_goes_on_by_the_time_step_of_the_training(root, tmp_path, frames):
    """With a view of every second frame, and one that is given: no second frame says how far apart they are."""
    folder = tmp_path / "models" / TASKS["grid"]
    autoencoder, operator = models(root, "grid")
    save_autoencoder(folder / "autoencoder.safetensors", autoencoder, 15)
    config = operator.config | {"history": 1}
    weights = operator.state_dict()
    weights["inward.weight"] = weights["inward.weight"][:, : config["latent_dim"]]
    with h5py.File(grid_file(root)) as raw:
        whole, time = raw["tensor"][:], raw["t-coordinate"][:]
    save_model(folder / "operator.safetensors", weights, config | {"time_step": float(time[2] - time[0])})
    short = tmp_path / grid_file(root).name
    write_one_array(short, whole[:, :frames], {"beta": 0.5})
    for name, file in (("short", short), ("whole", grid_file(root))):
        more = "--given", "1", "--steps", "3", "--models", str(tmp_path / "models")
        assert roll_out(root, "grid", file, tmp_path / f"{name}.h5", *more) == 0
    with h5py.File(tmp_path / "short.h5") as short, h5py.File(tmp_path / "whole.h5") as whole:
        assert np.allclose(short["time"], whole["time"])
        assert np.allclose(short["data"], whole["data"], atol=1e-5)


def test_frames_at_uneven_times_are_a_sentence(root, tmp_path, capsys):
    file = tmp_path / grid_file(root).name
    file.write_bytes(grid_file(root).read_bytes())
    with h5py.File(file, "r+") as raw:
        raw["t-coordinate"][4:] += 0.5
    with np.load(root / "raw/particles/3.npz") as shard:
        write_npz(tmp_path / "p.npz", dict(shard) | {"times": np.array([0, 1, 2, 3, 4, 5, 7]) / 6})
    for kind, path, wanted in (
        (
            "grid",
            file,
            "time: the step to frame 2 is 0.52, expected 0.02 as between other frames; a rollout goes on by equal",
        ),
        ("particles", tmp_path / "p.npz", "time: the step to frame 3 is 0.5, expected 0.333333"),
    ):
        assert roll_out(root, kind, path, tmp_path / "r.h5", "--given", "2") == 1
        assert wanted in capsys.readouterr().err


def test_a_parameter_that_is_no_number_is_a_sentence(root, tmp_path, capsys):
    file = tmp_path / "1D_Advection_Sols.hdf5"  # no value in its name
    file.write_bytes(grid_file(root).read_bytes())
    with h5py.File(file, "r+") as raw:
        raw.attrs["beta"] = np.nan
    assert roll_out(root, "grid", file, tmp_path / "r.h5", "--given", "2") == 1
    assert "advection_speed: got nan, expected a number" in capsys.readouterr().err
    assert not (tmp_path / "r.h5").exists()


def test_a_grid_of_another_size_is_a_sentence_unless_the_models_do_not_know_theirs(root, tmp_path, capsys):
    file = tmp_path / grid_file(root).name
    file.write_bytes(grid_file(root).read_bytes())
    with h5py.File(file, "r+") as raw:
        raw["x-coordinate"][:] *= 6.28
    assert roll_out(root, "grid", file, tmp_path / "r.h5", "--given", "2") == 1
    assert "x: got points 0.19625 apart at the view of the models, expected 0.03125" in capsys.readouterr().err
    folder = tmp_path / "models" / TASKS["grid"]
    autoencoder, operator = models(root, "grid")
    autoencoder.config.pop("spacing")
    save_autoencoder(folder / "autoencoder.safetensors", autoencoder, 15)
    save_model(folder / "operator.safetensors", operator.state_dict(), operator.config)
    assert roll_out(tmp_path, "grid", file, tmp_path / "r.h5", "--given", "2") == 0


@pytest.mark.parametrize("start", [0.0, 1000.0])
def test_equal_times_may_be_rounded(start):
    check_even(Path("f.h5"), (start + 0.005 * np.arange(1001)).astype(np.float32).astype(float))
    check_even(Path("f.h5"), np.round(start + np.arange(50) / 6, 3))


@pytest.mark.parametrize("kind", list(TASKS))
def test_the_same_file_gives_the_same_bytes_and_memory_is_no_matter(root, tmp_path, kind, monkeypatch):
    file = {"grid": grid_file(root), "mesh": root / "raw/mesh/disk.npz", "particles": root / "raw/particles/3.npz"}[
        kind
    ]
    given = () if kind == "mesh" else ("--given", "2")
    assert roll_out(root, kind, file, tmp_path / "one.h5", *given) == 0
    monkeypatch.setattr("ups_data.evaluation.forecast.BATCH_VALUES", 64)  # a sample at a time
    monkeypatch.setattr("ups_data.evaluation.predict_grid.BATCH_VALUES", 64)  # and of grids a few frames
    assert roll_out(root, kind, file, tmp_path / "two.h5", *given) == 0
    with h5py.File(tmp_path / "one.h5") as one, h5py.File(tmp_path / "two.h5") as two:
        for name in one:
            assert two[name][()] == pytest.approx(one[name][()], abs=1e-5, nan_ok=True)
    assert roll_out(root, kind, file, tmp_path / "three.h5", *given) == 0
    assert checksum(tmp_path / "three.h5") == checksum(tmp_path / "two.h5")


def test_a_mesh_is_solved_from_its_inputs_alone(root, tmp_path):
    with NpzFile(root / "raw/mesh/disk.npz") as shard:
        arrays = {name: shard.read(name) for name in shard.shapes}
    write_npz(tmp_path / "other.npz", arrays | {"solution": arrays["solution"] * 2.0 + 1.0})
    for name, file in (("a", root / "raw/mesh/disk.npz"), ("b", tmp_path / "other.npz")):
        assert roll_out(root, "mesh", file, tmp_path / f"{name}.h5") == 0
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(tmp_path / "b.h5") as b:
        assert a["data"].shape == (15, 1, len(arrays["coords"]), 1)
        assert np.array_equal(a["data"], b["data"])
        assert not np.allclose(a["error"], b["error"], rtol=1e-3)


def test_a_mesh_without_its_solution_is_solved(root, tmp_path, capsys):
    with NpzFile(root / "raw/mesh/disk.npz") as shard:
        arrays = {name: shard.read(name) for name in shard.shapes if name != "solution"}
    write_npz(tmp_path / "asked.npz", arrays)
    for name, file in (("a", root / "raw/mesh/disk.npz"), ("b", tmp_path / "asked.npz")):
        assert roll_out(root, "mesh", file, tmp_path / f"{name}.h5") == 0
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(tmp_path / "b.h5") as b:
        assert np.array_equal(a["data"], b["data"])
        assert np.isnan(b["error"][:]).all()
    write_npz(tmp_path / "asked.npz", {name: values for name, values in arrays.items() if name != "source"})
    assert roll_out(root, "mesh", tmp_path / "asked.npz", tmp_path / "r.h5") == 1
    assert "got the channels permeability, expected permeability, source of darcy2d_mesh" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--given", "--steps"])
def test_frames_of_a_static_problem_are_not_asked_for(root, tmp_path, capsys, flag):
    assert roll_out(root, "mesh", root / "raw/mesh/disk.npz", tmp_path / "r.h5", flag, "2") == 1
    assert f"{flag} 2: darcy2d_mesh is a static problem, without frames in time" in capsys.readouterr().err


@pytest.mark.parametrize("axis", [0, 1])
def test_a_mesh_outside_of_the_box_of_the_training_is_a_sentence(root, tmp_path, capsys, axis):
    with NpzFile(root / "raw/mesh/disk.npz") as shard:
        arrays = {name: shard.read(name) for name in shard.shapes}
    low, high = models(root, "mesh")[0].config["box"][axis]
    moved = (np.arange(2) == axis) * (high - low)
    for factor, status in ((0.005, 0), (0.5, 1), (-0.5, 1)):
        write_npz(tmp_path / "m.npz", arrays | {"coords": arrays["coords"] + factor * moved})
        assert roll_out(root, "mesh", tmp_path / "m.npz", tmp_path / "r.h5") == status
        said = capsys.readouterr().err
        assert (f"m.npz: coords: got {'xy'[axis]} from " in said) == (status == 1)
        assert (f"expected {low:g} to {high:g}, where the data of the training lie" in said) == (status == 1)


@torch.inference_mode()
def test_a_static_problem_on_a_grid_is_solved_from_its_coefficient(tmp_path):
    generator = np.random.default_rng(0)
    permeability = np.where(generator.random((12, 16, 16)) < 0.5, 0.1, 1.0).astype(np.float32)
    solution = generator.random((12, 16, 16)).astype(np.float32)
    file = write_darcy(tmp_path / "raw" / "2D_DarcyFlow_beta1.0_Train.hdf5", permeability, solution, 1.0)
    convert_grid("darcy2d", convert_knobs(tmp_path / "raw"), SPLIT, tmp_path, workers=1)
    splits = (open_frames(tmp_path, "darcy2d", split, "grid", VIEWS["mesh"]) for split in ("train", "val"))
    small = knobs("mesh", steps=5, latent_len=16)
    with torch.inference_mode(False):
        autoencoder, _ = train_autoencoder("darcy2d", *splits, small, state=tmp_path / "s", key="k", device=CPU)
    folder = tmp_path / "models" / "darcy2d"
    save_autoencoder(folder / "autoencoder.safetensors", autoencoder, 5)
    save_operator(folder, "static grid", autoencoder)
    params = yaml.safe_load(PARAMS.read_text())
    params["datasets"]["darcy2d"] = params["datasets"].pop("burgers1d")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    flags = ["--task", "darcy2d", "--models", str(tmp_path / "models"), "--params", str(tmp_path / "params.yaml"), "-q"]
    assert stage.main([str(file), "--out", str(tmp_path / "r.h5"), "--device", "cpu", *flags]) == 0
    operator = load_operator(folder / "operator.safetensors", CPU)
    latents = autoencoder.eval().encode({"fields": torch.from_numpy(permeability[3:4, ..., None])}, "input")[:, None]
    solved = operator(latents, torch.ones(1, 1), torch.ones(1))
    with h5py.File(tmp_path / "r.h5") as made:
        assert made["data"].shape == (12, 1, 16, 16, 1)
        assert made["data"][3] == pytest.approx(autoencoder.decode(solved[:, 0], None, "target").numpy(), abs=1e-5)
        assert (made.attrs["given"], json.loads(made.attrs["channels"])) == (0, ["solution"])


def test_particles_move_with_the_velocity_they_are_given(root, tmp_path):
    assert (
        roll_out(root, "particles", root / "raw/particles/3.npz", tmp_path / "r.h5", "--given", "2", "--steps", "4")
        == 0
    )
    with h5py.File(tmp_path / "r.h5") as made:
        x, v, time = made["positions"][0], made["velocities"][0], made["time"][:]
        moved = np.diff(x, axis=0)
        moved -= np.round(moved)  # the box has the period 1
        trapezoid = 0.5 * (time[1] - time[0]) * (v[1:] + v[:-1])
        assert np.abs(moved - trapezoid).max() < 0.1 * np.abs(trapezoid).max()
        assert ((x >= 0) & (x < 1)).all()


def test_a_file_that_does_not_fit_is_a_sentence_and_leaves_the_old_rollout(root, tmp_path, capsys):
    out = tmp_path / "r.h5"
    out.write_text("an older one")
    wrong = tmp_path / "1D_Advection_Sols_beta0.5.hdf5"
    write_one_array(wrong, np.ones((2, 9, 48), np.float32), {"beta": 0.5})
    other = write_one_array(tmp_path / "1D_Burgers_Sols_Nu0.5.hdf5", np.ones((2, 9, 64), np.float32), {"Nu": 0.5})
    for file, flags, wanted in (
        (wrong, (), "resolution: got [24] at the view of the models, expected [32]"),
        (grid_file(root), ("--given", "6"), "--given: got 6, expected 2 (the frames the models see) to 5"),
        (grid_file(root), ("--given", "5"), "all 5 frames are given; say with --steps how many to predict"),
        (tmp_path / "none.hdf5", (), "is missing"),
        (other, (), "got the physical parameters viscosity, expected advection_speed: the operator of"),
    ):
        assert roll_out(root, "grid", file, out, *(flags or ("--given", "2"))) == 1
        assert wanted in capsys.readouterr().err
    assert out.read_text() == "an older one"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_the_file_that_is_read_is_not_written_over(root, tmp_path, capsys):
    file = tmp_path / grid_file(root).name
    file.write_bytes(grid_file(root).read_bytes())
    assert roll_out(root, "grid", file, tmp_path / "." / ".." / tmp_path.name / file.name, "--given", "2") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "is one of the files that are read; write to another one" in said
    assert file.read_bytes() == grid_file(root).read_bytes()


def test_models_that_do_not_belong_together_are_refused(root, tmp_path, capsys):
    folder = tmp_path / "models" / TASKS["grid"]
    _, operator = models(root, "grid")
    other, curve = trained(root, "grid", seed=1, steps=5)
    save_autoencoder(folder / "autoencoder.safetensors", other, curve[-1][0])
    save_model(folder / "operator.safetensors", operator.state_dict(), operator.config)
    assert roll_out(tmp_path, "grid", grid_file(root), tmp_path / "r.h5", "--given", "2") == 1
    assert "was trained on the latents of another autoencoder" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["grid", "mesh", "particles"])
def test_what_the_system_refuses_of_the_output_is_not_blamed_on_the_input(root, tmp_path, kind):
    """A file may not grow beyond 2 kB here, as on a full quota."""
    source = {"grid": grid_file(root), "mesh": root / "raw/mesh/disk.npz", "particles": root / "raw/particles/0.npz"}
    flags = ["--task", TASKS[kind], "--models", str(root / "models"), "--params", str(PARAMS), "--device", "cpu"]
    flags += [] if kind == "mesh" else ["--given", "2"]
    made = subprocess.run(
        [sys.executable, "-m", "stages.predict", str(source[kind]), "--out", str(tmp_path / "r.h5"), *flags],
        cwd=PARAMS.parent,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},  # it would be cut at 2 kB too, and stay
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048)),
    )
    assert made.returncode == 1 and "Traceback" not in made.stderr
    assert f"{tmp_path / 'r.h5'} would be larger than files may be here" in made.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
