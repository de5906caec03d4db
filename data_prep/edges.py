"""Which samples of k-space were measured: zero-padded and filtered (apodised) edges are not.

A scanner or a pipeline may pad k-space with zeros, cut its corners, or multiply it with a window (Tukey, Hann, Fermi,
elliptic) before it stores it. Padded samples are no measurements, and where a window has pressed the samples down
their noise is no longer the noise of the rest. Both count as not acquired.
"""

import numpy as np
from scipy.ndimage import uniform_filter1d

from data_prep.windows import windowed_samples

_ZERO = 1e-7  # of the largest sample: what a float32 Fourier transform leaves where there was nothing
_REACH = 0.12  # of the half axis, over which a window must lower the power
_FALL = 8.0  # by this factor at least; anatomy, |k|^-3 to |k|^-4, falls by 1.6 and noise not at all
_STEP = 0.08  # of the half axis, over which the slope is taken
_STEEP = 8.0  # d ln(power) / d ln|k| beyond which a sample still belongs to the window's edge
_LEAST = 64  # samples in a ring
_SMOOTH = 3  # lines or rings averaged: the spectrum of a single line may have a null


def nonzero_samples(kspace: np.ndarray) -> np.ndarray:
    """Samples that are not zero in every slice and coil. kspace (slices, coils, H, W) or 3-D -> bool (H, W) or 3-D."""
    magnitude = np.zeros(kspace.shape[2:], np.float32)
    for one in kspace:  # slice by slice: no copy of the volume
        np.maximum(magnitude, np.abs(one).max(axis=0), out=magnitude)
    return magnitude > _ZERO * magnitude.max()


def filtered_edges(kspace: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Samples at the edges of k-space that a window has pressed below the noise of the rest.

    kspace (slices, coils, H, W), mask bool (H, W) -> bool (H, W). Looked for along both axes, each end on its own, and
    along the elliptical radius: where the power, its median over a line or ring, falls at the very edge by far
    more than anatomy can, everything counts as filtered from there inward to where the rise is no longer that steep.
    Windows that fall too gently for that (Hamming) are looked for in the noise alone (windows.py).
    """
    power = _coil_power(kspace)
    along = _along_axes(power, mask)
    around = _along_radius(power, mask)
    explanations = [along | _along_radius(power, mask & ~along), around | _along_axes(power, mask & ~around)]
    steep = min(explanations, key=np.sum)  # a radial window looks like two axial ones too, which would cost more
    return steep | windowed_samples(kspace, mask)


def _along_axes(power, mask):
    filtered = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        position = _position(mask.shape[axis])
        lines = zip(power, mask, strict=True) if axis == 0 else zip(power.T, mask.T, strict=True)
        profile = np.array([_median(line[sampled]) for line, sampled in lines])
        for side in (-1, 1):
            flags = side * position > _window_start(side * position, profile)
            filtered |= flags[:, None] if axis == 0 else flags[None, :]
    return filtered


def _along_radius(power, mask):
    y, x = (_position(size) for size in mask.shape)
    radius = np.hypot(y[:, None], x[None])
    outward = np.argsort(radius[mask], kind="stable")
    count = max(1, len(outward) // _LEAST)
    sorted_values = (values[mask][outward] for values in (radius, power))
    radii, profile = (np.array([_median(ring) for ring in np.array_split(v, count)]) for v in sorted_values)
    return radius > _window_start(radii, profile)


def _coil_power(kspace):
    """Power summed over slices and coils, every coil weighted to the same level."""
    power = np.zeros(kspace.shape[1:], np.float32)
    for one in kspace:
        power += one.real**2 + one.imag**2
    power /= len(kspace)
    level = np.array([_median(coil[coil > 0]) for coil in power])
    return (power / np.where(level > 0, level, 1)[:, None, None]).sum(axis=0)


def _position(size):
    return (np.arange(size) - size // 2) / (size / 2)


def _median(values):
    return np.median(values) if values.size else np.nan


def _window_start(position, profile):
    """Position beyond which `profile` is a window's edge; infinity where there is none."""
    known = np.flatnonzero((profile > 0) & (position > 0.1))
    known = known[np.argsort(-position[known])]  # from the edge inward
    position, level = position[known], np.log(uniform_filter1d(profile[known], _SMOOTH, mode="nearest"))

    def fall(index, reach):
        """Of ln(power), from at least `reach` further inward out to `index`; and of ln|k|."""
        inner = np.flatnonzero(position <= position[index] - reach)
        if not inner.size:
            return 0.0, 1.0
        return level[inner[0]] - level[index], np.log(position[index] / position[inner[0]])

    if not known.size or fall(0, _REACH)[0] < np.log(_FALL):
        return np.inf
    for index in range(len(known)):
        power_fall, distance = fall(index, _STEP)
        if power_fall < _STEEP * distance:
            return position[index]
    return np.inf
