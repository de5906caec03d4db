"""Truth-free figures say what the truth would: on a Gaussian prior whose right answers are known."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mrigsure import validation
from mrigsure.calibrate import calibrate_spread, refinement_spread
from mrigsure.draws import split_scan
from mrigsure.fourier import fft2c, ifft2c, radial_bands, radius
from mrigsure.phantoms import coil_maps
from mrigsure.posterior import draw, draw_levels
from mrigsure.scan import Scan, collate
from mrigsure.seeds import complex_noise, generator
from mrigsure.shrinkage import mean_gain, unshrunk
from mrigsure.spread import PixelSpectrumSpread
from mrigsure.validation import BANDS, held_out_figures

SIZE, SIGMA0 = 32, 0.05
SIGMAS = draw_levels(10, SIGMA0 / 4)


def power():
    k = (torch.arange(SIZE) - SIZE // 2) / (SIZE / 2)
    return 4 * torch.exp(-4 * (k[:, None] ** 2 + k[None] ** 2))


def denoise(x, sigma):
    """Exact for the images of `scans`."""
    variance = power()
    return ifft2c(variance / (variance + sigma[:, None, None] ** 2) * fft2c(x))


def scans(count=6, coils=3):
    out = []
    for index in range(count):
        rng = generator(index, "scan")
        image = ifft2c(power().sqrt() * complex_noise((SIZE, SIZE), rng))
        maps = torch.from_numpy(coil_maps(np.random.default_rng(index), coils, (SIZE, SIZE)))
        mask = (torch.rand(1, SIZE, generator=rng) < 0.5).float().expand(SIZE, SIZE)
        kspace = mask * (fft2c(maps * image) + SIGMA0 * complex_noise((coils, SIZE, SIZE), rng))
        out.append(Scan(kspace, mask, maps, torch.full((SIZE, SIZE), 0.5), SIGMA0, target=image))
    return out


def figures(denoise=denoise, spread=PixelSpectrumSpread(), scans=scans(), **options):  # noqa: B008
    with torch.no_grad():
        return held_out_figures(denoise, scans, SIGMAS, spread=spread, seed=0, samples=4, **options)


def test_an_exact_prior_is_calibrated_and_keeps_the_power():
    exact = figures(scans=scans(40))
    assert exact.z2 == pytest.approx(1, abs=0.1)
    assert 0 < exact.residual < 0.5
    for band in range(1, 6):  # the first has too few samples, the last too little signal
        assert exact.power[band] == pytest.approx(1, abs=0.15)
        assert exact.spread_needed[band] == pytest.approx(1, abs=0.2)
        assert exact.gain[band] == pytest.approx(1, abs=0.15)


def test_a_collapsed_prior_is_seen():
    """One that shrinks everything leaves the held-out lines empty: residual, z^2 and power all say so."""

    def collapsed(x, sigma):
        return 0.2 * denoise(x, sigma)

    bad, good = figures(collapsed), figures()
    assert bad.residual > 1.3 * good.residual
    assert bad.z2 > 2
    assert bad.energy > 1.1 * good.energy
    assert bad.collapsed()


def test_a_shrunk_mean_asks_for_its_gain(monkeypatch):
    """Of draws 0.8 times as large as they should be the mean lacks a quarter of itself."""
    plain, exact = validation.draw, figures()
    monkeypatch.setattr(validation, "draw", lambda *given, **options: 0.8 * plain(*given, **options))
    shrunk = figures()
    for band in range(1, 6):
        assert shrunk.gain[band] == pytest.approx(1.25 * exact.gain[band], rel=1e-3)
        assert shrunk.power[band] == pytest.approx(0.64 * exact.power[band], rel=1e-3)


def test_noise_of_the_draws_alone_leaves_the_gain(monkeypatch):
    """Independent noise on draws adds to their power, not to what two of them share."""
    plain, many = validation.draw, scans(30)
    exact = figures(scans=many)
    rng = generator(1, "more")

    def noisier(*given, **options):
        image = plain(*given, **options)
        return image + 0.5 * complex_noise(image.shape, rng)

    monkeypatch.setattr(validation, "draw", noisier)
    noisy = figures(scans=many)
    for band in range(1, 6):
        assert noisy.gain[band] == pytest.approx(exact.gain[band], abs=0.1)
    assert noisy.power[5] > 1.3 * exact.power[5]


def test_draws_that_share_nothing_have_no_gain(monkeypatch):
    """Rather than one that divides by next to nothing: of two opposite draws the mean is 0."""
    image = complex_noise((1, SIZE, SIZE), generator(2, "opposite"))
    signs = itertools.cycle((1, -1))
    monkeypatch.setattr(validation, "draw", lambda *_, **__: next(signs) * image)
    assert figures(scans=scans(4)).gain == (None,) * BANDS


def test_the_energy_counts_every_band_alike(monkeypatch):
    """Draws that lose the outer half of the bands, where a ten-thousandth of the power is, miss all of those bands."""
    inner = (radius((SIZE, SIZE)) < 0.5).float()
    kspace = (99 * inner + 1) * complex_noise((1, SIZE, SIZE), generator(0, "steep"))
    plane = torch.ones(SIZE, SIZE)
    scan = Scan(kspace, plane, plane[None] + 0j, 0.5 * plane, 1e-3)
    monkeypatch.setattr(validation, "draw", lambda *_, **__: ifft2c(inner * kspace))
    found = held_out_figures(denoise, [scan], SIGMAS, spread=None, seed=0, fraction=0.8)
    assert found.residual < 0.01, "which counts by power"
    assert None not in found.spread_needed, "every band has lines that are held out"
    assert found.energy == pytest.approx(0.5, abs=0.01)


def test_figures_do_not_depend_on_coils_that_only_fill_up_a_batch(monkeypatch):
    mixed = scans(8, coils=3) + scans(8, coils=5)
    together = figures(scans=mixed)
    monkeypatch.setattr(validation, "FEW", 2)
    apart = figures(scans=mixed)
    assert together.z2 == pytest.approx(apart.z2, rel=0.1)
    assert together.signal[0] == pytest.approx(apart.signal[0], rel=0.3)


def test_no_scan_has_no_line_to_hold_out():
    with pytest.raises(ValueError, match="no scan has a line"):
        figures(scans=[])


def test_the_change_of_power_is_paired_scan_by_scan():
    """A loss that all scans share is sure; the standard error is that of repeated samples of as many scans."""
    found = figures()
    change, error = replace(found, drawn=0.8 * found.drawn).power_change(found.drawn)
    assert torch.allclose(change[1:], torch.tensor(0.8).double()) and error[1:].max() < 1e-6
    rng = np.random.default_rng(0)
    before = torch.from_numpy(rng.gamma(2.0, size=(400, 16, BANDS)))
    now = before * (0.8 + 0.1 * torch.from_numpy(rng.standard_normal(before.shape)))
    told = [replace(found, drawn=one).power_change(other) for one, other in zip(now, before, strict=True)]
    changes, errors = (torch.stack(part) for part in zip(*told, strict=True))
    assert changes.mean() == pytest.approx(0.8, abs=0.003)
    assert errors.square().mean().sqrt() == pytest.approx(float(changes.std()), rel=0.1)


def test_no_truth_is_read():
    blind = [replace(scan, target=None) for scan in scans()]
    assert figures(scans=blind) == figures()


@pytest.mark.parametrize("wrong", [0.25, 8.0])
def test_calibration_brings_a_wrong_spread_back(wrong):
    """Of an exact prior the right factor is 1, and z^2 is 1 with it."""
    wrong = (wrong,) * BANDS
    with torch.no_grad():
        bands, after = calibrate_spread(denoise, scans(8), SIGMAS, seed=0, start=wrong, iterations=10)
    before = figures(spread=PixelSpectrumSpread(wrong))
    assert abs(after.z2 - 1) < 0.5 * abs(before.z2 - 1)
    assert after.z2 == pytest.approx(1, abs=0.2)
    for band in bands[1:5]:
        assert abs(math.log(band)) < 0.8 * abs(math.log(wrong[0]))


@pytest.mark.parametrize("match", ["z2", "power"])
def test_the_chance_of_a_few_scans_does_not_tear_the_bands_apart(match):
    """Followed band by band, two scans of an exact prior ask for factors from .3 to 2.8, from .5 to 8 for its power."""
    with torch.no_grad():
        bands, _ = calibrate_spread(denoise, scans(2), SIGMAS, seed=0, match=match, iterations=6)
    steps = [abs(math.log(b / a)) for a, b in itertools.pairwise(bands)]
    assert max(steps) < 0.3


def test_the_standard_errors_are_the_scatter_of_figures_from_other_scans():
    everything = scans(48)
    together = figures(scans=everything)
    groups = [figures(scans=everything[start : start + 6]) for start in range(0, 48, 6)]
    for needed, error in (("spread_needed", "spread_error"), ("power_needed", "power_error")):
        found = torch.tensor([getattr(g, needed)[1:7] for g in groups]).std(0) / len(groups) ** 0.5
        said = torch.tensor(getattr(together, error)[1:7])
        assert 0.7 < float((said / found).log().mean().exp()) < 1.4
        few = torch.tensor(getattr(groups[0], error)[1:7])
        assert 2 < float((few / said).log().mean().exp()) < 6, "of an eighth of the scans: 8^1/2 times or more"


# --- draws whose mean is shrunk ---

SHRINK = 1 - 0.06 * torch.linspace(-1, 1, SIZE).abs()


def oversmooth(x, sigma):
    return ifft2c(torch.minimum(SHRINK[:, None], SHRINK[None]) * fft2c(denoise(x, sigma)))


def per_band(one, other):
    product = (fft2c(one).conj() * fft2c(other)).real.reshape(-1, SIZE**2).sum(0)
    return torch.bincount(radial_bands((SIZE, SIZE), BANDS).flatten(), product, minlength=BANDS)


def true_gain(truth, images):
    """Sum <truth, x> over sum <x, x'> of draws of different pairs."""
    return per_band(truth, images.mean(1)) / per_band(images[:, :2].mean(1), images[:, 2:].mean(1))


