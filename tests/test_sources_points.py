"""Meshes and particles made of official grid files: nothing invented, physics kept, one mesh, no leak."""

import shutil

import h5py
import numpy as np
import pytest
from scipy import sparse

from tests.raw import SPLITS, convert_knobs, write_darcy, write_flow, write_one_array
from ups_data.conversion.points import convert_points
from ups_data.errors import UpsDataError
from ups_data.params import Tracers
from ups_data.sources.particles_flow import FlowTracers, advect
from ups_data.stores.mesh import MeshStore
from ups_data.stores.particles import ParticleStore

PERIODIC = "NU: 0.01\nboundary: periodic\n"
CLOSED = "NU: 0.01\nvelocity_extrapolation: ZERO\nwork_dir: ${hydra:runtime.cwd}\n"
TRACERS = Tracers(particles=64, radius=0.2, seed=0)


def centres(points):
    """x [N, 1] and y [1, N] of the cells of the unit square."""
    x = (np.arange(points) + 0.5) / points
    return x[:, None], x[None, :]


# --- meshes ----------------------------------------------------------------------------------------


@pytest.fixture
def darcy(tmp_path):
    rng = np.random.default_rng(0)
    permeability = np.where(rng.random((10, 6, 5)) > 0.5, 1.0, 0.1)  # the same in every file
    for beta in (0.1, 10.0):
        write_darcy(tmp_path / f"raw/2D_DarcyFlow_beta{beta}_Train.hdf5", permeability, beta * permeability**2, beta)
    knobs = convert_knobs(tmp_path / "raw")
    return permeability, convert_points("darcy2d_mesh", "mesh", knobs, SPLITS, tmp_path / "out"), tmp_path / "out"


def test_node_fields_are_those_of_the_grid_at_the_place_of_the_node(darcy):
    permeability, manifest, out = darcy
    assert manifest["channels"] == ["permeability", "source", "solution"]
    assert manifest["roles"] == {"input": ["permeability", "source"], "target": ["solution"]}
    assert manifest["parameters"] == {"source_strength": {"raw_name": "beta", "values": [0.1, 10.0]}}
    seen = 0
    for split in manifest["splits"]:
        store = MeshStore(out / f"darcy2d_mesh_{split}.zarr")
        for sample in range(len(store)):
            item = store.read(sample)
            beta, row = (0.1, 10.0)[store.source_file[sample]], store.source_row[sample]
            i, j = (np.round(item["coords"] * [6, 5] - 0.5)).astype(int).T
            np.testing.assert_allclose(item["coords"], np.stack([(i + 0.5) / 6, (j + 0.5) / 5], axis=1), atol=1e-7)
            fields = item["fields"][0]
            np.testing.assert_array_equal(fields[:, 0], permeability[row, i, j].astype(np.float32))
            np.testing.assert_array_equal(fields[:, 1], np.float32(beta))
            np.testing.assert_array_equal(fields[:, 2], (beta * permeability[row, i, j] ** 2).astype(np.float32))
            assert item["parameters"].tolist() == [beta]
            seen += 1
    assert seen == 20


def test_the_shared_mesh_is_stored_once_and_has_the_five_point_laplacian(darcy):
    _, manifest, out = darcy
    assert manifest["resolution"] == {"topologies": 1, "nodes": [30, 30]}
    store = MeshStore(out / "darcy2d_mesh_train.zarr")
    assert len(store) == 16 and set(store.topology_of) == {0} and len(store.all("coords")) == 30
    mesh = store.topology(0)
    assert len(mesh.cells) == 2 * 5 * 4
    laplacian = sparse.csr_array((mesh.laplacian_data, mesh.laplacian_indices, mesh.laplacian_indptr)).toarray()
    inner = 2 * 5 + 2  # the point (2, 2): neighbours 1/6 away in x, 1/5 in y
    expected = {inner: 2 * (6 / 5 + 5 / 6), inner - 5: -6 / 5, inner + 5: -6 / 5, inner - 1: -5 / 6, inner + 1: -5 / 6}
    for node, value in enumerate(laplacian[inner]):
        assert value == pytest.approx(expected.get(node, 0.0), abs=1e-5)


