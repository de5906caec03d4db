"""The spread of posterior draws, calibrated once per prior so that z^2 = 1 on held-out lines, band by band.

A trained network's Jacobian understates its error, most of all in fine detail, so R = sigma^2 J is too small
(docs/method.md, section 8). The factor per radial band is found by fixed-point iteration: draw, compare the error on
held-out lines with the draws' variance, correct, repeat. No truth is used.
"""

from collections.abc import Sequence

from torch import Tensor

from mrigsure.posterior import Denoise, PixelSpectrumSpread
from mrigsure.scan import Scan
from mrigsure.validation import BANDS, HeldOutFigures, held_out_figures

ITERATIONS = 5
_LEAST, _MOST = 0.25, 16.0


def calibrate_spread(
    denoise: Denoise, scans: Sequence[Scan], sigmas: Tensor, *, seed: int, device="cpu"
) -> tuple[tuple[float, ...], HeldOutFigures]:
    """The factor on R per band whose z^2 came nearest to 1, and the figures that it gave.

    scans   scans that training did not use
    sigmas  the levels of the draws
    """
    bands = (1.0,) * BANDS
    tried = []
    for _ in range(ITERATIONS):
        figures = held_out_figures(denoise, scans, sigmas, spread=PixelSpectrumSpread(bands), seed=seed, device=device)
        tried.append((_distance(figures), bands, figures))
        bands = tuple(
            band if need is None else min(max(band * min(max(need, 0.4), 2.5) ** _trust(signal), _LEAST), _MOST)
            for band, need, signal in zip(bands, figures.spread_needed, figures.signal, strict=True)
        )
    _, bands, figures = min(tried, key=lambda entry: entry[0])
    return bands, figures


def _trust(signal):
    """How far a band's correction goes: hardly at all where the data is all noise."""
    signal = max(signal, 0.0)
    return 0.8 * signal / (signal + 0.5)


def _distance(figures):
    weighed = [
        (min(max(signal, 0.0), 1.0), abs(z2 - 1))
        for signal, z2 in zip(figures.signal, figures.band_z2, strict=True)
        if z2 is not None
    ]
    return sum(weight * miss for weight, miss in weighed) / max(sum(weight for weight, _ in weighed), 1e-9)
