"""Intervals from a few draws cover their stated share where draws and truth are exchangeable."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from recon.metrics import coverage
from recon.uncertainty import body_sums, magnitude_interval, moments, scatter, summarise

SHAPE = (256, 240)
EVERYWHERE = np.ones(SHAPE, bool)


def _noise(rng, *size):
    return rng.normal(size=(*size, *SHAPE)) + 1j * rng.normal(size=(*size, *SHAPE))


def _alike(rng, *size):
    """Noise of unit variance in each part that is alike over two or three pixels, as images' errors are."""
    blurred = gaussian_filter(_noise(rng, *size), (0,) * len(size) + (1.0, 1.0), mode="wrap")
    return blurred / blurred.real.std()


def _in_pairs(rng, count, correlation):
    """`count` draws like _alike's, the correlation within pairs (2i, 2i + 1) given."""
    common, opposite = _alike(rng, count // 2), _alike(rng, count // 2)
    common, opposite = np.sqrt((1 + correlation) / 2) * common, np.sqrt((1 - correlation) / 2) * opposite
    return np.stack([common + opposite, common - opposite], 1).reshape(count, *SHAPE)


def _smooth_spread():
    """A standard deviation that varies fourfold over the image."""
    return 2.0 ** np.sin(np.linspace(-3, 3, SHAPE[1]))[None]


def _bright(rng):
    return 60 * np.exp(1j * rng.uniform(-3, 3, size=SHAPE))


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_exchangeable_draws_cover_the_stated_share(count, level):
    rng = np.random.default_rng(count)
    center = _bright(rng)
    truth, *draws = center + _smooth_spread() * _alike(rng, count + 1)
    lower, upper = magnitude_interval(np.array(draws), level, paired=False)
    assert coverage(lower, upper, truth, EVERYWHERE) == pytest.approx(level, abs=0.02)
    for half in (slice(None, 120), slice(120, None)):  # where the spread is small, and where it is large
        part = np.zeros(SHAPE, bool)
        part[:, half] = True
        assert coverage(lower, upper, truth, part) == pytest.approx(level, abs=0.03)


def test_the_extremes_of_eight_draws_would_cover_too_little():
    rng = np.random.default_rng(0)
    truth, *draws = np.abs(_bright(rng) + _noise(rng, 9))
    covered = coverage(np.min(draws, 0), np.max(draws, 0), truth, EVERYWHERE)
    assert covered == pytest.approx(1 - 2 / 9, abs=0.015)


def test_in_air_the_interval_begins_at_zero_and_keeps_its_level():
    rng = np.random.default_rng(1)
    truth, *draws = _noise(rng, 9)
    lower, upper = magnitude_interval(np.array(draws), paired=False)
    assert (lower == 0).mean() > 0.95
    assert coverage(lower, upper, truth, EVERYWHERE) == pytest.approx(0.9, abs=0.025)


def test_the_scale_multiplies_spread_and_interval():
    rng = np.random.default_rng(4)
    draws = (_bright(rng) + _noise(rng, 4)).astype(np.complex64)
    plain, scaled = (summarise(draws, scale=scale, paired=False) for scale in (1.0, 2.0))
    np.testing.assert_array_equal(scaled.mean, plain.mean)
    np.testing.assert_allclose(scaled.std, 2 * plain.std, rtol=1e-6)
    ratio = np.sqrt((2**2 + 1 / 4) / (1 + 1 / 4))  # the draws' mean scatters as before
    np.testing.assert_allclose(scaled.upper - scaled.lower, ratio * (plain.upper - plain.lower), rtol=1e-4)
    assert {plain.std.dtype, plain.lower.dtype, plain.upper.dtype} == {np.dtype(np.float32)}


def test_units_do_not_matter():
    rng = np.random.default_rng(5)
    draws = 60 + 10 * rng.normal(size=SHAPE) + _noise(rng, 4)
    small, large = (magnitude_interval(unit * draws, paired=False) for unit in (1e-9, 1.0))
    for one, other in zip(large, small, strict=True):
        np.testing.assert_allclose(1e-9 * one, other, rtol=1e-5)


def test_a_single_draw_has_no_interval():
    summary = summarise(_noise(np.random.default_rng(6), 1), paired=False)
    assert summary.std is None and summary.lower is None and summary.upper is None


@pytest.mark.parametrize("correlation", [-0.99, -0.7, 0.0])
def test_the_variances_of_a_draw_and_of_the_mean_are_unbiased_for_pairs(correlation):
    """Means over pixels of equal variance against what is drawn; the mean's scatter against means drawn again."""
    rng, count = np.random.default_rng(7), 4
    found = moments(_in_pairs(rng, count, correlation), paired=True)
    means = [_in_pairs(rng, count, correlation).mean(0) for _ in range(4)]
    scattered = np.mean(np.abs(means) ** 2)
    assert found.variance.mean() == pytest.approx(2, rel=0.02)
    assert found.of_mean.mean() == pytest.approx((1 + correlation) / count * 2, rel=0.05)
    assert found.of_mean.mean() == pytest.approx(scattered, rel=0.05)


def test_of_independent_draws_the_mean_scatters_by_one_in_k():
    draws = 3.0 + _noise(np.random.default_rng(8), 5)
    found = moments(draws, paired=False)
    assert found.variance.mean() == pytest.approx(2, rel=0.02)
    assert scatter([body_sums(found), body_sums(found)]) == pytest.approx(1 / 5)


def test_one_pair_announces_more_than_it_errs():
    rng = np.random.default_rng(9)
    found, truth = moments(_in_pairs(rng, 2, -0.7), paired=True), _alike(rng)
    np.testing.assert_allclose(found.of_mean, found.variance / 2)
    error = np.mean(np.abs(truth - found.mean) ** 2)
    assert 1.05 * error < (found.variance + found.of_mean).mean() < 1.2 * error


def test_scatter_is_that_of_the_body_and_pools_slices():
    rng = np.random.default_rng(10)
    body = np.broadcast_to(np.arange(SHAPE[1]) < 120, SHAPE)
    slices = []
    for correlation in (-0.9, -0.5):
        draws = 60 * body + np.where(body, _in_pairs(rng, 8, correlation), _in_pairs(rng, 8, 0.9))
        slices.append(summarise(draws, paired=True, scale=3.0).body)
    assert scatter(slices[:1]) == pytest.approx(0.1 / 8, rel=0.1)
    assert scatter(slices) == pytest.approx(0.3 / 8, rel=0.1)


@pytest.mark.parametrize("correlation", [-0.97, -0.7])
@pytest.mark.parametrize(("count", "tolerance"), [(4, 0.02), (8, 0.015)])
def test_pairs_cover_the_stated_share(count, tolerance, correlation):
    rng = np.random.default_rng(11)
    center = _bright(rng)
    truth, draws = (center + _smooth_spread() * noise for noise in (_alike(rng), _in_pairs(rng, count, correlation)))
    assert coverage(*magnitude_interval(draws, paired=True), truth, EVERYWHERE) == pytest.approx(0.9, abs=tolerance)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_pairs_do_not_cover_too_little_in_air(count):
    """Where the draws of a pair are opposite, their magnitudes are alike."""
    rng = np.random.default_rng(12)
    truth, draws = _alike(rng), _in_pairs(rng, count, -0.97)
    lower, upper = magnitude_interval(draws, paired=True)
    assert (lower == 0).mean() > 0.9
    assert 0.86 < coverage(lower, upper, truth, EVERYWHERE) < 0.98
