"""Unbiasedness of the objectives: docs/method.md, sections 2, 3 and 5."""

import itertools
from dataclasses import replace

import pytest
import torch

from mrigsure.diffusion import GAMMA, diffuse_adjoint, lowest_solve_sigma, perturb_and_solve
from mrigsure.fourier import fft2c, ifft2c
from mrigsure.gaussian import GaussianPrior
from mrigsure.objectives import DRAWS_ALONE, completed, denoising, gsure, line_weights, split_gsure
from mrigsure.operators import SenseOperator
from mrigsure.scan import ScanBatch, kept_lines
from mrigsure.seeds import complex_noise, generator

SIZE, COILS, SIGMA0, P = 8, 4, 0.3, 0.5


def scans(count, seed, sigma0=SIGMA0):
    """Noisy undersampled scans of random images: fresh mask and noise for each, p = 1 on two lines, P on the others."""
    rng = generator(seed, "scans")
    maps = complex_noise((1, COILS, SIZE, SIZE), generator(0, "maps"))
    maps = (maps / maps.abs().square().sum(1, keepdim=True).sqrt()).expand(count, -1, -1, -1)
    density = torch.full((SIZE,), P)
    density[3:5] = 1
    mask = (torch.rand(count, 1, 1, SIZE, generator=rng) < density).float().expand(-1, 1, SIZE, SIZE)
    image = complex_noise((count, SIZE, SIZE), rng)
    operator = SenseOperator(mask, maps)
    kspace = operator.forward(image) + sigma0 * mask * complex_noise((count, COILS, SIZE, SIZE), rng)
    density = density.expand(count, 1, SIZE, SIZE)
    return image, ScanBatch(kspace, mask, maps, density, torch.full((count,), sigma0))


class Curved(torch.nn.Module):
    """A small nonlinear denoiser that mixes pixels."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.7, 0.2, -0.1]))

    def forward(self, x, sigma):
        a, b, c = self.weight
        soft = x / (1 + x.abs().square()).sqrt()
        return a * x + b * x.roll(1, -1) + c * soft.roll(1, -2) * x.abs()


@pytest.mark.parametrize("diffuse", [diffuse_adjoint, perturb_and_solve])
def test_target_noise_is_uncorrelated_with_a_nonlinear_denoiser(diffuse):
    count = 12000
    image, batch = scans(count, 1)
    rng = generator(2)
    kept = kept_lines(batch.mask, batch.density, torch.full((count,), 0.4), rng)
    assert 0 < float((batch.mask - kept).mean()) < float(batch.mask.mean())
    x_sigma, target = diffuse(
        SenseOperator(kept, batch.sens_maps), batch.kspace, torch.full((count,), 0.8), batch.sigma0, rng
    )
    weighted = batch.operator.coil_kspace(Curved()(x_sigma, None)).detach() / batch.density
    clean = batch.operator.forward(image)

    def standard_errors(against, lines):
        product = ((weighted.conj() * (against - clean)).real * lines).sum((1, 2, 3))
        return abs(float(product.mean() / (product.std() / count**0.5)))

    assert standard_errors(target, kept) < 3.5
    assert standard_errors(target, batch.mask - kept) < 3.5
    assert standard_errors(batch.kspace, kept) > 20, "the control: plain y on the kept lines is biased"


def test_gradients_of_gsure_and_split_gsure_agree():
    count = 3000
    _, batch = scans(count, 3)
    sigma, nothing = torch.full((count,), 0.8), torch.zeros(count)
    weights = torch.tensor([0.7, 0.2, -0.1]).expand(count, 3).clone().requires_grad_(True)

    def denoise(x, _):  # one copy of the weights per scan, so that one backward pass gives per-scan gradients
        a, b, c = weights[:, :, None, None].unbind(1)
        soft = x / (1 + x.abs().square()).sqrt()
        return a * x + b * x.roll(1, -1) + c * soft.roll(1, -2) * x.abs()

    losses = {
        "gsure": gsure(denoise, batch, sigma, generator(4)),
        "split": split_gsure(denoise, batch, sigma, nothing, generator(4), diffuse=diffuse_adjoint),
    }
    gradients = {key: torch.autograd.grad(loss.sum(), weights)[0] for key, loss in losses.items()}
    difference = gradients["gsure"] - gradients["split"]
    z = difference.mean(0) / (difference.std(0) / count**0.5)
    assert z.abs().max() < 3.5
    spread = gradients["split"].mean(0).abs() / (gradients["split"].std(0) / count**0.5)
    assert spread.max() > 20, "the gradients must be resolved for their agreement to mean anything"


def test_split_gsure_is_the_true_risk_up_to_a_constant():
    """Two denoisers' losses differ by the difference of their risks over the sampled modes."""
    count = 6000
    image, batch = scans(count, 5)
    sigma, delta = torch.full((count,), 0.8), torch.full((count,), 0.3)

    def risk(denoise):
        rng = generator(6)
        kept = kept_lines(batch.mask, batch.density, delta, rng)
        x_sigma, _ = perturb_and_solve(SenseOperator(kept, batch.sens_maps), batch.kspace, sigma, batch.sigma0, rng)
        error = batch.operator.coil_kspace(denoise(x_sigma, sigma) - image) * (batch.mask / batch.density).sqrt()
        return error.abs().square().sum((1, 2, 3)) / (2 * SIZE**2)

    def loss(denoise):
        return split_gsure(denoise, batch, sigma, delta, generator(6))

    def shrink(x, _):
        return 0.5 * x

    def keep(x, _):
        return 0.9 * x

    surplus = (loss(keep) - loss(shrink)) - (risk(keep) - risk(shrink))
    assert abs(float(surplus.mean())) < 3.5 * float(surplus.std()) / count**0.5
    assert abs(float((risk(keep) - risk(shrink)).mean())) > 20 * float(surplus.std()) / count**0.5


