"""Noise levels, and the diffused images that undersampled noisy scans allow (docs/method.md, sections 1, 4 and 6).

Every input has a measurement that is independent of it given the scan: on the kept lines y~ = y - (cov) n, as in
Recorrupted-to-Recorrupted (Pang et al., CVPR 2021); on held-out lines y itself.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from mrigsure.operators import SenseOperator
from mrigsure.scan import Scan
from mrigsure.seeds import complex_noise

GAMMA = 2.0  # 4 sigma^2 mu / (1 + mu)^2 = GAMMA sigma0^2: how much noise y + alpha n carries, over the data's own
C_MIN = 0.006  # floor of mu / (1 + mu)^2, which bounds the condition of the solve


def sigma_schedule(levels: int, sigma_max: float, sigma_min: float, rho: float = 7.0) -> Tensor:
    """Noise levels from `sigma_max` down to `sigma_min`, float32 (levels,) (Karras et al. 2022, equation 5)."""
    ramp = torch.linspace(0, 1, levels, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return ((high + ramp * (low - high)) ** rho).float()


def renoised(x: Tensor, estimate: Tensor, sigma: float, following: float, fresh: float, noise: Tensor) -> Tensor:
    """estimate + following (sqrt(1 - fresh) (x - estimate) / sigma + sqrt(fresh) n): x at the following level.

    fresh  share of the noise's variance that is new: 0 is DDIM, 1 forgets x
    """
    kept = (1 - fresh) ** 0.5 * (x - estimate) / sigma
    return estimate + following * (kept + fresh**0.5 * noise)


def ancestral(sigma: float, following: float) -> float:
    """`fresh` of a DDPM step, which follows the reverse diffusion: 1 - (following / sigma)^2."""
    return 1 - (following / sigma) ** 2


def draw_sigma(low: Tensor, high: float, log_sigma: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Training noise levels, one per entry of `low`: ln sigma ~ N(mean, std^2), `log_sigma`, in [low, high].

    Each has this distribution; together they fill its quantiles, one in each of len(low) equal parts, so that
    batches differ less (after Kingma et al. 2021, Variational Diffusion Models, appendix I.1). They are drawn on the
    CPU, so that every device has the same.
    """
    normal = torch.distributions.Normal(*log_sigma)
    below, above = normal.cdf(low.cpu().log()), normal.cdf(torch.tensor(math.log(high)))
    part = torch.randperm(len(low), generator=generator)
    quantile = (part + torch.rand(low.shape, generator=generator)) / len(low)
    return normal.icdf(below + quantile * (above - below)).exp().to(low.device)


def lowest_solve_sigma(sigma0):
    """The level below which `perturb_and_solve` has no exactly white input: sqrt(gamma) sigma0."""
    return math.sqrt(GAMMA) * sigma0


def solve_shift(sigma: Tensor, sigma0: Tensor) -> Tensor:
    """mu of section 4: mu / (1 + mu)^2 = max(gamma sigma0^2 / (4 sigma^2), c_min)."""
    return smaller_root((GAMMA * sigma0**2 / (4 * sigma**2)).clamp(C_MIN, 0.25))


def smaller_root(c: Tensor) -> Tensor:
    """The smaller root of mu / (1 + mu)^2 = c, 0 < c <= 1/4, in the form that does not cancel in float32."""
    return 2 * c / (1 - 2 * c + (1 - 4 * c).clamp_min(0).sqrt())


