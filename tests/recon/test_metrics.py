"""The figures are fastMRI's, and z^2 is 1 where the uncertainty is right."""

import numpy as np
import pytest

from recon.metrics import coverage, nmse, psnr, ssim, z_squared


def _pair():
    rng = np.random.default_rng(0)
    target = rng.uniform(size=(24, 20)).astype(np.float32) ** 2
    return target + rng.normal(scale=0.05, size=target.shape).astype(np.float32), target


def test_figures_agree_with_fastmris():
    from fastmri import evaluate

    image, target = _pair()
    assert psnr(image, target) == pytest.approx(float(evaluate.psnr(target, image)), rel=1e-6)
    assert nmse(image, target) == pytest.approx(float(evaluate.nmse(target, image)), rel=1e-5)
    assert ssim(image, target) == pytest.approx(float(evaluate.ssim(target[None], image[None])[0]), rel=1e-6)


def test_a_perfect_image():
    _, target = _pair()
    assert psnr(target, target) == float("inf")
    assert ssim(target, target) == pytest.approx(1)
    assert nmse(target, target) == 0


@pytest.mark.parametrize("samples", [2, 8])
def test_z_squared_of_calibrated_draws_is_one(samples):
    rng = np.random.default_rng(samples)
    shape = (120, 120)

    def noise(*size):
        return rng.normal(size=(*size, *shape)) + 1j * rng.normal(size=(*size, *shape))

    center = 30 * np.exp(1j * rng.uniform(-3, 3, size=shape))
    target, draws = center + noise(), center + noise(samples)  # exchangeable
    mean, std = draws.mean(0), np.sqrt((np.abs(draws - draws.mean(0)) ** 2).sum(0) / (samples - 1))
    assert z_squared(mean, target, std, 1 / samples) == pytest.approx(1, abs=0.04)
    assert z_squared(np.abs(mean), np.abs(target), std, 1 / samples) == pytest.approx(1, abs=0.05)
    assert z_squared(mean, target, std / 2, 1 / samples) == pytest.approx(4, abs=0.2)
    measured = target + 0.7 * noise()
    assert z_squared(mean, measured, std, 1 / samples) > 1.2
    assert z_squared(mean, measured, std, 1 / samples, target_noise=0.7) == pytest.approx(1, abs=0.04)
    assert z_squared(np.abs(mean), np.abs(measured), std, 1 / samples, target_noise=0.7) == pytest.approx(1, abs=0.05)


def test_coverage_counts_magnitudes_inside_the_mask_alone():
    target = np.array([[1j, -2.0], [3.0, 4.0]])
    lower, upper = np.full((2, 2), 1.0), np.array([[1.0, 1.5], [3.5, 9.0]])
    assert coverage(lower, upper, target, np.ones((2, 2), bool)) == 0.75
    assert coverage(lower, upper, target, np.array([[True, True], [False, False]])) == 0.5
    with pytest.raises(ValueError, match="no pixel"):
        coverage(lower, upper, target, np.zeros((2, 2), bool))
