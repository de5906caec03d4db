"""Diffusion posterior sampling, DPS: Chung et al., ICLR 2023 (arXiv:2209.14687), algorithm 1.

    x0 = f(x; sigma)
    x  <- [DDPM step from x0] - zeta J^H A^H (A x0 - y),        J = d x0 / d x

The paper takes p(y | x_sigma) for N(y; A x0, sigma0^2), of which J^H A^H (y - A x0) / sigma0^2 is the score, and then
puts zeta' / ||y - A x0|| for its weight, zeta' chosen by hand for every task. Here zeta is what that score asks for
over a step, but at most 1, half of what would be unstable for T <= 1 and J <= 1:

    zeta = min((sigma^2 - sigma_next^2) / sigma0^2, 1)

J^H A^H A J moves x0 slowly where J is small, at high levels: with few of them the data is not met. One evaluation and
one backward pass (about two evaluations of time) a level.
"""

import torch
from torch import Tensor

from mrigsure.diffusion import ancestral, renoised
from mrigsure.scan import ScanBatch
from recon.samplers.common import (
    Denoise,
    data_residual,
    denoised_with_pullback,
    image_noise,
    levels,
)


@torch.no_grad()
def dps(
    denoise: Denoise, batch: ScanBatch, *, nfe: int, sigma_max: float, sigma_min: float, generator: torch.Generator
) -> Tensor:
    """One sample of every scan; arguments and result as `recon.samplers.Sampler` has them."""
    x = sigma_max * image_noise(batch, generator)
    for sigma, following in levels(batch, nfe, sigma_max, sigma_min):
        zeta = ((sigma**2 - following**2) / batch.sigma0.square()).clamp_max(1)
        x = dps_step(denoise, batch, x, sigma, following, zeta, image_noise(batch, generator))
    return x


def dps_step(
    denoise: Denoise, batch: ScanBatch, x: Tensor, sigma: float, following: float, zeta: Tensor, noise: Tensor
) -> Tensor:
    """x at the following level, complex (batch, H, W). zeta real (batch,), noise of unit variance (batch, H, W)."""
    x0, pullback = denoised_with_pullback(denoise, x, sigma)
    guidance = pullback(data_residual(batch, batch.kspace, x0))
    return renoised(x, x0, sigma, following, ancestral(sigma, following), noise) + zeta[:, None, None] * guidance
