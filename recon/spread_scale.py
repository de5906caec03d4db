"""A scan's spread, calibrated on lines of its own that were held out. No truth is used.

The prior's spread is calibrated once for all scans (mrigsure/calibrate.py); single scans differ from that. Some of a
scan's lines are left out, a few draws made from the rest, and the lines predicted. With their mean and variance v over
K draws the error of the mean is, per coil and point of k-space, complex Gaussian of variance

    2 sigma0^2 + (a + 1/K) v

where a is the factor on the variance, wanted 1, and v / K is the scatter of so few draws' mean. The sums of a radial
band over its n points have then a gamma distribution, and log a has a likelihood. All coils of a point count as one:
their errors are not independent. Under log a ~ N(0, TAU^2) `SpreadScale` tells the mean of log a: near 0 where few
points were held out, or where noise hides the error. It is believed where it widens alone: lines are few, what they ask
for and what the image asks for go together but not one for one, and intervals that are narrowed wrongly mislead.

`widening` asks the same of every radial band by itself, a smooth function of the band, for draws to be made anew with
the prior's R times it: a scan whose fine detail the prior has not seen needs more there and not elsewhere.

What neither can do: held-out lines see k-space outside of the calibration lines, in sums over all pixels. Neither where
in the image the spread is too small, nor an error that all lines share is found. Coverage is therefore measured, on
phantoms (benchmarks/interval_coverage.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mrigsure.calibrate import band_precision
from mrigsure.fourier import radial_bands
from mrigsure.scan import Scan
from mrigsure.validation import BANDS

FRACTION = 0.2  # of the lines outside the calibration region, in each fold
FOLDS, SAMPLES = 2, 2  # lines are few: two halves predicted by two draws each tell more than one by four
TAU = 0.6  # of log a from scan to scan: root mean square on 24 phantoms of the shipped prior's own population
_GRID = np.linspace(-6 * TAU, 6 * TAU, 481)  # of log a
_NEIGHBOURS = 0.5  # root mean square difference of log a in neighbouring bands
_ITERATIONS = 30  # of Fisher scoring


@dataclass(frozen=True)
class HeldOut:
    """Predictions of held-out samples: sums per radial band over points and coils, float64 (BANDS,), prepared units.

    error     |y - mean|^2
    variance  v, not yet times 1 + 1/K
    noise     2 sigma0^2
    data      |y|^2
    points    of k-space, all coils as one
    samples   K
    """

    error: np.ndarray
    variance: np.ndarray
    noise: np.ndarray
    data: np.ndarray
    points: np.ndarray
    samples: int

    @property
    def z2(self) -> float:
        """Error over what noise and spread announce, 1 where the spread is right."""
        return float(self.error.sum() / self.expected().sum())

    @property
    def signal(self) -> float:
        """Power of the held-out samples over the noise's, noise taken off."""
        return float(self.data.sum() / self.noise.sum() - 1)

    @property
    def residual(self) -> float:
        """Error of the mean of endlessly many draws over the data, noise taken off both (mrigsure/validation.py)."""
        error = self.error.sum() - self.noise.sum() - self.variance.sum() / self.samples
        return float(error / (self.data.sum() - self.noise.sum()))

    def expected(self, factors: np.ndarray | float = 1.0) -> np.ndarray:
        """Of `error`, (..., BANDS), where the variance is `factors` times as large."""
        return self.noise + (factors + 1 / self.samples) * self.variance

    def log_likelihood(self, factors: np.ndarray | float = 1.0) -> np.ndarray:
        """Of `error`, (...), but for a constant."""
        expected = np.where(self.points > 0, self.expected(factors), 1.0)
        return -(self.points * (np.log(expected) + self.error / expected)).sum(-1)

    def __add__(self, other: "HeldOut") -> "HeldOut":
        sums = (getattr(self, key) + getattr(other, key) for key in ("error", "variance", "noise", "data", "points"))
        return HeldOut(*sums, self.samples)