def relative_power(truth, images):
    return per_band(images, images) / (images.shape[1] * per_band(truth, truth))


def drawn(denoiser, count=24):
    """Scans, what their draws were made from, and four draws of each with a spread that was calibrated."""
    originals, sigmas = scans(count), draw_levels(20, SIGMA0 / 4)
    noisier = [split_scan(scan, 0, 1, index) for index, scan in enumerate(originals)]
    with torch.no_grad():
        bands, _ = calibrate_spread(denoiser, scans(24), sigmas, seed=0, match="power", iterations=2)
        batch = collate([scan for scan in noisier for _ in range(4)])
        images = draw(denoiser, batch, sigmas, spread=refinement_spread(bands), generator=generator(3))
    return originals, noisier, images.unflatten(0, (count, 4))


def gain_of(originals, noisier, images):
    return mean_gain(zip(originals, noisier, images, strict=True))


def test_power_is_matched_for_draws_whose_shrunk_mean_is_made_up_for():
    """Of a denoiser that shrinks detail; the draws themselves have too little power."""
    with torch.no_grad():
        bands, drawn = calibrate_spread(oversmooth, scans(48), SIGMAS, seed=0, match="power")
    for band in (2, 3, 4):
        assert bands[band] > 1.2 and drawn.gain[band] > 1.08 and drawn.power[band] < 0.93
        assert drawn.power_needed[band] == pytest.approx(1, abs=0.08)


