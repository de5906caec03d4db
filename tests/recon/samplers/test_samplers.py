"""The samplers against a Gaussian's exact posterior, and against azula where it has the same (docs/samplers.md)."""

import math

import pytest
import torch
from torch import nn

from mrigsure.adapters import FlatDenoiser, flat_measurement, to_images, to_vectors
from mrigsure.denoiser import DenoiserConfig, Prior
from mrigsure.diffusion import ancestral, renoised
from mrigsure.errors import InputError
from mrigsure.fourier import fft2c, ifft2c
from mrigsure.posterior import posterior_samples
from mrigsure.scan import Scan, ScanBatch, collate
from mrigsure.seeds import complex_noise, generator
from mrigsure.spread import PixelSpectrumSpread
from recon.samplers import SAMPLERS, default_sampler, draws
from recon.samplers.common import isotropic_variance, proximal
from recon.samplers.dps import dps_step
from recon.samplers.mmps import gmres, guided_mean
from recon.samplers.pigdm import pigdm_step

SIZE, COILS, SIGMA0 = 8, 3, 0.1
RANGE = {"sigma_max": 20.0, "sigma_min": SIGMA0 / 4}
REFERENCES = [name for name in SAMPLERS if name != "default"]


class Wiener(nn.Module):
    """The exact denoiser of a stationary Gaussian, standard deviation 0.5, whose power falls to 1% at the corner."""

    def __init__(self):
        super().__init__()
        k = (torch.arange(SIZE, dtype=torch.float64) - SIZE // 2) / (SIZE / 2)
        power = torch.exp(math.log(0.01) * (k[:, None] ** 2 + k[None] ** 2).sqrt() / math.sqrt(2))
        self.power = 0.25 * power / power.mean()

    def forward(self, x, sigma):
        return ifft2c((self.power / (self.power + sigma[:, None, None] ** 2)).to(x.real.dtype) * fft2c(x))


WIENER = Wiener()


def units():
    return torch.eye(SIZE**2, dtype=torch.complex128).reshape(-1, SIZE, SIZE)


def scan_batch(pattern="lines", coils=COILS, seed=0):
    """One scan at R = 4, in double precision; "points" are independent of each other."""
    rng = generator(seed, pattern)
    maps = complex_noise((1, coils, SIZE, SIZE), rng, torch.complex128)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    mask = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    if pattern == "lines":
        mask[:, torch.randperm(SIZE, generator=rng)[: SIZE // 4]] = 1
    else:
        mask.view(-1)[torch.randperm(SIZE**2, generator=rng)[: SIZE**2 // 4]] = 1
    mask = mask[None, None]
    image = ifft2c(WIENER.power.sqrt() * complex_noise((1, SIZE, SIZE), rng, torch.complex128))
    noise = complex_noise(maps.shape, rng, torch.complex128)
    kspace = mask * (fft2c(maps * image[:, None]) + SIGMA0 * noise)
    return ScanBatch(kspace, mask, maps, mask, torch.tensor([SIGMA0], dtype=torch.float64))


def repeated(batch, count):
    """The scan `count` times over; mask and maps, being the same, once."""
    kspace, sigma0 = batch.kspace.expand(count, -1, -1, -1), batch.sigma0.expand(count)
    return ScanBatch(kspace, batch.mask, batch.sens_maps, batch.density, sigma0)


def posterior(batch, power=WIENER.power):
    """Exact mean (pixels,) and covariance per real part, under the prior or another spectrum of the image."""
    prior = ifft2c(power * fft2c(units())).flatten(1).T
    normal = batch.operator.normal(units()).flatten(1).T
    covariance = torch.linalg.inv(normal / SIGMA0**2 + torch.linalg.inv(prior))
    return covariance @ batch.operator.adjoint(batch.kspace).flatten() / SIGMA0**2, covariance


def bias(name, nfe, count=100):
    """Error of the mean over the posterior's deviation; the variance over the exact one, mean over the modes."""
    batch = scan_batch()
    mean, covariance = posterior(batch)
    options = dict(nfe=nfe, generator=generator(0, "draws"), **RANGE)
    images = SAMPLERS[name](WIENER, repeated(batch, count), **options).flatten(1)
    values, vectors = torch.linalg.eigh(covariance)
    error = (images.mean(0) - mean).abs().square().sum() / 2 / values.sum() - 1 / count
    modes = (images - images.mean(0)) @ vectors.conj()
    ratio = modes.abs().square().sum(0) / 2 / (count - 1) / values
    return float(error.clamp_min(0).sqrt()), float(ratio.mean())


@pytest.mark.parametrize(
    ("name", "nfe", "error", "ratio"),
    [
        ("default", 60, 0.2, (0.93, 1.07)),
        ("daps", 120, 0.15, (0.95, 1.08)),
        ("ula", 300, 0.2, (0.98, 1.12)),
        ("mmps", 50, 0.15, (0.72, 0.92)),
        ("ald", 300, 0.3, (1.03, 1.3)),
        ("dds", 100, 0.2, (0.65, 0.82)),
        ("diffpir", 100, 0.3, (0.75, 0.95)),
        ("dps", 100, 0.35, (0.6, 0.85)),
        ("pigdm", 30, 0.3, (0.35, 0.6)),
    ],
)
def test_mean_and_variance_on_a_gaussian_prior_are_the_documented_ones(name, nfe, error, ratio):
    """The exact ones are near 1; the others stay as biased as docs/samplers.md says, neither more nor less."""
    found, variance = bias(name, nfe, count=40 if name == "mmps" else 100)
    assert found < error
    assert ratio[0] < variance < ratio[1]


@pytest.mark.parametrize("name", ["daps", "ula", "mmps", "ald"])
def test_the_bias_of_the_variance_falls_with_the_budget(name):
    few, many = (abs(bias(name, nfe, count=40)[1] - 1) for nfe in (12, 48))
    assert many < 0.6 * few


def test_mmps_mean_is_the_exact_one_at_every_level():
    """E[x | x_sigma, y] of the Gaussian by dense algebra, over 3 decades of sigma."""
    batch = scan_batch("points")
    for sigma in (5.0, 0.5, 0.05):
        x = sigma * complex_noise((1, SIZE, SIZE), generator(1, str(sigma)), torch.complex128)
        spread = WIENER.power * sigma**2 / (WIENER.power + sigma**2)
        mean, covariance = posterior(batch, spread)
        x0 = WIENER(x, torch.tensor([sigma])).flatten()
        expected = mean + x0 - covariance @ batch.operator.normal(x0.view_as(x)).flatten() / SIGMA0**2
        found = guided_mean(WIENER, batch, x, sigma, steps=60).flatten()
        assert (found - expected).norm() < 2e-3 * expected.norm()


def test_gmres_solves_a_system_that_is_neither_symmetric_nor_definite():
    rng = generator(0, "gmres")
    matrix = torch.randn(2, 6, 6, generator=rng, dtype=torch.float64)
    matrix = matrix / matrix.norm(dim=(1, 2), keepdim=True) + torch.diag(torch.tensor([1.0, 1, 1, 1, -1, 2]).double())

    def operator(image):
        real = torch.view_as_real(image).reshape(2, 6, 1)
        return torch.view_as_complex((matrix @ real).reshape(2, 1, 3, 2))

    truth = complex_noise((2, 1, 3), rng, torch.complex128)
    assert torch.allclose(gmres(operator, operator(truth), 6, 1e-12), truth, atol=1e-9)
    assert torch.equal(gmres(operator, torch.zeros_like(truth), 6, 1e-12), torch.zeros_like(truth))


def test_two_levels_of_daps_have_the_variance_that_dense_algebra_gives():
    """Each draws exactly from N(x; f(x_sigma), r^2) N(y; A x, sigma0^2), and then adds the following level's noise."""
    batch, count = scan_batch(), 2000
    normal = batch.operator.normal(units()).flatten(1).T
    state, sigmas = 1.0 * torch.eye(SIZE**2, dtype=torch.complex128), (1.0, 0.5)
    for sigma, following in zip(sigmas, (0.5, 0.0), strict=True):
        variance = isotropic_variance(sigma)
        inner = torch.linalg.inv(normal / SIGMA0**2 + torch.eye(SIZE**2) / variance)
        gain = inner @ WIENER(units(), torch.tensor([sigma])).flatten(1).T / variance
        drawn = inner + gain @ state @ gain.mH
        state = drawn + following**2 * torch.eye(SIZE**2)
    options = dict(nfe=2, sigma_max=sigmas[0], sigma_min=sigmas[1], generator=generator(0, "daps"))
    images = SAMPLERS["daps"](WIENER, repeated(batch, count), **options).flatten(1)
    modes = (images - images.mean(0)).T
    ratio = (torch.linalg.inv(drawn) @ modes @ modes.mH).diagonal().real.mean() / (2 * count)
    assert ratio == pytest.approx(1, abs=0.02)


def test_the_proximal_step_with_perturbations_has_its_covariance():
    batch, variance = scan_batch(), 0.3
    dense = torch.linalg.inv(batch.operator.normal(units()).flatten(1).T / SIGMA0**2 + torch.eye(SIZE**2) / variance)
    many, rng = repeated(batch, 4000), generator(0, "proximal")
    noise = SIGMA0 * complex_noise(many.kspace.shape, rng, torch.complex128)
    image = variance**0.5 * complex_noise((4000, SIZE, SIZE), rng, torch.complex128)
    drawn = proximal(many, noise, image, variance).flatten(1)
    assert (drawn.T @ drawn.conj() / 8000 - dense).norm() < 0.2 * dense.norm()


def test_the_proximal_step_ends_at_high_levels_under_point_masks(make_scan):
    """A condition at which the strict solve gives up: the data is met to its noise, and nothing is raised."""
    scan = make_scan((64, 48), 6, "points", 4, 0.02)
    batch, start = scan.batch(), torch.zeros(1, 64, 48, dtype=torch.complex64)
    with pytest.raises(ArithmeticError):
        batch.operator.solve(batch.operator.adjoint(batch.kspace), batch.sigma0.square() / 20.0**2)
    image = proximal(batch, batch.kspace, start, 20.0**2)
    misfit = (batch.operator.forward(image) - batch.kspace).abs().square().sum() / (2 * scan.noise_std**2)
    assert misfit < scan.mask.sum() * len(scan.kspace)


def single(batch):
    """The batch in single precision."""
    return ScanBatch(
        batch.kspace.to(torch.complex64),
        batch.mask.float(),
        batch.sens_maps.to(torch.complex64),
        batch.density.float(),
        batch.sigma0.float(),
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_point_masks_unequal_coil_counts_and_single_precision(name):
    scans = [scan_of(single(scan_batch("points", coils, seed=coils))) for coils in (2, 4)]
    batch = collate(scans)
    images = SAMPLERS[name](WIENER, batch, nfe=120, generator=generator(0, "x"), **RANGE)
    assert images.shape == (2, SIZE, SIZE)
    assert images.dtype == torch.complex64
    assert not images.requires_grad
    misfit = (batch.kspace - batch.operator.forward(images)).abs().square().flatten(1).sum(1)
    assert (misfit < 0.3 * batch.kspace.abs().square().flatten(1).sum(1)).all()


def scan_of(batch):
    return Scan(batch.kspace[0], batch.mask[0, 0], batch.sens_maps[0], batch.density[0, 0], SIGMA0)


@pytest.fixture
def prior():
    known = {"spread": (0.5, 2.0), "jacobian": ((5.0, 0.4, 0.2), (0.01, 0.2, 0.1))}
    return Prior(WIENER, DenoiserConfig(sigma_min=0.01, sigma_max=5.0, **known))


@pytest.mark.parametrize("name", ["default", "dds"])
def test_draws_do_not_depend_on_who_else_is_in_the_batch(name, prior):
    """Shapes, the share of progress, and chunks of one scan, whose maps are kept once, against one by one."""
    batch = collate([scan_of(single(scan_batch(seed=seed))) for seed in (0, 1)])
    done = []

    def images(chunk, progress=None):
        options = dict(samples=3, nfe=8, generator=generator(0, "draws"), chunk=chunk, progress=progress)
        return draws(name, prior, batch, **options)

    assert images(4, lambda *args: done.append(args)).shape == (2, 3, SIZE, SIZE)
    assert done[-1] == (48, 48)
    assert [now for now, _ in done] == sorted(now for now, _ in done)
    one_by_one = [images(1), images(1)]
    assert torch.equal(*one_by_one)


def test_the_default_takes_the_priors_calibrated_spread_and_its_jacobian(prior):
    batch = single(scan_batch())
    found = draws("default", prior, batch, samples=1, nfe=8, generator=generator(0, "x"))[:, 0]
    options = dict(nfe=8, sigma_max=5.0, sigma_min=SIGMA0 / 4)
    expected = default_sampler(prior.spread)(prior, batch, generator=generator(0, "x"), **options)
    assert torch.allclose(found, expected)
    levels = prior.spread.most_levels(8)
    again = posterior_samples(prior, batch, samples=1, levels=levels, generator=generator(0, "x"))[:, 0]
    assert torch.allclose(again, expected)
    for other in (PixelSpectrumSpread(), PixelSpectrumSpread(prior.config.spread)):
        assert not torch.allclose(found, default_sampler(other)(prior, batch, generator=generator(0, "x"), **options))


def test_unknown_names_and_budgets_too_small_are_refused(prior):
    batch = single(scan_batch())
    options = dict(samples=1, generator=generator(0, "x"))
    with pytest.raises(InputError, match="one of default, ald"):
        draws("dpss", prior, batch, nfe=8, **options)
    for name in SAMPLERS:
        with pytest.raises(InputError, match="nfe"):
            draws(name, prior, batch, nfe=1, **options)


def test_several_sets_of_maps_go_to_the_default_sampler_alone(prior):
    batch = single(scan_batch())
    maps = torch.stack([batch.sens_maps, batch.sens_maps.flip(-1)], 1) / 2**0.5
    sets = ScanBatch(batch.kspace, batch.mask, maps, batch.density, batch.sigma0)
    for name in REFERENCES:
        with pytest.raises(InputError, match="2 sets of maps"):
            draws(name, prior, sets, samples=1, nfe=8, generator=generator(0, "x"))
    assert draws("default", prior, sets, samples=1, nfe=8, generator=generator(0, "x")).isfinite().all()


@pytest.fixture
def flat(prior):
    """The prior, y and A as azula wants them, at one level and its following one, with the state and the noise."""
    noise = pytest.importorskip("azula.noise")
    denoiser = FlatDenoiser(prior, (SIZE, SIZE), noise.VESchedule(0.01, 5.0))
    batch = single(scan_batch("points"))
    t, s = torch.tensor(0.6), torch.tensor(0.5)
    x, fresh = complex_noise((2, SIZE, SIZE), generator(0, "state"))[:, None]
    sigma, following = (float(denoiser.schedule(time)[1]) for time in (t, s))
    return denoiser, batch, (t, s), (sigma, following), sigma * x, fresh


def azulas_step(sampler, x, times, fresh, monkeypatch):
    """One step of an azula sampler with `fresh` for its noise."""
    monkeypatch.setattr(torch, "randn_like", lambda like: to_vectors(fresh))
    return to_images(sampler.step(to_vectors(x), *times), (SIZE, SIZE))


def test_a_step_of_dps_is_azulas(flat, prior, monkeypatch):
    """azula's step length is the paper's, zeta' over the residual's norm."""
    guidance = pytest.importorskip("azula.guidance")
    denoiser, batch, times, (sigma, following), x, fresh = flat
    sampler = guidance.DPSSampler(denoiser, *flat_measurement(batch), zeta=0.7, silent=True)
    x0 = prior.denoise(x, sigma)
    norm = (batch.kspace - batch.operator.forward(x0)).norm()
    found = dps_step(prior, batch, x, sigma, following, (0.7 / norm)[None], fresh)
    assert torch.allclose(found, azulas_step(sampler, x, times, fresh, monkeypatch), atol=1e-5)
    alone = renoised(x, x0, sigma, following, ancestral(sigma, following), fresh)
    assert (found - alone).abs().max() > 1e-3  # guided at all


def test_a_step_of_pigdm_is_azulas_with_the_regularised_pseudoinverse(flat, prior, monkeypatch):
    guidance = pytest.importorskip("azula.guidance")
    denoiser, batch, times, (sigma, following), x, fresh = flat
    variance = sigma**2 * 0.25 / (sigma**2 + 0.25)

    def pseudoinverse(y):
        kspace = to_images(y, (COILS, SIZE, SIZE))
        return to_vectors(batch.operator.solve(batch.operator.adjoint(kspace), batch.sigma0.square() / variance))

    sampler = guidance.PGDMSampler(denoiser, *flat_measurement(batch), pseudoinverse, eta=1.0, silent=True)
    found = pigdm_step(prior, batch, x, sigma, following, fresh)
    assert torch.allclose(found, azulas_step(sampler, x, times, fresh, monkeypatch), atol=1e-4)


def test_the_data_step_of_diffpir_is_azulas(flat, prior):
    guidance = pytest.importorskip("azula.guidance")
    denoiser, batch, (t, _), (sigma, _), x, _ = flat
    y, forward = flat_measurement(batch)
    azulas = guidance.DiffPIRDenoiser(denoiser, y, forward, SIGMA0**2, lmbda=1.0, solver="cg", iterations=40)
    found = proximal(batch, batch.kspace, prior.denoise(x, sigma), sigma**2)
    assert torch.allclose(found, to_images(azulas(to_vectors(x), t).mean, (SIZE, SIZE)), atol=1e-3)


def test_the_mean_of_mmps_is_azulas(flat, prior):
    guidance, covariance = (pytest.importorskip(f"azula.{name}") for name in ("guidance", "linalg.covariance"))
    denoiser, batch, (t, _), (sigma, _), x, _ = flat
    noise = covariance.IsotropicCovariance(torch.tensor(SIGMA0**2))
    azulas = guidance.MMPSDenoiser(denoiser, *flat_measurement(batch), noise, solver="cg", iterations=40)
    found = guided_mean(prior, batch, x, sigma, steps=40)
    assert torch.allclose(found, to_images(azulas(to_vectors(x), t).mean, (SIZE, SIZE)), atol=2e-3)
