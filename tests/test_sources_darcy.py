"""The reader of Darcy flow: a coefficient and a solution, one split a coefficient, how far from the equation it is."""

import h5py
import numpy as np
import pytest

from tests.raw import converted, write_darcy
from ups_data.sources.pdebench import darcy_residual
from ups_data.stores.grid import GridReader


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


@pytest.mark.parametrize(("beta", "points"), [(None, 12), (0.0, 12), (1.0, 2), (1.0, 1)])
def test_without_a_source_or_an_inner_point_there_is_no_residual(tmp_path, beta, points):
    permeability = np.random.default_rng(0).random((10, points, points))
    path = write_darcy(tmp_path / "2D_DarcyFlow_Train.hdf5", permeability, permeability**2, beta or 0.0)
    if beta is None:
        with h5py.File(path, "r+") as file:
            del file.attrs["beta"]
    samples, manifest = converted(tmp_path, "*.hdf5", tmp_path / "out")
    assert "residual" not in manifest and len(samples) == 10


def test_a_file_without_a_source_stands_beside_one_with_a_residual(tmp_path):
    for beta in (0.0, 1.0):
        permeability, solution = darcy_samples(10, 1.0)
        write_darcy(tmp_path / f"2D_DarcyFlow_beta{beta}_Train.hdf5", permeability, beta * solution, beta)
    _, manifest = converted(tmp_path, "*.hdf5", tmp_path / "out")
    assert [file["name"] for file in manifest["residual"]["files"]] == ["2D_DarcyFlow_beta1.0_Train.hdf5"]
