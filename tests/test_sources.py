"""Readers of raw grid files in one array or a dataset a field: value by value, and what no reader takes."""

import re

import h5py
import numpy as np
import pytest

from tests.raw import SPLITS, convert_knobs, converted, line_values, parameters, random, write_fields, write_one_array
from ups_data.conversion.grid import convert_grid
from ups_data.errors import UpsDataError
from ups_data.params import load_params
from ups_data.sources.grids import open_raw


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


def test_an_attribute_of_several_numbers_is_no_parameter_and_refused(tmp_path):
    write_one_array(tmp_path / "a.hdf5", random(4, 3, 8), {"Nu": [1.0, 2.0]})
    with pytest.raises(UpsDataError, match=r"a.hdf5: the attribute Nu holds 2 numbers, expected one for all samples"):
        with open_raw(tmp_path / "a.hdf5"):
            pass


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


# --- float64 -------------------------------------------------------------------------------------


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


# --- which layout, which source ------------------------------------------------------------------


def test_a_file_of_no_known_layout_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["temperature"] = np.zeros(3)
    with pytest.raises(UpsDataError, match=r"x\.h5: no known layout: got the keys temperature, expected those of"):
        with open_raw(tmp_path / "x.h5"):
            pass


@pytest.mark.parametrize("times", [1.0, np.ones((7, 1)), np.ones(3)])
def test_an_axis_that_is_not_a_row_of_points_is_named_with_its_shape(tmp_path, times):
    path = write_one_array(tmp_path / "1D_Burgers_Sols_Nu0.1.hdf5", line_values(2))
    with h5py.File(path, "r+") as file:
        del file["t-coordinate"]
        file["t-coordinate"] = times
    said = re.escape(f"t-coordinate: got the shape {np.shape(times)}, expected 6 points")
    with pytest.raises(UpsDataError, match=said):
        with open_raw(path):
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
