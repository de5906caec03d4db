"""Posterior sampling of a scan under a prior (docs/method.md, section 7).

A draw begins where no network is needed yet, with a posterior draw under a white Gaussian prior, noised to the first
level. Then, for each level sigma_k of a falling schedule,

    x0 = f(x; sigma_k)
    xh = argmin_v || A v - (y + sigma0 n1) ||^2 / sigma0^2 + || v - x0 - R^1/2 n2 ||^2_{R^-1}
    x  = xh + sigma_{k+1} (sqrt(1 - eta^2) (x - xh) / sigma_k + eta n)

The two perturbations make xh a draw from the Gaussian approximation of p(x | x_sigma, y); with R = sigma^2 J it is
exact for Gaussian priors. The last level returns the solve's mean, or a draw where it lies above sigma0 / 2, as for a
prior that is not yet defined below. With R = L L^H the solve corrects v = x0 + L n2, a draw without the data, to
xh = v + L w,

    (L^H T L / sigma0^2 + 1) w = L^H A^H (y + sigma0 n1 - A v) / sigma0^2.

Where conjugate gradients stop early, v is left: the variance is a little large, not small as if they built all of xh.

On request sweeps of a split Gibbs chain follow (Vono et al. 2019, arXiv:1804.05809, algorithm 1; with a diffusion prior
Wu et al. 2024, arXiv:2405.18782). At one fixed level rho

    z ~ exp(-|| A z - y ||^2 / (2 sigma0^2) - || z - x ||^2 / (2 rho^2)),   exactly
    x ~ p(x | x + rho n = z),                                               by a few ancestral steps of the prior

in turn: no R is in it, and so none of R's texture, which is not an image's, stays in the draws.
"""

import math
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise

import torch
from torch import Tensor

from mrigsure.denoiser import Prior
from mrigsure.diffusion import ancestral, renoised, sigma_schedule
from mrigsure.operators import SenseOperator, conjugate_gradients
from mrigsure.scan import SIGMA_DATA, ScanBatch
from mrigsure.seeds import Randomness, complex_noise, some
from mrigsure.soft_sense import JointFactor, other_sets_deviation
from mrigsure.spread import Denoise, Factor, PixelSpectrumFactor, PixelSpectrumSpread, ScalarFactor, Spread

START_SIGMA = 4 * SIGMA_DATA
"""Where draws begin. From 40 sigma_data a third of the levels did what the white prior's draw does at no cost: with 20
levels in all it cost a trained prior .4 dB at R = 4 and 1.2 dB at R = 8."""
_SPACING = 20.0  # rho of the levels, nearly geometric
_START_ITERATIONS = 12  # of the white prior's solve, which noise covers
_MOST_ITERATIONS = 7  # of a level; to the end they would take 1 to 3% off the spread of the draws, at 4 times the cost
_NOISY, _NOISY_ITERATIONS = 2 * SIGMA_DATA, 2  # above this level so few do as well: noise hides what they leave
_MOST_WITH_SETS = 60  # no preconditioner knows how the sets' images are told apart
_TOLERANCE = 3e-3  # of a level's solve: its error is a small part of the spread that the level draws
SWEEP_SIGMA = 0.12 * SIGMA_DATA  # rho: the network's finest detail lies below; docs/refinement.md


