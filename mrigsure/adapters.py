"""A prior inside the samplers of other libraries, as the real-valued denoiser that they expect.

    deepinv  RealDenoiser: forward(x, sigma) on real (batch, 2, H, W), real and imaginary part as channels
    azula    FlatDenoiser: forward(x_t, t) on vectors (batch, 2 H W) under one of azula's noise schedules, for its
             samplers and guidances; flat_measurement gives the y and A that these take

In both, noise of level sigma has that standard deviation in each real part, as everywhere here, so that levels need no
conversion. Gradients flow through. Neither library is imported: docs/samplers_elsewhere.md shows both in use.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mrigsure.denoiser import Prior
from mrigsure.scan import ScanBatch


class RealDenoiser(nn.Module):
    """deepinv's denoiser: forward(x, sigma), x real (batch, 2, H, W), sigma a number or a tensor of 1 or batch."""

    def __init__(self, prior: Prior):
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        image = torch.view_as_complex(x.movedim(1, -1).contiguous())
        levels = torch.as_tensor(sigma, device=x.device).flatten()
        return torch.view_as_real(self.prior(image, levels)).movedim(-1, 1).contiguous()


class Mean(NamedTuple):
    """What azula's samplers read off a denoiser's answer: E[x | x_t]."""

    mean: Tensor


class FlatDenoiser(nn.Module):
    """azula's denoiser: forward(x_t, t) -> an object with `mean`, (batch, 2 H W).

    schedule  t -> (alpha_t, sigma_t), of shape () or (batch,); azula.noise.VESchedule(sigma_min, sigma_max) with the
              two of prior.config asks the prior for no level that it was not trained at
    """

    def __init__(self, prior: Prior, shape: tuple[int, int], schedule: Callable[[Tensor], tuple[Tensor, Tensor]]):
        super().__init__()
        self.prior, self.shape, self.schedule = prior, tuple(shape), schedule

    def forward(self, x_t: Tensor, t: Tensor, **_) -> Mean:
        alpha, sigma = (value.expand(len(x_t)) for value in self.schedule(t))
        return Mean(to_vectors(self.prior(to_images(x_t / alpha[:, None], self.shape), sigma / alpha)))


def flat_measurement(batch: ScanBatch) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """y (batch, D) and the linear A: (batch, 2 H W) -> (batch, D) of scans, noise of batch.sigma0 in each entry.

    D counts real and imaginary part of all points of k-space; those that were not sampled are 0 in y and in A x.
    """
    shape = batch.kspace.shape[-2:]
    return to_vectors(batch.kspace), lambda x: to_vectors(batch.operator.forward(to_images(x, shape)))


def to_vectors(images: Tensor) -> Tensor:
    """Complex (batch, ...) to real (batch, D), real and imaginary parts in turn."""
    return torch.view_as_real(images).flatten(1)


def to_images(vectors: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse of `to_vectors`: real (batch, 2 H W) to complex (batch, H, W)."""
    return torch.view_as_complex(vectors.reshape(len(vectors), *shape, 2))
