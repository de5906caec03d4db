"""A scan unlike the prior's training scans is announced, with the figures; one like them is not."""

import warnings
from dataclasses import replace

import pytest

from mrigsure.errors import ScanWarning
from recon.domain import body_std, warn_if_unlike_training


def test_a_scan_like_the_training_scans_is_quiet(make_scan, gaussian_prior):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_unlike_training(make_scan(), gaussian_prior)


@pytest.mark.parametrize(
    ("change", "figures"),
    [
        ({"noise_std": 0.13}, "noise 0.13 .* 0.02 to 0.06"),
        ({"noise_std": 0.009}, "noise 0.009 .* 0.02 to 0.06"),
        ({"shape": (80, 40)}, "matrix 80 x 40.* at most 48 x 48"),
    ],
)
def test_noise_and_matrix_far_from_training_are_announced(make_scan, gaussian_prior, change, figures):
    with pytest.warns(ScanWarning, match=figures):
        warn_if_unlike_training(make_scan(**change), gaussian_prior)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_scale_far_from_the_priors_is_announced(make_scan, gaussian_prior, factor):
    scan = make_scan()
    scan = replace(scan, kspace=factor * scan.kspace)
    with pytest.warns(ScanWarning, match="signal .* expects 0.5"):
        warn_if_unlike_training(scan, gaussian_prior)


def test_body_std_is_a_half_for_a_prepared_scan_and_follows_the_scale(make_scan):
    scan = make_scan(shape=(96, 80))
    assert body_std(scan) == pytest.approx(0.5, rel=0.2)
    assert body_std(replace(scan, kspace=3 * scan.kspace)) == pytest.approx(3 * body_std(scan))
