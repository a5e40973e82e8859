"""Readers of raw grid files with a group a sample, and of incompressible flow: axes, constants, copies."""

import shutil

import h5py
import numpy as np
import pytest

from tests.raw import converted, parameters, random, write_flow, write_groups, write_one_array
from ups_data.conversion.plan import plan_grid
from ups_data.errors import UpsDataError
from ups_data.sources.grids import open_raw
from ups_data.stores.grid import GridReader

HYDRA = "work_dir: ${hydra:runtime.cwd}\ndata_dir: data\nmode: ${oc.env:MODE,default}\n"
SORPTION = HYDRA + (
    "name: 1d_diff-sorp\nsim:\n  D: 0.0005\n  por: 0.29\n  rho_s: 2880\n  k_f: 3.5E-4\n  n_f: 0.874\n  sol: 1.0\n"
    "  t: 500\n  tdim: 501\n  x_left: 0.0\n  xdim: 1024\n  n: 1\n  seed: '???'\n"
)
REACTION = HYDRA + "name: 2d_diff-react\nsim:\n  Du: 0.001\n  Dv: 5E-3\n  k: 0.005\n  seed: 7\n"
DAM = HYDRA + "name: 2d_rdb\nsim:\n  gravity: 1.0\n  dam_radius: RADIUS\n  inner_height: 2.0\n  seed: 0\n"
FLOW = HYDRA + "NU: 0.01\nvelocity_extrapolation: ZERO\ndomain_size:\n- 1\n- 1\nDT: 5.0e-05\n"


def dam(radius):
    return DAM.replace("RADIUS", str(radius))


def test_diffusion_sorption_keeps_its_constants(tmp_path):
    data = [random(4, 16, 1) for _ in range(10)]
    write_groups(tmp_path / "1D_diff-sorp_NA_NA.h5", data, [SORPTION] * 10, "x")
    samples, manifest = converted(tmp_path, "*.h5", tmp_path / "out")
    assert manifest["channels"] == ["concentration"] and manifest["periodic"] == [False]
    for row in range(10):
        values, given = samples["1D_diff-sorp_NA_NA.h5", row]
        np.testing.assert_array_equal(values, data[row])
        assert given == {
            "bulk_density": 2880,
            "diffusion_coefficient": 0.0005,
            "freundlich_coefficient": 3.5e-4,  # YAML 1.1 takes 3.5E-4 for text
            "freundlich_exponent": 0.874,
            "porosity": 0.29,
            "solubility": 1.0,
        }
    assert manifest["parameters"]["porosity"]["raw_name"] == "por"


def test_diffusion_reaction_is_turned_from_y_x_to_x_y(tmp_path):
    data = [random(3, 4, 6, 2) for _ in range(10)]  # [T, Y, X, C]
    write_groups(tmp_path / "2D_diff-react_NA_NA.h5", data, [REACTION] * 10, "yx")
    samples, manifest = converted(tmp_path, "*.h5", tmp_path / "out")
    assert manifest["channels"] == ["activator", "inhibitor"] and manifest["resolution"] == [6, 4]
    for row in range(10):
        values, given = samples["2D_diff-react_NA_NA.h5", row]
        for t, x, y in np.ndindex(3, 6, 4):
            assert values[t, x, y].tolist() == data[row][t, y, x].tolist()
        assert given == {
            "activator_diffusivity": 0.001,
            "inhibitor_diffusivity": 0.005,
            "reaction_constant": 0.005,
        }
    reader = GridReader(tmp_path / "out/task_train.h5")
    assert (len(reader.coordinates["x"]), len(reader.coordinates["y"])) == (6, 4)


def test_shallow_water_keeps_its_axes_and_the_radius_of_each_dam(tmp_path):
    data = [random(3, 4, 6, 1) for _ in range(10)]  # [T, X, Y, C]
    configs = [dam(0.3 + 0.01 * i) for i in range(10)]
    write_groups(tmp_path / "2D_rdb_NA_NA.h5", data, configs, "xy")
    samples, manifest = converted(tmp_path, "*.h5", tmp_path / "out")
    assert manifest["channels"] == ["water_height"] and manifest["resolution"] == [4, 6]
    for row in range(10):
        values, given = samples["2D_rdb_NA_NA.h5", row]
        np.testing.assert_array_equal(values, data[row])
        assert given == {"dam_radius": pytest.approx(0.3 + 0.01 * row), "gravity": 1.0, "inner_height": 2.0}
    assert len(manifest["parameters"]["dam_radius"]["values"]) == 10


def test_bytes_changed_in_the_structure_of_a_file_are_a_sentence_or_no_harm(tmp_path):
    """A library's own error never comes through, whatever byte of the first 6 kB is another."""
    data = [random(3, 4, 6, 1) for _ in range(4)]
    whole = {
        "1D_Burgers_Sols_Nu0.1.hdf5": write_one_array(tmp_path / "b.hdf5", random(4, 3, 8), {"Nu": 0.1}),
        "2D_rdb_NA_NA.h5": write_groups(tmp_path / "g.h5", data, [dam(0.1 * i) for i in range(4)], "xy"),
    }
    damage = np.random.default_rng(0)
    refused = 0
    for name, path in whole.items():
        for _ in range(150):
            broken = bytearray(path.read_bytes())
            for place in damage.integers(0, min(6000, len(broken)), size=8):
                broken[place] = damage.integers(256)
            (tmp_path / name).write_bytes(broken)
            try:
                plan_grid("task", tmp_path, [tmp_path / name], None, None)
            except UpsDataError as error:
                refused += 1
                assert name in str(error)
    assert refused > 50


