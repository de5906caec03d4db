"""Posterior draws of a volume: their mean, standard deviation and intervals, the scan's own scale, and its scorecard.

Up to three slices are looked at: some of their lines are held out and predicted by a few more draws, before the volume
is drawn. That costs 4 draws more for each of these slices: half as much again for a single slice of 8 draws, a tenth
for 16 slices. Where these lines surely ask for it, R is made wider for the whole scan, band by band, and the lines are
predicted again, twice: 8 draws more.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mrigsure.denoiser import Prior
from mrigsure.errors import ScanWarning
from mrigsure.scan import Scan
from mrigsure.seeds import generator
from mrigsure.validation import BANDS
from recon.drawing import Drawing
from recon.reconstruction import Reconstruction
from recon.samplers import DEFAULT
from recon.scorecard import Figure, as_json, data_sums, scorecard
from recon.spread_scale import (
    FOLDS,
    SAMPLES,
    HeldOut,
    SpreadScale,
    predict_held_out,
    spread_scale,
    widening,
    without_lines,
)
from recon.uncertainty import scatter, summarise

_MOST_SLICES = 3
_STEPS_OF_LINES, _STEPS_OF_POINTS = (0.5, 0.5), (0.5, 1.0)  # shares of what they ask for, in logarithms, one by one
_MOST_WIDENED = 8.0
_LEAST_GAIN = 8.0  # 40 phantoms like the shipped prior's had 4.2 at most, real brains sampled along lines 28.8 at least


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
    calibrate  hold out lines: without, the spread is the prior's own, and the scorecard lacks what these lines tell.
               The default sampler alone has an R to widen
    Scans with several sets of maps are neither calibrated nor judged, because draws are of the first set's image alone.
    ScanWarning where the scorecard does not hold.
    """
    looked_at = _spread_out(len(scans)) if scans[0].sens_maps.ndim == 3 else []
    work = drawing.samples * len(scans)
    before = FOLDS * SAMPLES * len(looked_at) * (1 + len(_steps(scans))) if calibrate else 0

    def report(share, start, part):
        progress((start + share * part) / (work + before))

    held_out, predicted, widened = [], [], np.ones(BANDS)
    if before:
        held_out, predicted, widened = _calibrated(
            scans, looked_at, prior, drawing, lambda part: report(part, 0, before)
        )
        prior = _wider(prior, widened)
    scale = spread_scale(predicted) if predicted else SpreadScale(1.0, 0.0)
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
        record["spread_widened"] = json.dumps([round(factor, 3) for factor in widened.tolist()])
    if measured:
        figures = scorecard(measured, held_out, prior.record)
        _warn_of(figures, scans[looked_at[len(looked_at) // 2]].name, prior.name)
        record["scorecard"] = as_json(figures)
    arrays = {key: _stacked(summaries, key) for key in ("std", "lower", "upper")}
    samples = np.stack(kept) if kept else None
    return Reconstruction(_stacked(summaries, "mean"), samples=samples, record=record, **arrays)


def _calibrated(scans, looked_at, prior, drawing, progress):
    """Predictions with the prior's own spread, those with the scan's own, and the factor on R per band between the two.

    The factors are 1 where the held-out lines do not surely ask for others. Between far lines the draws answer to R
    more than one for one, between points one for one: so points get in the end all that they ask for, lines never.
    """
    factors = np.ones(BANDS)
    steps = _steps(scans) if drawing.sampler == DEFAULT else ()

    def predictions(call):
        wider = _wider(prior, factors)
        return _predictions(scans, looked_at, wider, drawing, lambda share: progress((call + share) / (1 + len(steps))))

    first = last = predictions(0)
    if not first or widening(first).gain < _LEAST_GAIN:
        return first, first, factors
    for call, share in enumerate(steps, 1):
        factors = np.minimum(factors * widening(last).factors ** share, _MOST_WIDENED)
        last = predictions(call)
    return first, last, factors


def _steps(scans):
    return _STEPS_OF_LINES if scans[0].by_lines else _STEPS_OF_POINTS


def _wider(prior, factors):
    if (factors == 1).all():
        return prior
    own = prior.config.spread
    middles, known = ((np.arange(count) + 0.5) / count for count in (BANDS, len(own)))
    return prior.with_spread((factors * np.interp(middles, known, own)).tolist())


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
