"""How much the undersampling amplifies noise, pixel by pixel: the g-factor of SENSE inside the body.

    g(r) = sqrt( [(T + lambda)^-1]_rr / R ),   T = S^H F^H M F S on the pixels of the body,   R the acceleration

Pruessmann et al., Magn Reson Med 42:952 (1999), who have lambda = 0: with normalised maps and white noise the fully
sampled image has the noise of k-space, and undersampling multiplies it by g sqrt(R). Irregular masks leave modes that
no coils unfold; there lambda = (noise / signal)^2 bounds the spread by that of the signal itself.
"""

import numpy as np
import torch
from torch import Tensor

from mrigsure.operators import SenseOperator, conjugate_gradients
from mrigsure.seeds import complex_noise, generator

_ROWS = 96  # image rows that are computed; those between are interpolated
_WORK = 5e7  # samples x coils x operators that pseudo-replicas may take
_ITERATIONS = 40
_TOLERANCE = 1e-2
_LEAST, _MOST = 4, 32  # replicas
_WINDOW = 7


def g_factor(sens_maps: Tensor, mask: Tensor, body: Tensor, shift: float) -> tuple[Tensor, str]:
    """g, float32 (H, W), nan outside the body; and how it was computed, in words.

    sens_maps  complex64 (coils, H, W), sum |S|^2 = 1
    mask       real (H, W), 0 or 1
    body       bool (H, W)
    shift      lambda

    Whole lines: exact, from one matrix per image row. Points: the spread of reconstructions of noise (pseudo-replicas,
    Robson et al., Magn Reson Med 60:895 (2008)), averaged over 7 x 7 pixels.
    """
    if mask.all():
        return torch.where(body, 1.0, torch.nan), "fully sampled"
    if (mask == mask[:1]).all():
        variance, how = _by_rows(sens_maps, mask, body, shift), "exact, from the row matrices"
    else:
        variance, replicas = _by_replicas(sens_maps, mask, body, shift)
        how = f"{replicas} pseudo-replicas"
    acceleration = mask.numel() / mask.sum()
    return torch.where(body, (variance / acceleration).sqrt(), torch.nan), how


def _by_rows(sens_maps, mask, body, shift):
    """The diagonal of (T + lambda)^-1, row by row."""
    inside = torch.nonzero(body.any(1))[:, 0]
    picks = inside[torch.linspace(0, len(inside) - 1, min(_ROWS, len(inside))).round().long()]
    variance = torch.full(mask.shape, torch.nan)
    for row in picks.tolist():
        line = slice(row, row + 1)
        matrix = SenseOperator(mask[None, None, line], sens_maps[None, :, line]).row_matrices[0, 0]
        values, vectors = torch.linalg.eigh(matrix[body[row]][:, body[row]])
        variance[row, body[row]] = (vectors.abs().square() / (values.clamp_min(0) + shift)).sum(1)
    return _filled(variance, picks, body)


def _filled(variance, picks, body):
    """Rows that were left out, from the nearest that were not; pixels of the body that these lack, from their row."""
    nearest = picks[(torch.arange(len(body))[:, None] - picks).abs().argmin(1)]
    filled = variance[nearest].numpy()
    columns = np.arange(filled.shape[1])
    for row in filled:
        known = ~np.isnan(row)
        if known.any():
            row[:] = np.interp(columns, columns[known], row[known])
    return torch.from_numpy(filled)


def _by_replicas(sens_maps, mask, body, shift):
    """Variance of (T + lambda)^-1 (A^H n + sqrt(lambda) n'), which has the covariance (T + lambda)^-1; and how many."""
    operator = SenseOperator(mask[None, None], sens_maps[None])
    count = int(np.clip(_WORK / (sens_maps.numel() * _ITERATIONS), _LEAST, _MOST))
    rng = generator(0, "pseudo-replica")
    power = torch.zeros(mask.shape)

    def normal(image):
        return body * operator.normal(image) + shift * image

    for _ in range(count):
        noise = operator.adjoint(complex_noise((1, *sens_maps.shape), rng))
        noise = body * (noise + shift**0.5 * complex_noise(noise.shape, rng))
        image = conjugate_gradients(normal, noise, tolerance=_TOLERANCE, max_iterations=_ITERATIONS, strict=False)
        power += image[0].abs().square() / (2 * count)
    smooth = torch.nn.AvgPool2d(_WINDOW, stride=1, padding=_WINDOW // 2)
    share = smooth(body.float()[None])[0]
    return smooth(power[None])[0] / share.clamp_min(1e-6), count