def diffuse_adjoint(
    operator: SenseOperator, kspace: Tensor, sigma: Tensor, sigma0: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """x_sigma = T x + sigma w with w exactly white (section 1), and its independent measurement (section 3).

    operator  of the kept lines M~
    kspace    complex (batch, coil, H, W), at least the kept lines
    sigma     (batch,), above sigma0 (batch,)
    Returns x_sigma (batch, H, W) and the target (batch, coil, H, W): y~ on kept lines, `kspace` elsewhere.
    """
    mask = operator.mask
    noise = complex_noise(kspace.shape, generator, kspace.dtype)
    alpha = _column(sigma.square() - sigma0.square()).sqrt()
    diffused = mask * (kspace + alpha * noise) + (1 - mask) * _column(sigma) * noise
    unmasked = SenseOperator(torch.ones_like(mask), operator.sens_maps)
    return unmasked.adjoint(diffused), kspace - mask * (_column(sigma0) ** 2 / alpha) * noise


def perturb_and_solve(
    operator: SenseOperator,
    kspace: Tensor,
    sigma: Tensor,
    sigma0: Tensor,
    generator: torch.Generator,
    tolerance: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """The regularised SENSE solve whose noise is exactly sigma w (section 4), and its independent measurement.

    x_sigma = (T + mu)^-1 [(1 + mu) A^H (y + alpha n) + sigma (T - mu) n2]; arguments, shapes and target as in
    `diffuse_adjoint`. sigma at least `lowest_solve_sigma(sigma0)`.
    """
    mu = solve_shift(sigma, sigma0)
    alpha = _column(4 * sigma**2 * mu / (1 + mu) ** 2 - sigma0**2).sqrt()
    noise = complex_noise(kspace.shape, generator, kspace.dtype)
    rhs = _noisy_side(operator, kspace + alpha * noise, sigma, mu, generator)
    target = kspace - operator.mask * (_column(sigma0) ** 2 / alpha) * noise
    return operator.solve(rhs, mu, tolerance), target


def complete_and_solve(
    operator: SenseOperator,
    noisier: Tensor,
    images: Tensor,
    sigma: Tensor,
    sigma0: Tensor,
    generator: torch.Generator,
    tolerance: float = 1e-5,
) -> Tensor:
    """`perturb_and_solve`, and where the solve knows little of x a draw in its place (docs/method.md, section 6).

    The solve's mean is C x, C = (1 + mu)(T + mu)^-1 T; to it comes (1 - C) images = mu (T + mu)^-1 (1 - T) images. With
    right draws the whole is distributed as x + sigma w; the noise is exactly white whatever they are.

    noisier  complex (batch, coil, H, W), the k-space of `noisier_scan`: the target that is independent of all this is
             `independent_kspace`'s
    images   complex (batch, H, W), draws given `noisier` alone
    sigma0   (batch,), of the scans as they were measured; sigma (batch,) at least `lowest_solve_sigma(sigma0)`
    """
    mu = solve_shift(sigma, sigma0)
    more = 4 * sigma**2 * mu / (1 + mu) ** 2 - GAMMA * sigma0**2
    noise = complex_noise(noisier.shape, generator, noisier.dtype)
    rhs = _noisy_side(operator, noisier + _column(more.clamp_min(0)).sqrt() * noise, sigma, mu, generator)
    return operator.solve(rhs + mu[:, None, None] * (images - operator.normal(images)), mu, tolerance)


def noisier_scan(scan: Scan, generator: torch.Generator) -> Scan:
    """z = y + alpha n on what was sampled, alpha^2 = (gamma - 1) sigma0^2, the least noise that the solve needs."""
    noise = complex_noise(scan.kspace.shape, generator, scan.kspace.dtype)
    kspace = scan.kspace + (GAMMA - 1) ** 0.5 * scan.noise_std * scan.mask * noise
    return replace(scan, kspace=kspace, noise_std=GAMMA**0.5 * scan.noise_std)


def independent_kspace(kspace: Tensor, noisier: Tensor) -> Tensor:
    """y~ = y - (z - y) sigma0^2 / alpha^2 of y and the z of `noisier_scan`: its noise and z's are independent."""
    return kspace - (noisier - kspace) / (GAMMA - 1)


def _noisy_side(operator, kspace, sigma, mu, generator):
    """(1 + mu) A^H kspace + sigma (T - mu) n2, whose solve has white noise."""
    n2 = complex_noise((kspace.shape[0], *kspace.shape[-2:]), generator, kspace.dtype)
    mu, sigma = mu[:, None, None], sigma[:, None, None]
    return (1 + mu) * operator.adjoint(kspace) + sigma * (operator.normal(n2) - mu * n2)


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]
