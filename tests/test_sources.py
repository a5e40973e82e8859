"""Readers of raw grid files in one array or a dataset a field: value by value, and what no reader takes."""

import re

import h5py
import numpy as np
import pytest

from tests.raw import (
    SPLITS,
    convert_knobs,
    converted,
    line_values,
    parameters,
    random,
    write_burgers,
    write_fields,
    write_one_array,
)
from ups_data.conversion import plan
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


def test_a_parameter_that_is_no_number_is_refused(tmp_path):
    write_one_array(tmp_path / "raw" / "a.hdf5", line_values(4), {"Nu": "abc"})
    with pytest.raises(UpsDataError, match=r"a\.hdf5: the attribute Nu is 'abc', expected a number"):
        converted(tmp_path / "raw", "*.hdf5", tmp_path / "out")


def test_what_is_left_behind_is_said_once(tmp_path, capsys):
    raw = write_burgers(tmp_path / "raw")
    for nu, key in ((0.001, "forcing"), (0.1, "forcing"), (1.0, "vorticity")):
        with h5py.File(raw / f"1D_Burgers_Sols_Nu{nu}.hdf5", "r+") as file:
            file[key] = np.zeros(3)
    convert_grid("burgers1d", convert_knobs(raw), SPLITS, tmp_path / "out")
    said = [line for line in capsys.readouterr().out.splitlines() if "not read" in line]
    assert said == ["burgers1d: not read, since the layout has no place for them: forcing, vorticity"]


def test_an_attribute_that_differs_between_files_and_is_no_parameter_is_said(tmp_path, capsys):
    raw = write_burgers(tmp_path / "raw")
    for kappa, path in enumerate(sorted(raw.glob("*.hdf5"))):
        with h5py.File(path, "r+") as file:
            file.attrs.update({"kappa": kappa / 2, "cfl": 0.4, "seed": kappa, "nu": 0.0})
    convert_grid("burgers1d", convert_knobs(raw), SPLITS, tmp_path / "out")
    said = [line for line in capsys.readouterr().out.splitlines() if "differs" in line]
    assert said == ["burgers1d: differs between files, but is no known parameter and not kept: kappa"]


@pytest.mark.parametrize("together", [plan.LOOK, 3])
def test_files_that_nothing_known_tells_apart_are_refused(tmp_path, monkeypatch, together):
    monkeypatch.setattr(plan, "LOOK", together)
    for decay in (0.1, 0.2):
        write_one_array(tmp_path / "raw" / f"burgers-nu{decay}.hdf5", line_values(10, decay=decay))
    words = r"burgers-nu0.2.hdf5: sample 0 starts as one of burgers-nu0.1.hdf5 under the same parameters \(none\)"
    with pytest.raises(UpsDataError, match=words):
        convert_grid("burgers1d", convert_knobs(tmp_path / "raw"), SPLITS, tmp_path / "out")
    write_one_array(tmp_path / "raw/burgers-nu0.2.hdf5", line_values(10, decay=0.2) + 1)
    convert_grid("burgers1d", convert_knobs(tmp_path / "raw"), SPLITS, tmp_path / "out")


def test_times_that_float32_has_rounded_are_even(tmp_path):
    path = write_one_array(tmp_path / "raw" / "a_Nu1.0.hdf5", line_values(10))
    with h5py.File(path, "r+") as file:
        file["t-coordinate"][:] = 100 + 0.01 * np.arange(7)
        assert np.ptp(np.diff(file["t-coordinate"][:])) > 2e-6
        file["t-coordinate"][6] = 200  # beyond the frames
    manifest = convert_grid("burgers1d", convert_knobs(path.parent), SPLITS, tmp_path / "out")
    assert manifest["time_step"] == pytest.approx(0.01, rel=1e-3)


def test_files_at_other_times_are_refused_however_short_they_are(tmp_path):
    for nu, step in ((0.1, 1e-7), (0.2, 2e-7)):
        path = write_one_array(tmp_path / "raw" / f"a_Nu{nu}.hdf5", line_values(10))
        with h5py.File(path, "r+") as file:
            file["t-coordinate"][:] = step * np.arange(7)
    with pytest.raises(UpsDataError, match=r"a_Nu0.2.hdf5: its times differ from those of a_Nu0.1.hdf5"):
        convert_grid("burgers1d", convert_knobs(tmp_path / "raw"), SPLITS, tmp_path / "out")


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
    with pytest.raises(UpsDataError, match=r"density is 1e\+300 in sample 2, frame 1 .*\(3,\), .*it is too large"):
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
