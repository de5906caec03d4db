"""Plug-and-play restoration by a diffusion prior, DiffPIR: Zhu et al., CVPRW 2023 (arXiv:2305.08995), algorithm 1.

    x0 = f(x; sigma)
    xh = argmin_v ||A v - y||^2 + rho ||v - x0||^2,        rho = lambda sigma0^2 / sigma^2
    x  <- xh + sigma_next (sqrt(1 - zeta) (x - xh) / sigma + sqrt(zeta) n)

lambda = 1, where x0 is trusted as far as sigma says; the paper tunes it for every task. zeta = 0.3. xh is solved for
exactly. It is a mean, not a draw: what a level is not sure of is lost, and samples vary too little. One evaluation a
level, no backward pass.
"""

import torch
from torch import Tensor

from mrigsure.diffusion import renoised
from mrigsure.scan import ScanBatch
from recon.samplers.common import Denoise, denoised, image_noise, levels, proximal

_ZETA = 0.3


@torch.no_grad()
def diffpir(
    denoise: Denoise, batch: ScanBatch, *, nfe: int, sigma_max: float, sigma_min: float, generator: torch.Generator
) -> Tensor:
    """One sample of every scan; arguments and result as `recon.samplers.Sampler` has them."""
    x = sigma_max * image_noise(batch, generator)
    batch.operator.factorise()
    for sigma, following in levels(batch, nfe, sigma_max, sigma_min):
        estimate = proximal(batch, batch.kspace, denoised(denoise, x, sigma), sigma**2)
        x = renoised(x, estimate, sigma, following, _ZETA, image_noise(batch, generator))
    return x
