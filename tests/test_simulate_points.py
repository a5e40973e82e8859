"""The sample meshes and particles: finite elements of second order, tracers that follow their flow."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.sparse import csr_array
from skfem import Basis, BilinearForm, ElementTriP1, LinearForm, MeshTri, condense, solve
from skfem.helpers import dot, grad

from ups_data.errors import UpsDataError
from ups_data.files import checksum
from ups_data.geometry import boundary_edges, cell_angles, cell_areas, cotangent_laplacian, neighbour_graph
from ups_data.params import DarcyMeshSolver, ParticleSolver
from ups_data.simulate import darcy_mesh, particles
from ups_data.simulate.meshing import MIN_ANGLE, OUTLINES, triangulate

MESH_KNOBS = DarcyMeshSolver(
    solver="darcy_mesh", folder="", seed=3, shapes=["square", "annulus"], meshes_per_shape=2, samples=4, spacing=0.15
)
PARTICLE_KNOBS = ParticleSolver(
    solver="particles", folder="", seed=1, samples=4, particles=64, frames=21, end_time=1.0, radius=0.1
)


def mesh_of(shape, spacing, seed=0):
    return triangulate(shape, spacing, np.random.default_rng(seed))


def stiffness(coords, cells):
    data, indices, indptr = cotangent_laplacian(coords, cells)
    return csr_array((data, indices, indptr), shape=(len(coords), len(coords)))


# --- meshes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", OUTLINES)
def test_no_triangle_is_a_sliver_or_inverted(shape):
    for seed in range(3):
        coords, cells = mesh_of(shape, 0.1, seed)
        assert cell_areas(coords, cells).min() > 0
        assert np.degrees(cell_angles(coords, cells)).min() >= MIN_ANGLE
        assert len(np.unique(cells)) == len(coords)


@pytest.mark.parametrize(("shape", "area"), [("square", 1.0), ("disk", np.pi / 4)])
def test_a_mesh_fills_its_shape(shape, area):
    coords, cells = mesh_of(shape, 0.05)
    # Chords cut off a share (2 pi / n)^2 / 6 of a disk: 0.2 % here.
    assert cell_areas(coords, cells).sum() == pytest.approx(area, rel=0.003)


def test_edges_are_about_as_long_as_the_spacing_asks():
    coords, cells = mesh_of("l_shape", 0.08)
    length = np.linalg.norm(coords[cells[:, 0]] - coords[cells[:, 1]], axis=1)
    assert 0.9 < length.mean() / 0.08 < 1.15


def test_an_annulus_has_two_boundaries():
    coords, cells = mesh_of("annulus", 0.1)
    # Euler: nodes - edges + triangles = 1 - holes, where 2 edges = 3 triangles + boundary edges.
    edges = (3 * len(cells) + len(boundary_edges(cells))) // 2
    assert len(coords) - edges + len(cells) == 0


def test_a_spacing_too_wide_for_the_shape_is_refused():
    with pytest.raises(UpsDataError, match=r"spacing: got 0.4, too wide .*'channel'"):
        mesh_of("channel", 0.4)


# --- finite elements -----------------------------------------------------------------------------


def test_cotangent_laplacian_is_the_p1_stiffness_matrix():
    coords, cells = mesh_of("channel", 0.08)
    basis = Basis(MeshTri(coords.T.copy(), cells.T.astype(np.int64).copy()), ElementTriP1())
    reference = BilinearForm(lambda u, v, _: dot(grad(u), grad(v))).assemble(basis)
    laplacian = stiffness(coords, cells)
    assert abs(laplacian - reference).max() < 1e-13 * abs(reference).max()
    assert abs(laplacian - laplacian.T).max() == 0
    assert abs(laplacian.sum(axis=1)).max() < 1e-13


def test_cotangent_laplacian_does_not_change_when_the_mesh_is_turned_into_space():
    coords, cells = mesh_of("disk", 0.15)
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0][:2]
    assert abs(stiffness(coords, cells) - stiffness(coords @ turned, cells)).max() < 1e-12


def manufactured(x, y):
    """u, k and f = -div(k grad u) with u = 0 on the unit square's boundary."""
    u = np.sin(np.pi * x) * np.sin(2 * np.pi * y)
    ux = np.pi * np.cos(np.pi * x) * np.sin(2 * np.pi * y)
    uy = 2 * np.pi * np.sin(np.pi * x) * np.cos(2 * np.pi * y)
    k, kx, ky = 2.0 + np.sin(3 * x + y), 3 * np.cos(3 * x + y), np.cos(3 * x + y)
    return u, k, 5 * np.pi**2 * k * u - kx * ux - ky * uy


