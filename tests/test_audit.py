"""The audit finds what leaks, from the stored data alone, and passes what does not."""

import json
import shutil

import h5py
import numpy as np
import pytest
import zarr

from stages import audit as stage
from tests.raw import SPLITS, convert_knobs, line_values, write_burgers, write_darcy, write_flow, write_one_array
from tests.small_data import TASKS, WRITERS
from ups_data.audit import audit, check_numbers, leaks
from ups_data.conversion.grid import convert_grid
from ups_data.conversion.points import convert_points
from ups_data.errors import UpsDataError
from ups_data.manifest import read_manifest, store_path
from ups_data.params import Tracers


@pytest.fixture
def burgers(tmp_path):
    """Ten initial conditions under each of three viscosities, converted."""
    convert_grid("burgers1d", convert_knobs(write_burgers(tmp_path / "raw", 10)), SPLITS, tmp_path / "out")
    return tmp_path / "out"


def test_a_grouped_split_passes_and_naive_ones_are_seen_to_leak(burgers, capsys):
    assert stage.main(["burgers1d", "--data", str(burgers)]) == 0
    found = audit(burgers, "burgers1d")
    assert (len(found.groups), found.distinct, found.leaked) == (30, 10, 0.0)
    assert found.leaked_by_files() == 1.0, "every file has every initial condition"
    # A test sample's two twins are both among the 5 of 29 others that are not in train: 10 of 406 ways.
    assert found.leaked_by_rows() == pytest.approx(1 - 10 / 406)
    text = capsys.readouterr().out
    assert "burgers1d                  30       10     0.0%" in text and "97.5%   100.0%" in text
    assert "no initial condition stands in two splits of burgers1d" in text


def test_initial_conditions_of_their_own_leak_in_no_split(tmp_path):
    for i in range(10):
        values = np.random.default_rng(i).normal(size=(2, 6, 16)).astype(np.float32)
        write_one_array(tmp_path / f"raw/1D_Burgers_Sols_Nu{0.1 + i}.hdf5", values)
    convert_grid("x", convert_knobs(tmp_path / "raw"), SPLITS, tmp_path / "out")
    found = audit(tmp_path / "out", "x")
    assert found.distinct == 20 and found.leaked_by_rows() == 0.0 and found.leaked_by_files() == 0.0


