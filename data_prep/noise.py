"""The coils' noise covariance with its uncertainty, whitening with it, and noise added for controlled studies.

Covariances are per real part: E[z z^H] / 2 of the complex noise z, so that the diagonal holds noise_std^2.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.stats import gamma

from data_prep.null_space import null_space_noise
from data_prep.readers import RawScan
from data_prep.readout import readout_image
from data_prep.sense_noise import sense_noise
from mrigsure.errors import InputError, ScanWarning

_GROUPS = 24
_LEAST = 64  # samples in a group
_ERRORS = 1.5  # standard errors by which a group may be louder than quieter ones beside it
_MARGIN = 8  # one part in so many of the readout, at each end, where receivers filter
_CLEARLY = 0.8  # of the variance found otherwise: below it that of the air is taken (0.9 of the standard deviation)
_QUANTILE = 0.999  # beyond it a sample is taken for signal
_LOUDER = 1.2  # variance of the rows outside over that of the rim, up to which the rows are believed
_CERTAIN = 0.1  # share of chance in the correlations, below which they are left as they are
_MANY = 20  # samples for every coil
_TOO_LOUD = 1.5  # variance of noise samples over that in k-space, of which noise is only a part


@dataclass(frozen=True)
class NoiseEstimate:
    """covariance: complex (coils, coils), per real part; samples: complex samples of every coil that it was made from;
    origin: where these come from, in words."""

    covariance: np.ndarray
    samples: int
    origin: str

    @property
    def noise_std(self) -> float:
        """Square root of the mean variance per real part."""
        return float(np.sqrt(_level(self.covariance) / len(self.covariance)))

    @property
    def relative_error(self) -> float:
        """Standard error of noise_std over noise_std, of Gaussian samples: |C| / (2 tr C sqrt(samples)), Frobenius."""
        return float(np.linalg.norm(self.covariance) / (2 * _level(self.covariance) * np.sqrt(self.samples)))

    def record(self) -> dict:
        """What a prepared file keeps of it."""
        return {"origin": self.origin, "samples": self.samples, "relative_error": float(f"{self.relative_error:.3g}")}


def estimate_noise(raw: RawScan, mask: np.ndarray) -> NoiseEstimate:
    """The noise of raw.kspace: from samples acquired for the purpose, if the file has any, else by `quiet_noise`.

    mask  bool, (W,) or (H, W): the acquired samples of raw.kspace, without filtered edges

    Noise samples much louder than that are scaled to it, with a ScanWarning.
    Raises InputError where zeros stand among the samples.
    """
    found = quiet_noise(raw.kspace, mask, raw.source, raw.outside)
    if raw.noise is None:
        return found
    stated = NoiseEstimate(_covariance(raw.noise), raw.noise.shape[1], "noise scan")
    ratio = _level(stated.covariance) / _level(found.covariance)
    if ratio > _TOO_LOUD:
        warnings.warn(
            f"{raw.source}: noise samples {np.sqrt(ratio):.2g} times as loud as quiet k-space; scaled to it",
            ScanWarning,
            stacklevel=2,
        )
        return NoiseEstimate(
            stated.covariance / ratio, min(stated.samples, found.samples), f"noise scan, scaled to: {found.origin}"
        )
    return stated


def quiet_noise(kspace: np.ndarray, mask: np.ndarray, source, outside: np.ndarray | None = None) -> NoiseEstimate:
    """The noise of k-space that holds signal too: complex64 (slices, coils, H, W); mask bool (W,) or (H, W).

    1. k-space, in groups of equal radius, the quietest and those next to it whose median power is within 5%, but for
       the medians' own errors: the rim, and as much more as is noise too. Or the rows of the image outside the field
       of view, where the readout was oversampled (`outside`, see RawScan), unless they are louder;
    2. what no signal can explain of all of k-space (null_space.py), which must be sampled fully in the centre. It is
       taken where 1 is louder, in the mean or in any combination of coils, by more than chance: signal makes either
       estimate too high, and nothing makes one too low;
    3. for points, what no image explains of k-space (sense_noise.py), chosen over the above in the same way;
    4. for whole lines, the quietest rows of the image: after the transform along the readout alone, rows outside the
       body hold noise only, whatever the undersampling. Rows near the ends are not used, where receivers filter;
       and rows are preferred only where clearly quieter than 1 or 2.
    In 1 and 4, samples above the 99.9% quantile of the noise's own distribution are left out; medians set its level.
    Where none of 2, 3 and 4 can be had the estimate is high where signal reaches the rim.
    Raises InputError, which names `source`, where zeros stand among the samples.
    """
    mask = np.broadcast_to(mask, kspace.shape[-2:])
    found = _robust_estimate(_rim(kspace, mask, source), "rim of k-space")
    if outside is not None:
        rows = _robust_estimate(outside, "image rows outside the field of view")
        found = rows if _level(rows.covariance) < _LOUDER * _level(found.covariance) else found
    found = _without_signal(
        found, null_space_noise(kspace, mask, found.covariance), "what no signal explains of k-space"
    )
    lines = mask.any(axis=0)
    if (mask != lines).any():
        return _without_signal(found, sense_noise(kspace, mask, found.covariance), "what no image explains of k-space")
    air = _robust_estimate(_air(kspace[..., lines]), "quietest image rows")
    return air if _level(air.covariance) < _CLEARLY * _level(found.covariance) else found


def whiten(kspace: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, float]:
    """Mix the coils so that their noise is white, and alike in every coil: kspace (slices, coils, ...), noise_std.

    W = noise_std L^-1 with covariance = L L^H and noise_std^2 its mean diagonal: the image keeps its units.
    """
    noise_std = float(np.sqrt(np.trace(covariance).real / len(covariance)))
    whitening = noise_std * np.linalg.inv(np.linalg.cholesky(covariance))
    mixed = np.tensordot(kspace, whitening.astype(np.complex64), axes=(1, 1))
    return np.ascontiguousarray(np.moveaxis(mixed, -1, 1)), noise_std


def noise_for_snr(snr_db: float, signal_std: float, noise_std: float, source) -> float:
    """Standard deviation per real part of the white noise to add, for an SNR of 20 log10(signal_std / noise_std).

    signal_std  standard deviation per real part of the signal inside the body
    noise_std   of the whitened scan as it is; InputError where that is more than the SNR asked for allows
    """
    wanted = signal_std / 10 ** (snr_db / 20)
    if wanted < noise_std:
        raise InputError(
            source,
            f"an SNR of {20 * np.log10(signal_std / noise_std):.2f} dB, below the {snr_db:g} dB of --add-noise",
            "a scan of less noise, to which some can be added",
        )
    return float(np.sqrt(wanted**2 - noise_std**2))


def add_noise(kspace: np.ndarray, mask: np.ndarray, added_std: float, seed) -> np.ndarray:
    """Whitened kspace (..., H, W) with white noise on its sampled points: the same for the same seed and shape."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((*kspace.shape, 2), np.float32).view(np.complex64)[..., 0]
    return kspace + np.float32(added_std) * noise * mask


