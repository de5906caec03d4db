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
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from mrigsure.denoiser import Prior
from mrigsure.diffusion import ancestral, renoised, sigma_schedule
from mrigsure.fourier import blur, radial_bands, radius
from mrigsure.operators import SenseOperator, conjugate_gradients
from mrigsure.scan import SIGMA_DATA, ScanBatch
from mrigsure.seeds import Randomness, complex_noise, some
from mrigsure.soft_sense import JointFactor, other_sets_deviation

Denoise = Callable[[Tensor, Tensor], Tensor]
START_SIGMA = 4 * SIGMA_DATA
"""Where draws begin. From 40 sigma_data a third of the levels did what the white prior's draw does at no cost: with 20
levels in all it cost a trained prior .4 dB at R = 4 and 1.2 dB at R = 8."""
_SPACING = 20.0  # rho of the levels, nearly geometric
_START_ITERATIONS = 12  # of the white prior's solve, which noise covers
_PROBE_STEP = 0.1  # of sigma: the finite difference that gives J b
PROBE_EVERY = 2  # levels: with 30 evaluations 20 levels and 10 probes gain a third of a decibel on 15 and 15
_LOCAL = (0.01, 10.0)  # range of the local variance over its mean; in air, where the denoiser errs least, it is low
_MOST_ITERATIONS = 7  # of a level; to the end they would take 1 to 3% off the spread of the draws, at 4 times the cost
_NOISY, _NOISY_ITERATIONS = 2 * SIGMA_DATA, 2  # above this level so few do as well: noise hides what they leave
_MOST_WITH_SETS = 60  # no preconditioner knows how the sets' images are told apart
_TOLERANCE = 3e-3  # of a level's solve: its error is a small part of the spread that the level draws
SWEEP_SIGMA = 0.12 * SIGMA_DATA  # rho: the network's finest detail lies below; docs/refinement.md


class Factor(Protocol):
    """L with R = L L^H, from white coefficients in any orthonormal basis to images; both complex (batch, H, W)."""

    def apply(self, coefficients: Tensor) -> Tensor: ...
    def adjoint(self, image: Tensor) -> Tensor: ...

    def preconditioner(self, operator: SenseOperator, precision: Tensor) -> Callable[[Tensor], Tensor]:
        """An approximate inverse of L^H T L precision + 1."""
        return lambda coefficients: coefficients


Spread = Callable[[Denoise, Tensor, Tensor, float, Randomness], Factor]
"""spread(denoise, x, x0, sigma, generator): the factor of R ~ Cov(x | x_sigma) at one level. A PixelSpectrumSpread
remembers its probes from level to level, and stands for the function that its `start` gives for each draw."""


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
    """Calibrated draws: complex64 (batch, samples, H, W), in prepared units, at `evaluations(levels)` each.

    generator one for all; or one for every draw, scan by scan, which makes the draws the same for any `chunk`; those of
              `seeds.in_pairs` make antithetic pairs, each still a draw by itself, whose mean scatters less
    chunk     draws computed at once
    progress  called after each level with the network evaluations done and to be done, over all draws
    """
    scans = batch.sigma0.shape[0]
    spread = PixelSpectrumSpread(prior.config.spread)
    sigmas = draw_levels(levels, lowest_level(prior, batch), prior.config.sigma_max)
    order = torch.arange(scans).repeat_interleave(samples)
    images, done = [], 0
    for items in order.split(chunk):
        part = ScanBatch(*(getattr(batch, key)[items] for key in batch.__dataclass_fields__))

        def report(level, items=items, before=done):
            if progress:
                progress(before + len(items) * evaluations(level), len(order) * evaluations(levels))

        first = sum(map(len, images))
        rng = some(generator, first, first + len(items))
        images.append(draw(prior.denoise, part, sigmas, spread=spread, generator=rng, after_level=report))
        done += len(items) * evaluations(levels)
    return torch.cat(images).unflatten(0, (scans, samples))


def lowest_level(prior: Prior, batch: ScanBatch) -> float:
    """Where draws end: at a quarter of the scans' noise, but where the prior is defined."""
    return max(prior.config.sigma_min, min(float(batch.sigma0.min()) / 4, prior.config.sigma_max / 10))


def draw_levels(levels: int, sigma_min: float, sigma_max: float = START_SIGMA) -> Tensor:
    """The falling levels of a draw, float32 (levels,), from START_SIGMA or from sigma_max where that is lower."""
    return sigma_schedule(levels, min(START_SIGMA, sigma_max), sigma_min, _SPACING)


