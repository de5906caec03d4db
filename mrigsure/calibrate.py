"""The spread of posterior draws, calibrated once per prior so that z^2 = 1 on held-out lines, band by band.

A trained network's Jacobian understates its error, most of all in fine detail, so R = sigma^2 J is too small
(docs/method.md, section 8). The factor per radial band is found by fixed-point iteration: draw, compare the error on
held-out lines with the draws' variance, correct, repeat. No truth is used.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from mrigsure.posterior import Denoise, PixelSpectrumSpread
from mrigsure.scan import Scan
from mrigsure.validation import BANDS, HeldOutFigures, held_out_figures

NEUTRAL = (1.0,) * BANDS
_LEAST, _MOST = 0.25, 16.0
_STEP = 2.5  # most that one iteration changes a factor by
_POINTS = 200  # of k-space, held out in a band, at which its own figure and its neighbours' count alike


def calibrate_spread(
    denoise: Denoise,
    scans: Sequence[Scan],
    sigmas: Tensor,
    *,
    seed: int,
    start: tuple[float, ...] = NEUTRAL,
    iterations: int = 4,
    device="cpu",
) -> tuple[tuple[float, ...], HeldOutFigures]:
    """The factor on R per band whose z^2 came nearest to 1, and the figures that it gave.

    scans   scans that training did not use
    sigmas  the levels of the draws
    start   the factors to begin with, one per band
    """
    bands, tried = start, []
    for _ in range(iterations):
        figures = held_out_figures(denoise, scans, sigmas, spread=PixelSpectrumSpread(bands), seed=seed, device=device)
        tried.append((_distance(figures), bands, figures))
        bands = tuple(
            min(max(band * factor, _LEAST), _MOST) for band, factor in zip(bands, _corrections(figures), strict=True)
        )
    _, bands, figures = min(tried, key=lambda entry: entry[0])
    return bands, figures


def _corrections(figures):
    """A factor per band: the lacking spread where there is data, that of the bands beside where it is few or noise."""
    logs, trusts = [], []
    for need, signal, points in zip(figures.spread_needed, figures.signal, figures.held_out, strict=True):
        signal, points = max(signal or 0.0, 0.0), points or 0.0
        trusts.append(signal**2 / (signal**2 + 0.25) * points / (points + _POINTS))
        logs.append(math.log(min(max(need or 1.0, 1 / _STEP), _STEP)))
    factors = []
    for band in range(len(logs)):
        weights = [trust * math.exp(-2 * abs(band - other)) for other, trust in enumerate(trusts)]
        total = sum(weights)
        mean = sum(w * log for w, log in zip(weights, logs, strict=True)) / max(total, 1e-12)
        factors.append(math.exp(0.8 * mean) if total > 1e-3 else 1.0)
    return factors


def _distance(figures):
    weighed = [
        (min(max(signal, 0.0), 1.0), abs(z2 - 1))
        for signal, z2 in zip(figures.signal, figures.band_z2, strict=True)
        if z2 is not None
    ]
    return sum(weight * miss for weight, miss in weighed) / max(sum(weight for weight, _ in weighed), 1e-9)
