"""Readers of raw grid files: every layout of PDEBench and The Well, value by value."""

import shutil

import h5py
import numpy as np
import pytest

from tests.raw import (
    SPLITS,
    convert_knobs,
    converted,
    line_values,
    write_darcy,
    write_fields,
    write_flow,
    write_groups,
    write_one_array,
)
from ups_data.conversion.grid import convert_grid
from ups_data.conversion.plan import plan_grid
from ups_data.errors import UpsDataError
from ups_data.params import load_params
from ups_data.sources.grids import open_raw
from ups_data.sources.pdebench import darcy_residual
from ups_data.stores.grid import GridReader

RNG = np.random.default_rng(3)
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


def random(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def parameters(raw, row=0):
    return {n: (r, v) for (n, r), v in zip(raw.parameters.items(), raw.values(row), strict=True)}


# --- one array and several fields ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1D_Burgers_Sols_Nu0.001.hdf5", {"viscosity": ("Nu", 0.001)}),
        ("1D_Advection_Sols_beta4.0.hdf5", {"advection_speed": ("beta", 4.0)}),
        ("ReacDiff_Nu0.5_Rho10.0.hdf5", {"diffusion_coefficient": ("Nu", 0.5), "reaction_rate": ("Rho", 10.0)}),
        ("ReacDiff_react_Nu2.0_Rho1.0.hdf5", {"diffusion_coefficient": ("Nu", 2.0), "reaction_rate": ("Rho", 1.0)}),
    ],
)
def test_parameters_of_one_array_are_named_by_their_equation(tmp_path, name, expected):
    write_one_array(tmp_path / name, line_values(2))
    with open_raw(tmp_path / name) as raw:
        assert parameters(raw) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1D_CFD_Rand_Eta1.e-8_Zeta1.e-8_trans_Train.hdf5", {"shear_viscosity": 1e-8, "bulk_viscosity": 1e-8}),
        ("1D_CFD_Rand_Eta0.01_Zeta0.1_periodic_Train.hdf5", {"shear_viscosity": 0.01, "bulk_viscosity": 0.1}),
        ("KH_M01_dk10_Re1e3.hdf5", {"mach_number": 0.1, "perturbation_wave_number": 10, "reynolds_number": 1000}),
        ("Turb_M05.hdf5", {"mach_number": 0.5}),
        ("Turb_M4.hdf5", {"mach_number": 4}),
        ("Sod6.hdf5", {}),
    ],
)
def test_odd_spellings_in_names_are_read(tmp_path, name, expected):
    write_fields(tmp_path / name, {k: random(2, 3, 4) for k in ("density", "pressure", "Vx")})
    with open_raw(tmp_path / name) as raw:
        assert {k: v for k, (_, v) in parameters(raw).items()} == expected
        assert raw.periodic == ("periodic" in name,)
        np.testing.assert_array_equal(raw.coordinates["x"], np.linspace(-1, 1, 4, dtype=np.float32))
        np.testing.assert_array_equal(raw.time, [0, 0.5, 1])


def test_three_dimensions_have_three_velocities(tmp_path):
    names = ("density", "pressure", "Vx", "Vy", "Vz")
    fields = {name: random(10, 2, 3, 4, 5) for name in names}
    path = write_fields(tmp_path / "3D_CFD_Turb_M1.0_Eta1e-08_Zeta1e-08_periodic_Train.hdf5", fields, {"M": 1.0})
    samples, manifest = converted(tmp_path, "3D_*.hdf5", tmp_path / "out")
    assert manifest["channels"] == ["density", "pressure", "velocity_x", "velocity_y", "velocity_z"]
    assert manifest["resolution"] == [3, 4, 5] and manifest["periodic"] == [True] * 3
    for row in range(10):
        values, given = samples[path.name, row]
        np.testing.assert_array_equal(values, np.stack([fields[name][row] for name in names], axis=-1))
        assert given == {"bulk_viscosity": 1e-8, "mach_number": 1.0, "shear_viscosity": 1e-8}


def test_a_single_simulation_is_one_sample(tmp_path):
    fields = {name: random(5, 8).astype(np.float64) for name in ("density", "pressure", "Vx")}
    write_fields(tmp_path / "Sod6.hdf5", fields)
    with open_raw(tmp_path / "Sod6.hdf5") as raw:
        assert (raw.samples, raw.frames, raw.space, raw.periodic) == (1, 5, (8,), (False,))
        np.testing.assert_array_equal(raw.read(0, 1, 4), np.stack([fields[n][1:4] for n in fields], axis=-1))
    write_one_array(tmp_path / "ReacDiff_react_Nu1.0_Rho1.0.hdf5", line_values(1))
    with h5py.File(tmp_path / "ReacDiff_react_Nu1.0_Rho1.0.hdf5", "r+") as file:
        values = file["tensor"][0]
        del file["tensor"]
        file["tensor"] = values
    with open_raw(tmp_path / "ReacDiff_react_Nu1.0_Rho1.0.hdf5") as raw:
        assert (raw.samples, raw.frames, raw.space) == (1, 6, (16,))
        np.testing.assert_array_equal(raw.read(0, 0, 6), values[..., None])


