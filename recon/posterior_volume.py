"""Posterior draws of a volume: their mean, standard deviation and intervals, the scan's own scale, and its scorecard.

Up to three slices are looked at: some of their lines are held out and predicted by a few more draws, before the volume
is drawn. That costs 4 draws more for each of these slices: half as much again for a single slice of 8 draws, a tenth
for 16 slices.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mrigsure.denoiser import Prior
from mrigsure.errors import ScanWarning
from mrigsure.scan import Scan
from mrigsure.seeds import generator
from recon.drawing import Drawing
from recon.reconstruction import Reconstruction
from recon.scorecard import Figure, as_json, data_sums, scorecard
from recon.spread_scale import (
    FOLDS,
    SAMPLES,
    HeldOut,
    SpreadScale,
    predict_held_out,
    spread_scale,
    without_lines,
)
from recon.uncertainty import scatter, summarise

_MOST_SLICES = 3


def reconstruct_posterior(
    scans: Sequence[Scan],
    prior: Prior,
    drawing: Drawing,
    *,
    level: float,
    calibrate: bool,
    keep_samples: bool,
    progress: Callable[[float], None],
) -> Reconstruction:
    """Draw every slice as `drawing` says; the result in raw units.

    level      share of the truth that the intervals are to cover
    calibrate  hold out lines: without, the spread is the prior's own, and the scorecard lacks what these lines tell
    Scans with several sets of maps are neither calibrated nor judged, because draws are of the first set's image alone.
    ScanWarning where the scorecard does not hold.
    """
    looked_at = _spread_out(len(scans)) if scans[0].sens_maps.ndim == 3 else []
    work = drawing.samples * len(scans)
    before = FOLDS * SAMPLES * len(looked_at) if calibrate else 0

    def report(share, start, part):
        progress((start + share * part) / (work + before))

    held_out = []
    if before:
        held_out = _predictions(scans, looked_at, prior, drawing, lambda share: report(share, 0, before))
    scale = spread_scale(held_out) if held_out else SpreadScale(1.0, 0.0)
    summaries, kept, measured = [], [], []
    slices = drawing.of(scans, prior, lambda share: report(share, before, work))
    for index, draws in enumerate(slices):
        summaries.append(summarise(draws.numpy(), paired=drawing.pairs, level=level, scale=scale.value))
        if keep_samples:
            kept.append(draws.numpy())
        if index in looked_at:
            measured.append(data_sums(scans[index], scans[index].scale * draws))
    record = {"prior": prior.name, "prior_sha256": prior.sha256}
    record |= {key: getattr(drawing, key) for key in ("samples", "nfe", "sampler", "stack_noise", "pairs")}
    if drawing.samples > 1:
        record |= {"interval": level, "scatter": scatter(summary.body for summary in summaries)}
    if held_out:
        record |= {"spread_scale": scale.value, "spread_scale_error": scale.error}
    if measured:
        figures = scorecard(measured, held_out, prior.record)
        _warn_of(figures, scans[looked_at[len(looked_at) // 2]].name, prior.name)
        record["scorecard"] = as_json(figures)
    arrays = {key: _stacked(summaries, key) for key in ("std", "lower", "upper")}
    samples = np.stack(kept) if kept else None
    return Reconstruction(_stacked(summaries, "mean"), samples=samples, record=record, **arrays)


def _predictions(scans, looked_at, prior, drawing, progress) -> list[HeldOut]:
    """What the slices that are looked at say on lines that were held out; [] where they have none to hold out."""
    pairs = []
    for index in looked_at:
        lines = generator(drawing.seed, "held-out lines", drawing.name, index)
        pairs += [(scans[index], kept) for kept in without_lines(scans[index], lines)]
    if not pairs:
        return []
    name = f"{drawing.name} without held-out lines"
    drawing = replace(drawing, samples=SAMPLES, name=name, independent=True)  # one pair would not tell the spread
    draws = drawing.of([kept for _, kept in pairs], prior, progress)
    return [predict_held_out(scan, kept, scan.scale * d) for (scan, kept), d in zip(pairs, draws, strict=True)]


def _spread_out(slices):
    """Numbers of up to three slices, evenly spaced; the middle one of few."""
    count = min(slices, _MOST_SLICES)
    return [(2 * number + 1) * slices // (2 * count) for number in range(count)]


def _warn_of(figures: Sequence[Figure], scan, prior):
    broken = [figure.text for figure in figures if not figure.holds]
    if broken:
        cause = f"unlike scans of prior {prior}, or wrong maps or noise level; its uncertainty may not hold"
        warnings.warn(f"{scan}: {', '.join(broken)}: {cause}", ScanWarning, stacklevel=2)


def _stacked(summaries, key):
    values = [getattr(summary, key) for summary in summaries]
    return None if values[0] is None else np.stack(values)
