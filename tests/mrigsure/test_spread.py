"""R from the Jacobian that a prior knows of itself, on Gaussian priors: theirs is known."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mrigsure.calibrate import calibrate_spread, jacobian_of
from mrigsure.fourier import fft2c, ifft2c, radial_bands, radius
from mrigsure.phantoms import coil_maps
from mrigsure.posterior import draw, draw_levels
from mrigsure.scan import Scan, ScanBatch, collate
from mrigsure.seeds import complex_noise, generator
from mrigsure.spread import PixelSpectrumSpread, interpolate_bands
from mrigsure.validation import BANDS

SIZE, SIGMA0 = 32, 0.05
SIGMAS = draw_levels(12, SIGMA0 / 4)
VARIANCES = tuple((2 * np.exp(-0.5 * np.arange(BANDS))).tolist())


@dataclass
class Gaussian:
    """Images whose k-space has the variances `factor` times VARIANCES, and their exact denoiser, which counts."""

    factor: float = 1.0
    calls: int = 0

    @property
    def power(self):
        return self.factor * interpolate_bands(VARIANCES, (SIZE, SIZE))

    def __call__(self, x, sigma):
        self.calls += 1
        return ifft2c(self.power / (self.power + sigma[:, None, None] ** 2) * fft2c(x))

    def scan(self, index):
        rng = generator(index, "scan")
        image = ifft2c(self.power.sqrt() * complex_noise((SIZE, SIZE), rng))
        maps = torch.from_numpy(coil_maps(np.random.default_rng(index), 3, (SIZE, SIZE)))
        mask = (torch.rand(1, SIZE, generator=rng) < 0.5).float().expand(SIZE, SIZE)
        kspace = mask * (fft2c(maps * image) + SIGMA0 * complex_noise((3, SIZE, SIZE), rng))
        return Scan(kspace, mask, maps, torch.full((SIZE, SIZE), 0.5), SIGMA0, target=image)


def measured(factor=1.0, scans=12, **options):
    prior = Gaussian(factor)
    return jacobian_of(prior, [prior.scan(index) for index in range(scans)], SIGMAS, seed=0, **options)


@pytest.fixture(scope="module")
def jacobian():
    return measured()


def test_the_jacobian_of_a_gaussian_prior_is_its_variance_at_every_level(jacobian):
    index = radial_bands((SIZE, SIZE), BANDS).flatten()
    assert [row[0] for row in jacobian] == SIGMAS.tolist()
    for sigma, *variances in jacobian:
        power = Gaussian().power.flatten()
        passed = torch.bincount(index, power / (power + sigma**2), minlength=BANDS) / torch.bincount(index)
        found = torch.tensor(variances)
        found = found / (found + sigma**2)
        assert (found[1:] / passed[1:]).log().abs().max() < 0.15, "the first has a few samples of every scan"


def test_the_jacobian_comes_from_its_seed_alone(jacobian):
    assert measured() == jacobian
    assert measured(bands=(2.0,) * BANDS) != jacobian


@pytest.mark.parametrize("known", [False, True])
def test_a_draw_makes_the_evaluations_that_it_says(jacobian, known):
    spread = PixelSpectrumSpread(jacobian=jacobian if known else ())
    for nfe in range(3, 40):
        levels = spread.most_levels(nfe)
        assert spread.evaluations(levels) <= nfe < spread.evaluations(levels + 1)
    prior = Gaussian()
    draw(prior, prior.scan(0).batch(), draw_levels(9, SIGMA0), spread=spread, generator=generator(0))
    assert prior.calls == spread.evaluations(9) == (12 if known else 14)


def amplitudes(spread, factor, count, scans=24):
    """R's spectrum over the right one at every level, in the middle bands, for states of the prior `factor`."""
    prior, rng = Gaussian(factor), generator(1)
    x0 = ifft2c(prior.power.sqrt() * complex_noise((scans, SIZE, SIZE), rng))
    at_level, found = spread.start(), []
    middle = (radius((SIZE, SIZE)) > 0.25) & (radius((SIZE, SIZE)) < 0.75)
    for sigma in SIGMAS.tolist()[:count]:
        x = x0 + sigma * complex_noise(x0.shape, rng)
        factors = at_level(prior, x, prior(x, torch.full((scans,), sigma)), sigma, rng)
        right = sigma**2 * prior.power / (prior.power + sigma**2)
        found.append((factors.amplitude.square() / right)[:, middle])
    return found