def evaluations(levels: int) -> int:
    """Of the network, in a draw with the pixel x spectrum spread: one a level, and the probes."""
    return levels + -(-levels // PROBE_EVERY)


def most_levels(nfe: int) -> int:
    """The most levels whose `evaluations` are no more than nfe."""
    return max(levels for levels in range(nfe + 1) if evaluations(levels) <= nfe)


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


@dataclass(frozen=True)
class ScalarFactor(Factor):
    """L = r."""

    variance: float

    def apply(self, image):
        return self.variance**0.5 * image

    def adjoint(self, image):
        return self.variance**0.5 * image


@dataclass(frozen=True)
class ScalarSpread:
    """R = r^2 = sigma^2 s^2 / (sigma^2 + s^2): costs no evaluation, and is a little too wide (section 7)."""

    signal: float = SIGMA_DATA

    def __call__(self, denoise, x, x0, sigma, generator):
        return ScalarFactor(sigma**2 * self.signal**2 / (sigma**2 + self.signal**2))


@dataclass(frozen=True)
class PixelSpectrumFactor(Factor):
    """L = D^1/2 F^H e^1/2 from k-space, from deviation = D^1/2 (batch, H, W) and amplitude = e^1/2 (batch, H, W).

    F is the plain transform here, k = 0 first, and so are the coefficients that L acts on: shifts would be most of it.
    """

    deviation: Tensor
    amplitude: Tensor

    def apply(self, coefficients):
        image = torch.fft.ifft2(self._factors[1] * coefficients, norm="ortho")
        image *= self._factors[0]
        return image

    def adjoint(self, image):
        coefficients = torch.fft.fft2(self._factors[0] * image, norm="ortho")
        coefficients *= self._factors[1]
        return coefficients

    def preconditioner(self, operator, precision):
        """With D ~ 1 and T ~ F^H operator.sampled F the system is diagonal in k-space."""
        amplitude = torch.fft.ifftshift(self.amplitude, dim=(-2, -1))
        inverse = _complex(1 / (1 + precision * operator.sampled * amplitude**2))
        return lambda coefficients: inverse * coefficients

    @cached_property
    def _factors(self):
        """D^1/2, and e^1/2 with k = 0 first, complex: converting at every product would take as long as the product."""
        return _complex(self.deviation), _complex(torch.fft.ifftshift(self.amplitude, dim=(-2, -1)))


@dataclass(frozen=True)
class PixelSpectrumSpread:
    """R = D^1/2 F^H e F D^1/2: a radial spectrum e and a smooth relative local variance D, from probes of sigma^2 J.

    bands  factor on e, one per radial band, interpolated between the bands' middles; found by `calibrate.py`
    above  the level above which e is multiplied by it
    """

    bands: tuple[float, ...] = (1.0,)
    above: float = 0.0

    def start(self) -> Spread:
        """For the levels of one draw; those between two probes keep D and the variance s^2 that a Gaussian would need
        for the probe's spectrum, J = s^2 / (s^2 + sigma^2)."""
        probed, levels = None, 0

        def at_level(denoise, x, x0, sigma, generator):
            nonlocal probed, levels
            if levels % PROBE_EVERY == 0:
                relative, spectrum = self._probe(denoise, x, x0, sigma, generator)
                probed = sigma, relative.sqrt(), 1 / spectrum.clamp(1e-6, 1) - 1
            levels += 1
            at, deviation, excess = probed
            least = 1e-2 * SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)  # a noisy probe's estimate may fall below 0
            spectrum = (1 / (1 + (sigma / at) ** 2 * excess)).clamp_min(least)
            variance = sigma**2 * spectrum
            if sigma > self.above:
                variance = variance * interpolate_bands(self.bands, tuple(x.shape[-2:]), x.device)
            return PixelSpectrumFactor(deviation, variance.sqrt())

        return at_level

    def _probe(self, denoise, x, x0, sigma, generator):
        """Relative local variance and radial spectrum of J, both (batch, H, W)."""
        noise = complex_noise(x.shape, generator, x.dtype).to(x.device)
        probe = torch.view_as_complex(torch.view_as_real(noise).sign())
        step = _PROBE_STEP * sigma
        response = (denoise(x + step * probe, torch.full(x.shape[:1], sigma, device=x.device)) - x0) / step
        local = blur(_real_product(probe, response) / 2)
        relative = (local / local.mean((1, 2), keepdim=True).clamp_min(1e-6)).clamp(*_LOCAL)
        relative = relative / relative.mean((1, 2), keepdim=True)
        spectrum = _real_product(torch.fft.fft2(probe, norm="ortho"), torch.fft.fft2(response, norm="ortho")) / 2
        return relative, ring_average(torch.fft.fftshift(spectrum, dim=(-2, -1)))  # shifted images turn both alike


def ring_average(spectrum: Tensor) -> Tensor:
    """Replace every sample of real (batch, H, W) by the mean over its ring of about 2 samples' width."""
    index, count = _rings(tuple(spectrum.shape[-2:]), spectrum.device)
    total = spectrum.new_zeros(len(spectrum), len(count)).index_add_(1, index, spectrum.flatten(1))
    return (total / count)[:, index].view_as(spectrum)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _rings(shape, device):
    """Ring of every sample, flat, and samples in every ring."""
    rings = max(4, min(shape) // 4)
    index = radial_bands(shape, rings, device).flatten()
    return index, torch.bincount(index, minlength=rings)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def interpolate_bands(bands: tuple[float, ...], shape: tuple[int, int], device=None) -> Tensor:
    """Values given at the middles of equally wide radial bands, as an (H, W) plane of k-space."""
    values = torch.tensor(bands, device=device)
    position = (radius(shape, device) * len(bands) - 0.5).clamp(0, len(bands) - 1)
    low = position.floor().long()
    high = (low + 1).clamp_max(len(bands) - 1)
    return torch.lerp(values[low], values[high], position - low)


def _complex(values):
    return torch.complex(values, torch.zeros_like(values))


def _real_product(a, b):
    """Real part of conj(a) b."""
    products = torch.view_as_real(a) * torch.view_as_real(b)
    return products[..., 0] + products[..., 1]
