"""The coils' noise covariance, and whitening with it.

Covariances are per real part: E[z z^H] / 2 of the complex noise z, so that the diagonal holds noise_std^2.
"""

import warnings

import numpy as np
from scipy.stats import gamma

from data_prep.readers import RawScan
from data_prep.readout import readout_image
from mrigsure.errors import InputError, ScanWarning

_GROUPS = 24
_LEAST = 64  # samples in a group
_QUIET = 1.05  # groups this near to the lowest give the covariance
_MARGIN = 8  # one part in so many of the readout, at each end, where receivers filter
_CLEARLY = 0.56  # of the variance in k-space's rim: below it that of the air is taken (0.75 of the standard deviation)
_QUANTILE = 0.999  # beyond it a sample is taken for signal
_TOO_LOUD = 1.5  # variance of noise samples over that in k-space, of which noise is only a part


def estimate_noise(raw: RawScan, mask: np.ndarray) -> np.ndarray:
    """Noise covariance, complex (coils, coils), per real part.

    mask  bool, (W,) or (H, W): the acquired samples of raw.kspace, without filtered edges

    From samples acquired for the purpose, if the file has any. Otherwise from the quietest samples of two places:
    1. k-space, in groups of equal radius, those whose median power is within 5% of the lowest: the rim, and as much
       more as is noise too;
    2. for whole lines, the quietest rows of the image: after the transform along the readout alone, rows outside the
       body hold noise only, whatever the undersampling. Rows near the ends are not used, where receivers filter;
       and rows are preferred only where clearly quieter, which means that signal reaches the rim of k-space.
    In either, samples above the 99.9% quantile of the noise's own distribution are left out; medians set its level.
    Where signal reaches the rim and there are no such rows, the estimate is high.
    """
    mask = np.broadcast_to(mask, raw.kspace.shape[-2:])
    found = _robust_covariance(_rim(raw, mask))
    lines = mask.any(axis=0)
    if (mask == lines).all():
        air = _robust_covariance(_air(raw.kspace[..., lines]))
        found = air if _level(air) < _CLEARLY * _level(found) else found
    if raw.noise is None:
        return found
    stated = _covariance(raw.noise)
    ratio = _level(stated) / _level(found)
    if ratio > _TOO_LOUD:
        warnings.warn(
            f"{raw.source}: noise samples {np.sqrt(ratio):.2g} times as loud as quiet k-space; scaled to it",
            ScanWarning,
            stacklevel=2,
        )
        return stated / ratio
    return stated


def whiten(kspace: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, float]:
    """Mix the coils so that their noise is white, and alike in every coil: kspace (slices, coils, ...), noise_std.

    W = noise_std L^-1 with covariance = L L^H and noise_std^2 its mean diagonal: the image keeps its units.
    """
    noise_std = float(np.sqrt(np.trace(covariance).real / len(covariance)))
    whitening = noise_std * np.linalg.inv(np.linalg.cholesky(covariance))
    mixed = np.tensordot(kspace, whitening.astype(np.complex64), axes=(1, 1))
    return np.ascontiguousarray(np.moveaxis(mixed, -1, 1)), noise_std


def _rim(raw, mask):
    """The quietest samples of k-space: (coils, n)."""
    y, x = ((np.arange(size) - size // 2) / (size / 2) for size in mask.shape)
    radius = np.hypot(y[:, None], x[None])[mask]
    samples = raw.kspace[:, :, mask][:, :, np.argsort(radius, kind="stable")]  # (slices, coils, n)
    power = np.abs(samples) ** 2
    weight = np.median(power, axis=(0, 2), keepdims=True)
    power = (power / np.where(weight > 0, weight, 1)).sum(axis=1)
    count = int(np.clip(power.shape[1] // _LEAST, 1, _GROUPS))
    groups = np.array_split(np.arange(power.shape[1]), count)
    level = np.array([np.median(power[:, group]) for group in groups])
    if not level.min() > 0:
        raise InputError(raw.source, "zeros among the samples of k-space", "measured samples, which hold noise")
    quiet = np.concatenate([groups[index] for index in np.flatnonzero(level <= _QUIET * level.min())])
    return np.moveaxis(samples[:, :, quiet], 1, 0).reshape(samples.shape[1], -1)


def _air(kspace):
    """The quietest rows of the image, kspace (slices, coils, H, lines): (coils, n)."""
    height = kspace.shape[2]
    rows = readout_image(kspace)[:, :, height // _MARGIN : height - height // _MARGIN]
    rows = rows.transpose(1, 0, 2, 3).reshape(kspace.shape[1], -1, kspace.shape[3])  # (coils, rows, lines)
    level = np.median((np.abs(rows) ** 2).sum(axis=0), axis=-1)
    quiet = np.argsort(level, kind="stable")[: max(4, len(level) // 16)]
    return rows[:, quiet].reshape(len(rows), -1)


def _level(covariance):
    return np.trace(covariance).real


def _robust_covariance(samples):
    """Covariance per real part of (coils, n), the samples beyond the noise's own quantile left out."""
    coils, count = samples.shape
    covariance = np.diag(np.median(np.abs(samples) ** 2, axis=1) / (2 * np.log(2)))
    for _ in range(2):
        power = np.einsum("cn,cn->n", samples.conj(), np.linalg.solve(_conditioned(covariance, count), samples)).real
        level = np.median(power) / gamma.ppf(0.5, coils)
        covariance = _covariance(samples[:, power <= level * gamma.ppf(_QUANTILE, coils)])
    return covariance


def _covariance(samples):
    return _conditioned(samples @ samples.conj().T / (2 * samples.shape[1]), samples.shape[1])


def _conditioned(covariance, count):
    """Shrink towards the diagonal by the share of the correlations that so few samples explain by chance.

    Schaefer and Strimmer, Stat Appl Genet Mol Biol 4:32 (2005); Var(c_ij) = c_ii c_jj / count for Gaussian noise.
    """
    diagonal = np.diag(covariance).real
    diagonal = np.maximum(diagonal, 1e-6 * diagonal.max())
    apart = ~np.eye(len(diagonal), dtype=bool)
    chance = np.outer(diagonal, diagonal)[apart].sum() / count
    correlation = (np.abs(covariance[apart]) ** 2).sum()
    share = 1.0 if correlation <= chance else max(chance / correlation, 1e-3)
    return np.where(apart, (1 - share) * covariance, np.diag(diagonal))