def _without_signal(found, unexplained, origin):
    """`found`, or where it holds signal the other, of a covariance and samples that nothing explains."""
    if unexplained is None:
        return found
    rest = NoiseEstimate(_conditioned(*unexplained), unexplained[1], origin)
    return rest if _holds_signal(found, rest) else found


def _holds_signal(found, rest):
    """`found` is louder than `rest` by more than chance, in the mean or in some direction, and not quieter."""
    factor = np.linalg.inv(np.linalg.cholesky(rest.covariance))
    relative = np.linalg.eigvalsh(factor @ found.covariance @ factor.conj().T)
    share = [len(relative) / estimate.samples for estimate in (found, rest)]
    error = np.sqrt(sum(share)) / len(relative)  # standard error of the mean
    excess = relative.mean() - 1
    return excess > error or (excess > -error and relative.max() > (1 + np.sqrt(share).sum()) ** 2)


def _rim(kspace, mask, source):
    """The quietest samples of k-space: (coils, n).

    Groups are chosen by every other sample and the samples between are taken: chosen by their own, they would be too
    quiet, as the least of many levels of the same noise is.
    """
    y, x = ((np.arange(size) - size // 2) / (size / 2) for size in mask.shape)
    radius = np.hypot(y[:, None], x[None])[mask]
    samples = kspace[:, :, mask][:, :, np.argsort(radius, kind="stable")]  # (slices, coils, n)
    power = np.abs(samples) ** 2
    weight = np.median(power, axis=(0, 2), keepdims=True)
    power = (power / np.where(weight > 0, weight, 1)).sum(axis=1)
    count = int(np.clip(power.shape[1] // _LEAST, 1, _GROUPS))
    groups = np.array_split(np.arange(power.shape[1]), count)  # from the centre outwards
    found = []
    for half in (0, 1):
        level, error = np.array([_median_and_error(power[:, group[half::2]]) for group in groups]).T
        if not level.min() > 0:
            raise InputError(source, "zeros among the samples of k-space", "measured samples, which hold noise")
        quiet = np.concatenate([group[1 - half :: 2] for group in groups[_quiet_stretch(level, error)]])
        found.append(np.moveaxis(samples[:, :, quiet], 1, 0).reshape(samples.shape[1], -1))
    return np.concatenate(found, axis=1)


def _quiet_stretch(level, error) -> slice:
    """From the quietest group outwards and inwards, as long as the next is no louder than those before it."""
    first = last = int(level.argmin())

    def joins(index):
        pool = slice(first, last + 1)
        doubt = _ERRORS * np.hypot(error[index], np.linalg.norm(error[pool]) / (last + 1 - first))
        return level[index] <= level[pool].mean() + doubt

    while last + 1 < len(level) and joins(last + 1):
        last += 1
    while first > 0 and joins(first - 1):
        first -= 1
    return slice(first, last + 1)


def _median_and_error(values):
    """Median and its standard error, from the quartiles."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return median, 1.25 * (high - low) / 1.35 / np.sqrt(values.size)


def _air(kspace):
    """The quietest rows of the image, kspace (slices, coils, H, lines): (coils, n).

    Rows are chosen by every other line and their samples taken from the lines between: chosen by their own, they would
    be too quiet.
    """
    height = kspace.shape[2]
    rows = readout_image(kspace)[:, :, height // _MARGIN : height - height // _MARGIN]
    rows = rows.transpose(1, 0, 2, 3).reshape(kspace.shape[1], -1, kspace.shape[3])  # (coils, rows, lines)
    power = (np.abs(rows) ** 2).sum(axis=0)
    found = []
    for half in range(min(2, power.shape[1])):
        level = np.median(power[:, half::2], axis=-1)
        quiet = np.argsort(level, kind="stable")[: max(4, len(level) // 16)]
        found.append(rows[:, quiet, 1 - half :: 2].reshape(len(rows), -1))
    return np.concatenate(found, axis=1)


def _level(covariance):
    return np.trace(covariance).real


def _robust_estimate(samples, origin):
    """From (coils, n), the samples beyond the noise's own quantile left out."""
    coils, count = samples.shape
    covariance = np.diag(np.median(np.abs(samples) ** 2, axis=1) / (2 * np.log(2)))
    for _ in range(2):
        power = np.einsum("cn,cn->n", samples.conj(), np.linalg.solve(_conditioned(covariance, count), samples)).real
        level = np.median(power) / gamma.ppf(0.5, coils)
        quiet = samples[:, power <= level * gamma.ppf(_QUANTILE, coils)]
        covariance = _covariance(quiet)
    return NoiseEstimate(covariance, quiet.shape[1], origin)


def _covariance(samples):
    return _conditioned(samples @ samples.conj().T / (2 * samples.shape[1]), samples.shape[1])


def _conditioned(covariance, count):
    """Shrink towards the diagonal by the share of the correlations that so few samples explain by chance.

    Schaefer and Strimmer, Stat Appl Genet Mol Biol 4:32 (2005); Var(c_ij) = c_ii c_jj / count for Gaussian noise.
    Not at all where nearly all is certain: of nearly dependent coils even a small share would spoil the whitening,
    which has an error of sqrt(coils / count) without.
    """
    diagonal = np.diag(covariance).real
    diagonal = np.maximum(diagonal, 1e-6 * diagonal.max())
    apart = ~np.eye(len(diagonal), dtype=bool)
    chance = np.outer(diagonal, diagonal)[apart].sum() / count
    correlation = (np.abs(covariance[apart]) ** 2).sum()
    share = 1.0 if correlation <= chance else chance / correlation
    if share < _CERTAIN and count > _MANY * len(diagonal):
        share = 0.0
    return np.where(apart, (1 - share) * covariance, np.diag(diagonal))