def test_a_coefficient_is_in_one_split_whatever_the_source(darcy):
    _, manifest, out = darcy
    fields = {}
    for split in manifest["splits"]:
        store = MeshStore(out / f"darcy2d_mesh_{split}.zarr")
        fields[split] = {store.fields(s)[0, :, 0].tobytes() for s in range(len(store))}
    assert {split: len(found) for split, found in fields.items()} == {"train": 8, "val": 1, "test": 1}
    assert not fields["train"] & fields["test"] and not fields["train"] & fields["val"]


def test_the_residual_of_the_published_fields_is_reported(darcy):
    _, manifest, _ = darcy
    assert [f["name"] for f in manifest["residual"]["files"]] == [
        "2D_DarcyFlow_beta0.1_Train.hdf5",
        "2D_DarcyFlow_beta10.0_Train.hdf5",
    ]
    assert manifest["residual"]["files"][0]["median"] > 1, "these fields solve nothing"


def test_a_copy_of_a_file_is_used_once(darcy, tmp_path):
    source = tmp_path / "raw/2D_DarcyFlow_beta10.0_Train.hdf5"
    shutil.copy(source, tmp_path / "raw/2D_DarcyFlow_beta10.0_copy.hdf5")
    manifest = convert_points("darcy2d_mesh", "mesh", convert_knobs(tmp_path / "raw"), SPLITS, tmp_path / "again")
    assert manifest["twins"] == [
        {"name": "2D_DarcyFlow_beta10.0_copy.hdf5", "same_as": "2D_DarcyFlow_beta10.0_Train.hdf5"}
    ]
    assert sum(facts["samples"] for facts in manifest["splits"].values()) == 20


def test_only_a_static_problem_in_the_plane_makes_a_mesh(tmp_path):
    write_one_array(tmp_path / "1D_Burgers_Sols_Nu0.1.hdf5", np.zeros((2, 3, 8), np.float32))
    with pytest.raises(UpsDataError, match=r"Nu0\.1\.hdf5: got channels u of 3 frames, expected Darcy flow"):
        convert_points("x", "mesh", convert_knobs(tmp_path), SPLITS, tmp_path / "out")


# --- tracers ---------------------------------------------------------------------------------------


def test_a_uniform_flow_that_grows_with_time_carries_tracers_exactly():
    times = np.array([0.0, 0.5, 1.0, 2.0])
    fields = np.ones((4, 8, 8, 2)) * times[:, None, None, None] * np.array([0.3, -0.7])
    start = np.random.default_rng(0).random((20, 2))
    positions, velocities = advect(lambda k: fields[k], times, start, np.full(2, 1 / 8), (True, True))
    for k, t in enumerate(times):
        expected = (start + 0.5 * t**2 * np.array([0.3, -0.7])) % 1.0
        apart = positions[k] - expected
        np.testing.assert_allclose(apart - np.round(apart), 0.0, atol=1e-12)
        np.testing.assert_allclose(velocities[k], np.broadcast_to(t * np.array([0.3, -0.7]), (20, 2)), atol=1e-12)


def test_a_shear_flow_carries_each_tracer_along_its_own_line():
    points, times = 256, np.linspace(0.0, 1.0, 5)
    _, y = centres(points)
    field = np.zeros((points, points, 2))
    field[..., 0] = np.sin(2 * np.pi * y)
    start = np.random.default_rng(1).random((50, 2))
    positions, _ = advect(lambda k: field, times, start, np.full(2, 1 / points), (True, True))
    np.testing.assert_array_equal(positions[-1, :, 1], start[:, 1])
    apart = positions[-1, :, 0] - start[:, 0] - np.sin(2 * np.pi * start[:, 1])
    # The error of linear interpolation: (2 pi)^2 / 8 of the spacing squared.
    assert np.abs(apart - np.round(apart)).max() < 5 / points**2


