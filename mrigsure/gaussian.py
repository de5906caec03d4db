"""A stationary Gaussian fitted to undersampled scans by expectation-maximisation: the cheapest prior to start from.

Its covariance is F^H e F with a radial spectrum e, so that denoising is Wiener's filter and a posterior draw is one
perturbed solve (docs/method.md, section 7: exact for Gaussian priors); e is re-estimated from the draws. Rozet et al.
(arXiv 2405.13712) start their refinement of a diffusion prior in this way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrigsure.fourier import fft2c, ifft2c, radius
from mrigsure.posterior import samples_noise, solve_level
from mrigsure.scan import SIGMA_DATA, Scan, ScanBatch, collate
from mrigsure.seeds import complex_noise, generator
from mrigsure.spread import PixelSpectrumFactor

_RINGS = 48
_ROUNDS = 15


@dataclass(frozen=True)
class GaussianPrior:
    """Zero-mean, stationary. spectrum: (rings,), power per real part of F x at radius (i + 1/2) / rings, 1 the edge."""

    spectrum: Tensor

    def draw(self, batch: ScanBatch, rng: torch.Generator) -> Tensor:
        """One exact posterior draw of every scan, complex (batch, H, W)."""
        scans, _, height, width = batch.kspace.shape
        power = self._plane((height, width)).to(batch.kspace.device)
        image_noise = complex_noise((scans, height, width), rng).to(batch.kspace.device)
        factor = PixelSpectrumFactor(torch.ones_like(image_noise.real), power.sqrt().expand(scans, height, width))
        operator, nothing = batch.operator, torch.zeros_like(image_noise)
        seen, n1 = operator.adjoint(batch.kspace), samples_noise(batch, rng)
        return solve_level(operator, seen, batch.sigma0, nothing, factor, image_noise, n1=n1)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x | x + sigma w]: (batch, H, W), (batch,) -> (batch, H, W)."""
        power = self._plane(x.shape[-2:]).to(x.device)
        return ifft2c(power / (power + sigma[:, None, None].square()) * fft2c(x))

    def _plane(self, shape):
        return self.spectrum[_ring(shape, len(self.spectrum))]


def fit_gaussian(scans: Sequence[Scan], seed: int, rounds: int = _ROUNDS, chunk: int = 8) -> GaussianPrior:
    """Expectation-maximisation from a white spectrum, on scans of any sizes."""
    prior = GaussianPrior(torch.full((_RINGS,), SIGMA_DATA**2))
    groups = {}
    for scan in scans:
        groups.setdefault(scan.shape, []).append(scan)
    batches = [collate(g[i : i + chunk]) for g in groups.values() for i in range(0, len(g), chunk)]
    for number in range(rounds):
        total, count = torch.zeros(_RINGS), torch.zeros(_RINGS)
        for index, batch in enumerate(batches):
            images = prior.draw(batch, generator(seed, "gaussian", number, index))
            ring = _ring(images.shape[-2:], _RINGS).expand(images.shape).flatten()
            total += torch.bincount(ring, fft2c(images).abs().square().flatten() / 2, minlength=_RINGS)
            count += torch.bincount(ring, minlength=_RINGS)
        seen = count > 0
        prior = GaussianPrior(torch.where(seen, total / count.clamp_min(1), prior.spectrum).clamp_min(1e-8))
    return prior


def _ring(shape, rings):
    return (radius(shape) * rings).long().clamp_max(rings - 1)
