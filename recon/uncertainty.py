"""Mean, standard deviation and magnitude intervals of one slice, from its K posterior draws.

Draws are independent, or in antithetic pairs (`mrigsure.seeds.in_pairs`): each is a posterior draw, but the deviations
in a pair are opposite as far as the posterior is Gaussian, so that the mean scatters less than 1/K says. With the means
p_i and half the differences h_i of n = K / 2 pairs,

    v = var(p) + mean |h|^2     of one draw,        m = var(p) / n     of the mean of all,

without bias, in place of v = var(x), m = v / K. One pair does not tell var(p): it is left out of v, and m is taken to
be v / 2; v + m is then too large where the correlation in a pair is below -0.6, and too small above.

The interval is a prediction interval for one more draw. Where truth and draws are exchangeable, the magnitude |x| and
the draws' |x_k| come from one distribution, near to a Gaussian, and with their mean, and v and m of the magnitudes,

    |x| - mean  ~  t_d * sqrt(v + m),        d = K - 1 degrees of freedom of independent draws,

covers the stated share exactly. The extremes of K draws would not: one more exchangeable value lies outside of them in
2 / (K + 1) of all cases, 22% of them for 8 draws, of which no better 5% and 95% quantiles can be had.

v of 8 draws is noisy, and t_7 pays for it with intervals 15% too wide. So v and m are pooled over a neighbourhood of
about 5 pixels, which counts as 8 independent ones, d = 8 (K - 1), or 8 n of pairs: images' errors are alike over two or
three pixels, and their variance changes more slowly than an estimate of 7 degrees of freedom scatters.

Near 0, in air, magnitudes have a Rice distribution. Where the mean is below 1.5 half-widths the interval begins at 0
and ends where the one-sided one does: a lower bound above 0 would exclude that nothing is there. The magnitudes of a
pair are alike there, as those of a and -a; a single pair's v is therefore that of its parts along the mean's phase.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import t as student

from recon.metrics import body_mask

LEVEL = 0.9
_NEIGHBOURHOOD = 2.0  # pixels, standard deviation of the Gaussian that pools variances
_ALIKE = 8  # independent pixels in it
_NEAR_ZERO = 1.5  # half-widths of the interval


@dataclass(frozen=True)
class Moments:
    """Of K > 1 draws, each of a draw's shape: their mean, and the variances v of one draw and m of the mean, those of
    both parts of complex values together."""

    mean: np.ndarray
    variance: np.ndarray
    of_mean: np.ndarray


@dataclass(frozen=True)
class Summary:
    """What the draws of one slice say, (H, W) each: mean complex64, the others float32, None for a single draw.

    std           sqrt(v) times the scan's scale, of the complex value
    lower, upper  the magnitude lies between them with the stated level
    body          sums of v and m over the body, without the scan's scale
    """

    mean: np.ndarray
    std: np.ndarray | None = None
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None
    body: tuple[float, float] | None = None


def moments(draws: np.ndarray, *, paired: bool) -> Moments:
    """Of draws (K, ...), real or complex, K > 1.

    paired  draws 2i and 2i + 1 are an antithetic pair; K is even
    """
    mean = draws.mean(0)
    if not paired:
        variance = draws.var(0, ddof=1)
        return Moments(mean, variance, variance / len(draws))
    first, second = draws[::2], draws[1::2]
    within = np.mean(np.abs((first - second) / 2) ** 2, axis=0)
    if len(first) == 1:
        return Moments(mean, within, within / 2)
    between = ((first + second) / 2).var(0, ddof=1)
    return Moments(mean, between + within, between / len(first))


def scatter(bodies: Iterable[tuple[float, float]]) -> float:
    """Variance of the mean over that of a draw, from the sums of slices (`Summary.body`); 1/K of independent draws."""
    variance, of_mean = np.sum(list(bodies), axis=0)
    return float(of_mean / variance) if variance > 0 else 0.0


def summarise(draws: np.ndarray, *, paired: bool, level: float = LEVEL, scale: float = 1.0) -> Summary:
    """Summarise draws complex (K, H, W).

    paired  as in `moments`, where K > 1
    level   share of the truth that the intervals are to cover
    scale   factor on every standard deviation (`recon.spread_scale`)
    """
    if len(draws) == 1:
        return Summary(draws[0])
    found = moments(draws, paired=paired)
    lower, upper = magnitude_interval(draws, level, scale, paired=paired)
    return Summary(found.mean, np.float32(scale) * np.sqrt(found.variance), lower, upper, body_sums(found))


def body_sums(found: Moments) -> tuple[float, float]:
    """Of v and of m over the body of the mean's image."""
    body = body_mask(found.mean)
    return tuple(float(np.sum(values[body], dtype=np.float64)) for values in (found.variance, found.of_mean))


def magnitude_interval(
    draws: np.ndarray, level: float = LEVEL, widen: float = 1.0, *, paired: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends for |x|, float32 (H, W) each, from K > 1 draws, complex (K, H, W).

    widen   factor on the standard deviation of the magnitude, not on the scatter of the draws' mean; at 1 the interval
            is exact for exchangeable draws
    paired  as in `moments`
    """
    found = moments(np.abs(draws).astype(np.float64), paired=paired)
    center, freedom = found.mean, _ALIKE * (len(draws) // 2 if paired else len(draws) - 1)
    if paired and len(draws) == 2:
        found = moments((draws * np.exp(-1j * np.angle(draws.mean(0)))).real, paired=True)
    variance, of_mean = (gaussian_filter(values, _NEIGHBOURHOOD) for values in (found.variance, found.of_mean))
    deviation = np.sqrt(widen**2 * variance + of_mean)
    half = student.ppf((1 + level) / 2, freedom) * deviation
    near_zero = center < _NEAR_ZERO * half
    lower = np.where(near_zero, 0, center - half)
    upper = np.where(near_zero, center + student.ppf(level, freedom) * deviation, center + half)
    return lower.astype(np.float32), upper.astype(np.float32)
