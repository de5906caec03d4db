"""The spread of posterior sampling, R = L L^H = sigma^2 J ~ Cov(x | x_sigma) (docs/method.md, section 7).

Of the denoiser's Jacobian J at one state a probe b tells, with one more evaluation, J b: a smooth relative local
variance D, and how much of every ring of k-space passes, noisily. The second is alike from scan to scan, up to a factor
that changes slowly from level to level: measured on many scans (`calibrate.jacobian_of`) and kept with the prior, it
leaves a draw to find that factor, for which it needs a probe at every fourth level alone and has all those before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mrigsure.fourier import blur, radial_bands, radius
from mrigsure.operators import SenseOperator
from mrigsure.scan import SIGMA_DATA
from mrigsure.seeds import Randomness, complex_noise

Denoise = Callable[[Tensor, Tensor], Tensor]
Jacobian = tuple[tuple[float, ...], ...]
"""Rows (sigma, s^2 of every radial band), sigma falling: J passes s^2 / (s^2 + sigma^2) of a band's noise."""
_PROBE_STEP = 0.1  # of sigma: the finite difference that gives J b
_PROBE_EVERY = 2  # levels: with 30 evaluations 20 levels and 10 probes gain a third of a decibel on 15 and 15
_PROBE_RARELY = 4  # where the prior knows its Jacobian: 24 levels and 6 probes
_REMEMBERED = 0.7  # of the weight of the probes before, at each one that follows
_FACTORS = (0.05, 20.0)  # on s^2: noisy probes may ask for less than nothing
_LOCAL = (0.01, 10.0)  # range of the local variance over its mean; in air, where the denoiser errs least, it is low


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

    bands     factor on e, one per radial band, interpolated between the bands' middles; found by `calibrate.py`
    above     the level above which e is multiplied by it
    jacobian  the prior's own, measured; without it a draw has its own probes alone
    """

    bands: tuple[float, ...] = (1.0,)
    above: float = 0.0
    jacobian: Jacobian = ()

    @property
    def probe_every(self) -> int:
        """Levels from probe to probe."""
        return _PROBE_RARELY if self.jacobian else _PROBE_EVERY

    def evaluations(self, levels: int) -> int:
        """Of the network, in a draw: one a level, and the probes."""
        return levels + -(-levels // self.probe_every)

    def most_levels(self, nfe: int) -> int:
        """The most levels whose `evaluations` are no more than nfe."""
        return max(levels for levels in range(nfe + 1) if self.evaluations(levels) <= nfe)

    def start(self) -> Spread:
        """For the levels of one draw; those between two probes keep D."""
        levels, deviation = 0, None
        passing = _Fitted(self.jacobian) if self.jacobian else _LastProbe()

        def at_level(denoise, x, x0, sigma, generator):
            nonlocal levels, deviation
            shape, device = tuple(x.shape[-2:]), x.device
            if levels % self.probe_every == 0:
                relative, spectrum = probe(denoise, x, x0, sigma, generator)
                deviation = relative.sqrt()
                passing.update(spectrum, sigma)
            levels += 1
            return self.factor(deviation, passing.at(sigma, shape, device), sigma)

        return at_level

    def factor(self, deviation: Tensor, passed: Tensor, sigma: float) -> PixelSpectrumFactor:
        """L where J passes so much of every sample; deviation = D^1/2; both (batch, H, W)."""
        variance = sigma**2 * passed.clamp_min(_least(sigma))
        if sigma > self.above:
            variance = variance * interpolate_bands(self.bands, tuple(variance.shape[-2:]), variance.device)
        return PixelSpectrumFactor(deviation, variance.sqrt())


def check_jacobian(jacobian: Jacobian) -> None:
    """ValueError where it is no table of falling levels and as many variances at each, all above 0."""
    rows = [np.asarray(row, float) for row in jacobian]
    if not rows:
        return
    if len({row.shape for row in rows}) != 1 or rows[0].shape < (2,) or not np.min(rows) > 0:
        raise ValueError("jacobian is no table of a level and positive variances in every row")
    if any(following[0] >= row[0] for row, following in pairwise(rows)):
        raise ValueError("jacobian's levels do not fall")


class _LastProbe:
    """J by the last probe: between two it keeps the variance s^2 that a Gaussian would need for the spectrum."""

    def update(self, spectrum, sigma):
        self.sigma, self.excess = sigma, 1 / spectrum.clamp(1e-6, 1) - 1

    def at(self, sigma, shape, device):
        return 1 / (1 + (sigma / self.sigma) ** 2 * self.excess)


class _Fitted:
    """The prior's own J, its s^2 times a factor for every ring that fits all probes so far: recursive least squares.

    It begins as if one probe had asked for 1, and forgets.
    """

    def __init__(self, jacobian: Jacobian):
        self.levels, *self.variances = np.log(np.array(jacobian[::-1])).T
        self.factor, self.information = 1.0, None

    def update(self, spectrum, sigma):
        passed = self.at(sigma, tuple(spectrum.shape[-2:]), spectrum.device)
        slope = passed * (1 - passed) / self.factor
        before = slope**2 if self.information is None else self.information
        self.information = _REMEMBERED * before + slope**2
        self.factor = (self.factor + slope * (spectrum - passed) / self.information).clamp(*_FACTORS)

    def at(self, sigma, shape, device):
        logs = [np.interp(np.log(sigma), self.levels, values) for values in self.variances]
        variance = self.factor * interpolate_bands(tuple(np.exp(logs).tolist()), shape, device)
        return variance / (variance + sigma**2)


def probe(denoise: Denoise, x: Tensor, x0: Tensor, sigma: float, generator: Randomness) -> tuple[Tensor, Tensor]:
    """Relative local variance and radial spectrum of J at x, both (batch, H, W), k = 0 in the middle; x0 = f(x)."""
    noise = complex_noise(x.shape, generator, x.dtype).to(x.device)
    signs = torch.view_as_complex(torch.view_as_real(noise).sign())
    step = _PROBE_STEP * sigma
    response = (denoise(x + step * signs, torch.full(x.shape[:1], sigma, device=x.device)) - x0) / step
    local = blur(_real_product(signs, response) / 2)
    relative = (local / local.mean((1, 2), keepdim=True).clamp_min(1e-6)).clamp(*_LOCAL)
    relative = relative / relative.mean((1, 2), keepdim=True)
    spectrum = _real_product(torch.fft.fft2(signs, norm="ortho"), torch.fft.fft2(response, norm="ortho")) / 2
    return relative, ring_average(torch.fft.fftshift(spectrum, dim=(-2, -1)))  # shifted images turn both alike


def signal_variance(passed: Tensor, sigma: float) -> Tensor:
    """s^2 of a J that passes so much, s^2 / (s^2 + sigma^2)."""
    passed = passed.clamp(_least(sigma), 1 - 1e-6)
    return sigma**2 * passed / (1 - passed)


def _least(sigma):
    """Of J: a noisy probe's estimate may fall below 0."""
    return 1e-2 * SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)


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


@lru_cache(maxsize=64)  # a jacobian's levels are as many planes
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
