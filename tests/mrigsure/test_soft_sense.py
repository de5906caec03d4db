"""Several sets of maps: the joint draw, and the other sets' prior."""

import pytest
import torch

from mrigsure.fourier import fft2c
from mrigsure.posterior import draw
from mrigsure.scan import Scan, ScanBatch, collate
from mrigsure.seeds import complex_noise, generator
from mrigsure.soft_sense import first_set, other_sets_deviation
from mrigsure.spread import ScalarSpread

SIGNAL = 0.5


def _maps(coils, shape, rng):
    """Two random orthonormal vectors a pixel: (2, coils, H, W)."""
    return torch.linalg.qr(complex_noise((*shape, coils, 2), rng))[0].permute(3, 2, 0, 1).contiguous()


def _scan(first, second, maps, mask, noise_std, rng):
    kspace = fft2c(maps[0] * first + maps[1] * second)
    kspace = mask * (kspace + noise_std * complex_noise(kspace.shape, rng))
    return Scan(kspace, mask, maps, mask.clone(), noise_std)


def _lines(shape, sampled):
    mask = torch.zeros(shape)
    mask[:, sampled] = 1
    return mask


@pytest.mark.parametrize(("sweeps", "tolerance"), [(0, 0.025), (3, 0.1)])
def test_draws_of_the_first_set_have_the_mean_and_spread_of_the_exact_posterior(sweeps, tolerance):
    """Gaussian priors: dense algebra with the second set integrated out, against 600 draws; rho adds to the noise."""
    shape, noise_std, rng = (6, 6), 0.1, generator(0)
    maps, mask = _maps(2, shape, rng), _lines(shape, [1, 2, 3, 4])
    first, second = SIGNAL * complex_noise(shape, rng), 0.5 * complex_noise(shape, rng)
    scan = _scan(first, second, maps, mask, noise_std, rng)
    batch = scan.batch()
    basis = torch.eye(72, dtype=torch.complex64).view(72, 2, *shape)
    everywhere = ScanBatch(*(getattr(batch, key).expand(72, *getattr(batch, key).shape[1:]) for key in vars(batch)))
    encoding = everywhere.operator.forward(basis).flatten(1).T.to(torch.complex128)
    variance = torch.cat([torch.full((36,), SIGNAL**2), other_sets_deviation(batch).square().flatten()]).double()
    covariance = torch.diag(variance).to(torch.complex128)
    data = encoding @ covariance @ encoding.mH + noise_std**2 * torch.eye(encoding.shape[0])
    gain = covariance @ encoding.mH @ torch.linalg.inv(data)
    mean = (gain @ batch.kspace.flatten().to(torch.complex128))[:36]
    spread = torch.diag(covariance - gain @ encoding @ covariance).real[:36]

    def denoise(x, sigma):
        return SIGNAL**2 / (SIGNAL**2 + sigma[:, None, None] ** 2) * x

    sigmas = torch.logspace(1, -2, 24)
    options = {"spread": ScalarSpread(SIGNAL), "generator": generator(1), "sweeps": sweeps, "sweep_steps": 20}
    draws = draw(denoise, collate([scan] * 600), sigmas, **options).flatten(1)
    error = (draws.mean(0) - mean).abs()
    assert (error < 5 * (2 * spread / 600).sqrt()).all()
    assert draws.var(0).mean() / 2 == pytest.approx(float(spread.mean()), rel=tolerance)
    alone = torch.linalg.inv(
        encoding[:, :36].mH @ encoding[:, :36] / noise_std**2 + torch.eye(36, dtype=torch.complex128) / SIGNAL**2
    )
    assert spread.mean() > 1.15 * torch.diag(alone).real.mean()  # what folds in makes the first set less certain


def test_deviation_is_where_the_other_sets_have_energy_and_without_the_noise():
    shape, noise_std, rng = (48, 48), 0.05, generator(2)
    there = torch.zeros(shape)
    there[:, :16] = 0.3
    maps = _maps(4, (1, 1), rng).expand(2, 4, *shape)  # constant: x_low is the low-resolution image itself
    scan = _scan(
        SIGNAL * complex_noise(shape, rng), there * complex_noise(shape, rng), maps, torch.ones(shape), 0.05, rng
    )
    deviation = other_sets_deviation(scan.batch())[0, 0]
    assert deviation.shape == shape
    assert deviation[:, 4:12].square().mean().sqrt() == pytest.approx(0.3, rel=0.1)
    assert deviation[:, 20:44].square().mean().sqrt() < 0.5 * noise_std


def test_one_set_is_what_it_always_was():
    image = torch.randn(3, 4)
    assert first_set(image) is image
    assert torch.equal(first_set(torch.stack([image, 2 * image])), image)
