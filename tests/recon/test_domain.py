"""A scan unlike the prior's training scans is announced, with the figures; one like them is not."""

import warnings
from dataclasses import replace

import pytest

from mrigsure.denoiser import Prior
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


def test_what_the_prior_saw_before_its_last_training_counts(make_scan, gaussian_prior):
    """It may have ended with a few scans, or with none to learn from but to calibrate its spread on."""
    last = {"archive": {"noise_std": [0.03, 0.03], "matrix": [[32, 32]]}}
    prior = Prior(gaussian_prior.denoiser, gaussian_prior.config, {**last, "start": gaussian_prior.record}, "last")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_unlike_training(make_scan(shape=(64, 56)), prior)
        warn_if_unlike_training(make_scan(noise_std=0.11), prior)
    with pytest.warns(ScanWarning, match=r"noise 0.13 .* 0.02 to 0.06"):
        warn_if_unlike_training(make_scan(noise_std=0.13), prior)
    with pytest.warns(ScanWarning, match=r"prior last saw at most 48 x 48"):
        warn_if_unlike_training(make_scan(shape=(80, 40)), prior)


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