def test_weights_one_over_q_are_uniform_given_the_kept_lines():
    """E[W^2 M | M~] = 1 by enumeration of every mask that can lie behind the kept lines."""
    p, delta = torch.tensor([1.0, 0.3, 0.5, 0.2, 1.0], dtype=torch.float64), 0.4
    kept = torch.tensor([1.0, 1, 0, 0, 1], dtype=torch.float64)
    mean, total = torch.zeros(5, dtype=torch.float64), 0.0
    for bits in itertools.product([0.0, 1.0], repeat=5):
        mask = torch.tensor(bits, dtype=torch.float64)
        if (kept > mask).any():  # a kept line was sampled
            continue
        likely = torch.where(mask > 0, p, 1 - p).prod()
        dropped = (mask > kept).double()
        drop = delta * (p < 1).double()  # lines with p = 1 are never dropped
        behind = torch.where(dropped > 0, drop, torch.where(kept > 0, 1 - drop, 1.0))
        weight = likely * behind.prod()
        shaped = [v.reshape(1, 1, 1, 5) for v in (mask, kept, p)]
        mean += weight * line_weights(*shaped, torch.tensor([delta], dtype=torch.float64), "1/q").flatten() * mask
        total += weight
    assert (mean / total - 1).abs().max() < 1e-12


def test_the_measured_share_is_the_whole_loss_on_average_over_masks():
    image, batch = scans(20000, 7)
    sigma, kernel = torch.full((len(image),), 0.5), torch.tensor([0.6, 0.3])

    def blurred(x, _):
        return kernel[0] * x + kernel[1] * x.roll(1, -1)

    whole, part = (denoising(blurred, image, sigma, generator(8), scans=batch, measured=share) for share in (0.0, 1.0))
    difference = part - whole
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / len(image) ** 0.5
    assert float(difference.std()) > 0.05 * float(whole.mean())
    mixed = denoising(blurred, image, sigma, generator(8), scans=batch, measured=0.3)
    torch.testing.assert_close(mixed, 0.7 * whole + 0.3 * part)


@pytest.mark.parametrize("measured, seen", [(0.0, P), (0.6, 0.6 + 0.4 * P), (1.0, 1.0)])
def test_what_was_imputed_as_nothing_shrinks_a_line_by_the_share_of_the_loss_it_has(measured, seen):
    """One coil, white images whose missing lines a failing sampler left empty: the best gain of a line is known."""
    count, sigma = 20000, 0.5
    image, batch = scans(count, 9)
    maps = torch.ones(count, 1, SIZE, SIZE) + 0j
    batch = replace(batch, kspace=batch.kspace[:, :1], sens_maps=maps)
    drawn = batch.operator.normal(image)
    gain = torch.full((SIZE,), 0.5, requires_grad=True)
    loss = denoising(
        lambda x, _: _along_lines(x, gain), drawn, torch.full((count,), sigma), generator(10), scans=batch,
        measured=measured,
    )  # fmt: skip
    free = (batch.density[0, 0, 0] < 1).nonzero()[:, 0]
    (slope,) = torch.autograd.grad(loss.mean(), gain)
    expected = 2 * (-seen * 0.5 + sigma**2 * 0.5) / SIZE  # of seen (1 - g)^2 + sigma^2 g^2 in each of SIZE lines
    torch.testing.assert_close(slope[free], torch.full((len(free),), expected), rtol=0.1, atol=0.003)


