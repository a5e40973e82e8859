"""Navier-Stokes against Taylor-Green and the conservation laws, and its files against PDEBench's layout."""

import h5py
import numpy as np
import pytest
import torch
import yaml

from ups_data.params import load_params
from ups_data.simulate import flow, navier_stokes, workers

SMALL = ["simulate.navier_stokes2d.resolution=32", "simulate.navier_stokes2d.frames=3"]
SMALL += ["simulate.navier_stokes2d.end_time=0.2", "simulate.navier_stokes2d.files=2"]


def solve(velocity, scalar, force, viscosity, times) -> tuple[np.ndarray, np.ndarray]:
    """Velocity [B, T, N, N, 2] and scalar [B, T, N, N]."""
    frames = list(navier_stokes.solve(velocity, scalar, force, viscosity, times))
    return np.stack([u.numpy() for u, _ in frames], 1), np.stack([s.numpy() for _, s in frames], 1)


def divergence(velocity) -> np.ndarray:
    """du/dx + dv/dy of [..., N, N, 2] by FFT over both axes, taken without the solver."""
    n = velocity.shape[-2]
    k = 2j * np.pi * np.fft.fftfreq(n, 1 / n)
    u, v = (np.fft.fft2(velocity[..., i]) for i in (0, 1))
    return np.fft.ifft2(k[:, None] * u + k[None, :] * v).real


@pytest.fixture(scope="module")
def forced() -> tuple[np.ndarray, np.ndarray]:
    velocity, scalar, force = flow.initial_fields(0, 0, 32)
    return solve(velocity, scalar + 0.7, force, 0.004, np.linspace(0, 1, 6))


def test_taylor_green_vortices_decay_as_the_exact_solution():
    x = np.arange(32) / 32
    a = 2 * np.pi * x[:, None], 2 * np.pi * x[None, :]
    vortices = np.stack([np.cos(a[0]) * np.sin(a[1]), -np.sin(a[0]) * np.cos(a[1])], -1)[None]
    times = np.linspace(0, 2, 5)
    viscosity = 0.01
    velocity, _ = solve(vortices, np.zeros((1, 32, 32)), np.zeros_like(vortices), viscosity, times)
    exact = vortices[:, None] * np.exp(-8 * np.pi**2 * viscosity * times)[:, None, None, None]
    assert np.abs(velocity - exact).max() < 1e-10


def test_vortices_held_up_by_a_force_stand_still_and_their_stream_function_only_diffuses():
    # The force 8 pi^2 nu u balances friction; u . grad(stream) = 0, so the scalar is not stirred.
    x = np.arange(32) / 32
    a = 2 * np.pi * x[:, None], 2 * np.pi * x[None, :]
    vortices = np.stack([np.cos(a[0]) * np.sin(a[1]), -np.sin(a[0]) * np.cos(a[1])], -1)[None]
    stream = (np.cos(a[0]) * np.cos(a[1]))[None]
    viscosity, times = 0.01, np.array([0.0, 0.5, 1.0])
    velocity, scalar = solve(vortices, stream, 8 * np.pi**2 * viscosity * vortices, viscosity, times)
    assert np.abs(velocity - vortices[:, None]).max() < 1e-7
    assert np.abs(scalar - stream[:, None] * np.exp(-8 * np.pi**2 * viscosity * times)[:, None, None]).max() < 1e-7


def test_the_solution_converges_with_the_grid():
    times = np.linspace(0, 1, 3)
    coarse, fine = (solve(*flow.initial_fields(0, 0, n), 0.004, times) for n in (32, 64))
    for got, expected in zip(coarse, fine, strict=True):
        step = expected[:, :, ::2, ::2]
        assert np.sqrt(np.mean((got - step) ** 2) / np.mean(step**2)) < 5e-3


def test_every_frame_is_divergence_free(forced):
    velocity, _ = forced
    assert np.abs(divergence(velocity)).max() < 1e-11


def test_the_scalar_keeps_its_mean_and_the_flow_its_momentum(forced):
    velocity, scalar = forced
    assert np.abs(scalar.mean(axis=(2, 3)) - 0.7).max() < 1e-13
    assert np.abs(velocity.mean(axis=(2, 3))).max() < 1e-13


