"""Preconditioned unadjusted Langevin: Blumenthal, Holliber, Tamir and Uecker, arXiv:2512.05791, and BART's `sample`.

The exact likelihood times the diffused prior at every level, one step a level:

    x <- x + gamma M [(f(x; sigma) - x) / sigma^2 + A^H (y - A x) / sigma0^2] + sqrt(2 gamma) M^1/2 n,
    M = (T / sigma0^2 + 1 / sigma^2)^-1

from a draw of N(M A^H y / sigma0^2, M) at sigma_max. M [...] + x is the proximal step of f(x; sigma), and
M (A^H n1 / sigma0 + n2 / sigma) has the covariance M, so that a step is one solve. Of the paper only the abstract and a
summary with M could be read; start, steps a level and gamma = 1/2 are those of BART's src/sample.c, whose schedule is
exponential.

A step inflates a mode's variance by up to 1 / (1 - gamma / 2), and a chain that is annealed too fast lags behind: the
first falls with gamma, the second with gamma times the number of levels. Hence gamma = 1/2 up to BART's 100 levels, and
1/2 sqrt(100 / levels) above: both vanish as the levels grow. One evaluation a level, no backward pass.
"""

import torch
from torch import Tensor

from mrigsure.scan import ScanBatch
from recon.samplers.common import Denoise, data_noise, denoised, image_noise, levels, proximal

_GAMMA, _LEVELS = 0.5, 100


@torch.no_grad()
def ula(
    denoise: Denoise, batch: ScanBatch, *, nfe: int, sigma_max: float, sigma_min: float, generator: torch.Generator
) -> Tensor:
    """One sample of every scan; arguments and result as `recon.samplers.Sampler` has them."""
    gamma = _GAMMA * min(1, (_LEVELS / nfe) ** 0.5)
    batch.operator.factorise()

    def step(pull: float, x0: Tensor, sigma: float, push: float) -> Tensor:
        """pull M (A^H y / sigma0^2 + x0 / sigma^2) + push M^1/2 n."""
        kspace = pull * batch.kspace + push * data_noise(batch, generator)
        return proximal(batch, kspace, pull * x0 + push * sigma * image_noise(batch, generator), sigma**2)

    x = step(1, torch.zeros_like(batch.kspace[:, 0]), sigma_max, 1)
    for sigma, _ in levels(batch, nfe, sigma_max, sigma_min):
        x = (1 - gamma) * x + step(gamma, denoised(denoise, x, sigma), sigma, (2 * gamma) ** 0.5)
    return x
