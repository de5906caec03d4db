"""Draws whose mean is shrunk: how much, by what the scans say, and draws that make up for it.

A network takes some detail for noise that the exact posterior mean would keep, and each level of a draw starts from
what the one before has left: the mean m of its draws is too small in fine bands, of an oracle's by up to a fifth
(docs/refinement.md). Their width can be calibrated to hide that from the power of the draws, but not from a round that
learns of them. With x and x' independent draws given z, and y~ independent of both,

    g = sum <y~, A x> / sum <A x, A x'>        per radial band, over the sampled points of many scans

is what m has to be multiplied by to come nearest to the data, 1 of a posterior. Draws come in pairs, and x + (g - 1) x'
of a pair x, x' has the mean g m, and the variance of x but for (g - 1)^2 of it. What needs two independent draws takes
them from different pairs.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from mrigsure.diffusion import independent_kspace
from mrigsure.fourier import fft2c, ifft2c, radial_bands
from mrigsure.scan import Scan
from mrigsure.spread import interpolate_bands
from mrigsure.validation import BANDS, given_gain


def mean_gain(drawn: Iterable[tuple[Scan, Scan, Tensor]], device="cpu") -> tuple[float, ...]:
    """g per radial band, between 1 and 1.5; 1 where the draws share nothing.

    drawn  scans, what their draws were made from (diffusion.noisier_scan), independent draws complex (samples, H, W)
    """
    agreement, shared = torch.zeros(2, BANDS, dtype=torch.float64)
    for scan, noisier, draws in drawn:
        batch, images = scan.batch().to(device), draws.to(device)
        sampled = batch.mask.expand_as(batch.kspace) > 0
        seen = independent_kspace(batch.kspace, noisier.batch().to(device).kspace)[sampled]
        predicted = [batch.operator.coil_kspace(image[None])[sampled] for image in images]
        band = radial_bands(images.shape[1:], BANDS, device).expand_as(sampled)[sampled]

        def per_band(products, band=band):
            return torch.bincount(band, products.double(), minlength=BANDS).cpu()

        count, total = len(predicted), sum(predicted)
        agreement += per_band((seen.conj() * total).real) / count
        own = sum(one.abs().square() for one in predicted)
        shared += per_band(total.abs().square() - own) / (count * (count - 1))
    return tuple(given_gain(agreement, shared).tolist())


def unshrunk(images: Tensor, gain: tuple[float, ...]) -> Tensor:
    """x + (g - 1) x' of complex (samples, H, W), where 0 and 1, 2 and 3, ... are pairs."""
    partners = images.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    more = interpolate_bands(tuple(g - 1 for g in gain), tuple(images.shape[1:]), images.device)
    return images + ifft2c(more * fft2c(partners))
