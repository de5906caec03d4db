"""Annealed Langevin dynamics, ALD: Jalal et al., NeurIPS 2021 (arXiv:2108.01368), the annealed update of section 3.

A few steps at every level, of

    x <- x + h [(f(x; sigma) - x) / sigma^2 + A^H (y - A x) / (sigma0^2 + gamma^2)] + sqrt(2 h) n

The likelihood is annealed by gamma = sigma, as in the authors' program (main.py of utcsilab/csgm-mri-langevin), which
also has 3 steps at each of 2,311 levels. Its h is a number times sigma^2, chosen for every task; here it is the
reciprocal of the target's greatest curvature, half of what would be unstable, for T <= 1:

    h = 1 / (1 / sigma^2 + 1 / (sigma0^2 + gamma^2))

With few evaluations the chain lags far behind its levels, and noise is left in the image (docs/samplers.md). One
evaluation a step, no backward pass.
"""

import torch
from torch import Tensor

from mrigsure.scan import ScanBatch
from recon.samplers.common import Denoise, data_residual, denoised, image_noise, levels

_STEPS = 3


@torch.no_grad()
def ald(
    denoise: Denoise, batch: ScanBatch, *, nfe: int, sigma_max: float, sigma_min: float, generator: torch.Generator
) -> Tensor:
    """One sample of every scan; arguments and result as `recon.samplers.Sampler` has them."""
    x = sigma_max * image_noise(batch, generator)
    for sigma, _ in levels(batch, nfe // _STEPS, sigma_max, sigma_min):
        variance = (batch.sigma0.square() + sigma**2)[:, None, None]
        step = 1 / (1 / sigma**2 + 1 / variance)
        for _ in range(_STEPS):
            score = (denoised(denoise, x, sigma) - x) / sigma**2
            score = score + data_residual(batch, batch.kspace, x) / variance
            x = x + step * score + (2 * step).sqrt() * image_noise(batch, generator)
    return x
