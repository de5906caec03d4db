"""Inside other libraries' samplers the prior gives what it gives at home; against a Gaussian's exact posterior."""

import numpy as np
import pytest
import torch
from torch import nn

from mrigsure.adapters import FlatDenoiser, RealDenoiser, flat_measurement, to_images, to_vectors
from mrigsure.denoiser import DenoiserConfig, Prior
from mrigsure.gaussian import GaussianPrior
from mrigsure.phantoms import random_scan
from mrigsure.posterior import solve_level
from mrigsure.scan import collate
from mrigsure.seeds import complex_noise, generator
from mrigsure.spread import PixelSpectrumFactor

SHAPE = (10, 8)


class Wiener(nn.Module):
    """A denoiser that is exact, for a Gaussian prior."""

    gaussian = GaussianPrior(torch.linspace(0.6, 0.02, 48))

    def forward(self, x, sigma):
        return self.gaussian.denoise(x, sigma)


@pytest.fixture(scope="module")
def prior():
    return Prior(Wiener(), DenoiserConfig(sigma_min=0.01, sigma_max=5.0))


@pytest.fixture(scope="module")
def batch():
    options = dict(coils=3, acceleration=2.0, center_fraction=0.25, noise=0.4)
    return collate([random_scan(np.random.default_rng(i), SHAPE, **options) for i in range(2)])


@pytest.mark.parametrize("sigma", [0.3, torch.tensor(0.3), torch.tensor([0.3, 0.3]), torch.full((2, 1, 1, 1), 0.3)])
def test_deepinvs_calling_convention_on_two_real_channels(prior, sigma):
    x = complex_noise((2, *SHAPE), generator(0))
    output = RealDenoiser(prior)(torch.stack([x.real, x.imag], dim=1), sigma)
    expected = prior.denoise(x, 0.3)
    assert torch.allclose(output, torch.stack([expected.real, expected.imag], dim=1), atol=1e-6)


def test_every_image_has_its_own_level_and_gradients_flow(prior):
    x = complex_noise((2, *SHAPE), generator(0))
    real = torch.stack([x.real, x.imag], dim=1).requires_grad_()
    levels = torch.tensor([0.1, 2.0])
    output = RealDenoiser(prior)(real, levels)
    assert torch.allclose(torch.complex(*output.detach().unbind(1)), prior.denoise(x, levels), atol=1e-6)
    output.square().sum().backward()
    assert (real.grad != 0).all()


def test_vectors_are_images_and_the_measurement_is_the_scans(batch):
    image = complex_noise((2, *SHAPE), generator(1))
    y, forward = flat_measurement(batch)
    assert torch.equal(to_images(to_vectors(image), SHAPE), image)
    assert torch.equal(to_images(y, batch.kspace.shape[1:]), batch.kspace)
    expected = to_vectors(batch.operator.forward(image))
    assert torch.allclose(forward(to_vectors(image)), expected)
    assert y.shape == expected.shape == (2, 2 * 3 * 10 * 8)


@pytest.mark.parametrize("schedule", ["VESchedule", "VPSchedule"])
def test_azulas_schedules_reach_the_prior_at_the_right_level(prior, schedule):
    noise = pytest.importorskip("azula.noise")
    denoiser = FlatDenoiser(prior, SHAPE, getattr(noise, schedule)())
    for t in (torch.tensor(0.4), torch.tensor([0.3, 0.6])):
        alpha, sigma = (v.expand(2) for v in denoiser.schedule(t))
        image = complex_noise((2, *SHAPE), generator(2))
        x_t = alpha[:, None] * to_vectors(image)
        assert torch.allclose(to_images(denoiser(x_t, t).mean, SHAPE), prior.denoise(image, sigma / alpha), atol=1e-5)


@pytest.fixture(scope="module")
def flat(prior):
    noise = pytest.importorskip("azula.noise")
    return FlatDenoiser(prior, SHAPE, noise.VESchedule(prior.config.sigma_min, prior.config.sigma_max))


def test_azulas_ddim_walks_the_priors_own_path(flat, prior):
    sample = pytest.importorskip("azula.sample")
    sampler = sample.DDIMSampler(flat, steps=12, silent=True)
    torch.manual_seed(0)
    x = sampler.init((3, 2 * SHAPE[0] * SHAPE[1]))
    image = to_images(x, SHAPE)
    sigmas = [float(flat.schedule(t)[1]) for t in sampler.timesteps]
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        mean = prior.denoise(image, sigma)
        image = mean + following / sigma * (image - mean)
    assert torch.allclose(to_images(sampler(x), SHAPE), image, atol=1e-4)


def gaussian_posterior_mean(batch, state, sigma):
    """E[x | x_sigma, y] of the Gaussian, out of our own solver: N(f(x_sigma), sigma^2 J) updated by y."""
    power = Wiener.gaussian._plane(SHAPE)
    mean = Wiener.gaussian.denoise(state, torch.full((2,), sigma))
    amplitude = (sigma**2 * power / (power + sigma**2)).sqrt().expand(2, *SHAPE)
    factor = PixelSpectrumFactor(torch.ones(2, *SHAPE), amplitude)
    seen = batch.operator.adjoint(batch.kspace)
    return solve_level(batch.operator, seen, batch.sigma0, mean, factor, torch.zeros_like(state))


def test_azulas_mmps_finds_the_gaussians_exact_posterior_mean(flat, batch):
    guidance, covariance = (pytest.importorskip(f"azula.{name}") for name in ("guidance", "linalg.covariance"))
    y, forward = flat_measurement(batch)
    cov_y = covariance.IsotropicCovariance(batch.sigma0[0] ** 2)
    denoiser = guidance.MMPSDenoiser(flat, y, forward, cov_y, solver="cg", iterations=25)
    t = torch.tensor(0.6)
    state = complex_noise((2, *SHAPE), generator(3))
    found = to_images(denoiser(to_vectors(state), t).mean, SHAPE)
    expected = gaussian_posterior_mean(batch, state, float(flat.schedule(t)[1]))
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_azulas_diffpir_solves_our_scan(flat, batch, prior):
    guidance = pytest.importorskip("azula.guidance")
    y, forward = flat_measurement(batch)
    strength = 2.0
    denoiser = guidance.DiffPIRDenoiser(
        flat, y, forward, batch.sigma0[0] ** 2, lmbda=strength, solver="cg", iterations=40
    )
    t = torch.tensor(0.5)
    sigma = float(flat.schedule(t)[1])
    state = complex_noise((2, *SHAPE), generator(4))
    mean = prior.denoise(state, sigma)
    shift = strength * batch.sigma0**2 / sigma**2
    residual = batch.operator.adjoint(batch.kspace) - batch.operator.normal(mean)
    expected = mean + batch.operator.solve(residual, shift)
    assert torch.allclose(to_images(denoiser(to_vectors(state), t).mean, SHAPE), expected, atol=1e-2)


def test_azulas_dps_comes_nearer_to_the_scan_than_the_prior_alone(flat, batch):
    guidance, sample = pytest.importorskip("azula.guidance"), pytest.importorskip("azula.sample")
    y, forward = flat_measurement(batch)

    def distance(sampler):
        torch.manual_seed(1)
        return float((y - forward(sampler(sampler.init((2, 2 * SHAPE[0] * SHAPE[1]))))).norm() / y.norm())

    alone = distance(sample.DDPMSampler(flat, steps=30, silent=True))
    guided = distance(guidance.DPSSampler(flat, y, forward, zeta=1.0, steps=30, silent=True))
    assert guided < 0.7 * alone
