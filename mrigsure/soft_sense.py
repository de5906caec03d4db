"""Several sets of sensitivity maps, where the field of view folds over (soft-SENSE; docs/soft_sense.md).

Of the images x = (x_1, x_2, ...) seen through S = (S_1, S_2, ...) the first has the diffusion prior; the others
carry what folds onto it, and have the prior N(0, D^2): zero mean, and at every pixel no more energy than the
low-resolution image shows there. A Gaussian needs no diffusion: at each level of the sampler the others are drawn
jointly with the first and then forgotten, which integrates them out exactly,

    p(x_1 | x_sigma, y) = integral of p(x_1, x_2 | x_sigma, y) over x_2.

Uecker et al., Magn Reson Med 71:990 (2014), reconstruct all sets alike, under one quadratic or wavelet penalty.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mrigsure.fourier import center_crop
from mrigsure.masks import calibration_region
from mrigsure.scan import ScanBatch

_LEAST_BLOCK = 6  # samples along either side of the centre, from which energy is estimated


def first_set(image: Tensor) -> Tensor:
    """The first set's image of one slice: ([set,] H, W) -> (H, W)."""
    return image[0] if image.ndim == 3 else image


@dataclass(frozen=True)
class JointFactor:
    """L of R = diag(R_1, D^2) on images (batch, set, H, W): a factor of the first set's, deviations of the others'.

    first      a `mrigsure.posterior.Factor`
    deviation  real (batch, set - 1, H, W), per real part
    """

    first: object
    deviation: Tensor

    def apply(self, image: Tensor) -> Tensor:
        return torch.cat([self.first.apply(image[:, 0])[:, None], self.deviation * image[:, 1:]], dim=1)

    def adjoint(self, image: Tensor) -> Tensor:
        return torch.cat([self.first.adjoint(image[:, 0])[:, None], self.deviation * image[:, 1:]], dim=1)

    def preconditioner(self, operator, precision: Tensor) -> Callable[[Tensor], Tensor]:
        """The first set's own; for the others the diagonal of T is the sampled share of k-space."""
        first = self.first.preconditioner(operator, precision[:, 0])
        share = operator.mask.mean((2, 3), keepdim=True)
        others = 1 / (1 + precision * share * self.deviation**2)
        return lambda image: torch.cat([first(image[:, 0])[:, None], others * image[:, 1:]], dim=1)


def other_sets_deviation(batch: ScanBatch) -> Tensor:
    """D of the sets after the first: real (batch, set - 1, H, W), per real part, in prepared units.

    D^2 = mean of |x_low|^2 / 2 over a pixel of the low-resolution image, less the noise's share, not below 0, where
    x_low = S^H F^H y of the fully sampled centre of k-space. Where nothing folds it is 0, and one set is left.
    """
    deviations = []
    for index, plane in enumerate(batch.mask[:, 0].cpu().numpy()):
        region = calibration_region(plane, plane.shape)
        block = tuple(int(np.clip(size, _LEAST_BLOCK, full)) for size, full in zip(region, plane.shape, strict=True))
        centre = torch.zeros_like(batch.mask[0, 0])
        center_crop(centre, block)[...] = 1
        one = batch.of(slice(index, index + 1))
        energy = one.operator.adjoint(one.kspace * centre)[:, 1:].abs().square() / 2
        noise = one.sigma0**2 * (centre * one.mask[0, 0]).mean()
        window = [2 * (full // (2 * min(size, 24))) + 1 for size, full in zip(block, plane.shape, strict=True)]
        nearby = torch.nn.functional.avg_pool2d(
            energy, window, 1, [size // 2 for size in window], count_include_pad=False
        )
        deviations.append((nearby - noise).clamp_min(0).sqrt())
    return torch.cat(deviations)