def test_the_official_split_is_shown_to_leak(tmp_path, capsys):
    values = line_values(10)
    values[0] = values[9]  # the first tenth is test, the last is train
    write_one_array(tmp_path / "raw/1D_Burgers_Sols_Nu0.1.hdf5", values)
    official = SPLITS.model_copy(update={"protocol": "pdebench", "val": 0.0, "train": 0.9})
    convert_grid("x", convert_knobs(tmp_path / "raw"), official, tmp_path / "out")
    assert stage.main(["x", "--data", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "1 initial conditions stand both in train of x and in test of x" in error
    assert "convert again with splits.protocol: grouped" in error


def test_a_sample_copied_into_another_split_is_found_though_the_manifest_says_nothing(burgers, capsys):
    with h5py.File(burgers / "burgers1d_train.h5") as train, h5py.File(burgers / "burgers1d_test.h5", "r+") as test:
        test["data"][1] = train["data"][3]
        test["group"][1] = train["group"][3]
    assert stage.main(["burgers1d", "--data", str(burgers)]) == 1
    said = capsys.readouterr()
    assert "burgers1d_test.h5: 1 initial conditions stand in the data or in the manifest, not in both" in said.err
    assert "1 initial conditions stand both in train of burgers1d and in test of burgers1d" in said.out


def test_data_that_changed_are_told_from_their_stored_ids(burgers, capsys):
    with h5py.File(burgers / "burgers1d_val.h5", "r+") as file:
        file["data"][2, 0, 5, 0] += 1e-3
    assert stage.main(["burgers1d", "--data", str(burgers)]) == 1
    assert "first frame of 1 samples, first of sample 2, is not the initial condition" in capsys.readouterr().err


def test_a_split_of_another_conversion_than_the_manifest_is_refused(burgers, tmp_path, capsys):
    """Its initial conditions are the same: the parameters beside them are not."""
    raw = write_burgers(tmp_path / "others", 10, values=(0.002, 0.2, 2.0))
    convert_grid("burgers1d", convert_knobs(raw), SPLITS, tmp_path / "other")
    (tmp_path / "other/burgers1d_train.h5").replace(burgers / "burgers1d_train.h5")
    assert stage.main(["burgers1d", "--data", str(burgers)]) == 1
    assert "burgers1d_train.h5 is of another conversion" in capsys.readouterr().err
    (burgers / "burgers1d_val.h5").replace(burgers / "burgers1d_train.h5")
    assert stage.main(["burgers1d", "--data", str(burgers)]) == 1
    assert "burgers1d_train.h5 holds the split 'val' of 'burgers1d'" in capsys.readouterr().err


def test_tasks_named_together_must_not_leak_into_each_other(burgers, tmp_path, capsys):
    write_one_array(tmp_path / "advection/1D_Advection_Sols_beta0.1.hdf5", line_values(10))
    convert_grid("advection1d", convert_knobs(tmp_path / "advection"), SPLITS, burgers)
    assert stage.main(["burgers1d", "advection1d", "--data", str(burgers)]) == 0
    other = SPLITS.model_copy(update={"seed": 1})
    convert_grid("advection1d", convert_knobs(tmp_path / "advection"), other, burgers)
    assert stage.main(["advection1d", "--data", str(burgers)]) == 0
    assert stage.main(["burgers1d", "advection1d", "--data", str(burgers)]) == 1
    assert "stand both in train of" in capsys.readouterr().err
    audits = [audit(burgers, task) for task in ("burgers1d", "advection1d")]
    assert any("train of burgers1d and in" in leak and "of advection1d" in leak for leak in leaks(audits))


def test_meshes_and_static_problems_are_audited_by_their_coefficient(tmp_path):
    permeability = np.where(np.random.default_rng(0).random((10, 6, 5)) > 0.5, 1.0, 0.1)
    for beta in (0.1, 1.0, 10.0):
        write_darcy(tmp_path / f"raw/2D_DarcyFlow_beta{beta}_Train.hdf5", permeability, beta * permeability, beta)
    convert_grid("darcy2d", convert_knobs(tmp_path / "raw"), SPLITS, tmp_path / "out")
    convert_points("darcy2d_mesh", "mesh", convert_knobs(tmp_path / "raw"), SPLITS, tmp_path / "out")
    for task in ("darcy2d", "darcy2d_mesh"):
        found = audit(tmp_path / "out", task)
        assert (found.problems, found.leaked, found.distinct, len(found.groups)) == ([], 0.0, 10, 30)
        assert found.leaked_by_files() == 1.0
    assert stage.main(["darcy2d", "darcy2d_mesh", "--data", str(tmp_path / "out")]) == 0


def test_particles_are_audited_and_a_changed_start_is_found(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(3):
        write_flow(tmp_path / f"raw/{i}.h5", rng.normal(size=(4, 3, 8, 8, 2)), np.arange(3.0), "NU: 0.01")
    knobs = convert_knobs(tmp_path / "raw", "*.h5", tracers=Tracers(particles=8, radius=0.2, seed=0))
    convert_points("p", "particles", knobs, SPLITS, tmp_path / "out")
    assert stage.main(["p", "--data", str(tmp_path / "out")]) == 0
    assert audit(tmp_path / "out", "p").distinct == 12
    store = zarr.open_group(tmp_path / "out/p_test.zarr", mode="r+")
    store["positions"][0] = [0.5, 0.25]
    assert stage.main(["p", "--data", str(tmp_path / "out")]) == 1
    assert "p_test.zarr: the first frame of 1 samples, first of sample 0" in capsys.readouterr().err


def test_a_task_that_was_never_converted_is_a_sentence(tmp_path, capsys):
    assert stage.main(["burgers1d", "--data", str(tmp_path)]) == 1
    assert f"{tmp_path}/burgers1d_manifest.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize("kind", WRITERS)
def test_a_split_read_through_is_what_was_converted(tmp_path, kind):
    WRITERS[kind](tmp_path)
    manifest = read_manifest(tmp_path, TASKS[kind])
    for split in manifest["splits"]:
        check_numbers(store_path(tmp_path, TASKS[kind], split, kind), manifest, split)


@pytest.mark.parametrize("name", ["positions", "velocities", "graph_indptr", "graph_indices"])
def test_a_particle_store_without_an_array_is_found_by_reading_it_through(tmp_path, name):
    WRITERS["particles"](tmp_path)
    manifest, task = read_manifest(tmp_path, TASKS["particles"]), TASKS["particles"]
    store = store_path(tmp_path, task, "val", "particles")
    shutil.rmtree(store / name)
    with pytest.raises(UpsDataError, match=f"val.zarr/{name} cannot be read"):
        check_numbers(store, manifest, "val")


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        ("particles", "parameters", lambda a: a + 1e6),
        ("particles", "parameters", lambda a: a * np.nan),
        ("particles", "times", lambda a: a * np.nan),
        ("particles", "times", lambda a: a[:, ::-1]),
        ("particles", "radius", lambda a: -a),
        ("particles", "box", lambda a: a * np.nan),
        ("particles", "source_file", lambda a: a + 1000),
        ("particles", "source_row", lambda a: a - 1000),
        ("particles", "graph_indices", lambda a: a + 10000),
        ("particles", "graph_indptr", lambda a: a + 1),
        ("particles", "particle_offsets", lambda a: a[::-1]),
        ("particles", "sample_offsets", lambda a: a + (np.arange(len(a)) == 1)),
        ("mesh", "topology", lambda a: a + 100),
        ("mesh", "cells", lambda a: a + 10000),
        ("mesh", "edges", lambda a: -1 - a),
        ("mesh", "laplacian_indices", lambda a: a + 10000),
        ("mesh", "laplacian_indptr", lambda a: a + 1),
        ("mesh", "laplacian_data", lambda a: a * np.nan),
        ("mesh", "node_offsets", lambda a: a - 1),
        ("mesh", "sample_offsets", lambda a: a + (np.arange(len(a)) == 1)),
    ],
)
def test_what_stands_beside_the_channels_of_a_store_is_read_through_too(tmp_path, kind, name, change):
    WRITERS[kind](tmp_path)
    manifest, store = read_manifest(tmp_path, TASKS[kind]), store_path(tmp_path, TASKS[kind], "val", kind)
    array = zarr.open_group(store, mode="r+")[name]
    array[:] = change(array[:])
    with pytest.raises(UpsDataError, match=r"fetch it again or run|fetch or convert it again"):
        check_numbers(store, manifest, "val")


@pytest.mark.parametrize(
    ("kind", "name"),
    [(k, n) for k in ("mesh", "particles") for n in ("parameters", "group", "source_file", "source_row")]
    + [("particles", name) for name in ("radius", "box", "velocities", "graph_indptr", "particle_offsets")]
    + [("mesh", name) for name in ("topology", "laplacian_indices", "laplacian_indptr", "edges")],
)
@pytest.mark.parametrize("left", [0, -1])
def test_an_array_with_fewer_rows_than_belong_to_it_is_found(tmp_path, kind, name, left):
    WRITERS[kind](tmp_path)
    manifest, store = read_manifest(tmp_path, TASKS[kind]), store_path(tmp_path, TASKS[kind], "val", kind)
    about = json.loads((store / name / "zarr.json").read_text())
    about["shape"][0] = 0 if left == 0 else about["shape"][0] - 1
    (store / name / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(UpsDataError, match="; fetch or convert it again"):
        check_numbers(store, manifest, "val")
