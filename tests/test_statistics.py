"""Moments: as exact as float32 data need, whatever the data look like, however they are cut, and they hide nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ups_data.statistics import MANY, Moments, merge_all

COUNT = 300_000  # more than two strips
PLACES = np.arange(COUNT)
NOISE = np.random.default_rng(0).normal(size=COUNT)
ROWS = st.integers(1, 30) | st.integers(MANY - 2, 2 * MANY)  # added up in float64, or partly in float32


def errors(values: np.ndarray) -> tuple[float, float]:
    """Errors of mean and standard deviation, in standard deviations."""
    found, exact = Moments.of(values.reshape(-1, 1)), values.astype(np.longdouble)
    mean, std = exact.mean(), exact.std()
    assert (found.minimum[0], found.maximum[0]) == (values.min(), values.max())
    return abs(found.mean[0] - mean) / std, abs(found.std[0] - std) / std


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(NOISE, id="noise"),
        pytest.param(1e6 + NOISE, id="an offset of a million"),
        pytest.param(1e4 * (PLACES > COUNT // 2) + 1e-2 * NOISE, id="a shock"),
        pytest.param(np.where(PLACES % 7 < 3, 0.1, 1.0), id="two values"),
        pytest.param(np.sin(1e-3 * PLACES) + 1e3 * (PLACES % 1024 == 0), id="a boundary far from the rest"),
        pytest.param(1e-25 * NOISE, id="squares too small for float32"),
        pytest.param(1e25 * NOISE, id="squares too large for float32"),
        pytest.param(1e38 * np.tanh(NOISE), id="sums too large for float32"),
    ],
)
def test_mean_and_deviation_are_exact_to_seven_digits(values):
    mean, std = errors(values.astype(np.float32))
    assert mean < 1e-7 and std < 1e-7


def test_the_worst_arrangement_costs_two_digits():
    """The numbers that tell where the mean is are all far from it."""
    mean, std = errors(np.where(PLACES % 61, 0.3, 700.0).astype(np.float32))
    assert mean < 1e-6 and std < 1e-5


def test_numbers_that_are_all_alike_have_no_deviation():
    found = Moments.of(np.full((COUNT, 2), 0.1, np.float32))
    assert found.std.tolist() == [0, 0] and found.mean.tolist() == [np.float32(0.1)] * 2


@settings(deadline=None)
@given(st.integers(1, 4), ROWS, st.integers(0, 2**32 - 1), st.floats(-1e3, 1e3))
def test_moments_merge_to_those_of_the_whole(channels, rows, seed, offset):
    values = (np.random.default_rng(seed).normal(size=(3, rows, channels)) + offset).astype(np.float32)
    merged = merge_all(Moments.of(part) for part in values)
    flat = values.reshape(-1, channels).astype(np.float64)
    assert merged.count == 3 * rows
    np.testing.assert_array_less(np.abs(merged.mean - flat.mean(0)), 1e-7 * flat.std(0) + 1e-12)
    np.testing.assert_allclose(merged.std, flat.std(0), rtol=1e-7, atol=1e-12)
    np.testing.assert_array_equal(merged.minimum, flat.min(0))
    np.testing.assert_array_equal(merged.maximum, flat.max(0))
    assert Moments.from_list(merged.to_list()).to_list() == merged.to_list()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [0, 1])
def test_moments_never_hide_a_value_that_is_not_finite(bad, channel):
    values = np.zeros((100_000, 2), np.float32)
    values[77_777, channel] = bad
    assert not Moments.of(values).is_finite()
