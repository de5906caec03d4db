"""Posterior sampling against the exact posterior of Gaussian priors (docs/method.md, section 9)."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mrigsure.diffusion import sigma_schedule
from mrigsure.fourier import blur, fft2c, ifft2c
from mrigsure.posterior import SWEEP_SIGMA, draw
from mrigsure.scan import ScanBatch
from mrigsure.seeds import Mirrored, complex_noise, generator, in_pairs
from mrigsure.spread import Factor, PixelSpectrumSpread, ScalarSpread

SIGMA0 = 0.1


@dataclass
class GaussianPrior:
    """x ~ N(0, covariance) on complex (size, size) images; the exact denoiser and its exact R as a spread."""

    covariance: torch.Tensor
    size: int

    def __post_init__(self):
        self.values, self.vectors = torch.linalg.eigh(self.covariance)
        self.values = self.values.clamp_min(0)

    def filter(self, gains, x):
        return ((x.flatten(1) @ self.vectors.conj() * gains) @ self.vectors.T).view_as(x)

    def denoise(self, x, sigma):
        return self.filter(self.values / (self.values + sigma[0] ** 2), x)

    def exact_spread(self, denoise, x, x0, sigma, rng):
        prior, amplitude = self, (sigma**2 * self.values / (self.values + sigma**2)).sqrt()

        class ExactFactor(Factor):
            def apply(self, image):
                return prior.filter(amplitude, image)

            adjoint = apply

        return ExactFactor()

    def sample(self, count, rng):
        return self.filter(self.values.sqrt(), complex_noise((count, self.size, self.size), rng, torch.complex128))


def stationary_prior(size, edge=0.01):
    """A falling power spectrum, from 1 at the centre to `edge` at the corner."""
    k = (torch.arange(size, dtype=torch.float64) - size // 2) / (size / 2)
    radius = (k[:, None] ** 2 + k[None] ** 2).sqrt()
    power = torch.exp(np.log(edge) * radius / radius.max())
    units = torch.eye(size**2, dtype=torch.complex128).reshape(-1, size, size)
    return GaussianPrior(ifft2c(power * fft2c(units)).flatten(1).T.contiguous(), size), power


def nonstationary_prior(size):
    """The stationary prior with its deviation going from 0.3 to 1.7 across the image."""
    stationary, _ = stationary_prior(size)
    deviation = torch.linspace(0.3, 1.7, size, dtype=torch.float64).expand(size, size).flatten()
    return GaussianPrior(deviation[:, None] * stationary.covariance * deviation[None], size)


def measurement(prior, count, coils=2, rate=4, seed=0):
    """One scan of one image, repeated `count` times, and its exact posterior mean and covariance."""
    size, rng = prior.size, generator(seed, "measurement")
    maps = complex_noise((1, coils, size, size), rng, torch.complex128)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    mask = torch.zeros(1, 1, size, size, dtype=torch.float64)
    mask[..., torch.randperm(size, generator=rng)[: size // rate]] = 1
    batch = ScanBatch(torch.zeros(1, coils, size, size), mask, maps, mask, torch.tensor([SIGMA0], dtype=torch.float64))
    kspace = batch.operator.forward(prior.sample(1, rng))
    kspace = kspace + SIGMA0 * mask * complex_noise(kspace.shape, rng, torch.complex128)
    units = torch.eye(size**2, dtype=torch.complex128).reshape(-1, size, size)
    many = ScanBatch(kspace, mask.expand(size**2, -1, -1, -1), maps.expand(size**2, -1, -1, -1), mask, SIGMA0)
    normal = many.operator.normal(units).flatten(1).T
    precision = normal / SIGMA0**2 + torch.linalg.pinv(prior.covariance, hermitian=True)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ batch.operator.adjoint(kspace).flatten() / SIGMA0**2
    wide = [tensor.expand(count, -1, -1, -1) for tensor in (kspace, mask, maps, mask)]
    repeated = ScanBatch(*wide, torch.full((count,), SIGMA0, dtype=torch.float64))
    return repeated, mean, covariance


def draws_of(prior, spread, levels, count, seed=0, **options):
    batch, mean, covariance = measurement(prior, count)
    sigmas = sigma_schedule(levels, 20.0, SIGMA0 / 20)
    images = draw(prior.denoise, batch, sigmas, spread=spread, generator=generator(seed, "draws"), **options)
    return images.flatten(1), mean, covariance


def variance_ratio(images, covariance, weakest=1.0):
    """Variance of the draws over the exact one, mean over the posterior's modes from the weakest up to a share."""
    values, vectors = torch.linalg.eigh(covariance)
    modes = (images - images.mean(0)) @ vectors.conj()
    ratio = modes.abs().square().mean(0) / 2 / values
    return float(ratio[: int(len(ratio) * weakest)].mean())