def test_dams_that_cover_the_same_cells_are_one_initial_condition(tmp_path):
    data = [np.full((3, 4, 6, 1), i // 2, np.float32) for i in range(20)]
    write_groups(tmp_path / "2D_rdb_NA_NA.h5", data, [dam(0.3 + 0.01 * i) for i in range(20)], "xy")
    _, manifest = converted(tmp_path, "*.h5", tmp_path / "out")
    assert {name: facts["samples"] for name, facts in manifest["splits"].items()} == {"train": 16, "val": 2, "test": 2}
    assert sum(len(facts["groups"]) for facts in manifest["splits"].values()) == 10


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: f["0004"].attrs.__setitem__("config", "a: [1"), "the attribute config is not YAML"),
        (lambda f: f["0004"].attrs.__setitem__("config", "sim: {gravity: 1.0}"), "0004: config has gravity, expected"),
        (lambda f: f.__delitem__("0004/grid/t"), "the key 0004/grid/t is missing"),
        (lambda f: f["0004/grid/t"].__setitem__(2, 9.0), "0004/grid/t differs from 0000/grid/t"),
        (lambda f: f["0004/grid/y"].__setitem__(2, 9.0), "0004/grid/y differs from 0000/grid/y"),
        (
            lambda f: (f.__delitem__("0004/data"), f.__setitem__("0004/data", random(3, 5, 6, 1))),
            r"shape \(3, 5, 6, 1\)",
        ),
    ],
)
def test_a_group_that_differs_from_the_others_is_named(tmp_path, spoil, sentence):
    data = [random(3, 4, 6, 1) for _ in range(10)]
    path = write_groups(tmp_path / "2D_rdb_NA_NA.h5", data, [dam(0.5)] * 10, "xy")
    with h5py.File(path, "r+") as file:
        spoil(file)
    with pytest.raises(UpsDataError, match=f"2D_rdb_NA_NA.h5: .*{sentence}"):
        converted(tmp_path, "*.h5", tmp_path / "out")


def test_a_group_file_of_an_unknown_family_is_refused(tmp_path):
    path = write_groups(tmp_path / "mine.h5", [random(3, 4, 6, 1)] * 2, ["name: other"] * 2, "xy")
    with pytest.raises(UpsDataError, match=r"neither its name nor its config \(name: 'other'\)"):
        with open_raw(path):
            pass


# --- incompressible flow -------------------------------------------------------------------------


def test_frames_that_were_never_written_are_left_out(tmp_path):
    velocity = random(4, 6, 8, 8, 2)
    path = write_flow(tmp_path / "ns_incom_inhom_2d_512-0.h5", velocity, 0.5 * np.arange(6), FLOW)
    with h5py.File(path, "r+") as file:
        file.attrs["latestIndex"] = 3
    with open_raw(path) as raw:
        assert (raw.samples, raw.frames, raw.periodic) == (4, 4, (False, False))
        assert parameters(raw) == {"viscosity": ("NU", 0.01)}
        np.testing.assert_array_equal(raw.time, [0, 0.5, 1, 1.5])
        np.testing.assert_array_equal(raw.read(2, 0, 4)[..., :2], velocity[2, :4])
        np.testing.assert_array_equal(raw.read_static(1), velocity[1, 0] / 2)
        np.testing.assert_allclose(raw.coordinates["y"], (np.arange(8) + 0.5) / 8)


def test_byte_identical_files_are_used_once(tmp_path, capsys):
    for i in range(4):
        write_flow(tmp_path / f"ns_incom_inhom_2d_512-{i}.h5", random(4, 3, 8, 8, 2), np.arange(3.0), FLOW)
    shutil.copy(tmp_path / "ns_incom_inhom_2d_512-1.h5", tmp_path / "ns_incom_inhom_2d_512-3.h5")
    samples, manifest = converted(tmp_path, "*.h5", tmp_path / "out")
    assert manifest["twins"] == [{"name": "ns_incom_inhom_2d_512-3.h5", "same_as": "ns_incom_inhom_2d_512-1.h5"}]
    assert len(samples) == 12 and {name for name, _ in samples} == {f"ns_incom_inhom_2d_512-{i}.h5" for i in range(3)}
    assert "ns_incom_inhom_2d_512-3.h5 is a copy of ns_incom_inhom_2d_512-1.h5: used once" in capsys.readouterr().out


def test_files_that_start_alike_and_go_on_otherwise_are_both_used(tmp_path):
    velocity = random(4, 3, 8, 8, 2)
    for i in range(2):
        velocity[:, 1:] += i
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:  # unpacked, so that the sizes are equal
            file["velocity"], file["particles"] = velocity, velocity[..., :1] * 0
            file["force"], file["t"] = velocity[:, 0], np.tile(np.arange(3, dtype="f4"), (4, 1))
            file.attrs["config"] = FLOW
    assert (tmp_path / "0.h5").stat().st_size == (tmp_path / "1.h5").stat().st_size
    samples, manifest = converted(tmp_path, "*.h5", tmp_path / "out")
    assert len(samples) == 8 and "twins" not in manifest