def _along_lines(x, gain):
    return ifft2c(gain * fft2c(x))


def noisier(batch, seed):
    noise = complex_noise(batch.kspace.shape, generator(seed, "noisier"))
    return batch.kspace + ((GAMMA - 1) ** 0.5 * batch.sigma0[:, None, None, None]) * batch.mask * noise


def test_completed_by_the_truth_the_loss_is_the_true_risk_up_to_a_constant():
    """Two denoisers' losses differ by the difference of their risks on x + sigma w."""
    count = 12000
    image, batch = scans(count, 11)
    sigma = torch.full((count,), 1.0)
    assert sigma[0] > DRAWS_ALONE * lowest_solve_sigma(SIGMA0)
    denoisers = Curved(), lambda x, _: 0.4 * x + 0.2 * x.roll(1, -2)
    options = {"other": image, "scans": batch, "noisier": noisier(batch, 12), "pair": torch.stack([0 * image] * 2, 1)}
    options |= {"measured": 0.75, "bootstrap": 3.0}
    losses = [completed(f, image, sigma, generator(13), **options).detach() for f in denoisers]
    noisy = image + complex_noise(image.shape, generator(14))
    risks = [(f(noisy, None).detach() - image).abs().square().mean((1, 2)) / 2 for f in denoisers]
    difference = (losses[0] - losses[1]) - (risks[0] - risks[1])
    assert abs(float(difference.mean() / (difference.std() / count**0.5))) < 3.5
    gap = risks[0] - risks[1]
    assert abs(float(gap.mean() / (difference.std() / count**0.5))) > 10, "or their agreement would mean nothing"


def gaussian_draws(batch, more, power, count=2):
    """Exact posterior draws of white images of this power, given the noisier k-space."""
    drawn_from = replace(batch, kspace=more, sigma0=GAMMA**0.5 * batch.sigma0)
    return [GaussianPrior(torch.full((4,), power)).draw(drawn_from, generator(20 + k)) for k in range(count)]


def gaussian_pair(batch, power, known=None):
    """A draw of white images of this power given the scans, and one given the scans simulated from it."""
    prior, own = GaussianPrior(torch.full((4,), power)), generator(30)
    first = prior.draw(batch, generator(31)) if known is None else known
    noise = batch.sigma0[:, None, None, None] * batch.mask * complex_noise(batch.kspace.shape, own)
    second = prior.draw(replace(batch, kspace=batch.operator.forward(first) + noise), generator(32))
    return torch.stack([first, second], 1)


def test_completed_by_exact_draws_the_best_gain_is_the_true_denoisers():
    """White images, whose posterior draws and whose denoiser are known. Without the other draw it would be smaller:
    what the input knows of the draw alone does not help to find what the scan measured."""
    level = 1.15
    _, batch = scans(24000, 18, sigma0=0.4)
    more = noisier(batch, 19)
    draws = gaussian_draws(batch, more, 1.0)
    sigma, best = torch.full_like(batch.sigma0, level), 1 / (1 + level**2)
    assert level > DRAWS_ALONE * lowest_solve_sigma(0.4)

    def slope(other):
        options = {"other": other, "scans": batch, "noisier": more, "pair": torch.stack(draws, 1), "bootstrap": 3.0}
        return slope_at(best, draws[0], sigma, measured=0.75, **options)

    assert abs(slope(draws[1])) < 3.5
    assert slope(draws[0]) > 8, "or the first would mean nothing"


def slope_at(gain, image, sigma, **options):
    """The slope of the loss by the gain of a linear denoiser, in standard errors."""
    losses = [
        completed(lambda x, _, g=gain + step: g * x, image, sigma, generator(22), **options) for step in (-0.02, 0.02)
    ]
    change = losses[1] - losses[0]
    return float(change.mean() / (change.std() / len(change) ** 0.5))