def test_solver_is_of_second_order_for_a_variable_coefficient():
    errors = []
    for spacing in (0.1, 0.05, 0.025):
        coords, cells = mesh_of("square", spacing)
        u, k, f = manufactured(*coords.T)
        found = darcy_mesh.solve_darcy(coords, cells, k[None], f[None])[0]
        weights = np.bincount(cells.ravel(), np.repeat(cell_areas(coords, cells) / 3, 3))
        errors.append(np.sqrt((weights * (found - u) ** 2).sum() / (weights * u**2).sum()))
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[-1] < 3e-3
    assert rates.min() > 1.8


def test_solver_agrees_with_scikit_fem_on_a_random_coefficient():
    arrays = darcy_mesh.shard("annulus", 0.15, 3, (0, 0))
    coords, cells = arrays["coords"], arrays["cells"]
    basis = Basis(MeshTri(coords.T.copy(), cells.T.astype(np.int64).copy()), ElementTriP1())
    form = BilinearForm(lambda u, v, w: w.k * dot(grad(u), grad(v)))
    load = LinearForm(lambda v, w: w.f * v)
    fields = [arrays[name].astype(np.float64) for name in ("permeability", "source", "solution")]
    for k, f, u in zip(*fields, strict=True):
        matrix = form.assemble(basis, k=basis.interpolate(k))
        expected = solve(*condense(matrix, load.assemble(basis, f=basis.interpolate(f)), D=basis.get_dofs()))
        assert abs(u - expected).max() < 1e-6 * abs(expected).max()
        assert abs(u[np.unique(boundary_edges(cells))]).max() == 0


def test_half_the_coefficients_have_two_values_and_most_sources_are_one():
    arrays = darcy_mesh.shard("disk", 0.2, 40, (0, 0))
    two_valued = [np.isin(k, np.float32(darcy_mesh.TWO_VALUES)).all() for k in arrays["permeability"]]
    assert sum(two_valued) == 20
    uniform = (arrays["source"] == 1).all(axis=1).sum()
    assert 20 < uniform < 40
    assert arrays["permeability"].min() > 0


def test_same_seed_same_bytes_and_every_mesh_different(tmp_path):
    first = darcy_mesh.write(MESH_KNOBS, tmp_path / "a")
    again = darcy_mesh.write(MESH_KNOBS, tmp_path / "b")
    assert [p.name for p in first] == [f"darcy_{s}_{i}.npz" for s in MESH_KNOBS.shapes for i in range(2)]
    assert [checksum(p) for p in first] == [checksum(p) for p in again]
    assert len({np.load(p)["coords"].tobytes() for p in first}) == 4


def test_a_sample_does_not_depend_on_how_many_there_are():
    few, many = (darcy_mesh.shard("square", 0.2, count, (0, 0)) for count in (2, 5))
    for name in ("permeability", "source", "solution"):
        assert np.array_equal(few[name], many[name][:2])


# --- particles -----------------------------------------------------------------------------------


def a_flow(beta=20.0, seed=0):
    return particles.random_flow(np.random.default_rng(seed), beta)


def derivative(function, at, step=1e-5):
    return (function(at + step) - function(at - step)) / (2 * step)


def test_flow_has_no_divergence_and_obeys_the_barotropic_vorticity_equation():
    flow, beta = a_flow(), 20.0
    points = np.random.default_rng(1).random((50, 2))
    x, y = np.eye(2)
    gradient = [derivative(lambda h, e=e: flow.velocity(points + h * e, 0.3), 0.0) for e in (x, y)]
    scale = abs(np.array(gradient)).max()
    assert abs(gradient[0][:, 0] + gradient[1][:, 1]).max() < 1e-8 * scale

    def vorticity(time, h=1e-4):
        right, left = (flow.velocity(points + s * h * x, time)[:, 1] for s in (1, -1))
        up, down = (flow.velocity(points + s * h * y, time)[:, 0] for s in (1, -1))
        return (right - left - up + down) / (2 * h)

    change = derivative(vorticity, 0.3, 1e-4)
    assert abs(change + beta * flow.velocity(points, 0.3)[:, 1]).max() < 1e-4 * abs(change).max()


