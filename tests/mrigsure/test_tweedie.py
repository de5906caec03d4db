"""Ambient Tweedie on a mixture of two Gaussians, whose denoiser is known at every level."""

import pytest
import torch
from torch import nn

from mrigsure.diffusion import diffuse_adjoint
from mrigsure.scan import ScanBatch
from mrigsure.seeds import complex_noise, generator
from mrigsure.tweedie import ambient_tweedie, consistency, reverse, tweedie

SIGMA0 = 0.25
CENTERS, WIDTH = torch.tensor([0.6 + 0j, -0.6 + 0j]), 0.2


def mixture(count, rng):
    """Images of one complex pixel, (count, 1, 1)."""
    which = torch.randint(2, (count, 1, 1), generator=rng)
    return CENTERS[which] + WIDTH * complex_noise((count, 1, 1), rng)


def exact(x, sigma):
    """E[x | x_sigma]."""
    variance = WIDTH**2 + sigma[:, None, None, None].square()
    z = x[..., None]
    share = (-(z - CENTERS).abs().square() / (2 * variance)).softmax(-1)
    mean = (CENTERS * (variance - WIDTH**2) + z * WIDTH**2) / variance
    return (share * mean).sum(-1)


def scans(image, rng):
    """Fully sampled scans of the images: one coil, noise SIGMA0."""
    ones = torch.ones(len(image), 1, 1, 1)
    kspace = image[:, None] + SIGMA0 * complex_noise((len(image), 1, 1, 1), rng)
    return ScanBatch(kspace, ones, ones.to(torch.complex64), ones, torch.full((len(image),), SIGMA0))


