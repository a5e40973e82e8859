"""The Well's layout: every kind of field, value by value, through the same path as PDEBench's."""

import h5py
import numpy as np
import pytest

from tests.raw import converted
from ups_data.errors import UpsDataError
from ups_data.stores.grid import GridReader

RNG = np.random.default_rng(3)


def random(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def write_well(path, samples=4, frames=3, names=("x", "y")):
    """A file as the_well/docs/data_format.md describes it, with every kind of field; returns its arrays."""
    space, text = (5, 6), h5py.string_dtype()
    arrays = {
        "density": random(samples, frames, *space),
        "speed_of_sound": random(*space),  # the same for all samples and times
        "forcing": random(samples, frames, space[1]),  # the same along x
        "velocity": random(samples, frames, *space, 2),
        "strain": random(samples, frames, *space, 2, 2),
        "amplitude": random(frames),
        "mask": RNG.random(space) > 0.5,
    }
    varying = {  # sample, time, axes
        "density": (1, 1, (1, 1)),
        "speed_of_sound": (0, 0, (1, 1)),
        "forcing": (1, 1, (0, 1)),
        "velocity": (1, 1, (1, 1)),
        "strain": (1, 1, (1, 1)),
    }
    with h5py.File(path, "w") as file:
        file.attrs.update({"dataset_name": "made", "grid_type": "cartesian", "n_spatial_dims": 2, "Alpha": 0.25})
        file.attrs["n_trajectories"] = samples
        file.attrs.create("simulation_parameters", ["Alpha", "Reynolds"], dtype=text)
        file.attrs["Reynolds"] = 50.0
        dimensions = file.create_group("dimensions")
        dimensions.attrs.create("spatial_dims", list(names), dtype=text)
        for name, points in (("time", frames), (names[0], space[0]), (names[1], space[1])):
            dimensions[name] = (0.5 * np.arange(points)).astype(np.float32)
            dimensions[name].attrs["sample_varying"] = False
        for order, fields in ((0, ["density", "speed_of_sound", "forcing"]), (1, ["velocity"]), (2, ["strain"])):
            group = file.create_group(f"t{order}_fields")
            group.attrs.create("field_names", fields, dtype=text)
            for name in fields:
                group[name] = arrays[name]
                by_sample, by_time, by_axis = varying[name]
                group[name].attrs.update({"sample_varying": bool(by_sample), "time_varying": bool(by_time)})
                group[name].attrs["dim_varying"] = np.array(by_axis, bool)
        scalars = file.create_group("scalars")
        scalars.attrs.create("field_names", ["Reynolds", "amplitude"], dtype=text)
        scalars["Reynolds"] = np.array([10.0, 20, 30, 40][:samples], np.float32)
        scalars["Reynolds"].attrs.update({"sample_varying": True, "time_varying": False})
        scalars["amplitude"] = arrays["amplitude"]
        scalars["amplitude"].attrs.update({"sample_varying": False, "time_varying": True})
        conditions = file.create_group("boundary_conditions")
        for name, kind, axes, mask in (
            ("x_periodic", "PERIODIC", names[:1], np.array([True, False, False, False, True])),
            ("y_wall", "WALL", names[1:], np.array([True] + [False] * 4 + [True])),
            ("maze", "WALL", names, arrays["mask"]),
        ):
            group = conditions.create_group(name)
            group["mask"] = mask
            group.attrs.update({"bc_type": kind, "sample_varying": False, "time_varying": False})
            group.attrs.create("associated_dims", list(axes), dtype=text)
    return arrays


def test_the_wells_layout_reads_through_the_same_path(tmp_path):
    arrays = write_well(tmp_path / "made.hdf5")
    samples, manifest = converted(tmp_path, "*.hdf5", tmp_path / "out", source="the_well")
    strain = [f"strain_{a}_{b}" for a in "xy" for b in "xy"]
    assert manifest["channels"] == ["density", "forcing", "velocity_x", "velocity_y", *strain, "amplitude"]
    assert manifest["static_channels"] == ["speed_of_sound", "mask_maze"]
    assert manifest["periodic"] == [True, False] and manifest["time_step"] == 0.5
    for row in range(4):
        values, given = samples["made.hdf5", row]
        np.testing.assert_array_equal(values[..., 0], arrays["density"][row])
        np.testing.assert_array_equal(values[..., 1], np.repeat(arrays["forcing"][row][:, None], 5, axis=1))
        np.testing.assert_array_equal(values[..., 2:4], arrays["velocity"][row])
        np.testing.assert_array_equal(values[..., 4:8], arrays["strain"][row].reshape(3, 5, 6, 4))
        np.testing.assert_array_equal(values[..., 8], np.broadcast_to(arrays["amplitude"][:, None, None], (3, 5, 6)))
        assert given == {"alpha": 0.25, "reynolds": 10.0 * (row + 1)}, "a scalar of its own before the attribute"
    reader = GridReader(tmp_path / "out/task_train.h5")
    np.testing.assert_array_equal(reader.static[0, ..., 0], arrays["speed_of_sound"])
    np.testing.assert_array_equal(reader.static[0, ..., 1], arrays["mask"])
    assert manifest["parameters"]["reynolds"] == {"raw_name": "Reynolds", "values": [10, 20, 30, 40]}


def test_fields_that_the_file_does_not_list_are_left_behind_and_said(tmp_path, capsys):
    write_well(tmp_path / "made.hdf5")
    with h5py.File(tmp_path / "made.hdf5", "r+") as file:
        file["t1_fields/vorticity"], file["notes"] = random(3), random(3)
    converted(tmp_path, "*.hdf5", tmp_path / "out", source="the_well")
    assert "has no place for them: notes, t1_fields/vorticity\n" in capsys.readouterr().out


def test_axes_of_other_names_are_noted(tmp_path):
    write_well(tmp_path / "sphere.hdf5", names=("theta", "phi"))
    _, manifest = converted(tmp_path, "*.hdf5", tmp_path / "out", source="the_well")
    assert manifest["axis_names"] == ["theta", "phi"] and "velocity_phi" in manifest["channels"]


def rename_field(file):
    file.move("t0_fields/forcing", "t0_fields/velocity_x")
    file["t0_fields"].attrs["field_names"] = ["density", "speed_of_sound", "velocity_x"]


def add_parameter(file):
    file.attrs["simulation_parameters"] = ["Alpha", "alpha"]
    file.attrs["alpha"] = 7.0


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda f: f["t0_fields/density"].attrs.__delitem__("time_varying"),
            ".*density lacks the attribute 'time_varying'",
        ),
        (lambda f: f.__delitem__("t1_fields/velocity"), ".*/t1_fields/velocity is missing"),
        (
            lambda f: f.attrs.__setitem__("n_trajectories", 3),
            r".*density has the shape \(4, 3, 5, 6\), expected \(3, 3",
        ),
        (rename_field, "two fields have the channel 'velocity_x'"),
        (add_parameter, "the parameters 'Alpha' and 'alpha' would both be called 'alpha'"),
    ],
)
def test_a_well_file_that_contradicts_itself_is_refused(tmp_path, spoil, sentence):
    write_well(tmp_path / "made.hdf5")
    with h5py.File(tmp_path / "made.hdf5", "r+") as file:
        spoil(file)
    with pytest.raises(UpsDataError, match=f"made.hdf5: {sentence}"):
        converted(tmp_path, "*.hdf5", tmp_path / "out", source="the_well")


