"""Consistency below the data's noise, for fully sampled noisy scans: an alternative to refinement.

Daras, Dimakis, Daskalakis, arXiv 2404.10177 (Ambient Tweedie). With every line sampled x_0 = S^H F^H y is x + sigma0 w,
w exactly white, and

    sigma > sigma0     || a f(x_sigma, sigma) + (1 - a) x_sigma - x_0 ||^2,    a = (sigma^2 - sigma0^2) / sigma^2

has the minimiser f = E[x | x_sigma] (Tweedie's formula twice). It is a^2 times split GSURE (docs/method.md, section 3),
and so stays bounded down to sigma0. Below sigma0 no data says what f is, but the denoisers of one distribution are
consistent: along the reverse process, from a level `high` to a lower one,

    f(x_high, high) = E[ f(x_sigma, sigma) | x_high ]

so that f at sigma <= sigma0 is found from f a little above sigma0. The reverse process is run by f as it stands; two
independent draws of x_sigma from one x_high make the square of the expectation unbiased:

    sigma <= sigma0    0.3 (sigma / sigma0)^2 < f(x_high) - f(x_sigma), f(x_high) - f(x_sigma') >

The factor is there because that product is as noisy as f at sigma0, however small sigma is: under the usual weights
1 / sigma^2 it would drown what the data teach. Only f at the lower level is moved by it, for the same reason.
"""

import torch
from torch import Tensor

from mrigsure.objectives import Denoise
from mrigsure.scan import ScanBatch
from mrigsure.seeds import complex_noise

_HIGHEST = 1.3  # of sigma0: the reverse process starts between sigma0 and this
_STEPS = 6  # of the reverse process, two evaluations each
_STRENGTH = 0.3  # of consistency against the data


def ambient_tweedie(denoise: Denoise, batch: ScanBatch, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """One loss per scan, (batch,), per real number: Tweedie's above the scan's sigma0, consistency at and below it.

    A loss of consistency estimates a square without bias, and so may be negative. It costs 2 evaluations of the network
    with gradient and 25 without; train the levels above sigma0 first, for it follows them. ValueError for scans with
    lines missing.
    """
    if not bool((batch.mask > 0).all()):
        raise ValueError("ambient_tweedie takes fully sampled scans")
    noisy, sigma0 = batch.operator.adjoint(batch.kspace), batch.sigma0
    above = sigma > sigma0
    losses = torch.zeros_like(sigma)
    for rows, loss in ((above, tweedie), (~above, consistency)):
        if rows.any():
            losses = losses.index_put((rows,), loss(denoise, noisy[rows], sigma0[rows], sigma[rows], generator))
    return losses


def tweedie(denoise: Denoise, noisy: Tensor, sigma0: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """The loss at sigma > sigma0 for images `noisy`, complex (batch, H, W), of noise sigma0 (batch,); (batch,)."""
    x = _raise(noisy, sigma0, sigma, generator)
    a = _plane(1 - (sigma0 / sigma).square())
    error = a * denoise(x, sigma) + (1 - a) * x - noisy
    return _inner(error, error)


def consistency(denoise: Denoise, noisy: Tensor, sigma0: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """The loss at sigma <= sigma0, with `high` drawn between sigma0 and 1.3 sigma0; shapes as in `tweedie`."""
    with torch.no_grad():
        uniform = torch.rand(sigma.shape, generator=generator, device=generator.device).to(sigma)
        high = sigma0 * (1 + (_HIGHEST - 1) * uniform)
        x_high = _raise(noisy, sigma0, high, generator)
        teacher = denoise(x_high, high)
        draws = [reverse(denoise, x_high, high, sigma, generator) for _ in range(2)]
    first, second = (teacher - denoise(x, sigma) for x in draws)
    return _STRENGTH * (sigma / sigma0).square() * _inner(first, second)


def reverse(denoise: Denoise, x: Tensor, high: Tensor, low: Tensor, generator: torch.Generator) -> Tensor:
    """A draw of x_low given x_high = `x` under `denoise`: the reverse diffusion in geometric steps.

    A step from a to b is exact given x0: x_b = r x_a + (1 - r) x0 + b sqrt(1 - r) n, r = (b / a)^2. As in Heun's method
    x0 is the mean of the denoiser at both ends; its value at the start alone would leave out the spread of x0 itself.
    """
    for step in range(_STEPS):
        a, b = (high * (low / high) ** ((step + end) / _STEPS) for end in (0, 1))
        ratio = (b / a).square()
        noise = _plane(b * (1 - ratio).sqrt()) * complex_noise(x.shape, generator, x.dtype)
        r, x0 = _plane(ratio), denoise(x, a)
        x0 = (x0 + denoise(r * x + (1 - r) * x0 + noise, b)) / 2
        x = r * x + (1 - r) * x0 + noise
    return x


def _raise(noisy, sigma0, sigma, generator):
    """More noise, from sigma0 up to sigma."""
    added = (sigma.square() - sigma0.square()).clamp_min(0).sqrt()
    return noisy + _plane(added) * complex_noise(noisy.shape, generator, noisy.dtype)


def _inner(a, b):
    return (a.conj() * b).real.mean((-2, -1)) / 2


def _plane(values: Tensor) -> Tensor:
    return values[:, None, None]