class Small(nn.Module):
    """An MLP in EDM's preconditioning, for one complex pixel."""

    variance = 0.36

    def __init__(self, width=48):
        super().__init__()
        layers = (nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.Sequential(*layers, nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x, sigma):
        flat, sigma = torch.view_as_real(x).flatten(1), sigma[:, None]
        total = sigma**2 + self.variance
        output = self.layers(torch.cat([flat / total.sqrt(), sigma.log() / 2], 1))
        image = self.variance / total * flat + sigma * (self.variance / total).sqrt() * output
        return torch.view_as_complex(image.view(*x.shape, 2))


def train(with_consistency, updates=1400, batch_size=600):
    """The same network and number of updates; with consistency, it takes a third of the batch in the second half."""
    torch.manual_seed(0)
    network = Small()
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
    )
    optimizer = torch.optim.Adam(network.parameters(), 4e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    rng = generator(0, "train")
    data = scans(mixture(20000, rng), rng)
    for update in range(updates):
        rows = torch.randint(20000, (batch_size,), generator=rng)
        batch = data.of(rows)
        uniform = torch.rand(batch_size, generator=rng)
        sigma = SIGMA0 * 12 ** (1 - uniform)
        if with_consistency and update >= updates // 2:
            sigma[: batch_size // 3] = SIGMA0 * 5 ** -uniform[: batch_size // 3]
        weight = (sigma**2 + Small.variance) / sigma**2
        loss = (weight * ambient_tweedie(network, batch, sigma, rng)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay.step()
        average.update_parameters(network)
    return average.module


@torch.no_grad()
def excess(denoise, level):
    """Mean square error against the exact denoiser, relative to the exact denoiser's own error."""
    rng = generator(1, "test")
    x = mixture(4000, rng)
    x_sigma, sigma = x + level * complex_noise(x.shape, rng), torch.full((4000,), level)
    best = exact(x_sigma, sigma)
    return float((denoise(x_sigma, sigma) - best).abs().square().mean() / (best - x).abs().square().mean())


def test_consistency_finds_the_denoiser_below_the_noise_of_the_data():
    without, found = train(False), train(True)
    for level in (SIGMA0 / 5, SIGMA0 / 2.5):
        assert excess(found, level) < 0.06
        assert excess(found, level) < 0.3 * excess(without, level)
    assert excess(found, 2 * SIGMA0) < 0.01, "what the data teach is not spoilt"


def test_the_loss_above_sigma0_is_split_gsure_times_a_squared(monkeypatch):
    rng = generator(2)
    shift = complex_noise((5, 6, 4), rng)
    maps = complex_noise((5, 3, 6, 4), rng)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    ones = torch.ones(5, 1, 6, 4)
    batch = ScanBatch(complex_noise((5, 3, 6, 4), rng), ones, maps, ones, torch.full((5,), 0.2))
    sigma = torch.linspace(0.25, 3, 5)

    def denoise(x, _):
        return 0.5 * x + shift

    x_sigma, target = diffuse_adjoint(batch.operator, batch.kspace, sigma, batch.sigma0, generator(3))
    split = (denoise(x_sigma, sigma) - batch.operator.adjoint(target)).abs().square().mean((1, 2)) / 2
    the_same_noise = batch.operator.adjoint(complex_noise((5, 3, 6, 4), generator(3)))
    monkeypatch.setattr("mrigsure.tweedie.complex_noise", lambda *_: the_same_noise)
    ours = ambient_tweedie(denoise, batch, sigma, generator(4))
    assert torch.allclose(ours, (1 - 0.04 / sigma**2) ** 2 * split, rtol=1e-4)


@pytest.mark.parametrize("level", [SIGMA0 / 4, SIGMA0])
def test_the_exact_denoiser_is_consistent_and_others_are_not(level):
    rng = generator(5)
    count = 20000
    noisy = mixture(count, rng) + SIGMA0 * complex_noise((count, 1, 1), rng)
    sigma0, sigma = torch.full((count,), SIGMA0), torch.full((count,), level)
    right = consistency(exact, noisy, sigma0, sigma, rng)
    assert abs(float(right.mean())) < 3.5 * float(right.std()) / count**0.5

    def wrong(x, sigma):
        return exact(x, sigma) * torch.where(sigma > SIGMA0, 1.0, 0.8)[:, None, None]

    off = consistency(wrong, noisy, sigma0, sigma, rng)
    assert float(off.mean()) > 10 * float(off.std()) / count**0.5


def test_the_reverse_process_has_the_spread_of_the_distribution():
    """The fourth moment separates it from the plain first-order step, which is too narrow by several per cent."""
    rng, count = generator(6), 40000
    x = mixture(count, rng)
    high, low = torch.full((count,), 0.3), torch.full((count,), 0.06)
    drawn = reverse(exact, x + 0.3 * complex_noise(x.shape, rng), high, low, rng)
    true = x + 0.06 * complex_noise(x.shape, rng)
    assert float(drawn.abs().pow(4).mean()) == pytest.approx(float(true.abs().pow(4).mean()), rel=0.035)


def test_tweedie_s_minimiser_is_the_exact_denoiser():
    """Any step away from the exact denoiser costs; the derivative there is 0 within its error."""
    rng, count = generator(7), 40000
    noisy = mixture(count, rng) + SIGMA0 * complex_noise((count, 1, 1), rng)
    sigma0, sigma = torch.full((count,), SIGMA0), torch.full((count,), 0.5)
    scale = torch.ones(count, requires_grad=True)

    def scaled(x, sigma):
        return scale[:, None, None] * exact(x, sigma)

    (slope,) = torch.autograd.grad(tweedie(scaled, noisy, sigma0, sigma, rng).sum(), scale)
    assert abs(float(slope.mean())) < 3.5 * float(slope.std()) / count**0.5
    biased = (2 * (exact(noisy, sigma0) - noisy).conj() * exact(noisy, sigma0)).real.mean() / 2
    assert abs(float(biased)) > 20 * float(slope.std()) / count**0.5, "the control: f against y itself"


def test_undersampled_scans_are_refused():
    batch = scans(mixture(2, generator(8)), generator(8))
    missing = ScanBatch(batch.kspace, 0 * batch.mask, batch.sens_maps, batch.density, batch.sigma0)
    with pytest.raises(ValueError, match="fully sampled"):
        ambient_tweedie(exact, missing, torch.tensor([1.0, 1.0]), generator(9))