def rename_static(path):
    write_well(path)
    with h5py.File(path, "r+") as file:
        file.move("t0_fields/speed_of_sound", "t0_fields/stiffness")
        file["t0_fields"].attrs["field_names"] = ["density", "stiffness", "forcing"]


def remove_static(path):
    write_well(path)
    with h5py.File(path, "r+") as file:
        file["t0_fields"].attrs["field_names"] = ["density", "forcing"]


def write_scalars(path, names=("x", "y")):
    """Without the fields whose channels are named after the axes."""
    write_well(path, names=names)
    with h5py.File(path, "r+") as file:
        del file["t1_fields"], file["t2_fields"]


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (rename_static, "static channels is stiffness, mask_maze, expected speed_of_sound, mask_maze as in a.hdf5"),
        (remove_static, "static channels is mask_maze, expected speed_of_sound, mask_maze"),
        (lambda path: write_scalars(path, ("r", "s")), "axes is r, s, expected x, y"),
    ],
)
def test_files_with_other_static_fields_or_axes_are_refused(tmp_path, write, sentence):
    (write_scalars if "axes" in sentence else write_well)(tmp_path / "a.hdf5")
    write(tmp_path / "b.hdf5")
    with pytest.raises(UpsDataError, match=f"b.hdf5: {sentence}"):
        converted(tmp_path, "*.hdf5", tmp_path / "out", source="the_well")


def test_a_file_of_another_source_than_the_knob_says_is_refused(tmp_path):
    write_well(tmp_path / "made.hdf5")
    with pytest.raises(UpsDataError, match=r"convert\.source is pdebench, but the file is in a layout of the_well"):
        converted(tmp_path, "*.hdf5", tmp_path / "out")
