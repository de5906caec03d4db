"""What the samplers share: noise levels, noise, the step to the next level, the data's solve, products with J^H.

x_sigma = x + sigma w, and sigma, sigma0 per real part, as everywhere; T = A^H A, 0 <= T <= 1 (mrigsure/operators.py).
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from mrigsure.diffusion import sigma_schedule
from mrigsure.errors import InputError
from mrigsure.operators import conjugate_gradients
from mrigsure.scan import SIGMA_DATA, ScanBatch
from mrigsure.seeds import complex_noise

Denoise = Callable[[Tensor, Tensor], Tensor]
_TOLERANCE, _MOST_STEPS = 1e-5, 100  # of a data solve under a point mask


def levels(batch: ScanBatch, nfe: int, sigma_max: float, sigma_min: float) -> Iterator[tuple[float, float]]:
    """Pairs of a level and the following one, `nfe` falling levels from sigma_max to sigma_min, then 0.

    Raises InputError for fewer than 2 levels, and for several sets of maps, which only the default sampler knows.
    """
    if nfe < 2:
        raise InputError("nfe", f"a budget of {nfe} noise levels", "at least 2")
    if batch.operator.has_sets:
        sets = batch.sens_maps.shape[1]
        raise InputError("sampler", f"a scan with {sets} sets of maps", "one set; the default sampler takes several")
    return pairwise([*sigma_schedule(nfe, sigma_max, sigma_min).tolist(), 0.0])


def image_noise(batch: ScanBatch, generator: torch.Generator) -> Tensor:
    """White, of unit variance in each real part: complex (batch, H, W)."""
    scans, _, height, width = batch.kspace.shape
    return complex_noise((scans, height, width), generator, batch.kspace.dtype).to(batch.kspace.device)


def data_noise(batch: ScanBatch, generator: torch.Generator) -> Tensor:
    """Noise as the scan's own, sigma0 in each real part: complex (batch, coil, H, W)."""
    noise = complex_noise(batch.kspace.shape, generator, batch.kspace.dtype).to(batch.kspace.device)
    return batch.sigma0[:, None, None, None] * noise


def denoised(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """f(x; sigma) at one level for the whole batch: complex (batch, H, W)."""
    return denoise(x, torch.full(x.shape[:1], sigma, device=x.device))


def denoised_with_pullback(denoise: Denoise, x: Tensor, sigma: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """f(x; sigma) and v -> J^H v, J its Jacobian over real and imaginary parts, at one backward pass a product."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        x0 = denoised(denoise, x, sigma)
    return x0.detach(), lambda v: torch.autograd.grad(x0, x, v, retain_graph=True)[0]


def isotropic_variance(sigma: float) -> float:
    """r^2 = sigma^2 s^2 / (sigma^2 + s^2), the variance of x given x_sigma under a white prior of s = SIGMA_DATA.

    The choice of Pi-GDM (Song et al. 2023), there with s = 1.
    """
    return sigma**2 * SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)


def data_residual(batch: ScanBatch, kspace: Tensor, image: Tensor) -> Tensor:
    """A^H (y - A x): complex (batch, H, W)."""
    return batch.operator.adjoint(kspace) - batch.operator.normal(image)


def proximal(batch: ScanBatch, kspace: Tensor, x0: Tensor, variance: float) -> Tensor:
    """argmin_v ||A v - y||^2 / sigma0^2 + ||v - x0||^2 / variance = x0 + (T + sigma0^2 / variance)^-1 A^H (y - A x0).

    With y + sigma0 n1 and x0 + sqrt(variance) n2 in place of y and x0 it is a draw of
    N(proximal, (T / sigma0^2 + 1 / variance)^-1). Direct for line masks, by conjugate gradients from x0 for others; at
    high levels these are too ill-conditioned to end, and directions that the data hardly sees keep x0, as they should.
    """
    residual, shift = data_residual(batch, kspace, x0), batch.sigma0.square() / variance
    if batch.operator.is_line_mask:
        return x0 + batch.operator.solve(residual, shift)
    return x0 + conjugate_gradients(
        lambda v: batch.operator.normal(v) + shift[:, None, None] * v,
        residual,
        tolerance=_TOLERANCE,
        max_iterations=_MOST_STEPS,
        strict=False,
    )
