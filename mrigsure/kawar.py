"""GSURE-Diffusion as it was published: variance-preserving steps, Hutchinson's divergence, weights E[P]^-1/2.

Kawar, Elata, Michaeli, Elad, arXiv 2305.13128, for the degradations whose right singular vectors V are known and whose
singular values are 0 or 1: a scan of one coil (V^T = F) and an image with missing patches (V^T = 1), both

    y = M (V^T x + z),    z white of level sigma0 in each real part.

At step t, x_t = sqrt(alpha_bar) x + sqrt(1 - alpha_bar) w on what was measured, sqrt(1 - alpha_bar) w elsewhere:

    V^T x_t = sqrt(alpha_bar) y + sqrt(1 - alpha_bar - alpha_bar sigma0^2 M) n
    loss    = || W M (V^T f(x_t, t) - y) ||^2 + 2 sigma0^2 div,    W^2 = 1 / p

with div the divergence of W^2 M V^T f(x_t(y), t) with respect to y. x_t / sqrt(alpha_bar) is the x_sigma of
docs/method.md, section 1, at sigma^2 = (1 - alpha_bar) / alpha_bar; `gsure_kawar` is this loss for mrigsure's own
denoisers f(x, sigma). What it teaches and what it does not: docs/gsure_seed.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mrigsure.fourier import fft2c, ifft2c
from mrigsure.scan import ScanBatch
from mrigsure.seeds import complex_noise

DenoiseAtStep = Callable[[Tensor, Tensor], Tensor]
"""f(x_t, t): images (batch, H, W) and int64 (batch,) to images (batch, H, W)."""


@dataclass(frozen=True)
class VPSchedule:
    """The linear schedule of DDPM (Ho et al. 2020, section 4), which the paper takes: beta from `first` to `last`."""

    steps: int = 1000
    first: float = 1e-4
    last: float = 0.02

    @cached_property
    def alpha_bar(self) -> Tensor:
        """Float64 (steps,), falling."""
        return torch.linspace(self.first, self.last, self.steps, dtype=torch.float64).neg().add(1).cumprod(0)

    @cached_property
    def sigma(self) -> Tensor:
        """The variance-exploding level of every step, float64 (steps,), rising: sqrt((1 - alpha_bar) / alpha_bar)."""
        return sigma_of(self.alpha_bar)

    def first_step(self, sigma0: Tensor) -> Tensor:
        """The least step whose level is above the data's own noise; int64, of the shape of `sigma0`."""
        return torch.searchsorted(self.sigma, sigma0.double().contiguous(), right=True)

    def nearest_step(self, sigma: Tensor) -> Tensor:
        """The step whose level is nearest to each `sigma`, by ratio; int64, of its shape (batch,)."""
        return (self.sigma.log() - sigma.double().log()[:, None]).abs().argmin(1)

    def draw_steps(self, sigma0: Tensor, generator: torch.Generator) -> Tensor:
        """Training steps, uniform over those above each entry's sigma0; int64, of its shape (batch,)."""
        low = self.first_step(sigma0)
        uniform = torch.rand(sigma0.shape, generator=generator, dtype=torch.float64)
        return (low + uniform * (self.steps - low)).long()


def sigma_of(alpha_bar: Tensor) -> Tensor:
    """sigma of the variance-exploding process at the same signal-to-noise ratio."""
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def alpha_bar_of(sigma: Tensor) -> Tensor:
    """The inverse of `sigma_of`."""
    return 1 / (1 + sigma.square())


