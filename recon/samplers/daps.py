"""Decoupled annealing posterior sampling, DAPS: Zhang et al., CVPR 2025 (arXiv:2407.01521), algorithm 1.

    x0 = f(x; sigma)
    xh ~ p(x | x_sigma, y)  by  N(x; x0, r^2) N(y; A x, sigma0^2),        r^2 = sigma^2 s^2 / (sigma^2 + s^2)
    x  <- xh + sigma_next n

For a linear A the inner distribution is a Gaussian; it is drawn from exactly, by one perturbed solve, where the paper
runs Langevin steps of a hand-set length. x0 is the paper's probability-flow solve with a single Euler step, the mean of
x given x_sigma: with it noise and drift balance at low levels, where a finer solve would sample p^(1/2). So the samples
become exact on a Gaussian prior as the levels grow in number. r, which the paper leaves to heuristics, is the deviation
of x given x_sigma under a white prior. One evaluation a level, no backward pass.
"""

import torch
from torch import Tensor

from mrigsure.scan import ScanBatch
from recon.samplers.common import Denoise, data_noise, denoised, image_noise, isotropic_variance, levels, proximal


@torch.no_grad()
def daps(
    denoise: Denoise, batch: ScanBatch, *, nfe: int, sigma_max: float, sigma_min: float, generator: torch.Generator
) -> Tensor:
    """One sample of every scan; arguments and result as `recon.samplers.Sampler` has them."""
    x = sigma_max * image_noise(batch, generator)
    batch.operator.factorise()
    for sigma, following in levels(batch, nfe, sigma_max, sigma_min):
        variance = isotropic_variance(sigma)
        perturbed = denoised(denoise, x, sigma) + variance**0.5 * image_noise(batch, generator)
        draw = proximal(batch, batch.kspace + data_noise(batch, generator), perturbed, variance)
        x = draw + following * image_noise(batch, generator)
    return x
