from pathlib import Path

import numpy as np
import pytest

from data_prep.noise import estimate_noise, whiten
from data_prep.readers import RawScan
from mrigsure.errors import ScanWarning
from mrigsure.masks import make_mask

COILS = 4


def _covariance():
    rng = np.random.default_rng(1)
    factor = np.eye(COILS) + 0.3 * (rng.standard_normal((COILS, COILS)) + 1j * rng.standard_normal((COILS, COILS)))
    covariance = factor @ factor.conj().T
    return covariance / np.trace(covariance).real * COILS


def _scan(kspace, **options):
    return RawScan(kspace=kspace, source=Path("scan"), **options)


def _whitened(estimate, truth):
    factor = np.linalg.inv(np.linalg.cholesky(estimate))
    return factor @ truth @ factor.conj().T


@pytest.mark.parametrize("pattern", ["full", "random", "poisson"])
def test_simulated_covariance_is_recovered(make_kspace, pattern):
    shape, noise_std = (96, 96), 0.1
    kspace = make_kspace(shape, COILS, slices=2, noise_std=noise_std, covariance=_covariance())
    mask = make_mask(pattern, shape, 3, 0.1, seed=0)
    estimate = estimate_noise(_scan(kspace * mask), mask)
    truth = noise_std**2 * _covariance()
    assert np.trace(estimate).real == pytest.approx(np.trace(truth).real, rel=0.1)
    assert np.linalg.norm(estimate - truth) < 0.2 * np.linalg.norm(truth)


def test_air_tells_the_noise_where_signal_reaches_the_rim(make_kspace):
    noise_std = 0.01
    mask = make_mask("random", (64, 56), 3, 0.1, seed=0)
    estimate = estimate_noise(_scan(make_kspace(slices=2, noise_std=noise_std) * mask), mask)
    assert np.sqrt(np.trace(estimate).real / COILS) == pytest.approx(noise_std, rel=0.15)


def test_noise_samples_are_taken_before_kspace(make_kspace):
    rng = np.random.default_rng(0)
    noise = np.linalg.cholesky(_covariance()) @ (rng.standard_normal((COILS, 20000, 2)) @ [1, 1j])
    raw = _scan(make_kspace(noise_std=1.0), noise=(0.9 * noise).astype(np.complex64))
    assert np.abs(estimate_noise(raw, np.ones(56, bool)) - 0.81 * _covariance()).max() < 0.03


def test_noise_samples_louder_than_kspace_are_scaled_with_a_warning(make_kspace):
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal((COILS, 5000, 2)) @ [1, 1j]).astype(np.complex64)
    with pytest.warns(ScanWarning, match="times as loud as quiet k-space"):
        estimate = estimate_noise(_scan(make_kspace(noise_std=0.1), noise=noise), np.ones(56, bool))
    assert np.trace(estimate).real / COILS == pytest.approx(0.01, rel=0.15)


def test_whitening_leaves_noise_white_and_its_mean_level(make_kspace):
    rng = np.random.default_rng(2)
    noise = np.linalg.cholesky(3 * _covariance()) @ (rng.standard_normal((COILS, 40000, 2)) @ [1, 1j])
    estimate = noise @ noise.conj().T / 80000
    fresh = np.linalg.cholesky(3 * _covariance()) @ (rng.standard_normal((COILS, 40000, 2)) @ [1, 1j])
    white, noise_std = whiten(fresh.reshape(1, COILS, 200, 200), estimate)
    white = white.reshape(COILS, -1) / noise_std
    assert noise_std**2 == pytest.approx(3, rel=0.02)
    assert np.abs(white @ white.conj().T / 80000 - np.eye(COILS)).max() < 0.03


def test_uncorrelated_coils_are_not_mixed_by_chance(make_kspace):
    kspace = make_kspace((48, 48), 16, noise_std=0.5)
    estimate = estimate_noise(_scan(kspace), np.ones(48, bool))
    assert np.abs(_whitened(estimate / 0.25, np.eye(16)) - np.eye(16)).max() < 0.2