@dataclass(frozen=True)
class Masked:
    """y = M (V^T x + z), all (batch, H, W).

    values   y, complex for fourier, real otherwise; 0 where not measured
    mask     0 or 1
    density  P(M = 1) of every entry
    sigma0   (batch,), noise level per real part
    fourier  V^T is `fft2c` (one coil); otherwise it is the identity (missing pixels)
    """

    values: Tensor
    mask: Tensor
    density: Tensor
    sigma0: Tensor
    fourier: bool

    @staticmethod
    def from_scans(batch: ScanBatch) -> "Masked":
        """Scans of one coil whose map is 1. ValueError for others: there V is not known in closed form."""
        if batch.kspace.shape[1] != 1 or not torch.allclose(batch.sens_maps, torch.ones_like(batch.sens_maps)):
            raise ValueError(f"{batch.kspace.shape[1]} coils with maps; GSURE-Diffusion takes one coil whose map is 1")
        return Masked(batch.kspace[:, 0], batch.mask[:, 0], batch.density[:, 0], batch.sigma0, fourier=True)

    def basis(self, image: Tensor) -> Tensor:
        """V^T image."""
        return fft2c(image) if self.fourier else image

    def image(self, values: Tensor) -> Tensor:
        """V values."""
        return ifft2c(values) if self.fourier else values

    def noise(self, generator: torch.Generator) -> Tensor:
        """White noise of unit variance in each real part, of the shape and kind of `values`."""
        if self.values.is_complex():
            return complex_noise(self.values.shape, generator, self.values.dtype)
        return torch.randn(self.values.shape, generator=generator, dtype=self.values.dtype, device=generator.device)

    def __getitem__(self, index) -> "Masked":
        parts = (getattr(self, key)[index] for key in ("values", "mask", "density", "sigma0"))
        return Masked(*parts, fourier=self.fourier)


def diffuse_vp(data: Masked, alpha_bar: Tensor, generator: torch.Generator) -> Tensor:
    """x_t (batch, H, W). alpha_bar (batch,), such that (1 - alpha_bar) / alpha_bar >= sigma0^2."""
    keep = _plane(alpha_bar).to(data.mask)
    added = (1 - keep - keep * _plane(data.sigma0).square() * data.mask).clamp_min(0).sqrt()
    return data.image(keep.sqrt() * data.values + added * data.noise(generator))


def gsure_vp(
    denoise: DenoiseAtStep, data: Masked, step: Tensor, generator: torch.Generator, schedule: VPSchedule
) -> Tensor:
    """The published loss, one per image, (batch,), per real number; `step` (batch,), none below `first_step`.

    Its expectation is that of || W M (V^T f - V^T x) ||^2 plus a constant: the factor 2 sigma0^2 of the divergence is
    Stein's. (The authors' released code weighs it by 1 - alpha_bar instead of sqrt(alpha_bar): docs/gsure_seed.md.)
    """
    alpha_bar = schedule.alpha_bar[step].to(data.mask)
    x_t = diffuse_vp(data, alpha_bar, generator).requires_grad_(True)
    output = data.basis(denoise(x_t, step))
    weight = data.mask / data.density.clamp_min(1e-6)
    probe = data.mask * data.noise(generator)
    (gradient,) = torch.autograd.grad(_inner(weight * probe, output).sum(), x_t, create_graph=True)
    divergence = _inner(gradient, _plane(alpha_bar).sqrt() * data.image(probe))
    square = (weight * (output - data.values).abs().square()).sum((1, 2))
    return (square + 2 * data.sigma0.square() * divergence) / _reals(output)


def gsure_kawar(denoise, batch: ScanBatch, sigma: Tensor, generator: torch.Generator, schedule: VPSchedule) -> Tensor:
    """`gsure_vp` for scans of one coil and a denoiser f(x, sigma), with the arguments of objectives.py.

    Every level is moved to the nearest step above the scan's sigma0. To train as published, draw
    sigma = schedule.sigma[schedule.draw_steps(sigma0)] and weigh all levels alike.
    """
    step = torch.maximum(schedule.nearest_step(sigma), schedule.first_step(batch.sigma0))
    return gsure_vp(at_steps(denoise, schedule), Masked.from_scans(batch), step, generator, schedule)


def at_steps(denoise, schedule: VPSchedule) -> DenoiseAtStep:
    """The denoiser f(x, sigma) as one of (x_t, t): f(x_t / sqrt(alpha_bar), sigma_t)."""

    def at_step(x_t, step):
        scale = schedule.alpha_bar[step].sqrt().to(x_t.real)
        return denoise(x_t / _plane(scale), schedule.sigma[step].to(x_t.real))

    return at_step


def at_levels(denoise: DenoiseAtStep, schedule: VPSchedule):
    """The denoiser of (x_t, t) as one of (x, sigma), for mrigsure's samplers; sigma goes to the nearest step."""

    def at_level(x, sigma):
        step = schedule.nearest_step(sigma)
        return denoise(x * _plane(schedule.alpha_bar[step].sqrt().to(x.real)), step)

    return at_level


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a.conj() * b).real.sum((1, 2))


def _reals(image: Tensor) -> int:
    return image[0].numel() * (2 if image.is_complex() else 1)


def _plane(values: Tensor) -> Tensor:
    return values[:, None, None]