def test_energy_never_grows_without_forcing():
    velocity, scalar, force = flow.initial_fields(1, 2, 32)
    velocity, scalar = solve(velocity, scalar, 0 * force, 1e-4, np.linspace(0, 1, 11))
    assert (np.diff((velocity**2).sum(axis=(2, 3, 4)), axis=1) < 0).all()
    assert (np.diff((scalar**2).sum(axis=(2, 3)), axis=1) < 0).all()


def test_a_trajectory_is_the_same_function_at_every_resolution_and_differs_from_the_others():
    coarse, fine = flow.initial_fields(0, 1, 16), flow.initial_fields(0, 1, 32)
    for got, expected in zip(coarse, fine, strict=True):
        np.testing.assert_allclose(got, expected[:, ::2, ::2], atol=1e-12)
    states = [flow.initial_fields(0, number, 16)[0][i] for number in (0, 1) for i in range(4)]
    assert len({state.tobytes() for state in states}) == 8


@pytest.mark.slow
def test_the_sample_changes_a_lot_and_is_resolved():
    """Keeping frame 9 fails clearly, and twice the points change little, at the knobs of params.yaml."""
    knobs = load_params().simulate["navier_stokes2d"]
    times = np.linspace(0, knobs.end_time, knobs.frames)
    coarse, fine = (solve(*flow.initial_fields(knobs.seed, 0, n), knobs.viscosity, times)[0] for n in (64, 96))
    # Every second of 64 points and every third of 96 are the same places.
    apart = coarse[:, -1, ::2, ::2] - fine[:, -1, ::3, ::3]
    assert np.sqrt(np.mean(apart**2) / np.mean(fine[:, -1] ** 2)) < 1e-3
    error = np.sqrt(np.mean((coarse[:, 9:10] - coarse[:, 10:]) ** 2, axis=(2, 3, 4)))
    assert np.mean(error / np.sqrt(np.mean(coarse[:, 10:] ** 2, axis=(2, 3, 4)))) > 0.5


# --- the files -------------------------------------------------------------------------------------


def test_files_have_the_official_names_keys_shapes_and_attributes(tmp_path, monkeypatch):
    knobs = load_params(overrides=SMALL).simulate["navier_stokes2d"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "cores", lambda: 1)
    paths = flow.write(knobs, tmp_path / "ns", "cpu")
    assert [path.name for path in paths] == ["ns_incom_inhom_2d_32-0.h5", "ns_incom_inhom_2d_32-1.h5"]
    with h5py.File(paths[1]) as file:
        shapes = {key: file[key].shape for key in file}
        assert {file[key].dtype for key in file} == {np.dtype("f4")}
        assert {file[key].compression for key in file} == {None}, "LZF would make the bytes differ from run to run"
        assert yaml.safe_load(file.attrs["config"])["NU"] == knobs.viscosity
        assert file.attrs["latestIndex"] == 2
        np.testing.assert_allclose(file["t"], np.tile([0, 0.1, 0.2], (4, 1)), rtol=1e-6)
        assert np.abs(divergence(file["velocity"][:])).max() < 1e-4  # of values near 1, in float32
        velocity, _, force = flow.initial_fields(knobs.seed, 1, 32)
        np.testing.assert_allclose(file["velocity"][:, 0], velocity, atol=1e-5)
        np.testing.assert_allclose(file["force"], force, atol=1e-6)
    assert shapes == {
        "velocity": (4, 3, 32, 32, 2),
        "particles": (4, 3, 32, 32, 1),
        "force": (4, 32, 32, 2),
        "t": (4, 3),
    }
    before = [path.read_bytes() for path in paths]
    paths[0].unlink()
    flow.write(knobs, tmp_path / "ns", "cpu")
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_gives_the_solution_of_the_cpu():
    fields = flow.initial_fields(0, 0, 32)
    times = np.linspace(0, 0.5, 3)
    for (here, s), (there, r) in zip(
        navier_stokes.solve(*fields, 1e-3, times), navier_stokes.solve(*fields, 1e-3, times, "cuda"), strict=True
    ):
        assert (here - there.cpu()).abs().max() < 1e-9
        assert (s - r.cpu()).abs().max() < 1e-9
