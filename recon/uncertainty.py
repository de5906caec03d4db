"""Mean, standard deviation and magnitude intervals of one slice, from its K posterior draws.

The interval is a prediction interval for one more draw. Where truth and draws are exchangeable, the magnitude |x| and
the draws' m_k = |x_k| come from one distribution, near to a Gaussian, and with their mean m and standard deviation s

    |x| - m  ~  t_d * s * sqrt(1 + 1/K)

covers the stated share exactly. The 5% and 95% quantiles of 8 draws would not: two more exchangeable values lie outside
the extremes of K in 2 / (K + 1) of all cases, 22% of them.

s of 8 draws is noisy and t_7 pays for it with intervals 15% too wide. So s is moderated (Smyth 2004,
doi:10.2202/1544-6115.1027): each pixel's own s^2, of d = K - 1 degrees of freedom, and its neighbourhood's s0^2, of d0,

    s~^2 = (d s^2 + d0 s0^2) / (d + d0),        d + d0 degrees of freedom,

d0 told by how much more log s^2 scatters about its neighbourhood than the scatter of d degrees of freedom, trigamma(d / 2).
Where neighbours are alike d0 is large, where they are not the interval falls back on t_{K-1}: it is exact in both.

Near 0, in air, magnitudes have a Rice distribution. Where m is below 1.5 half-widths the interval begins at 0 and ends
where the one-sided one does: a lower bound above 0 would exclude that nothing is there.

Draws of this package are less exact than that in one respect: R of the sampler (docs/method.md, section 7) spreads alike
along the image's phase and across it, whereas images of smooth phase differ along it, in magnitude. `along_phase` tells
the share of the detail's energy that lies along the smooth phase. Where it is larger in the mean image than in the draws'
deviations, the standard deviation of the magnitude grows by the root of their ratio (`phase_factor`).
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.optimize import brentq
from scipy.special import digamma, polygamma
from scipy.stats import t as student

from recon.metrics import body_mask

LEVEL = 0.9
_NEIGHBOURHOOD = 2.0  # pixels, standard deviation of the Gaussian that pools s^2 and parts phase and detail
_WITHOUT_ITSELF = 0.94  # variance that a white plane keeps after its Gaussian mean of 2 pixels is taken off
_NEAR_ZERO = 1.5  # half-widths of the interval
_LEAST = 1e-12  # of the largest variance: what is 0 has no logarithm


@dataclass(frozen=True)
class Summary:
    """What the draws of one slice say, (H, W) each: mean complex64, the others float32, None for a single draw.

    std           sqrt(sum |x_k - mean|^2 / (K - 1)) times the scan's scale, of the complex value
    lower, upper  the magnitude lies between them with the stated level
    """

    mean: np.ndarray
    std: np.ndarray | None = None
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None


def summarise(draws: np.ndarray, *, level: float = LEVEL, scale: float = 1.0) -> Summary:
    """Summarise draws complex (K, H, W).

    level  share of the truth that the intervals are to cover
    scale  factor on every standard deviation (`recon.spread_scale`)
    """
    mean = draws.mean(0)
    if len(draws) == 1:
        return Summary(mean)
    deviation = np.sqrt(np.sum(np.abs(draws - mean) ** 2, axis=0) / (len(draws) - 1))
    lower, upper = magnitude_interval(draws, level, scale * phase_factor(draws))
    return Summary(mean, np.float32(scale) * deviation, lower, upper)


def magnitude_interval(draws: np.ndarray, level: float = LEVEL, widen: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends for |x|, float32 (H, W) each, from K > 1 draws, complex (K, H, W).

    widen  factor on the standard deviation of the magnitude; at 1 the interval is exact for exchangeable draws
    """
    count, magnitudes = len(draws), np.abs(draws).astype(np.float64)
    center = magnitudes.mean(0)
    variance, freedom = _moderated(magnitudes.var(0, ddof=1), count - 1, body_mask(center))
    deviation = widen * np.sqrt((1 + 1 / count) * variance)
    half = student.ppf((1 + level) / 2, freedom) * deviation
    near_zero = center < _NEAR_ZERO * half
    lower = np.where(near_zero, 0, center - half)
    upper = np.where(near_zero, center + student.ppf(level, freedom) * deviation, center + half)
    return lower.astype(np.float32), upper.astype(np.float32)


def phase_factor(draws: np.ndarray) -> float:
    """Factor on the standard deviation of the magnitude, at least 1, for draws that spread too much across the phase."""
    mean = draws.mean(0)
    here, drawn = along_phase(mean[None] - _smooth(mean), mean), along_phase(draws - mean, mean)
    return float(np.sqrt(max(here / drawn, 1.0)))


def along_phase(detail: np.ndarray, image: np.ndarray) -> float:
    """Share of the energy of `detail` (n, H, W) along the smooth phase of `image` (H, W), in its body: 1/2 if neither
    direction is preferred, 1 if it changes magnitudes alone."""
    smooth, body = _smooth(image), body_mask(image)
    turned = (detail * np.exp(-1j * np.angle(smooth)))[:, body]
    energy = np.sum(np.abs(turned) ** 2, dtype=np.float64)
    return float(np.sum(turned.real**2, dtype=np.float64) / energy) if energy > 0 else 0.5


def _moderated(variance, freedom, where):
    """Variances (H, W) of `freedom` degrees each, pulled to their neighbourhood's, and the degrees they then have.

    where  pixels, bool (H, W), that tell how alike neighbours are
    """
    log = np.log(np.maximum(variance, max(_LEAST * variance.max(), np.finfo(float).tiny)))
    around = gaussian_filter(log, _NEIGHBOURHOOD)
    scatter = np.var((log - around)[where]) / _WITHOUT_ITSELF if where.any() else np.inf
    prior = 2 * _inverse_trigamma(scatter - polygamma(1, freedom / 2))
    bias = (digamma(freedom / 2) - np.log(freedom / 2)) - (digamma(prior / 2) - np.log(prior / 2))
    pooled = np.exp(around - bias)
    return (freedom * variance + prior * pooled) / (freedom + prior), freedom + prior


def _inverse_trigamma(value):
    """x with trigamma(x) = value, between 0.05 and 500."""
    low, high = 0.05, 500.0
    if value <= polygamma(1, high):
        return high
    if value >= polygamma(1, low):
        return low
    return brentq(lambda x: polygamma(1, x) - value, low, high)


def _smooth(image):
    """Gaussian mean of a complex image over its neighbourhood."""
    return gaussian_filter(image.real, _NEIGHBOURHOOD) + 1j * gaussian_filter(image.imag, _NEIGHBOURHOOD)