@pytest.mark.parametrize("measured", [0.0, 0.75])
@pytest.mark.parametrize("bootstrap", [0.0, 3.0])
def test_at_low_sigma_right_draws_teach_the_true_denoiser_however_far_one_goes_beyond_them(bootstrap, measured):
    level = 0.6
    image, batch = scans(24000, 18, sigma0=0.4)
    assert level < DRAWS_ALONE * lowest_solve_sigma(0.4)
    options = {"other": image, "scans": batch, "noisier": noisier(batch, 19), "measured": measured}
    sigma = torch.full_like(batch.sigma0, level)

    def slope(pair):
        return slope_at(1 / (1 + level**2), 0 * image, sigma, pair=pair, bootstrap=bootstrap, **options)

    right = gaussian_pair(batch, 1.0)
    assert abs(slope(right)) < 3.5
    assert slope(0.8 * right) > 8, "or the first would mean nothing"


def test_at_low_sigma_the_denoiser_is_that_of_draws_extrapolated_from_their_bootstrap():
    """Of white images of power 1 and .7: that of power (1 + b) 1 - b .7."""
    image, batch = scans(12000, 33)
    pair = torch.stack([image, 0.7**0.5 * complex_noise(image.shape, generator(34))], 1)
    options = {"other": image, "scans": batch, "noisier": noisier(batch, 35), "pair": pair, "measured": 0.0}
    sigma = torch.full_like(batch.sigma0, 0.5)
    for bootstrap in (0.0, 1.0, 2.0):
        power = 1 + bootstrap - 0.7 * bootstrap
        options["bootstrap"] = bootstrap
        assert abs(slope_at(power / (power + 0.25), image, sigma, **options)) < 3.5
        assert slope_at((power + 0.3) / (power + 0.55), image, sigma, **options) > 6


def test_the_bootstrap_brings_the_network_nearer_to_the_truth_than_draws_of_a_wrong_prior():
    """White images of power 1, draws of a prior of power 0.3: the best gain of each. And draws shrunk by their sampler,
    of the right prior: their bootstrap is shrunk once more."""
    level = 0.6
    image, batch = scans(12000, 23, sigma0=0.4)
    sigma = torch.full_like(batch.sigma0, level)
    options = {"other": image, "scans": batch, "noisier": noisier(batch, 24), "measured": 1.0}

    def best(pair, bootstrap):
        low, middle, high = (
            float(
                completed(
                    lambda x, _, g=g: g * x, image, sigma, generator(25), pair=pair, bootstrap=bootstrap, **options
                ).mean()
            )
            for g in (0.0, 0.5, 1.0)
        )
        return 0.5 + 0.25 * (low - high) / (low + high - 2 * middle)

    truth = 1 / (1 + level**2)
    wrong, shrunk = gaussian_pair(batch, 0.3), 0.95 * gaussian_pair(batch, 1.0)
    again = gaussian_pair(batch, 1.0, known=shrunk[:, 0])
    shrunk = torch.stack([shrunk[:, 0], 0.95 * again[:, 1]], 1)
    for pair, gained in ((wrong, 0.02), (shrunk, 0.005)):
        alone, nearer, nearest = (best(pair, bootstrap) for bootstrap in (0, 0.5, 1))
        assert alone + gained < nearer < nearest < truth + 0.01


def test_what_completes_a_scan_is_no_target_of_it_and_below_that_level_its_pair_alone_teaches():
    """The noise and what is sampled held fixed."""
    count = 64
    image, batch = scans(count, 15)
    options = {"scans": batch, "noisier": noisier(batch, 16), "measured": 0.75, "bootstrap": 2.0}
    pair = torch.stack([image, image.roll(1, -1)], 1)
    least = DRAWS_ALONE * float(lowest_solve_sigma(batch.sigma0).max())

    def loss(level, x, pair):
        sigma = torch.ones(count) * level * least
        return completed(lambda x, _: 0 * x, x, sigma, generator(17), other=x, pair=pair, **options)

    for level, by_pair in ((0.9, True), (1.1, False)):
        one = loss(level, image, pair)
        torch.testing.assert_close(loss(level, 2 * image, pair), one)
        for other in (pair * torch.tensor([2, 1])[:, None, None], pair * torch.tensor([1, 2])[:, None, None]):
            assert torch.equal(loss(level, image, other), one) != by_pair
    sigma = torch.full((count,), 0.9 * least)
    first, second = (
        denoising(lambda x, _: 0 * x, part, sigma, generator(17), scans=batch, measured=0.75) for part in pair.unbind(1)
    )
    torch.testing.assert_close(loss(0.9, image, pair), 3 * first - 2 * second)
    by_chance = torch.rand(count, generator=generator(18)) < 0.5
    mixed = loss(torch.where(by_chance, 0.9, 1.1), image, pair)
    torch.testing.assert_close(mixed, torch.where(by_chance, loss(0.9, image, pair), loss(1.1, image, pair)))
