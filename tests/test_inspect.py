"""A first look says what a file holds, what is odd about it, and one sentence where it cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from stages import inspect as stage
from tests.raw import (
    converted,
    line_values,
    write_burgers,
    write_darcy,
    write_fields,
    write_flow,
    write_groups,
    write_one_array,
)
from tests.small_data import TASKS, WRITERS
from ups_data import archive
from ups_data.errors import UpsDataError
from ups_data.inspection import inspect
from ups_data.inspection.draw import sketch, sparkline
from ups_data.inspection.look import BUDGET, Range, runs
from ups_data.models.checkpoint import save_model
from ups_data.sources.npz import write_npz

ROOT = Path(__file__).parents[1]
NU = "1D_Burgers_Sols_Nu0.1.hdf5"
CONFIG = "NU: 0.01\nboundary: periodic\n"
SORPTION = "name: diff-sorp\nsim:\n  D: 5E-4\n  por: 0.29\n"


@pytest.fixture
def burgers(tmp_path) -> Path:
    return write_burgers(tmp_path, 6, (0.1,)) / NU


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> Path:
    """Small converted meshes and particles, and their shards."""
    root = tmp_path_factory.mktemp("points")
    for kind in ("mesh", "particles"):
        WRITERS[kind](root)
    return root


def smooth(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def write_every_layout(root: Path) -> dict[str, Path]:
    """A file of every family, small."""
    flow = write_flow(root / "ns.h5", smooth(2, 3, 8, 8, 2), np.array([0, 0.5, 1.0]), CONFIG)
    names = ("density", "pressure", "Vx", "Vy", "Vz")
    return {
        "burgers": write_burgers(root, 4, (0.1,)) / NU,
        "cfd": write_fields(root / "3D_CFD.hdf5", {n: smooth(2, 2, 4, 4, 4) for n in names}, {"eta": 1e-8}),
        "flow": flow,
        "darcy": write_darcy(root / "2D_DarcyFlow.hdf5", 1 + smooth(3, 8, 8) ** 2, smooth(3, 8, 8), 1.0),
        "groups": write_groups(root / "1D_diff-sorp.h5", [smooth(3, 16, 1), smooth(3, 16, 1)], [SORPTION] * 2, "x"),
    }


EXPECTED = {
    "burgers": {"channels": "u", "parameters": "viscosity 0.1 (Nu)", "samples": "4"},
    "cfd": {"channels": "density, pressure, velocity_x, velocity_y, velocity_z", "samples": "2"},
    "flow": {"channels": "velocity_x, velocity_y, scalar, force_x (static), force_y (static)"},
    "darcy": {"channels": "permeability, solution", "time": "static", "parameters": "source_strength 1 (beta)"},
    "groups": {"channels": "concentration", "parameters": "diffusion_coefficient 0.0005 (D); porosity 0.29 (por)"},
}


@pytest.mark.parametrize("family", EXPECTED)
def test_every_family_is_told_by_its_keys(tmp_path, family):
    look = inspect(write_every_layout(tmp_path)[family])
    assert look.what.startswith("raw file of PDEBench")
    assert {name: look.facts[name] for name in EXPECTED[family]} == EXPECTED[family]
    assert look.panels and all(np.isfinite(panel.values).all() for panel in look.panels)


def test_ranges_are_those_of_numpy(burgers):
    found = inspect(burgers).ranges["u"]
    values = line_values(6, decay=0.1).astype(np.float64)
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    assert found.mean == pytest.approx(values.mean())
    assert found.std == pytest.approx(values.std())


def test_numbers_that_are_too_large_are_a_problem_and_no_traceback(tmp_path, capsys):
    values = line_values(4).astype(np.float64)
    values[2, 1, 3] = 1e300
    path = write_one_array(tmp_path / NU, values)
    assert stage.main([str(path)]) == 0
    assert "! u: numbers from" in capsys.readouterr().out
    assert "to 1e+300 do not fit into float32" in inspect(path).problems[0]


def test_a_parameter_that_is_no_number_is_a_problem(tmp_path):
    path = write_one_array(tmp_path / "a.hdf5", line_values(4), {"Nu": "nan"})
    assert inspect(path).problems == ["viscosity is nan in sample 0: the conversion refuses it"]


def test_numbers_that_are_not_finite_are_counted_and_placed(burgers):
    with h5py.File(burgers, "r+") as file:
        file["tensor"][4, 2, :3] = [np.nan, np.inf, np.nan]
    look = inspect(burgers)
    assert look.problems == ["u: 3 numbers are NaN or infinite, the first in sample 4, frames from 0"]
    assert np.isfinite([look.ranges["u"].minimum, look.ranges["u"].std]).all()


def test_keys_that_no_reader_takes_are_named(burgers):
    with h5py.File(burgers, "r+") as file:
        file["vorticity"] = np.zeros(3)
    assert inspect(burgers).problems == ["not read, since the layout has no place for them: vorticity"]


@pytest.mark.parametrize(
    ("family", "key", "named"),
    [
        ("cfd", "temperature", "temperature"),
        ("darcy", "t-coordinate", None),
        ("flow", "vorticity", "vorticity"),
        ("groups", "0000/source", "0000/source"),
    ],
)
def test_what_is_left_behind_is_named_in_every_family(tmp_path, family, key, named):
    path = write_every_layout(tmp_path)[family]
    with h5py.File(path, "r+") as file:
        if key not in file:
            file[key] = np.zeros(3)
    said = [problem for problem in inspect(path).problems if problem.startswith("not read")]
    assert said == ([f"not read, since the layout has no place for them: {named}"] if named else [])


def test_a_velocity_across_the_axes_of_the_file_is_left_behind(tmp_path):
    path = write_fields(tmp_path / "1D_CFD.hdf5", {name: smooth(4, 3, 8) for name in ("density", "pressure", "Vx")})
    with h5py.File(path, "r+") as file:
        file["Vy"] = file["Vx"][:]
    assert inspect(path).problems == ["not read, since the layout has no place for them: Vy"]


def test_samples_that_start_alike_are_twins(burgers):
    with h5py.File(burgers, "r+") as file:
        file["tensor"][5] = file["tensor"][1]
    (problem,) = inspect(burgers).problems
    assert problem == "2 of 6 samples share their initial state with another, first 1 and 5"


def test_a_constant_channel_and_falling_times_are_problems(burgers):
    with h5py.File(burgers, "r+") as file:
        file["tensor"][:] = 2.0
        file["t-coordinate"][:] = file["t-coordinate"][:][::-1]
    problems = inspect(burgers).problems
    assert "u: every number that was read is 2" in problems
    assert "time: the coordinates do not ascend" in problems


def test_a_darcy_field_that_is_no_solution_is_said_to_be_none(tmp_path):
    path = write_darcy(tmp_path / "2D_DarcyFlow.hdf5", np.ones((2, 16, 16)), np.zeros((2, 16, 16)), 1.0)
    assert any("leaves 100.0% of the source" in problem for problem in inspect(path).problems)


def test_an_official_name_with_a_twin_is_looked_up_in_the_catalogue(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "2D" / "NS_incom" / "ns_incom_inhom_2d_512-22.h5"
    write_flow(path, smooth(2, 3, 8, 8, 2), np.array([0, 0.5, 1.0]), CONFIG)
    look = inspect(path)
    assert look.facts["official"].startswith("2D/NS_incom/ns_incom_inhom_2d_512-22.h5, 9.91 GB: this one has another")
    assert look.problems == []  # it is another file, so the official one's twin is no news


def test_a_converted_split_tells_of_a_leak(tmp_path):
    write_burgers(tmp_path, 20, (0.1,))
    converted(tmp_path, "*.hdf5", tmp_path / "out")
    path = tmp_path / "out" / "task_test.h5"
    look = inspect(path)
    assert look.what.startswith("converted grid, split test of task") and look.problems == []
    assert look.facts["splits"] == "train 16, val 2, test 2 samples, grouped"
    with h5py.File(path, "r+") as test, h5py.File(tmp_path / "out" / "task_train.h5") as train:
        test["group"][0] = train["group"][0]
    assert inspect(path).problems == [
        "1 initial conditions stand in train too",
        "its initial conditions are not those that its manifest lists for test",
    ]


def test_a_split_of_several_files_is_looked_at_as_one(tmp_path):
    write_burgers(tmp_path, 20, (0.1,))
    converted(tmp_path, "*.hdf5", tmp_path / "out", shard_gb=5e-6)
    folder = tmp_path / "out" / "task_train.h5"
    assert len(list(folder.glob("*.h5"))) > 1
    whole, part = inspect(folder), inspect(sorted(folder.glob("*.h5"))[0])
    assert whole.facts["samples"] == "16" and int(part.facts["samples"]) < 16
    assert (whole.problems, part.problems) == ([], [])


@pytest.mark.parametrize("kind", ["mesh", "particles"])
def test_meshes_and_particles_are_told_as_shards_and_as_stores(points, kind):
    shard = inspect(sorted((points / "raw" / kind).glob("*.npz"))[0])
    assert shard.what.startswith(f"raw {'mesh' if kind == 'mesh' else 'particle'} shard") and shard.problems == []
    store = inspect(points / f"{TASKS[kind]}_test.zarr")
    assert store.what.startswith(f"converted {kind}, split test of {TASKS[kind]}") and store.problems == []
    assert shard.ranges.keys() == store.ranges.keys()
    assert "?" not in sketch(store.panels[0]) and len(sketch(shard.panels[0]).splitlines()) == 17


def test_arrays_of_a_particle_shard_that_are_left_behind_are_named(points, tmp_path):
    with np.load(sorted((points / "raw" / "particles").glob("*.npz"))[0], allow_pickle=False) as shard:
        look = inspect(write_npz(tmp_path / "p.npz", {**shard, "temperature": np.zeros(3), "mass": np.float64(2)}))
    assert look.problems == ["not read, since the layout has no place for them: temperature"]
    assert "mass 2" in look.facts["parameters"] and look.panels


@pytest.mark.parametrize(("kind", "name"), [("mesh", "solution"), ("particles", "velocities")])
def test_a_shard_of_float64_numbers_says_that_they_are_rounded(points, tmp_path, kind, name):
    with np.load(sorted((points / "raw" / kind).glob("*.npz"))[0], allow_pickle=False) as shard:
        look = inspect(write_npz(tmp_path / "double.npz", {**shard, name: shard[name].astype(np.float64)}))
    assert look.problems == ["float64 numbers: a conversion rounds them to float32 (knob convert.float64)"]
    assert look.panels


def test_a_shard_with_a_nan_says_where(points, tmp_path):
    with np.load(sorted((points / "raw" / "mesh").glob("*.npz"))[0], allow_pickle=False) as shard:
        arrays = dict(shard)
    arrays["solution"] = arrays["solution"].copy()
    arrays["solution"][3, 5] = np.nan
    look = inspect(write_npz(tmp_path / "bad.npz", arrays))
    assert "solution[3, 5]: got nan, expected a finite number" in look.problems[0]


def test_an_archive_lists_its_members_and_full_verifies_them(burgers, tmp_path):
    packed = tmp_path / "a.upk"
    archive.pack({"raw.hdf5": burgers}, packed)
    assert inspect(packed).facts["members"].startswith("1 files, ")
    assert inspect(packed, full=True).read == "every byte was unpacked and verified"
    content = bytearray(packed.read_bytes())
    content[40] ^= 1
    packed.write_bytes(content)
    with pytest.raises(UpsDataError, match=r"does not unpack|have SHA-256"):
        inspect(packed, full=True)


def test_a_model_shows_its_configuration_and_a_broken_weight(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, {"w": torch.tensor([1.0, float("nan")]), "n": torch.arange(3)}, {"width": 8})
    look = inspect(path)
    assert look.facts["width"] == "8"
    assert look.facts["parameters"] == "5 in 2 tensors, int64, float32"
    assert look.problems == ["1 weights are NaN or infinite, the first in the tensor w"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.h5", b"", "it is empty"),
        ("a.h5", b"<html><body>login", "looks like a web page; fetch the file itself"),
        ("a.txt", b"hello world", "starts with the bytes 68 65 6c 6c 6f"),
        ("a.json", b'{"format": 1}', "looks like JSON"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(40), "damaged"),
        ("a.npz", b"PK\x03\x04" + bytes(40), "is not a whole .npz file"),
        ("a.upk", b"\x89UPK\r\n\x1a\n" + bytes(40), "a.upk"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, capsys, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    assert stage.main([str(tmp_path / name)]) == 1
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


@pytest.mark.parametrize("family", ["flow", "groups", "darcy"])
def test_changed_bytes_never_end_in_a_traceback(tmp_path, family):
    path = write_every_layout(tmp_path)[family]
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    outcomes = []  # the structure of a file stands in its first bytes, behind the signature
    for _ in range(25):
        content = bytearray(whole)
        for place in rng.integers(96, min(6000, len(whole)), size=20):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            inspect(path)
            outcomes.append("look")
        except UpsDataError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            outcomes.append("sentence")
    assert "sentence" in outcomes


def test_a_truncated_file_is_called_truncated(burgers):
    burgers.write_bytes(burgers.read_bytes()[:-100])
    with pytest.raises(UpsDataError, match="truncated"):
        inspect(burgers)


def test_a_folder_that_is_nothing_and_arrays_of_others_are_sentences(points, tmp_path):
    with pytest.raises(UpsDataError, match="neither a Zarr v3 store"):
        inspect(tmp_path)
    with pytest.raises(UpsDataError, match=r"neither a mesh .* it has the arrays a \[3\]"):
        inspect(write_npz(tmp_path / "a.npz", {"a": np.zeros(3)}))
    shutil.copytree(points / f"{TASKS['mesh']}_val.zarr", tmp_path / "other.zarr")
    (tmp_path / "other.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(UpsDataError, match="no store of meshes or particles"):
        inspect(tmp_path / "other.zarr")


def test_large_files_are_sampled_and_the_first_and_last_frames_are_among_it():
    chosen, sentence = runs(10_000, 201, 4096, full=False)
    assert sum((stop - start) * 4096 for _, start, stop in chosen) <= BUDGET
    assert chosen[0] == (0, 0, 1) and chosen[-1] == (9_999, 200, 201)
    assert sentence == "read: 16 of 10000 samples, 201 of 201 frames of each; --full reads all"
    every, _ = runs(40, 201, 1 << 20, full=True)
    assert sum(stop - start for _, start, stop in every) == 40 * 201
    assert max(stop - start for _, start, stop in every) == 16  # of 1 MiB: memory stays bounded


def test_ranges_of_nothing_finite_are_nan():
    found = Range()
    found.add(np.full(3, np.nan), "here")
    assert (found.count, found.odd, found.first_odd) == (0, 3, "here")
    assert np.isnan(found.mean) and np.isnan(found.std)


def test_a_sparkline_climbs_with_its_values():
    assert sparkline(np.arange(8.0)) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.array([0.0, np.nan, 1.0])) == "▁?█"


def test_an_audit_comes_next_only_where_there_is_a_manifest(tmp_path, capsys):
    write_burgers(tmp_path, 20, (0.1,))
    converted(tmp_path, "*.hdf5", tmp_path / "out")
    path = tmp_path / "out" / "task_test.h5"
    assert stage.main([str(path)]) == 0
    assert f"; next: python -m stages.audit task --data {path.parent} (" in capsys.readouterr().out
    (tmp_path / "out" / "task_manifest.json").unlink()  # as of `convert --pattern`
    assert stage.main([str(path)]) == 0
    assert "next:" not in capsys.readouterr().out


@pytest.mark.parametrize("columns", [40, 200])
def test_a_sketch_is_no_wider_than_the_terminal(tmp_path, monkeypatch, capsys, columns):
    burgers = write_burgers(tmp_path, 2, (0.1,), points=128) / NU
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert stage.main([str(burgers)]) == 0
    first = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("first "))
    assert len(first) == min(70, columns)


def test_the_command_prints_draws_and_names_the_next_one(burgers, tmp_path, capsys):
    picture = tmp_path / "p.png"
    assert stage.main([str(burgers), "--picture", str(picture)]) == 0
    said = capsys.readouterr().out
    assert f"{NU}: raw file of PDEBench" in said
    assert "nothing odd was found" in said
    assert f"0 problems, drawn in {picture}; next: python -m stages.convert --pattern" in said
    first = picture.read_bytes()
    assert stage.main([str(burgers), "--picture", str(picture), "-q"]) == 0
    assert picture.read_bytes() == first
    assert stage.main([str(burgers), "--picture", "p.jpg"]) == 1


@pytest.mark.parametrize("text", ["[]", "{}", '{"attributes": []}'])
def test_a_description_of_a_store_that_is_none_is_a_sentence(points, tmp_path, text, capsys):
    store = tmp_path / "x.zarr"
    shutil.copytree(points / "particles_advect_test.zarr", store)
    (store / "zarr.json").write_text(text)
    assert stage.main([str(store)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "zarr" in said


def test_an_axis_that_is_no_numbers_is_a_problem_and_drawn_without_it(burgers, tmp_path):
    with h5py.File(burgers, "r+") as file:
        file["x-coordinate"][...] = np.nan
    assert stage.main([str(burgers), "--picture", str(tmp_path / "p.png"), "-q"]) == 0
    assert (tmp_path / "p.png").stat().st_size > 0


def test_a_folder_of_several_splits_asks_for_a_file_in_it(tmp_path, capsys):
    write_burgers(tmp_path, 8, (0.1,))
    converted(tmp_path, "*.hdf5", tmp_path / "out")
    assert stage.main([str(tmp_path / "out")]) == 1
    assert "is a folder of several files, not of one split's; name a file in it" in capsys.readouterr().err
