"""Windows over all of k-space that leave its edge well above zero (Hamming, Gauss, Kaiser), told by the noise alone.

Anatomy hides such a window: it falls off as smoothly itself. Noise does not. Rows of the image outside the body, after
the transform along the readout, hold noise of the same variance in every sample of k-space, unless a window was laid
over it: then the variance falls as the window's square. Whether the rows hold noise alone is tested, not assumed: noise
of neighbouring lines is uncorrelated, while signal, an object narrower than the field of view, is not. Where too few
neighbouring lines were sampled to tell (equispaced masks), where the mask is not made of whole lines, and where no row
is free of signal, nothing is recognised.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import median_filter
from scipy.optimize import isotonic_regression

from data_prep.readout import readout_image

_ROWS = 8  # one part in so many of the readout is taken for outside the body
_CENTRE = 0.1  # of the half axis
_AIR = 0.25  # power of those rows in the centre of k-space, over that of the median row, at most
_SLICES = 8  # looked at, at most
_SAMPLES = 2**22  # of all coils, in the slices looked at: more tell no more, and take room
_STRIPS = np.arange(0, 0.55, 0.1)  # of the half axis, tried as the inner limit of what is noise alone
_CORRELATED = 0.1  # between neighbouring lines: signal makes up a fifth of the power or so
_UNTOLD = 0.05  # squared correlation by chance, beyond which there are too few samples to tell
_ERRORS = 5.0  # standard errors of chance allowed on top
_ROWS_ALIKE = 3.0  # by how much a window along the readout, which makes rows alike, raises the chance
_SPIKE = 2.5  # power of a line over that of the lines around it: one bad sample stands in every row of its line
_BINS = 10
_HALF = 0.5  # of the power in the centre, below which samples count as filtered
_RATIO = 2.5  # least of the mean power inside over that outside
_SURE = 6.0  # standard errors by which it must differ from 1


@dataclass(frozen=True)
class _Noise:
    """power (H, lines) of noise in k-space, relative; weight: independent samples in each; positions along the axes."""

    power: np.ndarray
    weight: float
    ky: np.ndarray
    kx: np.ndarray


def windowed_samples(kspace: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Samples whose noise a window has pressed below half the power of the centre's: bool (H, W).

    kspace (slices, coils, H, W), mask bool (H, W). Looked for along the readout, along the lines, along both, and
    along the radius; that one is taken which explains the noise best.
    """
    rows, lines = mask.any(axis=1), mask.any(axis=0)
    noise = _outside_noise(kspace, rows, lines) if (mask == np.outer(rows, lines)).all() else None
    nothing = np.zeros(mask.shape, bool)
    if noise is None:
        return nothing
    along = np.broadcast_to(np.abs(noise.ky)[:, None], noise.power.shape)
    across = np.broadcast_to(np.abs(noise.kx)[None], noise.power.shape)
    whole = [np.abs(_position(size)) for size in mask.shape]
    plane_y, plane_x = np.broadcast_to(whole[0][:, None], mask.shape), np.broadcast_to(whole[1][None], mask.shape)
    explanations = {
        "readout": [(along, plane_y)],
        "lines": [(across, plane_x)],
        "both": [(along, plane_y), (across, plane_x)],
        "radius": [(np.hypot(along, across), np.hypot(plane_y, plane_x))],
    }
    best, found = _misfit(noise, np.full(noise.power.shape, noise.power.mean()), 1), nothing
    for parts in explanations.values():
        fits = _fit(noise, [axis for axis, _ in parts])
        level = np.prod([fit.level for fit in fits], axis=0)
        filtered = [fit.falls_below(plane) for fit, (_, plane) in zip(fits, parts, strict=True)]
        misfit = _misfit(noise, level, sum(fit.steps for fit in fits))
        if misfit < best and any(one.any() for one in filtered):
            best, found = misfit, np.any(filtered, axis=0)
    return found


