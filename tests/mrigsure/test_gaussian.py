"""The Gaussian start: its spectrum comes out of undersampled scans alone, and its draws are exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mrigsure.fourier import fft2c, ifft2c, radius
from mrigsure.gaussian import GaussianPrior, fit_gaussian
from mrigsure.phantoms import random_scan
from mrigsure.scan import collate
from mrigsure.seeds import complex_noise, generator

SIZE = 32
RINGS = 48


def true_spectrum(shape=(SIZE, SIZE)):
    """Falls from 1 to 0.01 per real part."""
    return 1 / (1 + (radius(shape) / 0.15) ** 2) + 0.01


def gaussian_scan(index, acceleration=4.0, noise=0.1):
    """A stationary Gaussian image seen through the coils and the mask of a phantom scan."""
    rng = np.random.default_rng(index)
    scan = random_scan(rng, (SIZE, SIZE), coils=6, acceleration=acceleration, center_fraction=0.12)
    image = ifft2c(true_spectrum().sqrt() * complex_noise((SIZE, SIZE), generator(index)))
    clean = fft2c(scan.sens_maps * image)
    kspace = scan.mask * (clean + noise * complex_noise(clean.shape, generator(index, "noise")))
    return replace(scan, kspace=kspace, noise_std=noise, target=image)


@pytest.fixture(scope="module")
def fitted():
    return fit_gaussian([gaussian_scan(i) for i in range(48)], seed=0)


def test_the_spectrum_of_undersampled_scans_is_that_of_the_images(fitted):
    """In rings of many samples: within 30% where the image is above the noise, within 2 below, from 8 times it."""
    ring = (radius((SIZE, SIZE)) * RINGS).long().clamp_max(RINGS - 1)
    count = torch.bincount(ring.flatten(), minlength=RINGS)
    truth = torch.bincount(ring.flatten(), true_spectrum().flatten(), RINGS) / count.clamp_min(1)
    many = count >= 12
    assert many.sum() > 15
    miss = (fitted.spectrum[many] / truth[many]).log().abs()
    loud = truth[many] > 0.05
    assert loud.sum() > 10 and miss[loud].max() < 0.3 and miss[loud].mean() < 0.1, miss
    assert miss.max() < 0.7, miss
    assert truth[many].max() / truth[many].min() > 10


def test_it_denoises_better_than_the_white_start(fitted):
    images = torch.stack([gaussian_scan(i).target for i in range(100, 116)])
    noisy = images + 0.5 * complex_noise(images.shape, generator(1))

    def risk(prior):
        return float((prior.denoise(noisy, torch.full((16,), 0.5)) - images).abs().square().mean() / 2)

    def best():
        power = true_spectrum()
        return float((power * 0.25 / (power + 0.25)).mean())

    assert risk(fitted) < 1.1 * best()
    assert risk(GaussianPrior(torch.full((RINGS,), 0.25))) > 1.5 * best()


def test_a_draw_has_the_mean_and_the_covariance_of_the_posterior():
    """Against the posterior written out as matrices, on an image of 6 x 6 pixels."""
    size, noise, draws = 6, 0.3, 6000
    scan = random_scan(np.random.default_rng(3), (size, size), coils=2, acceleration=2.0, center_fraction=0.2)
    clean = fft2c(scan.sens_maps * complex_noise((size, size), generator(2)))
    scan = replace(scan, kspace=scan.mask * clean, noise_std=noise)
    prior = GaussianPrior(torch.linspace(2.0, 0.2, RINGS))
    batch = collate([scan])
    basis = torch.eye(size * size, dtype=torch.complex64).view(-1, size, size)
    encoding = torch.stack([batch.operator.forward(b[None])[0].flatten() for b in basis], dim=1).to(torch.complex128)
    fourier = fft2c(basis).flatten(1).T.to(torch.complex128)
    power = prior._plane((size, size)).flatten().double()
    precision = encoding.mH @ encoding / noise**2 + fourier.mH @ (fourier / power[:, None])
    covariance = torch.linalg.inv(precision)  # per real part
    mean = covariance @ (encoding.mH @ batch.kspace[0].flatten().to(torch.complex128)) / noise**2

    many = collate([scan] * draws)
    images = prior.draw(many, generator(4)).flatten(1).to(torch.complex128)
    scatter = (images - mean).T @ (images - mean).conj() / draws / 2
    scale = float(covariance.diagonal().real.mean())
    assert (images.mean(0) - mean).abs().max() < 5 * (2 * scale / draws) ** 0.5
    assert (scatter - covariance).abs().max() < 0.1 * float(covariance.diagonal().real.max())


def test_the_fit_is_repeatable_and_takes_scans_of_any_sizes():
    scans = [gaussian_scan(i) for i in range(3)]
    scans.append(random_scan(np.random.default_rng(9), (24, 20), coils=3))
    once, again, other = (fit_gaussian(scans, seed, rounds=2).spectrum for seed in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert (once > 0).all()
