"""Converting grids: nothing lost, nothing leaked, whole outputs or none, the same bytes however it ran."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from stages import convert as stage
from tests.raw import (
    SPLITS,
    convert_knobs,
    line_values,
    write_burgers,
    write_fields,
    write_flow,
    write_groups,
    write_one_array,
)
from tests.test_convert_kills import digests
from ups_data import files
from ups_data.conversion import blocks, grid
from ups_data.conversion.grid import convert_grid
from ups_data.errors import UpsDataError
from ups_data.stores.grid import GridReader

NAMES = ("train", "val", "test")


def converted(folder, task="burgers1d"):
    return {name: GridReader(Path(folder) / f"{task}_{name}.h5") for name in NAMES}


@pytest.fixture
def raw(tmp_path):
    return write_burgers(tmp_path / "raw")


def test_every_value_arrives_with_its_parameter_its_time_and_its_origin(raw, tmp_path):
    manifest = convert_grid("burgers1d", convert_knobs(raw), SPLITS, tmp_path / "out")
    seen = 0
    for reader in converted(tmp_path / "out").values():
        for i in range(len(reader)):
            name = manifest["source"]["files"][reader.source_file[i]]["name"]
            with h5py.File(raw / name) as file:
                np.testing.assert_array_equal(reader.data[i, ..., 0], file["tensor"][reader.source_row[i]])
                assert reader.parameters[i] == [file.attrs["Nu"]]
                np.testing.assert_array_equal(reader.time, file["t-coordinate"][:-1])
                np.testing.assert_array_equal(reader.coordinates["x"], file["x-coordinate"][:])
            seen += 1
    assert seen == 60
    assert manifest["parameters"] == {"viscosity": {"raw_name": "Nu", "values": [0.001, 0.1, 1.0]}}


def test_no_initial_condition_stands_in_two_splits(raw, tmp_path):
    manifest = convert_grid("burgers1d", convert_knobs(raw), SPLITS, tmp_path / "out")
    starts = {n: {r.data[i, 0].tobytes() for i in range(len(r))} for n, r in converted(tmp_path / "out").items()}
    assert [len(starts[n]) for n in NAMES] == [16, 2, 2]
    assert not starts["train"] & starts["test"] and not starts["train"] & starts["val"]
    assert manifest["leaked_share"] == 0


def test_tasks_that_share_their_initial_conditions_share_their_split(raw, tmp_path):
    advection = tmp_path / "advection"
    for beta in (0.1, 4.0):
        path = advection / f"1D_Advection_Sols_beta{beta}.hdf5"
        write_one_array(path, line_values(20, decay=beta / 9), {"beta": beta})
    one = convert_grid("burgers1d", convert_knobs(raw), SPLITS, tmp_path / "out")
    other = convert_grid("advection1d", convert_knobs(advection), SPLITS, tmp_path / "out")
    assert {n: f["groups"] for n, f in one["splits"].items()} == {n: f["groups"] for n, f in other["splits"].items()}


def test_statistics_are_those_of_train_alone(raw, tmp_path):
    manifest = convert_grid("burgers1d", convert_knobs(raw), SPLITS, tmp_path / "out")
    train = converted(tmp_path / "out")["train"].data.astype(np.float64)
    found = manifest["statistics"]["channels"]["u"]
    assert found["mean"] == pytest.approx(train.mean(), abs=1e-7 * train.std())
    assert found["std"] == pytest.approx(train.std(), rel=1e-7)
    assert (found["minimum"], found["maximum"]) == (train.min(), train.max())


def test_the_bytes_do_not_depend_on_workers_or_blocks_of_time(raw, tmp_path, monkeypatch):
    for workers in (1, 2, 3):
        convert_grid("burgers1d", convert_knobs(raw), SPLITS, tmp_path / f"out{workers}", workers=workers)
    assert digests(tmp_path / "out1") == digests(tmp_path / "out2") == digests(tmp_path / "out3")
    monkeypatch.setattr(blocks, "SYNC_FILE_RANGE", None)  # as where the system has no such call
    monkeypatch.setattr(blocks, "BLOCK", 256)  # two frames a piece: a sample larger than memory is cut in time
    convert_grid("burgers1d", convert_knobs(raw), SPLITS, tmp_path / "small", workers=2)
    for name in NAMES:
        one, other = (GridReader(tmp_path / folder / f"burgers1d_{name}.h5").data for folder in ("out1", "small"))
        np.testing.assert_array_equal(one, other)


def test_plain_h5py_reads_the_file_in_the_stated_format(raw, tmp_path):
    convert_grid("burgers1d", convert_knobs(raw), SPLITS, tmp_path / "out")
    with h5py.File(tmp_path / "out/burgers1d_test.h5") as file:
        assert file["data"].dtype == "<f4" and file["data"].shape == (6, 6, 16, 1) and file["data"].chunks is None
        assert json.loads(file.attrs["channels"]) == ["u"] and json.loads(file.attrs["parameter_names"]) == [
            "viscosity"
        ]
        assert file.attrs["format"] == "ups-data/grid" and file.attrs["version"] == 1
        assert json.loads(file["manifest"][()])["key"]


def test_the_root_may_be_the_folder_or_stand_above_it(tmp_path):
    folder = write_burgers(tmp_path / "data/raw/1D/Burgers/Train")
    for root in (tmp_path / "data/raw", tmp_path / "data/raw/..", folder):
        knobs = convert_knobs(root, folder="1D/Burgers/Train")
        assert convert_grid("burgers1d", knobs, SPLITS, tmp_path / "out")["splits"]["train"]["samples"] == 48
    write_burgers(tmp_path / "data/other/1D/Burgers/Train")
    with pytest.raises(UpsDataError, match="no file matches"):  # two such folders: which one is not ours to guess
        convert_grid("burgers1d", convert_knobs(tmp_path, folder="1D/Burgers/Train"), SPLITS, tmp_path / "out")


def test_limit_and_samples_take_the_first_ones(raw, tmp_path):
    manifest = convert_grid("burgers1d", convert_knobs(raw, limit=2, samples=10), SPLITS, tmp_path / "out")
    assert [f["samples"] for f in manifest["source"]["files"]] == [10, 10]
    assert manifest["parameters"]["viscosity"]["values"] == [0.001, 0.1]


def test_the_official_split_is_a_choice(raw, tmp_path):
    splits = SPLITS.model_copy(update={"protocol": "pdebench"})
    convert_grid("burgers1d", convert_knobs(raw), splits, tmp_path / "out")
    assert set(converted(tmp_path / "out")["test"].source_row) == {0, 1}, "the first tenth of every file"


def test_the_generic_form_converts_any_grid_files_into_one(raw, tmp_path, capsys):
    out = tmp_path / "mydata_train.h5"
    flags = ["--pattern", str(raw / "*.hdf5"), "--out", str(out), "--limit", "2", "--samples", "3"]
    assert stage.main(flags) == 0
    assert GridReader(out).shape == (6, 6, 16, 1)
    assert "6 samples of 2 files" in capsys.readouterr().out


# --- layouts -------------------------------------------------------------------------------------


def test_several_fields_become_channels_in_a_stated_order(tmp_path):
    path = tmp_path / "2D_CFD_Rand_M0.1_Eta1e-08_Zeta1e-08_periodic_8_Train.hdf5"
    values = np.arange(10 * 3 * 4 * 5, dtype=np.float32).reshape(10, 3, 4, 5)
    names = ("density", "pressure", "Vx", "Vy")
    write_fields(path, {name: values + 1000 * i for i, name in enumerate(names)}, {"eta": 1e-8, "zeta": 1e-8, "M": 0.1})
    convert_grid("cfd2d", convert_knobs(tmp_path), SPLITS, tmp_path / "out")
    reader = converted(tmp_path / "out", "cfd2d")["train"]
    assert reader.channels == ["density", "pressure", "velocity_x", "velocity_y"]
    assert reader.parameter_names == ["bulk_viscosity", "mach_number", "shear_viscosity"]
    assert reader.parameters[0].tolist() == [1e-8, 0.1, 1e-8]
    with h5py.File(path) as file:
        for channel, name in enumerate(names):
            np.testing.assert_array_equal(reader.data[..., channel], file[name][:][reader.source_row])
    assert reader.shape[1:] == (3, 4, 5, 4) and list(reader.coordinates) == ["x", "y"]


def test_incompressible_flow_keeps_velocity_scalar_force_and_viscosity(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        with h5py.File(tmp_path / f"ns_incom_inhom_2d_512-{i}.h5", "w") as file:
            file.create_dataset("velocity", data=rng.normal(size=(4, 5, 8, 8, 2)).astype("f4"), compression="lzf")
            file.create_dataset("particles", data=rng.normal(size=(4, 5, 8, 8, 1)).astype("f4"), compression="lzf")
            file["force"] = rng.normal(size=(4, 8, 8, 2)).astype("f4")
            file["t"] = np.tile(np.arange(5, dtype="f4"), (4, 1))
            file.attrs["config"] = "NU: 0.01\nsim: {path: '${hydra:runtime.cwd}', boundary: x}\n"
            file.attrs["latestIndex"] = 4
    manifest = convert_grid("navier_stokes2d", convert_knobs(tmp_path, "*.h5"), SPLITS, tmp_path / "out")
    reader = converted(tmp_path / "out", "navier_stokes2d")["train"]
    assert reader.channels == ["velocity_x", "velocity_y", "scalar"]
    assert reader.static_channels == ["force_x", "force_y"]
    assert manifest["parameters"]["viscosity"] == {"raw_name": "NU", "values": [0.01]}
    for i in range(len(reader)):
        with h5py.File(tmp_path / f"ns_incom_inhom_2d_512-{reader.source_file[i]}.h5") as file:
            row = reader.source_row[i]
            np.testing.assert_array_equal(reader.data[i, ..., :2], file["velocity"][row])
            np.testing.assert_array_equal(reader.data[i, ..., 2:], file["particles"][row])
            np.testing.assert_array_equal(reader.static[i], file["force"][row])


# --- bad input -----------------------------------------------------------------------------------


def spoil_text(path):
    path.write_text("this is an error page")


def spoil_truncate(path):
    os.truncate(path, path.stat().st_size - 100)


def spoil_key(path):
    with h5py.File(path, "r+") as file:
        del file["t-coordinate"]


def spoil_nan(path):
    with h5py.File(path, "r+") as file:
        file["tensor"][3, 2, 5] = np.nan


def spoil_resolution(path):
    write_one_array(path, line_values(20, points=32), {"Nu": 0.1})


def spoil_grid(path):
    with h5py.File(path, "r+") as file:
        file["x-coordinate"][:] = 2 * file["x-coordinate"][:]


def spoil_parameter(path):
    with h5py.File(path, "r+") as file:
        file.attrs["Nu"] = 0.2


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_text, ["not an HDF5 file"]),
        (spoil_truncate, ["truncated"]),
        (spoil_key, ["'t-coordinate' is missing"]),
        (spoil_nan, ["u is nan", "sample 3", "frame 2", "(5,)"]),
        (spoil_resolution, ["resolution is 32", "expected 16"]),
        (spoil_grid, ["its x differs from that of 1D_Burgers_Sols_Nu0.001.hdf5"]),
        (spoil_parameter, ["0.1 in the name", "0.2 in the attribute"]),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_file_is_named_and_old_outputs_stay(raw, tmp_path, spoil, words, workers):
    out = tmp_path / "out"
    convert_grid("burgers1d", convert_knobs(raw), SPLITS, out)
    before = digests(out)
    spoil(raw / "1D_Burgers_Sols_Nu0.1.hdf5")
    with pytest.raises(UpsDataError) as caught:
        convert_grid("burgers1d", convert_knobs(raw), SPLITS, out, workers=workers)
    for word in ["1D_Burgers_Sols_Nu0.1.hdf5", *words]:
        assert word in str(caught.value)
    assert digests(out) == before and not (out / ".burgers1d.partial").exists()


def test_the_generic_form_refuses_to_write_over_what_it_reads_or_a_folder(raw, tmp_path, capsys):
    mine = tmp_path / "mine_train.h5"
    pattern = ["--pattern", str(raw / "*Nu0.1.hdf5"), "--out"]
    assert stage.main([*pattern, str(mine)]) == 0
    before = mine.read_bytes()
    assert stage.main(["--pattern", str(tmp_path / "mine_*.h5"), "--out", str(mine)]) == 1
    assert "is one of the files that are read" in capsys.readouterr().err and mine.read_bytes() == before
    (tmp_path / "papers.h5").mkdir()
    (tmp_path / "papers.h5" / "one.pdf").write_text("x")
    assert stage.main([*pattern, str(tmp_path / "papers.h5")]) == 1
    assert "is a folder" in capsys.readouterr().err and (tmp_path / "papers.h5" / "one.pdf").exists()
    assert stage.main([*pattern, str(mine), "--set", "x=1"]) == 1
    assert "leave it out" in capsys.readouterr().err


def test_a_link_to_nothing_is_no_smaller_dataset(raw, tmp_path, capsys):
    (raw / "1D_Burgers_Sols_Nu9.0.hdf5").symlink_to(tmp_path / "gone")
    assert stage.main(["--pattern", str(raw / "*.hdf5"), "--out", str(tmp_path / "mine_train.h5")]) == 1
    assert "Nu9.0.hdf5 is a link to nothing; fetch the file again" in capsys.readouterr().err


def test_no_matching_file_is_a_sentence(tmp_path, capsys):
    assert stage.main(["burgers1d", "--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert f"no file matches {tmp_path}" in capsys.readouterr().err


def test_a_disk_without_room_is_refused_before_anything_is_written(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UpsDataError, match=r"needs .* but .* has .* free"):
        convert_grid("burgers1d", convert_knobs(raw), SPLITS, tmp_path / "out")
    assert digests(tmp_path / "out") == {}


def test_room_is_wanted_for_static_fields_too(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "SLACK", 0)
    velocity = np.arange(10.0 * 2 * 32 * 32 * 2).reshape(10, 2, 32, 32, 2)
    write_flow(tmp_path / "raw/ns.h5", velocity, [0, 1], "")
    data, static = 10 * 2 * 32 * 32 * 3 * 4, 10 * 32 * 32 * 2 * 4
    knobs = convert_knobs(tmp_path / "raw", "*.h5")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=data + static - 1))
    with pytest.raises(UpsDataError, match=r"needs .* but .* has .* free"):
        convert_grid("flow", knobs, SPLITS, tmp_path / "out")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=data + static + (1 << 16)))
    assert convert_grid("flow", knobs, SPLITS, tmp_path / "out")["splits"]["train"]["samples"] == 8


def test_a_disk_that_fills_up_leaves_nothing_behind(raw, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(blocks.os, "pwrite", full)
    out = tmp_path / "out"
    assert stage.main(["--pattern", str(raw / "*.hdf5"), "--out", str(out / "x_train.h5"), "--workers", "1"]) == 1
    assert "no room left" in capsys.readouterr().err
    assert digests(out) == {} and not (out / ".x.partial").exists()


@pytest.mark.parametrize("kilobytes", [4, 26], ids=["data", "description"])
def test_a_limit_on_the_size_of_files_is_a_sentence_and_leaves_nothing_behind(raw, tmp_path, kilobytes):
    out = tmp_path / "out"
    work = f"ulimit -f {kilobytes}; exec {sys.executable} -m stages.convert --workers 1 --pattern"
    command = ["bash", "-c", f'{work} "$0" --out "$1"', raw / "*.hdf5", out / "x_train.h5"]
    done = subprocess.run(command, cwd=Path(stage.__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"python -m stages.convert: .* would be larger than files may be here; .*\n", done.stderr)
    assert digests(out) == {} and not (out / ".x.partial").exists()


def test_numbers_are_the_same_read_with_hdf5_or_without(tmp_path, monkeypatch):
    """Contiguous float32 is read at its byte offsets; packed by HDF5 it goes through the library."""
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(5, 6, 7, 1)).astype(np.float32) for _ in range(20)]
    configs = [f"sim:\n  gravity: 1.0\n  dam_radius: 0.{i + 10}\n  inner_height: 2.0\n" for i in range(20)]
    fields = {name: rng.normal(size=(20, 5, 40)).astype(np.float32) for name in ("density", "pressure", "Vx")}
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    for name, compression in (("plain", None), ("packed", "lzf")):
        folder = tmp_path / name
        folder.mkdir()
        write_groups(folder / "2D_rdb_NA_NA.h5", values, configs, "xy", compression)
        convert_grid("water", convert_knobs(folder, "*.h5"), SPLITS, tmp_path / f"out_{name}", workers=1)
        path = write_fields(folder / "1D_CFD_Rand_Eta0.1_Zeta0.1_periodic_Train.hdf5", fields)
        if compression:
            with h5py.File(path, "r+") as file:
                for field, array in fields.items():
                    del file[field]
                    file.create_dataset(field, data=array, compression=compression)
        convert_grid("flow", convert_knobs(folder), SPLITS, tmp_path / f"out_{name}", workers=1)
    for task in ("water", "flow"):
        for split in NAMES:
            one, other = (GridReader(tmp_path / f"out_{n}/{task}_{split}.h5") for n in ("plain", "packed"))
            np.testing.assert_array_equal(one.data, other.data)
            assert one.groups == other.groups and one.manifest["statistics"] == other.manifest["statistics"]
            assert one.manifest["fingerprint"] == other.manifest["fingerprint"]


def test_files_whose_names_are_equal_but_for_the_spelling_of_a_number_have_one_order(tmp_path, monkeypatch):
    names = ["1D_Burgers_Sols_Nu1.hdf5", "1D_Burgers_Sols_Nu1.0.hdf5", "1D_Burgers_Sols_Nu1.00.hdf5"]
    for seed, name in enumerate(names):
        write_one_array(tmp_path / "raw" / name, line_values(10) + seed, {"Nu": 1.0})
    found = []
    for turn in (1, -1):  # a folder lists its files in whatever order
        listed = [tmp_path / "raw" / name for name in names][::turn]
        monkeypatch.setattr("ups_data.conversion.files._matches", lambda *_, listed=listed: listed)
        convert_grid("burgers1d", convert_knobs(tmp_path / "raw"), SPLITS, tmp_path / f"out{turn}")
        found.append(digests(tmp_path / f"out{turn}"))
    assert found[0] == found[1]


def test_a_root_is_a_folder_and_no_glob(tmp_path, capsys):
    root = write_burgers(tmp_path / "Run [1] *" / "below")
    knobs = convert_knobs(root.parent, folder="below")
    assert convert_grid("burgers1d", knobs, SPLITS, tmp_path / "out")["splits"]["train"]["samples"] == 48
    out = str(tmp_path / "one_train.h5")
    assert stage.main(["--root", str(root), "--pattern", "*Nu1.0.hdf5", "--out", out]) == 0
    assert "20 samples of 1 files" in capsys.readouterr().out


def test_a_link_to_data_elsewhere_is_below_the_root(raw, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "Train").symlink_to(raw)
    knobs = convert_knobs(tmp_path / "linked", folder="Train")
    assert convert_grid("burgers1d", knobs, SPLITS, tmp_path / "out")["splits"]["train"]["samples"] == 48


def test_a_glob_that_leaves_the_root_or_is_none_is_a_sentence(raw, tmp_path):
    (raw / "below").mkdir()
    for change, words in (
        ({"pattern": "**a/*.hdf5"}, r"\*\*a/\*\.hdf5"),  # no glob, or one of no file: Pythons differ
        ({"root": str(tmp_path / "elsewhere"), "pattern": f"{raw}/*.hdf5"}, r"0\.001\.hdf5 is not below convert\.root"),
        ({"root": str(tmp_path / "elsewhere"), "folder": str(raw)}, r"0\.001\.hdf5 is not below convert\.root"),
        ({"root": str(raw / "below"), "folder": "..", "pattern": "*.hdf5"}, r"0\.001\.hdf5 is not below convert\.root"),
        ({"root": str(raw / "below"), "pattern": "../*.hdf5"}, r"0\.001\.hdf5 is not below convert\.root"),
        ({"root": str(tmp_path / "elsewhere"), "folder": "/no/such"}, "no file matches /no/such"),
    ):
        with pytest.raises(UpsDataError, match=words):
            knobs = convert_knobs(raw).model_copy(update=change)
            convert_grid("burgers1d", knobs, SPLITS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "points", "words"),
    [
        ("x-coordinate", [np.nan] * 16, "x: point 0 is nan, expected a number"),
        ("t-coordinate", [0, 1, np.nan, 3, 4, 5, 6], "time: point 2 is nan, expected a number"),
        ("t-coordinate", [6, 5, 4, 3, 2, 1, 0], "time: got 5 after 6 in frame 1, expected times that ascend"),
        ("t-coordinate", [0, 1, 1, 2, 3, 4, 5], "time: got 1 after 1 in frame 2"),
        ("t-coordinate", [0, 1, 4, 9, 16, 25, 36], "time: the step to frame 1 is 1, expected 5 as between other"),
        ("t-coordinate", [0, 1, 2, 4, 5, 6, 7], "time: the step to frame 3 is 2, expected 1 as between other frames"),
    ],
)
def test_times_and_coordinates_that_are_none_are_refused(tmp_path, key, points, words):
    path = write_one_array(tmp_path / "raw" / "a_Nu1.0.hdf5", line_values(10))
    with h5py.File(path, "r+") as file:
        file[key][:] = points
    with pytest.raises(UpsDataError, match=f"a_Nu1.0.hdf5: {words}"):
        convert_grid("burgers1d", convert_knobs(path.parent), SPLITS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "attributes", "viscosity"),
    [
        ("a_Nu-0.4.hdf5", {}, -0.4),
        ("a_Nu1e+3.hdf5", {}, 1000.0),
        ("a_Nu1E-3.hdf5", {}, 0.001),
        ("a.hdf5", {"Nu": "0.001"}, 0.001),
        ("a.hdf5", {"Nu": b"-2.5"}, -2.5),
        ("a.hdf5", {"Nu": np.array([0.25], ">f8")}, 0.25),
    ],
)
def test_a_parameter_is_kept_however_its_number_is_spelt(tmp_path, name, attributes, viscosity):
    write_one_array(tmp_path / "raw" / name, line_values(10), attributes)
    manifest = convert_grid("burgers1d", convert_knobs(tmp_path / "raw"), SPLITS, tmp_path / "out")
    assert manifest["parameters"] == {"viscosity": {"raw_name": "Nu", "values": [viscosity]}}
