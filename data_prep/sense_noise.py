"""The coils' noise from what no image explains: what a SENSE fit leaves of k-space.

With B = 1 where the low-resolution image shows the body and 0 elsewhere, and with maps from the scan itself,

    P y = y - A B u,    u = argmin | y - A B u |^2 + lambda | u |^2,    A = M F S

holds of the signal what wrong maps fail to explain, and of the noise a share that grows with the number of equations
over that of the body's pixels. That share is found by drawing: with white noise w on the same points

    N = (D + k)^-1/2 (T + k) (D + k)^-1/2,    T = sum of (P y)(P y)^H,    D = mean of the sums of (P w)(P w)^H

is the covariance of y per real part, where y was white but for an error of the start. The sums go over the outer half
of the points, where signal, and so what wrong maps leave of it, is weakest. The fit takes nearly all of the combination
of coils that is loudest, whose D is small: k keeps the start there. Points are few in a window, which then has little
to spare (null_space.py); all of k-space together has more.
"""

import numpy as np
import torch
from scipy.ndimage import binary_dilation

from data_prep.calibration import CALIBRATION_WIDTH, low_resolution, sensitivity_maps
from mrigsure.fourier import radius
from mrigsure.masks import calibration_region
from mrigsure.operators import SenseOperator, conjugate_gradients

_LEAST_REGION = 6  # samples along either side of the centre: fewer make no maps
_SLICES = 3
_OUTER = 0.5  # share of the points
_BODY, _GROWN = 0.08, 0.02  # of the 99th percentile of the low-resolution image; by a share of the matrix's side
_SHIFT = 1e-3  # lambda: less costs time and changes nothing
_ITERATIONS, _TOLERANCE = 40, 1e-4
_PROBES = 2
_FEW = 4  # samples for every coil
_PRIOR = 5  # samples of every coil that the start is taken to be worth


def sense_noise(kspace: np.ndarray, mask: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, int] | None:
    """Covariance (coils, coils) per real part, and the number of samples that it is worth.

    kspace  complex64 (slices, coils, H, W)
    mask    bool (H, W)
    start   covariance of the noise, roughly; signal in it does little harm

    None where the sampled centre is smaller than 6 x 6, or the coils leave too few equations.
    """
    region = calibration_region(mask, mask.shape)
    if min(region) < _LEAST_REGION or kspace.shape[1] == 1:
        return None
    outer = _outer(mask)
    back = np.linalg.cholesky(start)
    white = np.linalg.inv(back).astype(np.complex64)
    left, expected = np.zeros((2, *start.shape), complex)
    rng = np.random.default_rng(0)
    for one in kspace[:: -(-len(kspace) // _SLICES)]:
        measured = np.tensordot(white, one * mask, axes=1)
        probes = rng.standard_normal((_PROBES, *measured.shape, 2), np.float32).view(np.complex64)[..., 0] * mask
        rest = _unexplained(np.concatenate([measured[None], probes]), mask, region)[:, :, outer]
        products = rest @ rest.conj().swapaxes(1, 2)
        left += products[0]
        expected += products[1:].mean(0)
    worth = int(np.trace(expected).real / (2 * len(start)))
    if worth < _FEW * len(start):
        return None
    kept = 2 * _PRIOR * np.eye(len(start))
    values, vectors = np.linalg.eigh(expected + kept)
    root = back @ (vectors / np.sqrt(values)) @ vectors.conj().T
    return root @ (left + kept) @ root.conj().T, worth


def _outer(mask):
    """The outer half of the sampled points: bool (H, W)."""
    distance = radius(mask.shape).numpy()
    return mask & (distance > np.quantile(distance[mask], 1 - _OUTER))


def _unexplained(kspace, mask, region):
    """P of complex64 (batch, coils, H, W), with the maps and the body of the first."""
    maps = sensitivity_maps(kspace[:1], region)
    operator = SenseOperator(torch.from_numpy(mask[None, None].astype(np.float32)), torch.from_numpy(maps))
    body = torch.from_numpy(_body(maps[0], kspace[0], region).astype(np.float32))
    y = torch.from_numpy(kspace)

    def system(u):
        return body * operator.normal(body * u) + _SHIFT * u

    limits = {"tolerance": _TOLERANCE, "max_iterations": _ITERATIONS, "strict": False}
    u = conjugate_gradients(system, body * operator.adjoint(y), **limits)
    return (y - operator.forward(body * u)).numpy()


def _body(maps, kspace, region):
    """Where the low-resolution image shows signal, and a little around it: bool (H, W)."""
    block = tuple(min(size, CALIBRATION_WIDTH) for size in region)
    magnitude = np.abs((maps.conj() * low_resolution(kspace, block, np.ones)).sum(axis=0))
    grown = max(1, round(_GROWN * min(magnitude.shape)))
    return binary_dilation(magnitude > _BODY * np.percentile(magnitude, 99), iterations=grown)