def posterior_samples(
    prior: Prior,
    batch: ScanBatch,
    *,
    samples: int,
    levels: int,
    generator: Randomness,
    chunk: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Calibrated draws: complex64 (batch, samples, H, W), in prepared units, of `prior.spread`.

    generator one for all; or one for every draw, scan by scan, which makes the draws the same for any `chunk`; those of
              `seeds.in_pairs` make antithetic pairs, each still a draw by itself, whose mean scatters less
    chunk     draws computed at once
    progress  called after each level with the network evaluations done and to be done, over all draws
    """
    scans = batch.sigma0.shape[0]
    nfe = prior.spread.evaluations
    sigmas = draw_levels(levels, lowest_level(prior, batch), prior.config.sigma_max)
    order = torch.arange(scans).repeat_interleave(samples)
    images, done = [], 0
    for items in order.split(chunk):
        part = batch.of(items)

        def report(level, items=items, before=done):
            if progress:
                progress(before + len(items) * nfe(level), len(order) * nfe(levels))

        first = sum(map(len, images))
        rng = some(generator, first, first + len(items))
        images.append(draw(prior.denoise, part, sigmas, spread=prior.spread, generator=rng, after_level=report))
        done += len(items) * nfe(levels)
    return torch.cat(images).unflatten(0, (scans, samples))


def lowest_level(prior: Prior, batch: ScanBatch) -> float:
    """Where draws end: at a quarter of the scans' noise, but where the prior is defined."""
    return max(prior.config.sigma_min, min(float(batch.sigma0.min()) / 4, prior.config.sigma_max / 10))


def draw_levels(levels: int, sigma_min: float, sigma_max: float = START_SIGMA) -> Tensor:
    """The falling levels of a draw, float32 (levels,), from START_SIGMA or from sigma_max where that is lower."""
    return sigma_schedule(levels, min(START_SIGMA, sigma_max), sigma_min, _SPACING)


def _without_autograd(function):
    """Small operations take a tenth longer where autograd might follow; what comes out it may."""

    @wraps(function)
    def wrapped(*arguments, **options):
        with torch.inference_mode():
            images = function(*arguments, **options)
        return images.clone()

    return wrapped


@_without_autograd
def draw(
    denoise: Denoise,
    batch: ScanBatch,
    sigmas: Tensor,
    *,
    spread: Spread,
    generator: Randomness,
    start: Tensor | None = None,
    eta: float = 1.0,
    quiet_sigma: float = 0.0,
    sweeps: int = 0,
    sweep_steps: int = 8,
    after_level: Callable[[int], None] | None = None,
) -> Tensor:
    """One draw for every scan of the batch: complex (batch, H, W); with several sets of maps, of the first's image.

    sigmas   falling levels, (levels,)
    generator  one for all; or one for every scan, whose draw then does not depend on the others in the batch
    start    the state at sigmas[0]; without it a posterior draw under a white Gaussian prior, noised to sigmas[0]
    quiet_sigma  below this level nothing is perturbed; infinity gives the fast point estimate of DDS and DiffPIR, which
             is under-dispersed and not for uncertainty
    sweeps   of the split Gibbs chain at SWEEP_SIGMA, in place of the levels below half of it; none where no level is
    sweep_steps  of the prior in each, from SWEEP_SIGMA to a sixth of it
    """
    operator, kspace = batch.operator, batch.kspace
    shape = (kspace.shape[0], *kspace.shape[-2:])

    deviation = other_sets_deviation(batch) if operator.has_sets else None

    def noise(size=shape):
        return complex_noise(size, generator, kspace.dtype).to(kspace.device)

    at_level = spread.start() if isinstance(spread, PixelSpectrumSpread) else spread
    seen = operator.adjoint(kspace)
    quiet = float(batch.sigma0.min()) / 2  # a last level as low returns the solve's mean
    lowest = float(sigmas[-1])
    sweeps = sweeps if lowest < SWEEP_SIGMA / 2 else 0
    sigmas = sigmas[sigmas >= SWEEP_SIGMA / 2] if sweeps else sigmas

    def solved(x0, factor, most, perturb):
        """xh of a level."""
        if operator.has_sets:  # the others have the mean 0
            x0 = torch.nn.functional.pad(x0[:, None], (0, 0, 0, 0, 0, deviation.shape[1]))
            factor, most = JointFactor(factor, deviation), _MOST_WITH_SETS
        n1, n2 = (samples_noise(batch, generator), noise(x0.shape)) if perturb else (None, torch.zeros_like(x0))
        estimate = solve_level(operator, seen, batch.sigma0, x0, factor, n2, most, n1)
        return estimate[:, 0] if operator.has_sets else estimate

    def white(sigma):
        """L = sigma, with a preconditioner."""
        plane = torch.ones(shape, device=kspace.device, dtype=seen.real.dtype)
        return PixelSpectrumFactor(plane, sigma * plane)

    def swept(x):
        levels = [*sigma_schedule(sweep_steps, SWEEP_SIGMA, max(lowest, SWEEP_SIGMA / 6), _SPACING).tolist(), 0.0]
        factor = white(SWEEP_SIGMA)
        for _ in range(sweeps):
            x = solved(x, factor, _MOST_ITERATIONS, True)
            for sigma, following in pairwise(levels):
                x0 = denoise(x, torch.full(shape[:1], sigma, device=kspace.device))
                x = renoised(x, x0, sigma, following, ancestral(sigma, following), noise()) if following else x0
        return x

    if start is None:
        nothing = torch.zeros(shape, dtype=seen.dtype, device=seen.device)
        first = solved(nothing, white(SIGMA_DATA), _START_ITERATIONS, quiet_sigma < math.inf)
        start = first + float(sigmas[0]) * noise()
    x = start
    for level, sigma in enumerate(sigmas.tolist()):
        last = level + 1 == len(sigmas)
        x0 = denoise(x, torch.full(shape[:1], sigma, device=kspace.device))
        factor = at_level(denoise, x, x0, sigma, generator)
        hidden = sigma > _NOISY and eta == 1  # a smaller eta keeps what the solve leaves
        most = _NOISY_ITERATIONS if hidden else _MOST_ITERATIONS
        estimate = solved(x0, factor, most, sigma >= quiet_sigma and not (last and sigma <= quiet))
        if after_level:
            after_level(level + 1)
        if last:
            return swept(estimate) if sweeps else estimate
        x = renoised(x, estimate, sigma, float(sigmas[level + 1]), eta**2, noise())
    raise ValueError("sigmas is empty")


def samples_noise(batch: ScanBatch, generator: Randomness) -> list[Tensor]:
    """White noise of every scan's samples, unit variance in each real part: complex (coil, samples)."""
    (images, coils), device, dtype = batch.kspace.shape[:2], batch.kspace.device, batch.kspace.dtype
    return [
        complex_noise((1, coils * len(where)), some(generator, image, image + 1), dtype).view(coils, -1).to(device)
        for image, where in enumerate(batch.operator.samples(images))
    ]


def solve_level(
    operator: SenseOperator,
    seen: Tensor,
    sigma0: Tensor,
    x0: Tensor,
    factor: Factor,
    n2: Tensor,
    most_iterations: int = 12,
    n1: Sequence[Tensor] | None = None,
) -> Tensor:
    """xh of one level, (batch, [set,] H, W) as x0 and seen = A^H y; n1 of every scan as of `samples_noise`, or 0.

    With a scalar R and a line mask the solve is direct, else by conjugate gradients.
    """
    precision = sigma0.view(-1, *[1] * (x0.ndim - 1)).square().reciprocal()
    start = x0 + factor.apply(n2)
    residual = seen - operator.normal(start, n1 and [-sigma * noise for sigma, noise in zip(sigma0, n1, strict=True)])
    if isinstance(factor, ScalarFactor) and operator.is_line_mask:
        return start + operator.solve(residual, sigma0.square() / factor.variance)
    rhs = precision * factor.adjoint(residual)

    def system(w):
        return torch.addcmul(w, precision, factor.adjoint(operator.normal(factor.apply(w))))

    precondition = factor.preconditioner(operator, precision)
    limits = {"tolerance": _TOLERANCE, "max_iterations": most_iterations, "strict": False}
    return start + factor.apply(conjugate_gradients(system, rhs, precondition=precondition, **limits))
