"""The spread of posterior draws, calibrated on held-out lines, band by band, to either of two ends.

A trained network's Jacobian understates its error, most of all in fine detail, so R = sigma^2 J is too small
(docs/method.md, section 8). The factor per radial band is found by fixed-point iteration: draw, compare with the
held-out lines, correct, repeat. No truth is used.

    z2     the error of the mean is what the spread announces: the right uncertainty, for reconstruction
    power  the draws have the data's power once their mean is unshrunk (shrinkage.py): a fixed point of
           expectation-maximisation, for refinement. Below a fifth of sigma_data R stays as it is: there a network's
           error is sigma^2 J, and more would end in the draws as a texture that the next round learns
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mrigsure.devices import at_once
from mrigsure.fourier import radial_bands
from mrigsure.posterior import draw
from mrigsure.scan import SIGMA_DATA, Scan, collate
from mrigsure.seeds import generator
from mrigsure.spread import Denoise, Jacobian, PixelSpectrumSpread, probe, signal_variance
from mrigsure.validation import BANDS, FEW, HeldOutFigures, by_shape, held_out_figures

NEUTRAL = (1.0,) * BANDS
_LEAST, _MOST = 0.1, 8.0
_TRUSTED = 0.2 * SIGMA_DATA
_STEP = 2.5  # most that one iteration changes a factor by
_DEVIATION = 1.0  # of a factor's logarithm, as expected before any line is seen
_NEIGHBOURS = 0.25  # of the difference of two neighbouring bands' logarithms


def refinement_spread(bands: tuple[float, ...]) -> PixelSpectrumSpread:
    """R of the draws that a round learns from, with the factors that `power` found."""
    return PixelSpectrumSpread(tuple(bands), above=_TRUSTED)


def jacobian_of(
    denoise: Denoise,
    scans: Sequence[Scan],
    sigmas: Tensor,
    *,
    seed: int,
    bands: tuple[float, ...] = NEUTRAL,
    device="cpu",
) -> Jacobian:
    """What the denoiser's Jacobian lets pass, on the way of one draw of each scan that probes at every level.

    sigmas  the levels, falling
    bands   factor on R of these draws
    """
    passed = torch.zeros(len(sigmas), BANDS, dtype=torch.float64)
    chunk = at_once(device, max(scan.kspace.numel() for scan in scans), FEW)
    for start in range(0, len(scans), chunk):
        for group in by_shape(scans[start : start + chunk]):
            index = radial_bands(group[0].shape, BANDS).flatten()
            counts = torch.bincount(index, minlength=BANDS)
            level = iter(range(len(sigmas)))

            def probed(denoise, x, x0, sigma, rng, index=index, counts=counts, level=level):
                relative, spectrum = probe(denoise, x, x0, sigma, rng)
                total = torch.bincount(index, spectrum.double().sum(0).flatten().cpu(), minlength=BANDS)
                passed[next(level)] += total / counts
                return PixelSpectrumSpread(bands).factor(relative.sqrt(), spectrum, sigma)

            rng = generator(seed, "jacobian", start, *group[0].shape, device=device)
            draw(denoise, collate(group).to(device), sigmas, spread=probed, generator=rng)
    rows = zip(sigmas.tolist(), passed / len(scans), strict=True)
    return tuple((sigma, *signal_variance(share, sigma).tolist()) for sigma, share in rows)


def calibrate_spread(
    denoise: Denoise,
    scans: Sequence[Scan],
    sigmas: Tensor,
    *,
    seed: int,
    match: Literal["z2", "power"] = "z2",
    start: tuple[float, ...] = NEUTRAL,
    jacobian: Jacobian = (),
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
    jacobian  the denoiser's, of `jacobian_of`, for z2
    judged  scans whose figures are given instead of those of `scans`
    """
    options = {"seed": seed, "device": device}
    bands, tried = start, []
    spread_of = partial(PixelSpectrumSpread, jacobian=jacobian) if match == "z2" else refinement_spread
    for _ in range(iterations):
        figures = held_out_figures(denoise, scans, sigmas, spread=spread_of(bands), **options)
        tried.append((figures.energy if match == "z2" else _power_missed(figures), bands, figures))
        if match == "z2":
            bands = _corrected(bands, figures.spread_needed, figures.spread_error)
        else:
            bands = _corrected(bands, figures.power_needed, figures.power_error)
    _, bands, figures = min(tried, key=lambda entry: entry[0])
    if judged:
        figures = held_out_figures(denoise, judged, sigmas, spread=spread_of(bands), **options)
    return bands, figures


def _corrected(bands, needed, errors):
    """The likeliest factors, for a step of which the whole of what is `needed` would follow, and its standard errors.

    Some scans' lines need a little more or less by chance, and a factor moves its own band's figure only a little: each
    followed alone goes as far as it may. So a factor is held to 1, and more to those of the bands beside, as strongly
    as the figures are uncertain.
    """
    logs, wanted = np.log(bands), np.zeros(len(bands))
    system = band_precision(_DEVIATION, _NEIGHBOURS)
    for band, (need, error) in enumerate(zip(needed, errors, strict=True)):
        if need is not None:
            limited = min(max(need, 1 / _STEP), _STEP)
            precision = (limited / error) ** 2
            system[band, band] += precision
            wanted[band] = precision * (logs[band] + math.log(limited))
    return tuple(np.exp(np.linalg.solve(system, wanted)).clip(_LEAST, _MOST).tolist())


def band_precision(deviation: float, neighbours: float) -> np.ndarray:
    """Of the logarithms of BANDS factors, a priori: standard deviations from 0 and of two neighbours' difference."""
    unequal = np.diff(np.eye(BANDS), axis=0) / neighbours
    return np.eye(BANDS) / deviation**2 + unequal.T @ unequal


def _power_missed(figures):
    """How far the power is from the data's, by what the bands' standard errors allow."""
    pairs = zip(figures.power_needed, figures.power_error, strict=True)
    return sum(((need - 1) / error) ** 2 for need, error in pairs if need is not None)