def _outside_noise(kspace, rows, lines):
    """The noise of the quietest rows of the image, in k-space; None where that is not noise alone."""
    top, height = np.flatnonzero(rows)[0], int(rows.sum())
    kx = _position(len(lines))[lines]
    count = max(4, height // _ROWS)
    if not rows[top : top + height].all() or lines.sum() < 16 or height < 32:
        return None
    slices = int(np.clip(_SAMPLES // kspace[0].size, 1, _SLICES))
    samples = kspace[:: -(-len(kspace) // slices)][:, :, rows][..., lines]
    image = readout_image(samples)
    level = np.median(np.abs(image) ** 2, axis=(0, 2, 3), keepdims=True)
    image = image / np.sqrt(np.where(level > 0, level, 1))
    outer = np.median((np.abs(image[..., np.abs(kx) > 0.5]) ** 2).sum(axis=1), axis=(0, 2))
    smooth = np.convolve(np.r_[outer, outer[:count]], np.ones(count), "valid")[:height]  # the image is periodic
    block = (np.arange(count) + int(smooth.argmin())) % height
    centre = (np.abs(image[..., np.abs(kx) < _CENTRE]) ** 2).mean(axis=(0, 1, 3))
    if not centre[block].mean() < _AIR * np.median(centre):
        return None
    inner = _noise_alone(image[:, :, block], np.flatnonzero(lines), np.abs(kx))
    if inner is None:
        return None
    gated = np.zeros_like(image)
    gated[:, :, block] = image[:, :, block]
    spectrum = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(gated, axes=2), axis=2, norm="ortho"), axes=2)
    level = (np.abs(image[:, :, block]) ** 2).mean(axis=(0, 1, 2))
    kept = (np.abs(kx) >= inner) & (level < _SPIKE * median_filter(level, 7, mode="nearest"))
    power = (np.abs(spectrum[..., kept]) ** 2).mean(axis=(0, 1))
    ky = _position(len(rows))[rows]
    return _Noise(power, samples.shape[0] * samples.shape[1] * count / height, ky, kx[kept])


def _noise_alone(rows, lines, position):
    """The least |kx| from which on neighbouring lines are uncorrelated; None where that is over half, or unknown."""
    first = np.flatnonzero(np.diff(lines) == 1)
    product = (rows[..., first].conj() * rows[..., first + 1]).sum(
        axis=(0, 2)
    )  # (coils, pairs): each coil has its phase
    power = np.abs(rows[..., first] * rows[..., first + 1]).sum(axis=(0, 2))
    place = np.minimum(position[first], position[first + 1])
    samples = rows.shape[0] * rows.shape[2]

    def chance(chosen):
        """Of the mean squared correlation of the coils, what it may reach without signal."""
        return (_ROWS_ALIKE + _ERRORS / np.sqrt(len(product))) / max(1, chosen.sum() * samples)

    def white(chosen):
        correlation = np.abs(product[:, chosen].sum(axis=1)) / np.maximum(power[:, chosen].sum(axis=1), 1e-30)
        return (correlation**2).mean() <= _CORRELATED**2 + chance(chosen)

    for inner in _STRIPS:
        outside = place >= inner
        if chance(outside) > _UNTOLD:
            return None
        strips = [(place >= low) & (place < low + 0.1) for low in np.arange(inner, 1, 0.1)]
        if white(outside) and all(white(strip) for strip in strips if strip.any()):
            return inner
    return None


@dataclass(frozen=True)
class _Fit:
    """A profile that never rises outward: its level at every sample, its number of steps, where it falls below half."""

    level: np.ndarray
    steps: int
    limit: float

    def falls_below(self, position):
        return position > self.limit


def _fit(noise, axes):
    """One profile for each of `axes`, whose product is the variance; two are fitted in turn."""
    levels = [np.ones(noise.power.shape) for _ in axes]
    fits = [None] * len(axes)
    for _ in range(1 if len(axes) == 1 else 4):
        for number, axis in enumerate(axes):
            others = np.prod([level for other, level in enumerate(levels) if other != number], axis=0)
            fits[number] = _profile(noise.power / others, axis, noise.weight)
            levels[number] = fits[number].level
    return fits


def _profile(power, axis, weight):
    edges = np.quantile(axis, np.linspace(0, 1, _BINS + 1)[1:-1])
    bins = np.searchsorted(edges, axis, side="right")
    count = np.bincount(bins.ravel(), minlength=_BINS)
    mean = np.bincount(bins.ravel(), power.ravel(), minlength=_BINS) / np.maximum(count, 1)
    used = count > 0
    values = np.zeros(_BINS)
    values[used] = isotonic_regression(mean[used], weights=count[used], increasing=False).x
    low = used & (values < _HALF * values[used][0])
    limit = np.inf
    if low.any():
        inner, outer = used & ~low, low
        ratio = np.average(mean[inner], weights=count[inner]) / np.average(mean[outer], weights=count[outer])
        error = np.sqrt((1 / count[inner].sum() + 1 / count[outer].sum()) / weight)
        if ratio > max(_RATIO, np.exp(_SURE * error)):
            limit = _crossing(axis, bins, values, used)
    return _Fit(values[bins], len(np.unique(values[used])), limit)


def _crossing(axis, bins, values, used):
    """Where the profile, linear between its bins' centres, falls below half."""
    centers = np.array([axis[bins == number].mean() if used[number] else np.nan for number in range(_BINS)])
    relative = values[used] / values[used][0]
    return float(np.interp(-_HALF, -relative, centers[used]))


def _misfit(noise, level, steps):
    """Twice the negative log likelihood of exponential powers, and Schwarz's penalty for the steps."""
    floor = np.maximum(level, 1e-12)
    samples = noise.weight * noise.power.size
    return 2 * noise.weight * (np.log(floor) + noise.power / floor).sum() + steps * np.log(samples)


def _position(size):
    return (np.arange(size) - size // 2) / (size / 2)
