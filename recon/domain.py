"""Is a scan like those that the prior was trained on? Where it is far from them, a warning with the figures."""

import warnings

import numpy as np
import torch

from mrigsure.denoiser import Prior
from mrigsure.errors import ScanWarning
from mrigsure.fourier import center_crop
from mrigsure.masks import calibration_region
from mrigsure.scan import SIGMA_DATA, Scan
from mrigsure.soft_sense import first_set

NOISE_FACTOR = 2.0  # outside of the range in training
SIGNAL_FACTOR = 1.5  # off SIGMA_DATA
MATRIX_FACTOR = 1.5  # above the largest matrix in training
_BODY = 0.15  # of the 99th percentile of the low-resolution magnitude
_LOW_RESOLUTION = (6, 24)  # least and largest side, in samples, of the block that the image is made of


def warn_if_unlike_training(scan: Scan, prior: Prior) -> None:
    """ScanWarning for noise, scale or matrix size far outside of what the prior saw; the figures are in it."""
    for message in _differences(scan, prior):
        warnings.warn(f"{scan.name}: {message}", ScanWarning, stacklevel=2)


def body_std(scan: Scan) -> float:
    """sqrt(mean |x|^2 / 2) inside the body of the low-resolution SENSE image, in the scan's units.

    `mrigsure prepare` scales scans such that this is SIGMA_DATA.
    """
    region = calibration_region(scan.mask.numpy(), scan.shape)
    block = tuple(int(np.clip(size, *_LOW_RESOLUTION)) for size in region)
    centre = torch.zeros(scan.shape)
    center_crop(centre, block)[...] = 1
    batch = scan.batch()
    magnitude = first_set(batch.operator.adjoint(batch.kspace * centre)[0]).abs()
    body = magnitude > _BODY * magnitude.flatten().quantile(0.99)
    return float((magnitude[body].square().mean() / 2).sqrt())


def _differences(scan, prior):
    seen = list(_archives(prior.record))
    if noise := [value for archive in seen for value in archive.get("noise_std", ())]:
        low, high = min(noise), max(noise)
        if not low / NOISE_FACTOR <= scan.noise_std <= high * NOISE_FACTOR:
            yield f"noise {scan.noise_std:.3g} per real part; prior {prior.name} saw {low:.3g} to {high:.3g}"
    signal, expected = body_std(scan), SIGMA_DATA
    if not expected / SIGNAL_FACTOR <= signal <= expected * SIGNAL_FACTOR:
        yield f"signal {signal:.3g} (standard deviation inside the body); prior {prior.name} expects {expected:.3g}"
    if shapes := [shape for archive in seen for shape in archive.get("matrix", ())]:
        height, width = (max(sizes) for sizes in zip(*shapes, strict=True))
        if scan.shape[0] > MATRIX_FACTOR * height or scan.shape[1] > MATRIX_FACTOR * width:
            matrix = "{} x {}".format(*scan.shape)
            yield f"matrix {matrix}; prior {prior.name} saw at most {height} x {width} in training"


def _archives(record):
    """What a prior learned from, and what those did that its training began with."""
    while record:
        yield record.get("archive", {})
        record = record.get("start")
