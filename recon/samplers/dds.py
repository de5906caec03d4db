"""Decomposed diffusion sampling, DDS: Chung et al., ICLR 2024 (arXiv:2303.05754), its form for noisy measurements.

    x0 = f(x; sigma)
    xh = a few steps of conjugate gradients, from x0, on (1 + gamma T) v = x0 + gamma A^H y
    x  <- xh + sigma_next (sqrt(1 - eta^2) (x - xh) / sigma + eta n)

As in the authors' program (solver_2d.py of HJ-harry/DDS, where the numbers come from the command line); 5 steps and
eta = 0.85. Their gamma is a number for every task; here gamma = r^2 / sigma0^2, r^2 = sigma^2 s^2 / (sigma^2 + s^2)
being how far x may lie from x0. The steps stop early where gamma is large: the data is met in the directions that it
knows best. xh is a mean, not a draw, and samples vary too little. One evaluation a level, no backward pass.
"""

import torch
from torch import Tensor

from mrigsure.diffusion import renoised
from mrigsure.operators import conjugate_gradients
from mrigsure.scan import ScanBatch
from recon.samplers.common import Denoise, denoised, image_noise, isotropic_variance, levels

_CG_STEPS = 5
_ETA = 0.85


@torch.no_grad()
def dds(
    denoise: Denoise, batch: ScanBatch, *, nfe: int, sigma_max: float, sigma_min: float, generator: torch.Generator
) -> Tensor:
    """One sample of every scan; arguments and result as `recon.samplers.Sampler` has them."""
    x = sigma_max * image_noise(batch, generator)
    seen = batch.operator.adjoint(batch.kspace)
    for sigma, following in levels(batch, nfe, sigma_max, sigma_min):
        x0 = denoised(denoise, x, sigma)
        gamma = (isotropic_variance(sigma) / batch.sigma0.square())[:, None, None]
        estimate = conjugate_gradients(
            lambda v, gamma=gamma: v + gamma * batch.operator.normal(v),
            x0 + gamma * seen,
            start=x0,
            max_iterations=_CG_STEPS,
            strict=False,
        )
        x = renoised(x, estimate, sigma, following, _ETA**2, image_noise(batch, generator))
    return x
