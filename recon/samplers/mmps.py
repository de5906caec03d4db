"""Moment matching posterior sampling, MMPS: Rozet et al., NeurIPS 2024 (arXiv:2405.13712).

    x0 = f(x; sigma)
    xh = x0 + R A^H (sigma0^2 + A R A^H)^-1 (y - A x0),        R = sigma^2 J^H,   J = d x0 / d x
    x  <- [DDPM step from xh]

sigma^2 J is the covariance of x given x_sigma, so that xh is E[x | x_sigma, y] but for taking p(x | x_sigma) for a
Gaussian: exact on Gaussian priors, where the samples become exact as the levels grow in number. The paper solves by a
few conjugate-gradient steps. A network's J is no covariance, though: that of the shipped prior is 40% asymmetric at
high levels, and its symmetric part has negative eigenvalues, from which conjugate gradients diverge. The solver here is
GMRES, azula's default, on images instead of k-space,

    (sigma0^2 + R T) (xh - x0) = R A^H (y - A x0)

with one product with J^H a step, a backward pass through the level's one evaluation. One evaluation a level and up to
1 + `_STEPS` backward passes, each about two evaluations of time.
"""

from collections.abc import Callable

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

_STEPS = 10
_TOLERANCE = 1e-4  # of the residual


@torch.no_grad()
def mmps(
    denoise: Denoise, batch: ScanBatch, *, nfe: int, sigma_max: float, sigma_min: float, generator: torch.Generator
) -> Tensor:
    """One sample of every scan; arguments and result as `recon.samplers.Sampler` has them."""
    x = sigma_max * image_noise(batch, generator)
    for sigma, following in levels(batch, nfe, sigma_max, sigma_min):
        mean = guided_mean(denoise, batch, x, sigma)
        x = renoised(x, mean, sigma, following, ancestral(sigma, following), image_noise(batch, generator))
    return x


def guided_mean(denoise: Denoise, batch: ScanBatch, x: Tensor, sigma: float, steps: int = _STEPS) -> Tensor:
    """xh, the mean of x given x_sigma and y, to `steps` steps of the solver: complex (batch, H, W)."""
    x0, pullback = denoised_with_pullback(denoise, x, sigma)
    noise = batch.sigma0.square()[:, None, None]

    def system(image):
        return noise * image + sigma**2 * pullback(batch.operator.normal(image))

    return x0 + gmres(system, sigma**2 * pullback(data_residual(batch, batch.kspace, x0)), steps, _TOLERANCE)


def gmres(operator: Callable[[Tensor], Tensor], rhs: Tensor, steps: int, tolerance: float) -> Tensor:
    """The x of least ||rhs - operator(x)|| in the Krylov space of `steps` dimensions, for a batch of systems.

    operator  linear over the reals, square, of any symmetry; rhs complex (batch, H, W). Ends before, where every
    system's relative residual is below the tolerance. (Saad and Schultz, SIAM J Sci Stat Comput 7:856, 1986)
    """

    def inner(a, b):
        return (a.conj() * b).real.sum((1, 2))

    size = inner(rhs, rhs).sqrt()
    tiny = torch.finfo(size.dtype).tiny
    basis = [rhs / size.clamp_min(tiny)[:, None, None]]
    hessenberg = size.new_zeros(len(size), steps + 1, steps)
    for step in range(steps):
        image = operator(basis[step])
        for row, vector in enumerate(basis):
            hessenberg[:, row, step] = inner(vector, image)
            image = image - hessenberg[:, row, step, None, None] * vector
        hessenberg[:, step + 1, step] = inner(image, image).sqrt()
        basis.append(image / hessenberg[:, step + 1, step, None, None].clamp_min(tiny))
        known = hessenberg[:, : step + 2, : step + 1]
        weights = torch.linalg.pinv(known)[:, :, 0]
        left = known @ weights[..., None]
        left[:, 0] -= 1
        if (left.norm(dim=(1, 2)) < tolerance).all():
            break
    return size[:, None, None] * sum(
        weight[:, None, None] * vector for weight, vector in zip(weights.unbind(1), basis, strict=False)
    )
