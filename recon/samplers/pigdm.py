"""Pseudoinverse-guided diffusion, Pi-GDM: Song et al., ICLR 2023 (openreview 9_gsMA8MRKQ), algorithm 1.

    x0 = f(x; sigma)
    g  = J^H (T + sigma0^2 / r^2)^-1 A^H (y - A x0),        r^2 = sigma^2 s^2 / (sigma^2 + s^2),   J = d x0 / d x
    x  <- [DDPM step from x0] + g

g is r^2 times the score of p(y | x_sigma) ~ N(y; A x0, r^2 A A^H + sigma0^2); (T + sigma0^2 / r^2)^-1 A^H is the
paper's pseudoinverse where there is noise. The weight r^2, the paper's, does not shrink with the step, so that guidance
adds up: the more levels, the harder they pull, and the samples collapse (docs/samplers.md). s is the images' standard
deviation, 1 in the paper. One evaluation and one backward pass (about two evaluations of time) a level.
"""

import torch
from torch import Tensor

from mrigsure.diffusion import ancestral, renoised
from mrigsure.scan import ScanBatch
from recon.samplers.common import (
    Denoise,
    denoised_with_pullback,
    image_noise,
    isotropic_variance,
    levels,
    proximal,
)


@torch.no_grad()
def pigdm(
    denoise: Denoise, batch: ScanBatch, *, nfe: int, sigma_max: float, sigma_min: float, generator: torch.Generator
) -> Tensor:
    """One sample of every scan; arguments and result as `recon.samplers.Sampler` has them."""
    x = sigma_max * image_noise(batch, generator)
    batch.operator.factorise()
    for sigma, following in levels(batch, nfe, sigma_max, sigma_min):
        x = pigdm_step(denoise, batch, x, sigma, following, image_noise(batch, generator))
    return x


def pigdm_step(denoise: Denoise, batch: ScanBatch, x: Tensor, sigma: float, following: float, noise: Tensor) -> Tensor:
    """x at the following level, complex (batch, H, W). noise of unit variance (batch, H, W)."""
    x0, pullback = denoised_with_pullback(denoise, x, sigma)
    guidance = pullback(proximal(batch, batch.kspace, x0, isotropic_variance(sigma)) - x0)
    return renoised(x, x0, sigma, following, ancestral(sigma, following), noise) + guidance