def vortex(points, frames=2):
    """A steady vortex within walls: [T, X, Y, 2] of psi = sin^2(pi x) sin^2(pi y), which tracers conserve."""
    x, y = centres(points)
    u = np.sin(np.pi * x) ** 2 * np.sin(2 * np.pi * y)
    v = -np.sin(2 * np.pi * x) * np.sin(np.pi * y) ** 2
    return np.broadcast_to(np.stack([u, v], axis=-1), (frames, points, points, 2))


def test_tracers_in_a_closed_box_stay_on_their_streamlines_and_within_the_walls():
    points, times = 64, np.linspace(0.0, 2.0, 5)
    field = vortex(points, 5)
    start = np.random.default_rng(2).random((200, 2))
    start[0], start[1] = (0.0, 0.3), (1.0, 1.0)  # on the wall and in a corner
    positions, velocities = advect(lambda k: field[k], times, start, np.full(2, 1 / points), (False, False))
    assert positions.min() >= 0.0 and positions.max() <= 1.0
    psi = np.prod(np.sin(np.pi * positions) ** 2, axis=2)
    assert np.abs(psi - psi[0]).max() < 3e-3
    assert np.abs(velocities[:, :2]).max() < 1e-12, "at rest on the wall"
    np.testing.assert_array_equal(positions[:, :2], np.broadcast_to(start[:2], (5, 2, 2)))


@pytest.fixture
def flows(tmp_path):
    """Three files of four closed vortices of random strength."""
    rng = np.random.default_rng(5)
    for i in range(3):
        velocity = vortex(16, 5)[None] * rng.uniform(0.2, 1.0, (4, 1, 1, 1, 1))
        write_flow(tmp_path / f"raw/ns_incom_inhom_2d_512-{i}.h5", velocity, np.linspace(0, 1, 5), CLOSED)
    return tmp_path / "raw"


def test_a_flow_file_becomes_a_trajectory_for_each_of_its_samples(flows, tmp_path):
    knobs = convert_knobs(flows, "*.h5", tracers=TRACERS)
    manifest = convert_points("particles_advect", "particles", knobs, SPLITS, tmp_path / "out")
    assert manifest["resolution"] == {"particles": 64} and manifest["frames"] == 5
    assert manifest["periodic"] == [False, False]
    assert manifest["parameters"] == {"viscosity": {"raw_name": "NU", "values": [0.01]}}
    assert sum(facts["samples"] for facts in manifest["splits"].values()) == 12
    store = ParticleStore(tmp_path / "out/particles_advect_train.zarr")
    for sample in range(len(store)):
        item = store.read(sample)
        with FlowTracers(flows / f"ns_incom_inhom_2d_512-{store.source_file[sample]}.h5", TRACERS) as flow:
            strength = np.abs(flow.velocity(store.source_row[sample], 0)).max() / np.abs(vortex(16)).max()
        x, y = item["positions"].astype(np.float64).transpose(2, 0, 1)
        exact = strength * np.stack(
            [np.sin(np.pi * x) ** 2 * np.sin(2 * np.pi * y), -np.sin(2 * np.pi * x) * np.sin(np.pi * y) ** 2], axis=-1
        )
        assert np.abs(item["velocities"] - exact).max() < 0.05 * strength  # 16 points: (pi/16)^2, coarse
        near = np.linalg.norm(item["positions"][0][:, None] - item["positions"][0], axis=2) <= 0.2
        assert len(item["indices"]) == near.sum() - 64 and item["box"].tolist() == [0.0, 0.0]