def test_a_missing_velocity_component_is_named(tmp_path):
    path = write_fields(tmp_path / "2D_CFD.hdf5", {k: random(2, 3, 4, 5) for k in ("density", "pressure", "Vx", "Vy")})
    with h5py.File(path, "r+") as file:
        del file["Vy"]
    with pytest.raises(UpsDataError, match=r"2D_CFD\.hdf5: the key 'Vy' is missing beside 2 coordinates"):
        with open_raw(path):
            pass


# --- float64 ---------------------------------------------------------------------------------------


def write_exact(root):
    """Shock-tube files of float64, one number of which loses most: half a unit of the last place."""
    fields = {name: 1.0 + random(10, 4, 8).astype(np.float64) ** 2 for name in ("density", "pressure", "Vx")}
    for name in fields:
        fields[name] = fields[name].astype(np.float32).astype(np.float64)  # no loss yet
    fields["pressure"][3, 2, 5] = 1.0 + 2.0**-24 * 0.75  # halfway would be 2^-24
    fields["Vx"][1, 1, 1] = 1e-60  # nothing in float32, and nothing lost that counts
    write_fields(root / "1D_CFD_Shock_Eta1.e-8_Zeta1.e-8_trans_Train.hdf5", fields)
    return fields


def test_float64_files_are_rounded_and_the_greatest_loss_is_reported(tmp_path, capsys):
    fields = write_exact(tmp_path)
    samples, manifest = converted(tmp_path, "*.hdf5", tmp_path / "out")
    for (_, row), (values, _) in samples.items():
        exact = np.stack([fields[name][row] for name in fields], axis=-1)
        np.testing.assert_array_equal(values, exact.astype(np.float32))
    assert manifest["float64"]["files"] == ["1D_CFD_Shock_Eta1.e-8_Zeta1.e-8_trans_Train.hdf5"]
    assert manifest["float64"]["greatest_relative_loss"] == pytest.approx(0.75 * 2.0**-24, rel=1e-6)
    assert "1 of 1 files are float64, rounded to float32 with a greatest relative loss of 4.5e-08" in (
        capsys.readouterr().out
    )


def test_float64_files_can_be_refused(tmp_path):
    write_exact(tmp_path)
    with pytest.raises(UpsDataError, match=r"Train\.hdf5: its numbers are float64 .* knob convert\.float64 to round"):
        converted(tmp_path, "*.hdf5", tmp_path / "out", float64="refuse")


def test_a_float64_number_beyond_float32_is_refused(tmp_path):
    fields = write_exact(tmp_path)
    fields["density"][2, 1, 3] = 1e300
    write_fields(tmp_path / "1D_CFD_Shock_Eta1.e-8_Zeta1.e-8_trans_Train.hdf5", fields)
    with pytest.raises(UpsDataError, match=r"density is inf in sample 2, frame 1 .*\(3,\), expected finite float32"):
        converted(tmp_path, "*.hdf5", tmp_path / "out")


def test_the_loss_does_not_depend_on_workers(tmp_path):
    write_exact(tmp_path / "raw")
    one, two = (
        convert_grid("task", convert_knobs(tmp_path / "raw"), SPLITS, tmp_path / f"out{n}", workers=n) for n in (1, 2)
    )
    assert one == two


# --- a group a sample ------------------------------------------------------------------------------


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


# --- incompressible flow ---------------------------------------------------------------------------


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


# --- Darcy flow ------------------------------------------------------------------------------------


def solve_darcy(permeability, source):
    """Five-point finite volumes, u = 0 on the wall half a cell outside: the elliptic solution [X, Y]."""
    points = len(permeability)
    a, index, step = np.pad(permeability, 1, mode="edge"), np.arange(points**2).reshape(points, points), 1 / points
    matrix = np.zeros((points**2, points**2))
    for i, j in np.ndindex(points, points):
        for di, dj in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            face = 0.5 * (a[i + 1, j + 1] + a[i + 1 + di, j + 1 + dj]) / step**2
            inside = 0 <= i + di < points and 0 <= j + dj < points
            matrix[index[i, j], index[i, j]] += face if inside else 2 * face
            if inside:
                matrix[index[i, j], index[i + di, j + dj]] -= face
    return np.linalg.solve(matrix, np.full(points**2, source)).reshape(points, points)


