"""Mean, standard deviation and magnitude intervals of one slice, from its K posterior draws.

The interval is a prediction interval for one more draw. Where truth and draws are exchangeable, the magnitude |x| and
the draws' m_k = |x_k| come from one distribution, near to a Gaussian, and with their mean m and standard deviation s

    |x| - m  ~  t_d * s * sqrt(1 + 1/K),        d = K - 1 degrees of freedom,

covers the stated share exactly. The extremes of K draws would not: one more exchangeable value lies outside of them in
2 / (K + 1) of all cases, 22% of them for 8 draws, of which no better 5% and 95% quantiles can be had.

s of 8 draws is noisy, and t_7 pays for it with intervals 15% too wide. So s^2 is pooled over a neighbourhood of about 5
pixels, which counts as 8 independent ones, d = 8 (K - 1): images' errors are alike over two or three pixels, and their
variance changes more slowly than an estimate of 7 degrees of freedom scatters.

Near 0, in air, magnitudes have a Rice distribution. Where m is below 1.5 half-widths the interval begins at 0 and ends
where the one-sided one does: a lower bound above 0 would exclude that nothing is there.

Draws of this package are less exact than that in one respect: the sampler's R (docs/method.md, section 7) spreads alike
along the image's phase and across it, whereas images of smooth phase differ along it, in magnitude. `along_phase` is
the share of the detail's energy along the smooth phase. Where it is larger in the mean image than in the draws'
deviations, the standard deviation of the magnitude grows by the root of their ratio (`phase_factor`).
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import t as student

from recon.metrics import body_mask

LEVEL = 0.9
_NEIGHBOURHOOD = 2.0  # pixels, standard deviation of the Gaussian that pools s^2 and parts phase and detail
_ALIKE = 8  # independent pixels in it
_NEAR_ZERO = 1.5  # half-widths of the interval


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

    widen  factor on the standard deviation of the magnitude, not on the scatter of the draws' mean; at 1 the interval
           is exact for exchangeable draws
    """
    count, magnitudes = len(draws), np.abs(draws).astype(np.float64)
    center = magnitudes.mean(0)
    variance, freedom = gaussian_filter(magnitudes.var(0, ddof=1), _NEIGHBOURHOOD), _ALIKE * (count - 1)
    deviation = np.sqrt((widen**2 + 1 / count) * variance)
    half = student.ppf((1 + level) / 2, freedom) * deviation
    near_zero = center < _NEAR_ZERO * half
    lower = np.where(near_zero, 0, center - half)
    upper = np.where(near_zero, center + student.ppf(level, freedom) * deviation, center + half)
    return lower.astype(np.float32), upper.astype(np.float32)


def phase_factor(draws: np.ndarray) -> float:
    """Factor on the standard deviation of the magnitude, at least 1, for draws that spread too far across the phase."""
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


def _smooth(image):
    """Gaussian mean of a complex image over its neighbourhood."""
    return gaussian_filter(image.real, _NEIGHBOURHOOD) + 1j * gaussian_filter(image.imag, _NEIGHBOURHOOD)