def test_the_same_flow_carries_the_same_tracers_from_whatever_file(flows, tmp_path):
    with FlowTracers(flows / "ns_incom_inhom_2d_512-0.h5", TRACERS) as flow:
        one = flow.trajectory(2)
        np.testing.assert_array_equal(one.start, flow.trajectory(2).start)
        assert not np.array_equal(one.start, flow.trajectory(1).start)
    shutil.copy(flows / "ns_incom_inhom_2d_512-0.h5", flows / "ns_incom_inhom_2d_512-9.h5")
    with FlowTracers(flows / "ns_incom_inhom_2d_512-9.h5", TRACERS) as flow:
        assert flow.trajectory(2).group == one.group
    manifest = convert_points("p", "particles", convert_knobs(flows, "*.h5", tracers=TRACERS), SPLITS, tmp_path / "out")
    assert manifest["twins"] == [{"name": "ns_incom_inhom_2d_512-9.h5", "same_as": "ns_incom_inhom_2d_512-0.h5"}]
    assert sum(facts["samples"] for facts in manifest["splits"].values()) == 12


def test_tracers_leave_a_periodic_box_on_one_side_and_enter_on_the_other(tmp_path):
    velocity = np.ones((4, 4, 8, 8, 2)) * np.array([0.9, 0.0])
    write_flow(tmp_path / "raw/ns_incom_inhom_2d_64-0.h5", velocity, np.arange(4.0), PERIODIC)
    with FlowTracers(tmp_path / "raw/ns_incom_inhom_2d_64-0.h5", TRACERS) as flow:
        trajectory = flow.trajectory(0)
        (positions,) = trajectory.blocks("positions")
        assert flow.box.tolist() == [1.0, 1.0]
    assert positions.min() >= 0.0 and positions.max() < 1.0
    apart = positions[3] - trajectory.start - [2.7, 0.0]
    np.testing.assert_allclose(apart - np.round(apart), 0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("radius", "sentence"), [(0.6, r"convert\.tracers\.radius: got 0\.6, expected at most half of the domain")]
)
def test_a_neighbourhood_wider_than_half_the_domain_is_refused(flows, tmp_path, radius, sentence):
    knobs = convert_knobs(flows, "*.h5", tracers=Tracers(particles=64, radius=radius, seed=0))
    with pytest.raises(UpsDataError, match=sentence):
        convert_points("p", "particles", knobs, SPLITS, tmp_path / "out")


def test_a_line_carries_no_tracers(tmp_path):
    write_one_array(tmp_path / "1D_Burgers_Sols_Nu0.1.hdf5", np.zeros((2, 3, 8), np.float32))
    with pytest.raises(UpsDataError, match=r"got channels u of 3 frames in 1 dimensions, expected velocity_x"):
        convert_points("p", "particles", convert_knobs(tmp_path, tracers=TRACERS), SPLITS, tmp_path / "out")


def test_a_source_that_is_no_number_is_refused_on_a_mesh_too(tmp_path):
    permeability = np.random.default_rng(0).random((10, 4, 4))
    write_darcy(tmp_path / "raw/2D_DarcyFlow_Train.hdf5", permeability, permeability, np.nan)
    with pytest.raises(UpsDataError, match=r"Train\.hdf5: source_strength is nan, expected a number"):
        convert_points("darcy2d_mesh", "mesh", convert_knobs(tmp_path / "raw"), SPLITS, tmp_path / "out")


def test_tracers_of_a_float64_flow_are_rounded_with_a_report_or_refused(flows, tmp_path):
    with h5py.File(flows / "ns_incom_inhom_2d_512-1.h5", "r+") as file:
        exact = file["velocity"][:].astype(np.float64)
        del file["velocity"]
        file["velocity"] = exact
    knobs = convert_knobs(flows, "*.h5", tracers=TRACERS)
    facts = convert_points("p", "particles", knobs, SPLITS, tmp_path / "out")["float64"]
    assert facts["files"] == ["ns_incom_inhom_2d_512-1.h5"] and 0 < facts["greatest_relative_loss"] <= 2.0**-24
    with pytest.raises(UpsDataError, match=r"512-1\.h5: its numbers are float64"):
        refusing = knobs.model_copy(update={"float64": "refuse"})
        convert_points("p", "particles", refusing, SPLITS, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
