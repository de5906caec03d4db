"""A scan's own held-out lines tell how far its spread is off, as far as there are any."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mrigsure.seeds import complex_noise, generator
from recon.spread_scale import BANDS, TAU, HeldOut, predict_held_out, spread_scale, widening, without_lines


def _sums(points, factor, noise=1.0, variance=1.0):
    """Sums whose error is what `factor` on the variance predicts, the fluctuations left out."""
    n = np.full(BANDS, points / BANDS)
    return HeldOut((noise + (factor + 0.5) * variance) * n, variance * n, noise * n, 9 * n, n, samples=2)


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_many_points_find_the_factor_which_is_believed_where_it_widens(factor):
    found = spread_scale([_sums(5000, factor)])
    assert found.value == pytest.approx(max(1, factor) ** 0.5, rel=0.02)
    assert found.error < 0.06


def test_few_points_or_much_noise_leave_the_scale_near_one():
    few, noisy = spread_scale([_sums(4, 4.0)]), spread_scale([_sums(500, 4.0, noise=100.0)])
    many = spread_scale([_sums(500, 4.0)])
    assert 1 < few.value < 1.5 < many.value
    assert 1 < noisy.value < 1.5
    assert few.error > 3 * many.error
    assert spread_scale([_sums(250, 4.0)] * 2).value == pytest.approx(many.value)


def test_no_point_leaves_it_at_one():
    found = spread_scale([_sums(0, 1.0)])
    assert found.value == pytest.approx(1)
    assert found.error == pytest.approx(TAU / 2, rel=1e-3)


def test_the_scale_follows_that_by_which_the_draws_are_too_narrow(make_scan):
    scan = make_scan(noise_std=0.02)
    kept = without_lines(scan, generator(0, "lines"))
    errors = 0.3 * complex_noise((3, *scan.shape), generator(0, "errors"))
    center = scan.target - errors[0]
    for narrow in (1.0, 0.5):
        parts = [predict_held_out(scan, part, center + narrow * errors[1:]) for part in kept]
        assert spread_scale(parts).value == pytest.approx(1 / narrow, rel=0.1)
        assert sum(parts[1:], parts[0]).z2 == pytest.approx(1 if narrow == 1 else 2.8, rel=0.2)


def test_the_figures_do_not_count_the_noise(make_scan):
    scan = make_scan((96, 40), noise_std=0.03, coils=8)
    (part, _) = without_lines(scan, generator(0, "lines"))
    exact = predict_held_out(scan, part, scan.target.expand(2, -1, -1))
    assert exact.error.sum() == pytest.approx(exact.noise.sum(), rel=0.1)
    assert abs(exact.residual) < 0.1
    nothing = predict_held_out(scan, part, 0 * scan.target.expand(2, -1, -1))
    assert nothing.residual == pytest.approx(1, rel=1e-3)


def test_widening_finds_the_factor_of_every_band():
    factors = np.exp(np.linspace(0, 1.5, BANDS))
    found = widening([_sums(20000, factors)])
    np.testing.assert_allclose(found.factors, factors, rtol=0.1)
    assert found.gain > 100


def test_widening_asks_for_nothing_where_spread_is_right_or_noise_hides_it():
    assert widening([_sums(20000, 1.0)]).gain == pytest.approx(0, abs=0.05)
    hidden = widening([_sums(500, 4.0, noise=100.0)])
    assert hidden.gain < 1 and hidden.factors.max() < 2
    assert widening([_sums(250, 4.0)] * 2).gain == pytest.approx(widening([_sums(500, 4.0)]).gain)


def test_a_band_without_points_is_widened_as_those_beside():
    sums = _sums(8000, np.full(BANDS, 3.0))
    seen = np.arange(BANDS) > 1
    part = HeldOut(*(seen * getattr(sums, key) for key in ("error", "variance", "noise", "data", "points")), samples=2)
    factors = widening([part]).factors
    assert 2 < factors[0] < factors[1] < factors[2] == pytest.approx(3, rel=0.1)


def test_what_would_be_narrowed_stays_and_gains_nothing():
    narrower = widening([_sums(5000, 0.3)])
    assert (narrower.factors == 1).all() and narrower.gain == 0
    partly = widening([_sums(20000, np.where(np.arange(BANDS) < 4, 0.3, 4.0))])
    assert (partly.factors[:3] == 1).all() and partly.factors[5:] == pytest.approx(4, rel=0.1)


def test_the_likeliest_factors_are_found_and_what_they_gain():
    part = _sums(400, np.exp(np.linspace(0.2, 1.0, BANDS)))
    found = widening([part])
    logs = np.log(found.factors)
    for change in (np.ones(BANDS), np.linspace(-1, 1, BANDS)):
        tried = [part.log_likelihood(np.exp(logs + step * change)) - _distance(logs + step * change) for step in _STEPS]
        assert tried[1] > max(tried[0], tried[2])
    assert found.gain == pytest.approx(part.log_likelihood(found.factors) - part.log_likelihood() - _distance(logs))
    assert found.gain > 0


_STEPS = (-0.1, 0.0, 0.1)


def _distance(logs):
    """From the factors that are expected, in the logarithm of a density: docstring of `widening`."""
    return (logs**2).sum() / (2 * BANDS * TAU**2) + (np.diff(logs) ** 2).sum() / (2 * 0.5**2)


@pytest.mark.parametrize("pattern", ["random", "points"])
def test_folds_are_disjoint_and_leave_the_calibration_lines(make_scan, pattern):
    scan = make_scan(pattern=pattern)
    one, other = (scan.mask - part.mask for part in without_lines(scan, generator(0, "lines")))
    assert one.sum() > 0 and other.sum() > 0
    assert not (one * other).any()
    assert not ((one + other) * (scan.density > 0.999)).any()


def test_one_line_gives_one_fold_and_the_centre_alone_none(make_scan):
    scan = make_scan()
    free = (scan.mask[0] * (scan.density[0] < 0.999)).nonzero()[:, 0]
    one_line, centre = scan.mask.clone(), torch.zeros_like(scan.mask)
    one_line[:, free[1:]] = 0
    centre[:, scan.shape[1] // 2] = 1
    for mask, density, folds in ((one_line, scan.density, 1), (centre, centre, 0)):
        few = replace(scan, mask=mask, kspace=scan.kspace * mask, density=density)
        assert len(without_lines(few, generator(0, "lines"))) == folds