@dataclass(frozen=True)
class SpreadScale:
    """value: factor on standard deviations, at least 1; error: its relative standard error, TAU / 2 where nothing was
    held out."""

    value: float
    error: float


def without_lines(scan: Scan, generator: torch.Generator) -> list[Scan]:
    """The scan without some of its lines (points, for point masks), and without others: `FOLDS` disjoint parts out.

    Fewer where fewer lines may go, none where none may.
    """
    gone = scan.mask - scan.held_out(FOLDS * FRACTION, generator).mask
    places = (gone[0] if scan.by_lines else gone.flatten()).nonzero()[:, 0]
    places = places[torch.randperm(len(places), generator=generator)]
    kept = []
    for part in places.tensor_split(FOLDS):
        keep = torch.ones(scan.shape[1] if scan.by_lines else scan.mask.numel())
        keep[part] = 0
        mask = scan.mask * (keep if scan.by_lines else keep.view(scan.shape))
        if len(part):
            kept.append(replace(scan, mask=mask, kspace=scan.kspace * mask))
    return kept


def predict_held_out(scan: Scan, kept: Scan, draws: Tensor) -> HeldOut:
    """Compare draws made from `kept`, a part of `scan`, with the rest.

    draws  complex (K, H, W), K > 1, prepared units
    """
    held = (scan.mask - kept.mask) > 0
    predicted = scan.batch().operator.coil_kspace(draws)  # (K, coil, H, W): one scan's maps for all draws
    bands = radial_bands(scan.shape, BANDS)[held]

    def per_band(values):  # (coil, H, W)
        return torch.bincount(bands, values[:, held].double().sum(0), minlength=BANDS).numpy()

    ones = torch.ones(scan.kspace.shape)
    return HeldOut(
        error=per_band((scan.kspace - predicted.mean(0)).abs().square()),
        variance=per_band(predicted.var(0)),
        noise=per_band(2 * scan.noise_std**2 * ones),
        data=per_band(scan.kspace.abs().square()),
        points=per_band(ones / len(ones)),
        samples=len(draws),
    )


def spread_scale(parts: Sequence[HeldOut]) -> SpreadScale:
    """The factor that the held-out samples of one scan's slices ask for."""
    log_likelihood = sum(part.log_likelihood(np.exp(_GRID)[:, None]) for part in parts)
    log_posterior = log_likelihood - _GRID**2 / (2 * TAU**2)
    weights = np.exp(log_posterior - log_posterior.max())
    weights /= weights.sum()
    center = float(weights @ _GRID)
    error = float(np.sqrt(weights @ (_GRID - center) ** 2))
    return SpreadScale(float(np.exp(max(center, 0) / 2)), error / 2)


@dataclass(frozen=True)
class Widening:
    """factors: on the variance per radial band, at least 1, float64 (BANDS,), that held-out samples ask for; gain: by
    how much the logarithm of their posterior density exceeds that of 1 in every band."""

    factors: np.ndarray
    gain: float


def widening(parts: Sequence[HeldOut]) -> Widening:
    """The likeliest factors of one scan, 1 where less would be.

    A priori log a has the deviation TAU in the mean over bands and _NEIGHBOURS from band to band, so that a band
    without samples follows those beside it.
    """
    prior = band_precision(BANDS**0.5 * TAU, _NEIGHBOURS)
    logs = np.zeros(BANDS)
    for _ in range(_ITERATIONS):
        gradient, precision = -prior @ logs, prior.copy()
        for part in parts:
            expected = np.where(part.points > 0, part.expected(np.exp(logs)), 1.0)
            share = np.exp(logs) * part.variance / expected
            gradient += part.points * share * (part.error / expected - 1)
            precision += np.diag(part.points * share**2)
        logs += np.clip(np.linalg.solve(precision, gradient), -1, 1)
    logs = np.maximum(logs, 0)
    factors = np.exp(logs)
    gain = sum(part.log_likelihood(factors) - part.log_likelihood() for part in parts) - logs @ prior @ logs / 2
    return Widening(factors, float(gain))