def test_what_a_draw_knows_of_its_spread_scatters_far_less_with_the_priors_own(jacobian):
    own, known = (amplitudes(PixelSpectrumSpread(jacobian=j), 1.0, 12) for j in ((), jacobian))
    assert all(float(now.mean()) == pytest.approx(1, abs=0.05) for now in known)
    assert torch.stack(known).std() < 0.75 * torch.stack(own).std()
    assert torch.stack(known[-4:]).std() < 0.5 * torch.stack(own[-4:]).std()


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_a_scan_unlike_the_others_is_found_out_by_its_probes(jacobian, factor):
    found = amplitudes(PixelSpectrumSpread(jacobian=jacobian), factor, 12)
    wrong, late = abs(np.log(float(found[0].mean()))), abs(np.log(float(found[-1].mean())))
    assert 0.2 < wrong < abs(np.log(factor)), "one probe has half a say"
    assert late < 0.05


def test_the_draws_of_a_scan_have_the_posteriors_variance(jacobian):
    """One coil, every second line: known lines have the noise's variance, the others the prior's."""
    prior, count = Gaussian(), 400
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., ::2] = 1
    maps = torch.ones(1, 1, SIZE, SIZE, dtype=torch.complex64)
    image = ifft2c(prior.power.sqrt() * complex_noise((1, SIZE, SIZE), generator(3)))
    kspace = mask * (fft2c(image)[:, None] + SIGMA0 * complex_noise((1, 1, SIZE, SIZE), generator(4)))
    wide = [value.expand(count, -1, -1, -1) for value in (kspace, mask, maps, mask)]
    batch = ScanBatch(*wide, torch.full((count,), SIGMA0))
    spread = PixelSpectrumSpread(jacobian=jacobian)
    images = draw(prior, batch, draw_levels(24, SIGMA0 / 10), spread=spread, generator=generator(5))
    variance = fft2c(images - images.mean(0)).abs().square().mean(0) / 2
    exact = 1 / (1 / prior.power + mask[0, 0] / SIGMA0**2)
    ratio = variance / exact
    assert float(ratio[:, ::2].mean()) == pytest.approx(1, abs=0.05)
    assert float(ratio[:, 1::2].mean()) == pytest.approx(1, abs=0.1)


def test_draws_do_not_depend_on_the_batch(jacobian):
    prior, spread = Gaussian(), PixelSpectrumSpread(jacobian=jacobian)
    scans = [prior.scan(index) for index in range(3)]

    def drawn(first, last):
        rng = [generator(0, "draw", number) for number in range(first, last)]
        return draw(prior, collate(scans[first:last]), SIGMAS, spread=spread, generator=rng)

    torch.testing.assert_close(torch.cat([drawn(0, 1), drawn(1, 3)]), drawn(0, 3), rtol=1e-4, atol=1e-4)


def test_levels_beyond_those_measured_have_the_variance_of_the_nearest(jacobian):
    prior = Gaussian()
    x = complex_noise((1, SIZE, SIZE), generator(0))

    def amplitude(rows, sigma):
        level = PixelSpectrumSpread(jacobian=rows).start()
        return level(prior, x, prior(x, torch.full((1,), sigma)), sigma, generator(1)).amplitude

    for sigma, nearest in ((SIGMAS[0].item() * 2, jacobian[0]), (SIGMAS[-1].item() / 2, jacobian[-1])):
        torch.testing.assert_close(amplitude(jacobian, sigma), amplitude(((sigma, *nearest[1:]),), sigma))


def test_the_spread_is_calibrated_with_the_jacobian_for_z2_alone(jacobian, monkeypatch):
    seen, wanted = [], object()

    def figures(denoise, scans, sigmas, *, spread, **options):
        seen.append(spread.jacobian)
        raise KeyError(wanted)

    monkeypatch.setattr("mrigsure.calibrate.held_out_figures", figures)
    for match in ("z2", "power"):
        with pytest.raises(KeyError):
            calibrate_spread(Gaussian(), [], SIGMAS, seed=0, match=match, jacobian=jacobian)
    assert seen == [jacobian, ()]
