"""The spread of posterior draws, calibrated on held-out lines, band by band, to either of two ends.

A trained network's Jacobian understates its error, most of all in fine detail, so R = sigma^2 J is too small
(docs/method.md, section 8). The factor per radial band is found by fixed-point iteration: draw, compare with the
held-out lines, correct, repeat. No truth is used.

    z2     the error of the mean is what the spread announces: the right uncertainty, for reconstruction
    power  the draws have the data's power: a fixed point of expectation-maximisation, for refinement. Where a network
           shrinks detail more than the exact mean would, z^2 = 1 leaves its draws with too little power, and a round
           would learn that; the width that power asks for is then a little more than z^2 does
"""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from mrigsure.posterior import Denoise, PixelSpectrumSpread
from mrigsure.scan import Scan
from mrigsure.validation import BANDS, HeldOutFigures, held_out_figures

NEUTRAL = (1.0,) * BANDS
_LEAST, _MOST = 0.1, 8.0
_STEP = 2.5  # most that one iteration changes a factor by
_POINTS = 200  # of k-space, held out in a band, at which its own figure and its neighbours' count alike
_CAUTION = 0.05  # pull of every factor towards 1, over the pull of a figure that can be trusted wholly


def calibrate_spread(
    denoise: Denoise,
    scans: Sequence[Scan],
    sigmas: Tensor,
    *,
    seed: int,
    match: Literal["z2", "power"] = "z2",
    start: tuple[float, ...] = NEUTRAL,
    iterations: int = 4,
    judged: Sequence[Scan] = (),
    device="cpu",
) -> tuple[tuple[float, ...], HeldOutFigures]:
    """The factor on R per band, and the figures that it gave.

    Of the factors tried those of the lowest energy score are taken, or those whose power came nearest to 1: where the
    mean is wrong, more spread may leave z^2 as it is and only harm.

    scans   scans that training did not use
    sigmas  the levels of the draws
    start   the factors to begin with, one per band
    judged  scans whose figures are given instead of those of `scans`
    """
    bands, tried = start, []
    for _ in range(iterations):
        figures = held_out_figures(denoise, scans, sigmas, spread=PixelSpectrumSpread(bands), seed=seed, device=device)
        tried.append((figures.energy if match == "z2" else _power_missed(figures), bands, figures))
        needed = figures.spread_needed if match == "z2" else figures.power_needed
        bands = tuple(min(max(band, _LEAST), _MOST) for band in _corrected(bands, figures, needed))
    _, bands, figures = min(tried, key=lambda entry: entry[0])
    if judged:
        figures = held_out_figures(denoise, judged, sigmas, spread=PixelSpectrumSpread(bands), seed=seed, device=device)
    return bands, figures


def _corrected(bands, figures, needed):
    """Each factor times the lacking spread: its own where there is data, that of the bands beside where it is few."""
    trusts = list(_trusts(figures))
    logs = [math.log(min(max(1.0 if need is None else need, 1 / _STEP), _STEP)) for need in needed]
    for band, factor in enumerate(bands):
        weights = [trust * math.exp(-2 * abs(band - other)) for other, trust in enumerate(trusts)]
        pull = sum(w * log for w, log in zip(weights, logs, strict=True)) - _CAUTION * math.log(factor)
        yield factor * math.exp(0.8 * pull / (sum(weights) + _CAUTION))


def _trusts(figures):
    """How far each band's figure can be relied on, 0 to 1: by its signal and by how much of it was held out."""
    for signal, points in zip(figures.signal, figures.held_out, strict=True):
        signal, points = max(signal or 0.0, 0.0), points or 0.0
        yield signal**2 / (signal**2 + 0.25) * points / (points + _POINTS)


def _power_missed(figures):
    trusts = list(_trusts(figures))
    missed = [abs((1.0 if power is None else power) - 1) for power in figures.power]
    return sum(trust * miss for trust, miss in zip(trusts, missed, strict=True)) / max(sum(trusts), 1e-9)
