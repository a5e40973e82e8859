"""Error measures against values worked out by hand, and what they say about simple physics."""

from __future__ import annotations

import numpy as np
import pytest

from ups_data.evaluation import metrics
from ups_data.geometry import cell_areas
from ups_data.stores.mesh import Topology

X = (np.arange(64) + 0.5) / 64


def nrmse(prediction, target, spread=1.0):
    """PDEBench's nRMSE of fields [S, T, X.., C] by way of the module."""
    return metrics.nrmse(prediction, target, np.full(target.shape[-1], spread)).mean()


def test_nrmse_is_the_mean_of_the_ratios_not_the_ratio_of_the_means():
    target = np.array([[3.0, 4.0], [0.3, -0.4]])[:, None, :, None]  # two samples, RMS 3.5355 and 0.35355
    prediction = target + np.array([[1.0, 1.0], [0.1, -0.1]])[:, None, :, None]
    expected = np.mean([1 / np.sqrt(12.5), 0.1 / np.sqrt(0.125)])
    assert nrmse(prediction, target) == pytest.approx(expected, rel=1e-12)
    steps = prediction.swapaxes(0, 1), target.swapaxes(0, 1)  # two frames of one sample
    assert nrmse(*steps) == pytest.approx(expected, rel=1e-12)


def test_channels_are_measured_each_by_its_own_size():
    target = np.stack([np.full((1, 1, 8), 100.0), np.full((1, 1, 8), 0.01)], axis=-1)
    prediction = target * 1.1
    assert nrmse(prediction, target) == pytest.approx(0.1)
    assert metrics.rmse(prediction, target)[0, 0] == pytest.approx([10.0, 0.001])


def test_persistence_of_a_travelling_sine_wave_errs_by_the_chord_of_its_phase():
    phase = np.linspace(0, np.pi, 7)
    wave = np.sin(2 * np.pi * X[None, :] - phase[:, None])[None, ..., None]
    errors = metrics.rmse(np.broadcast_to(wave[:, :1], wave.shape), wave) / metrics.root_mean_square(wave)
    # |sin(a - p) - sin(a)| has RMS 2 sin(p/2) / sqrt(2): half a period away the error is twice the wave.
    assert errors[0, :, 0] == pytest.approx(2 * np.sin(phase / 2), abs=1e-12)


def test_predicting_the_zero_mean_of_a_field_scores_one():
    field = np.random.default_rng(0).normal(size=(4, 3, 16, 16, 2))
    assert nrmse(np.zeros_like(field), field) == pytest.approx(1.0)


def test_a_zero_target_keeps_the_error_finite_and_is_called_flat():
    target = np.zeros((1, 1, 8, 1))
    size = metrics.root_mean_square(target)
    assert np.isfinite(nrmse(target + 1e-9, target))
    assert metrics.flat_frames(size, np.array([1.0])).all()
    assert not metrics.flat_frames(np.array([[[0.5]]]), np.array([1.0])).any()


def test_a_channel_that_is_zero_in_all_data_has_a_finite_error():
    nothing = np.zeros((1, 1, 8, 1))
    assert nrmse(nothing + 1e-7, nothing, spread=0.0) == pytest.approx(0.1)
    assert nrmse(nothing, nothing, spread=0.0) == 0.0


@pytest.mark.parametrize("shape", [(64,), (32, 48), (8, 8, 10)])
def test_squared_band_errors_add_up_to_the_squared_rmse(shape):
    generator = np.random.default_rng(1)
    target, prediction = (generator.normal(size=(2, 3, *shape, 2)) for _ in range(2))
    bands = metrics.band_rmse(metrics.shell_power(prediction - target))
    assert np.sqrt(np.square(bands).sum(axis=-1)) == pytest.approx(metrics.rmse(prediction, target), rel=1e-12)


@pytest.mark.parametrize(("wavenumber", "band"), [(0, 0), (4, 0), (5, 1), (12, 1), (13, 2), (31, 2)])
def test_a_wave_falls_into_the_band_of_its_wavenumber(wavenumber, band):
    wave = np.cos(2 * np.pi * wavenumber * X)[None, None, :, None]
    power = metrics.shell_power(wave)[0, 0, 0]
    assert power[wavenumber] == pytest.approx(np.square(wave).mean(), rel=1e-12)
    bands = metrics.band_rmse(power)
    assert bands[band] == pytest.approx(metrics.root_mean_square(wave)[0, 0, 0], rel=1e-12)
    assert np.delete(bands, band) == pytest.approx(0.0, abs=1e-12)


def unit_square(points: int) -> Topology:
    """A regular triangulation of the unit square."""
    x, y = np.meshgrid(*[np.linspace(0, 1, points)] * 2, indexing="ij")
    node = np.arange(points**2).reshape(points, points)
    low, right, up, far = node[:-1, :-1], node[1:, :-1], node[:-1, 1:], node[1:, 1:]
    cells = np.concatenate([np.stack(c, -1).reshape(-1, 3) for c in ((low, right, far), (low, far, up))])
    return Topology.of(np.stack([x.ravel(), y.ravel()], axis=1), cells)


def test_mesh_bands_are_those_of_the_wavelength_and_add_up():
    from scipy import sparse

    mesh = unit_square(33)
    parts = mesh.laplacian_data, mesh.laplacian_indices, mesh.laplacian_indptr
    area = cell_areas(mesh.coords, mesh.cells).sum()
    vectors, shells = metrics.laplacian_modes(sparse.csr_array(parts).toarray(), area)
    for wavenumber, band in ((2, 0), (7, 1)):
        wave = np.cos(2 * np.pi * wavenumber * mesh.coords[:, 0])[None, None, :, None]
        split = metrics.band_rmse(metrics.mesh_shell_power(wave, vectors, shells))[0, 0, 0]
        size = metrics.root_mean_square(wave)[0, 0, 0]
        assert np.sqrt(np.square(split).sum()) == pytest.approx(size, rel=1e-9)
        assert split[band] > 0.97 * size


def test_displacements_are_counted_across_the_seams_of_a_periodic_box():
    speed, times = np.array([0.4, -0.3]), np.arange(1, 31) * 0.1
    start = np.array([[[0.9, 0.1]]])
    path = start[:, None] + times[None, :, None, None] * speed
    went = metrics.displacement(np.mod(path, 1.0), start, np.ones(2))
    assert went[0, :, 0] == pytest.approx(times[:, None] * speed, abs=1e-9)


def test_the_minimum_image_is_the_short_way_round_and_only_on_periodic_axes():
    difference = np.array([0.9, 0.9])
    assert metrics.minimum_image(difference, np.array([1.0, 0.0])) == pytest.approx([-0.1, 0.9])