def test_flow_has_the_period_of_the_box():
    points = np.random.default_rng(2).random((20, 2))
    assert np.allclose(a_flow().velocity(points, 0.7), a_flow().velocity(points + np.array([3, -2]), 0.7), atol=1e-12)


def test_tracers_follow_the_flow():
    flow, start = a_flow(), np.random.default_rng(3).random((16, 2))
    times = np.linspace(0, 2, 11)
    exact = solve_ivp(
        lambda t, x: flow.velocity(x.reshape(-1, 2), t).ravel(),
        (0, 2),
        start.ravel(),
        method="DOP853",
        t_eval=times,
        rtol=1e-10,
        atol=1e-10,
    ).y.T.reshape(11, 16, 2)
    assert abs(particles.trace(flow, start, times) - exact).max() < 1e-5


def test_runge_kutta_is_of_fourth_order(monkeypatch):
    flow, start = a_flow(), np.random.default_rng(3).random((16, 2))
    ends = []
    for step in (0.04, 0.02, 0.0025):
        monkeypatch.setattr(particles, "MAX_STEP", step)
        ends.append(particles.trace(flow, start, np.array([0.0, 1.0]))[-1])
    assert np.log2(abs(ends[0] - ends[2]).max() / abs(ends[1] - ends[2]).max()) > 3.5


def test_stored_velocities_are_those_of_the_flow_at_the_stored_positions():
    flow, times = a_flow(), np.linspace(0, 1, 6)
    arrays = particles.shard(flow, np.random.default_rng(4).random((32, 2)), times, 0.1, 20.0)
    assert arrays["positions"].min() >= 0
    assert arrays["positions"].max() < 1
    for position, velocity, time in zip(arrays["positions"], arrays["velocities"], times, strict=True):
        assert abs(flow.velocity(position.astype(np.float64), time) - velocity).max() < 1e-5


def test_standing_still_is_a_bad_forecast_of_the_velocities():
    errors, speeds = [], []
    for seed, beta in enumerate(particles.BETAS):
        start = np.random.default_rng(seed).random((128, 2))
        v = particles.shard(a_flow(beta, seed), start, np.linspace(0, 2, 41), 0.1, beta)["velocities"]
        errors.append(np.sqrt(((v[40] - v[9]) ** 2).mean() / (v[40] ** 2).mean()))
        speeds.append(np.sqrt((v**2).sum(axis=-1).mean()))
    assert min(errors) > 0.5
    assert min(speeds) > 0.2
    assert max(speeds) < 0.6


@pytest.mark.parametrize("box", [None, np.array([1.0, 1.0]), np.array([1.0, 0.0])])
def test_neighbour_graph_equals_the_brute_force_one(box):
    points = np.random.default_rng(5).random((60, 2)).astype(np.float32)
    apart = points[:, None].astype(np.float64) - points[None]
    if box is not None:
        apart -= np.where(box > 0, np.round(apart), 0.0)
    near = (np.linalg.norm(apart, axis=-1) <= 0.2) & ~np.eye(60, dtype=bool)
    indptr, indices = neighbour_graph(points, 0.2, box)
    assert np.array_equal(indptr, np.concatenate([[0], np.cumsum(near.sum(axis=1))]))
    assert np.array_equal(indices, np.nonzero(near)[1])


def test_particle_shards_are_the_same_bytes_for_the_same_seed_and_hold_several_betas(tmp_path):
    first = particles.write(PARTICLE_KNOBS, tmp_path / "a")
    again = particles.write(PARTICLE_KNOBS, tmp_path / "b")
    assert [checksum(p) for p in first] == [checksum(p) for p in again]
    assert {float(np.load(p)["beta"]) for p in first} == set(particles.BETAS)
    assert len({np.load(p)["positions"][0].tobytes() for p in first}) == 4


def test_a_point_just_below_the_box_is_a_neighbour_of_one_just_inside():
    """Folded into the box it would round to the period itself, which no search takes."""
    indptr, indices = neighbour_graph(np.array([[-1e-20, 0.5], [0.05, 0.5]]), 0.1, np.ones(2))
    assert indptr.tolist() == [0, 1, 2] and indices.tolist() == [1, 0]