def test_scans_tell_by_how_much_the_mean_of_draws_is_shrunk():
    """Nearly as much as the truth tells where draws know little of the scan; about half where they know more."""
    assert gain_of(*drawn(denoise)) == pytest.approx((1.0,) * BANDS, abs=0.02)
    originals, noisier, images = drawn(oversmooth)
    true = true_gain(torch.stack([scan.target for scan in originals]), images)
    told = torch.tensor(gain_of(originals, noisier, images))
    assert true[2:].min() > 1.07
    assert ((told[2:5] - 1) / (true[2:5] - 1)).min() > 0.45 and (told[2:5] < true[2:5]).all()
    assert ((told[5:7] - 1) / (true[5:7] - 1)).min() > 0.8


def test_unshrunk_draws_are_nearer_to_the_truth_in_power_and_in_what_they_share():
    originals, noisier, before = drawn(oversmooth)
    truth = torch.stack([scan.target for scan in originals])
    gain = gain_of(originals, noisier, before)
    after = torch.stack([unshrunk(images, gain) for images in before])
    for figure in (true_gain, relative_power):
        missed, left = (abs(figure(truth, images)[2:7] - 1) for images in (before, after))
        assert missed.min() > 0.07 and (left < 0.6 * missed).all()


def test_a_draw_is_given_its_partner_alone():
    """Pairs stay independent of each other, and a gain of 1 changes nothing."""
    images = complex_noise((4, SIZE, SIZE), generator(4))
    torch.testing.assert_close(unshrunk(images, (1.0,) * BANDS), images)
    torch.testing.assert_close(unshrunk(images, (1.25,) * BANDS), images + 0.25 * images[[1, 0, 3, 2]])


def test_no_gain_is_told_of_draws_that_share_nothing():
    originals, noisier, images = drawn(denoise, count=2)
    opposite = images[:, :1] * torch.tensor([1, -1, 1, -1])[:, None, None]
    assert gain_of(originals, noisier, opposite) == (1.0,) * BANDS