def darcy_samples(samples, beta, points=12, seed=1):
    """Two-valued coefficients, the same for every beta, and solutions of the equation."""
    rng = np.random.default_rng(seed)
    permeability = np.where(rng.random((samples, points, points)) > 0.5, 1.0, 0.1)
    return permeability, np.stack([solve_darcy(a, beta) for a in permeability])


def test_darcy_flow_is_one_frame_with_a_coefficient_and_a_solution(tmp_path):
    for beta in (0.01, 100.0):
        permeability, solution = darcy_samples(10, beta)
        write_darcy(tmp_path / f"2D_DarcyFlow_beta{beta}_Train.hdf5", permeability, solution, beta)
    samples, manifest = converted(tmp_path, "*.hdf5", tmp_path / "out")
    assert manifest["channels"] == ["permeability", "solution"] and manifest["frames"] == 1
    assert manifest["roles"] == {"input": ["permeability"], "target": ["solution"]}
    assert manifest["parameters"] == {"source_strength": {"raw_name": "beta", "values": [0.01, 100.0]}}
    assert manifest["time_step"] is None and manifest["periodic"] == [False, False]
    for row in range(10):
        values, given = samples["2D_DarcyFlow_beta100.0_Train.hdf5", row]
        np.testing.assert_array_equal(values[0, ..., 0], permeability[row].astype(np.float32))
        np.testing.assert_array_equal(values[0, ..., 1], solution[row].astype(np.float32))
        assert given == {"source_strength": 100.0}


def test_a_coefficient_field_never_stands_in_two_splits_whatever_the_source(tmp_path):
    for beta in (0.01, 1.0, 100.0):
        permeability, solution = darcy_samples(10, beta)
        write_darcy(tmp_path / f"2D_DarcyFlow_beta{beta}_Train.hdf5", permeability, solution, beta)
    converted(tmp_path, "*.hdf5", tmp_path / "out")
    fields = {}
    for split in ("train", "val", "test"):
        reader = GridReader(tmp_path / f"out/task_{split}.h5")
        fields[split] = {reader.data[i, ..., 0].tobytes() for i in range(len(reader))}
    assert [len(fields[split]) for split in ("train", "val", "test")] == [8, 1, 1]
    assert not fields["train"] & fields["test"] and not fields["train"] & fields["val"]


def test_the_residual_tells_solutions_from_unconverged_frames(tmp_path):
    permeability, solution = darcy_samples(10, 1.0)
    write_darcy(tmp_path / "raw/2D_DarcyFlow_beta1.0_Train.hdf5", permeability, solution, 1.0)
    _, manifest = converted(tmp_path / "raw", "*.hdf5", tmp_path / "out")
    assert manifest["residual"]["files"][0]["maximum"] < 1e-4, "what single precision leaves"
    write_darcy(tmp_path / "raw/2D_DarcyFlow_beta1.0_Train.hdf5", permeability, 0.9 * solution, 1.0)
    _, manifest = converted(tmp_path / "raw", "*.hdf5", tmp_path / "out")
    assert manifest["residual"]["files"][0]["median"] == pytest.approx(0.1, abs=1e-3), "a tenth short of the solution"


def test_the_residual_knows_the_spacing_of_each_axis():
    x, y = ((np.arange(n) + 0.5) / n for n in (20, 40))
    quadratic = -(x[:, None] ** 2) - 0.5 * y[None] ** 2  # a constant Laplacian: -3
    assert darcy_residual(np.ones((20, 40)), quadratic, 3.0, [1 / 20, 1 / 40]) < 1e-9
    assert darcy_residual(np.ones((20, 40)), quadratic, 6.0, [1 / 20, 1 / 40]) == pytest.approx(0.5)


# --- which layout, which source --------------------------------------------------------------------


def test_a_file_of_no_known_layout_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["temperature"] = np.zeros(3)
    with pytest.raises(UpsDataError, match=r"x\.h5: no known layout: got the keys temperature, expected those of"):
        with open_raw(tmp_path / "x.h5"):
            pass


@pytest.mark.parametrize(
    ("task", "override", "sentence"),
    [
        ("burgers1d", "source=npz", "convert.source of the kind grid is one of pdebench, the_well"),
        ("particles_advect", "source=pdebench", "convert.tracers goes with the kind particles and the source pdebench"),
    ],
)
def test_a_source_must_fit_the_kind(task, override, sentence):
    with pytest.raises(UpsDataError, match=sentence):
        load_params("params.yaml", [f"datasets.{task}.convert.{override}"])