@pytest.mark.parametrize(("levels", "eta"), [(16, 1.0), (30, 1.0), (16, 0.5)])
def test_draws_are_exact_for_a_gaussian_prior_with_exact_spread(levels, eta):
    prior, _ = stationary_prior(8)
    images, mean, covariance = draws_of(prior, prior.exact_spread, levels, 2000, eta=eta)
    assert variance_ratio(images, covariance) == pytest.approx(1, abs=0.01)
    error = (images.mean(0) - mean).abs().square().sum() / 2
    trace = covariance.diagonal().real.sum()
    assert error < 1e-3 * trace


def test_pixel_times_spectrum_spread_follows_a_nonstationary_prior():
    prior = nonstationary_prior(16)
    images, _, covariance = draws_of(prior, PixelSpectrumSpread(), 30, 300)
    values, vectors = torch.linalg.eigh(covariance)
    ratio = ((images - images.mean(0)) @ vectors.conj()).abs().square().mean(0) / 2 / values
    assert 0.9 < float(ratio[: len(ratio) // 2].mean()) < 1.1
    assert 0.9 < float(ratio[len(ratio) // 2 :].mean()) < 1.1


def test_the_unperturbed_sampler_is_under_dispersed():
    """A guard: it may serve as a point estimate, never for uncertainty or for refinement."""
    prior, _ = stationary_prior(8)
    images, _, covariance = draws_of(prior, prior.exact_spread, 30, 2000, quiet_sigma=torch.inf)
    assert variance_ratio(images, covariance) < 0.8


def test_solves_that_stop_early_leave_the_draws_too_wide_not_too_narrow(monkeypatch):
    monkeypatch.setattr("mrigsure.posterior._MOST_ITERATIONS", 1)
    prior, _ = stationary_prior(8)
    images, _, covariance = draws_of(prior, prior.exact_spread, 16, 300)
    assert 1.02 < variance_ratio(images, covariance) < 1.15


def test_sweeps_undo_a_wrong_spread_where_their_small_steps_reach():
    """Of the better known half of the modes. The few ancestral steps in use are too sure of a Gaussian."""
    prior, _ = stationary_prior(8)

    def twice(*arguments):
        exact = prior.exact_spread(*arguments)

        class Wide(Factor):
            def apply(self, image):
                return 2 * exact.apply(image)

            adjoint = apply

        return Wide()

    ratios = {}
    for sweeps, steps in ((0, 20), (20, 20), (20, 3)):
        images, _, covariance = draws_of(prior, twice, 16, 300, sweeps=sweeps, sweep_steps=steps)
        ratios[sweeps, steps] = variance_ratio(images, covariance, 0.5)
    assert ratios[0, 20] > 1.2
    assert ratios[20, 20] == pytest.approx(1, abs=0.05)
    assert 0.5 < ratios[20, 3] < 0.8


def test_sweeps_wait_for_a_prior_that_is_defined_below_them():
    prior, _ = stationary_prior(8)
    batch, _, _ = measurement(prior, 2)

    def images(lowest, sweeps):
        sigmas = sigma_schedule(8, 20.0, lowest)
        options = {"spread": prior.exact_spread, "generator": generator(0), "sweeps": sweeps}
        return draw(prior.denoise, batch, sigmas, **options)

    assert torch.equal(images(0.51 * SWEEP_SIGMA, 3), images(0.51 * SWEEP_SIGMA, 0))
    assert not torch.equal(images(0.4 * SWEEP_SIGMA, 3), images(0.4 * SWEEP_SIGMA, 0))


@pytest.mark.parametrize("paired", [False, True])
def test_with_a_generator_each_draws_do_not_depend_on_the_batch(paired):
    """Nor need the draws of a pair be computed at once."""
    prior = nonstationary_prior(8)
    batch, _, _ = measurement(prior, 6)
    sigmas = sigma_schedule(6, 20.0, SIGMA0 / 4)

    def drawn(first, last):
        part = batch.of(slice(first, last))
        rng = in_pairs(6, 0, "draw") if paired else [generator(0, "draw", number) for number in range(6)]
        return draw(prior.denoise, part, sigmas, spread=PixelSpectrumSpread(), generator=rng[first:last])

    together = drawn(0, 6)
    torch.testing.assert_close(torch.cat([drawn(0, 1), drawn(1, 3), drawn(3, 6)]), together, rtol=1e-8, atol=1e-8)
    assert (together[0] - together[1]).abs().max() > 0.01


@pytest.mark.parametrize(("exact", "most", "tolerance"), [(True, 1e-3, 0.03), (False, 0.02, 0.1)])
def test_the_mean_of_pairs_scatters_far_less_and_each_draw_keeps_its_variance(exact, most, tolerance):
    """A Gaussian posterior: a pair's deviations are opposite, so that even one pair's mean is the posterior's.

    With the probed spread the sampler has a bias of its own, and solves that stop early are not linear in the noise.
    """
    prior, _ = stationary_prior(8)
    spread = prior.exact_spread if exact else PixelSpectrumSpread()
    batch, mean, covariance = measurement(prior, 1000)
    images = draw(
        prior.denoise, batch, sigma_schedule(16, 20.0, SIGMA0 / 20), spread=spread, generator=in_pairs(1000, 0, "draw")
    ).flatten(1)
    trace = covariance.diagonal().real.sum()
    pairs = (images[::2] + images[1::2]) / 2
    assert (pairs - pairs.mean(0)).abs().square().sum(1).mean() / 2 < most * trace, "independent ones have a half"
    assert (images.mean(0) - mean).abs().square().sum() / 2 < most * trace
    for one in (images[::2], images[1::2]):
        assert variance_ratio(one, covariance) == pytest.approx(1, abs=tolerance)


def test_all_that_a_draw_takes_from_chance_is_mirrored(monkeypatch):
    taken = {False: [], True: []}

    def recorded(shape, generators, *words):
        noise = complex_noise(shape, generators, *words)
        for entry, one in zip(noise, generators, strict=True):
            taken[isinstance(one, Mirrored)].append(entry)
        return noise

    for module in ("posterior", "spread"):
        monkeypatch.setattr(f"mrigsure.{module}.complex_noise", recorded)
    prior = nonstationary_prior(8)
    sigmas = sigma_schedule(5, 20.0, SIGMA0 / 4)
    draw(prior.denoise, measurement(prior, 2)[0], sigmas, spread=PixelSpectrumSpread(), generator=in_pairs(2, 0))
    start, levels, probes = 3, 4 * 3, 3  # the last level ends in a mean
    assert len(taken[False]) == start + levels + probes
    assert all(torch.equal(mirrored, -noise) for noise, mirrored in zip(*taken.values(), strict=True))


def test_scalar_spread_is_a_little_too_wide():
    prior, _ = stationary_prior(8)
    images, _, covariance = draws_of(prior, ScalarSpread(signal=1.0), 16, 2000)
    assert 1.0 < variance_ratio(images, covariance) < 1.5


def test_gaussian_expectation_maximisation_with_our_e_step_reaches_the_prior():
    """24 rounds of persistent chains on single-coil scans, R = 3, from a white start; the M-step fits a spectrum.

    The fitted prior reconstructs new scans within 0.1 dB of the true one, and keeps the high frequencies' variance.
    """
    size, scans = 16, 150
    true, power = stationary_prior(size, edge=0.02)
    rng = generator(0, "em")
    k = torch.arange(size, dtype=torch.float64) - size // 2
    ring = (k[:, None] ** 2 + k[None] ** 2).sqrt().round().long().flatten()

    def radial(spectrum):
        total = torch.zeros(int(ring.max()) + 1, dtype=torch.float64).index_add_(0, ring, spectrum.flatten())
        return (total / torch.bincount(ring))[ring].view(size, size)

    def acquire(images):
        mask = (torch.rand(len(images), 1, 1, size, generator=rng, dtype=torch.float64) < 0.3).double()
        mask[..., size // 2 - 1 : size // 2 + 1] = 1
        mask = mask.expand(-1, 1, size, size)
        maps = torch.ones(len(images), 1, size, size, dtype=torch.complex128)
        noisy = fft2c(images)[:, None] + SIGMA0 * complex_noise((len(images), 1, size, size), rng, torch.complex128)
        sigma0 = torch.full((len(images),), SIGMA0, dtype=torch.float64)
        return ScanBatch(mask * noisy, mask, maps, mask, sigma0)

    truth = true.sample(scans, rng)
    batch = acquire(truth)
    batch.operator.factorise()
    fitted = torch.full((size, size), 0.5, dtype=torch.float64)
    chains = None
    for _ in range(24):

        def denoise(x, sigma, spectrum=fitted):
            return ifft2c(spectrum / (spectrum + sigma[0] ** 2) * fft2c(x))

        first = chains is None
        sigmas = sigma_schedule(16 if first else 8, 20.0 if first else 2.0, SIGMA0 / 4)
        start = None if first else chains + 2.0 * complex_noise(chains.shape, rng, torch.complex128)
        chains = draw(denoise, batch, sigmas, spread=PixelSpectrumSpread(), generator=rng, start=start)
        fitted = radial(fft2c(chains).abs().square().mean(0) / 2)

    high = (ring > 0.8 * size / 2).view(size, size)
    assert 0.7 < float((fitted / radial(power))[high].mean()) < 1.6

    tests = true.sample(200, rng)
    new = acquire(tests)

    def error(spectrum):  # single coil: the posterior mean is a Wiener filter on the sampled lines
        gain = new.mask[:, 0] * spectrum / (spectrum + SIGMA0**2)
        return (ifft2c(gain * new.kspace[:, 0]) - tests).abs().square().mean()

    assert 10 * torch.log10(error(fitted) / error(radial(power))) < 0.1


def test_draws_and_what_they_leave_in_the_operator_are_open_to_autograd():
    """They are drawn in inference mode, whose tensors autograd refuses; training goes on with both."""
    prior = nonstationary_prior(8)
    batch, _, _ = measurement(prior, 2)
    sigmas = sigma_schedule(4, 20.0, SIGMA0 / 4)
    images = draw(prior.denoise, batch, sigmas, spread=PixelSpectrumSpread(), generator=generator(0))
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    energy = batch.operator.normal(weight * images).abs().square().sum() + blur(weight * images.real).square().sum()
    (energy + (weight * batch.operator.sampled).sum()).backward()
    assert weight.grad > 0
    assert "sampled" in vars(batch.operator), "nothing was kept, so nothing was tested"


def test_factors_hold_above_a_level_alone():
    prior, _ = stationary_prior(8)
    x = complex_noise((2, 8, 8), generator(30), torch.complex128)

    def variance(spread, sigma):
        x0 = prior.denoise(x, torch.full((2,), sigma))
        return spread.start()(prior.denoise, x, x0, sigma, generator(31)).amplitude.square()

    factors = PixelSpectrumSpread((3.0,) * 8, above=0.2)
    for sigma, factor in ((0.3, 3), (0.2, 1), (0.1, 1)):
        torch.testing.assert_close(variance(factors, sigma), factor * variance(PixelSpectrumSpread(), sigma))
