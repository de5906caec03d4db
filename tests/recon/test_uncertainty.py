"""Intervals from a few draws cover their stated share where draws and truth are exchangeable."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from recon.metrics import coverage
from recon.uncertainty import along_phase, magnitude_interval, phase_factor, summarise

SHAPE = (256, 240)
EVERYWHERE = np.ones(SHAPE, bool)


def _noise(rng, *size):
    return rng.normal(size=(*size, *SHAPE)) + 1j * rng.normal(size=(*size, *SHAPE))


def _alike(rng, *size):
    """Noise of unit variance in each part that is alike over two or three pixels, as images' errors are."""
    blurred = gaussian_filter(_noise(rng, *size), (0,) * len(size) + (1.0, 1.0), mode="wrap")
    return blurred / blurred.real.std()


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
    lower, upper = magnitude_interval(np.array(draws), level)
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
    lower, upper = magnitude_interval(np.array(draws))
    assert (lower == 0).mean() > 0.95
    assert coverage(lower, upper, truth, EVERYWHERE) == pytest.approx(0.9, abs=0.025)


def _head(rng):
    """Fine detail in the magnitude, under a smooth phase."""
    phase = np.exp(1j * np.linspace(0, 2, SHAPE[0]))[:, None]
    return (60 + 10 * rng.normal(size=SHAPE)) * phase, phase


def test_draws_that_spread_across_the_phase_are_widened_along_it():
    rng = np.random.default_rng(2)
    image, phase = _head(rng)
    error = np.sqrt(2) * rng.normal(size=SHAPE) * phase  # all along the phase, of the draws' variance
    draws = image + _noise(rng, 8)
    factor = phase_factor(draws)
    assert factor == pytest.approx(np.sqrt(2), rel=0.03)
    narrow, wide = magnitude_interval(draws), magnitude_interval(draws, widen=factor)
    assert coverage(*narrow, image + error, EVERYWHERE) < 0.8
    assert coverage(*wide, image + error, EVERYWHERE) == pytest.approx(0.9, abs=0.02)


def test_draws_that_spread_along_the_phase_are_left_as_they_are():
    rng = np.random.default_rng(3)
    image, phase = _head(rng)
    draws = image + rng.normal(size=(8, *SHAPE)) * phase
    assert phase_factor(draws) == pytest.approx(1, abs=0.02)
    assert along_phase(draws - draws.mean(0), image) > 0.95


def test_no_detail_prefers_no_direction():
    assert along_phase(np.zeros((1, *SHAPE), complex), np.zeros(SHAPE, complex)) == 0.5


def test_the_scale_multiplies_spread_and_interval():
    rng = np.random.default_rng(4)
    draws = (_bright(rng) + _noise(rng, 4)).astype(np.complex64)
    plain, scaled = summarise(draws), summarise(draws, scale=2.0)
    np.testing.assert_array_equal(scaled.mean, plain.mean)
    np.testing.assert_allclose(scaled.std, 2 * plain.std, rtol=1e-6)
    ratio = np.sqrt((2**2 + 1 / 4) / (1 + 1 / 4))  # the draws' mean scatters as before
    np.testing.assert_allclose(scaled.upper - scaled.lower, ratio * (plain.upper - plain.lower), rtol=1e-4)
    assert {plain.std.dtype, plain.lower.dtype, plain.upper.dtype} == {np.dtype(np.float32)}


def test_units_do_not_matter():
    rng = np.random.default_rng(5)
    draws = _head(rng)[0] + _noise(rng, 4)
    for one, other in zip(magnitude_interval(draws), magnitude_interval(1e-9 * draws), strict=True):
        np.testing.assert_allclose(1e-9 * one, other, rtol=1e-5)


def test_a_single_draw_has_no_interval():
    summary = summarise(_noise(np.random.default_rng(6), 1))
    assert summary.std is None and summary.lower is None and summary.upper is None
