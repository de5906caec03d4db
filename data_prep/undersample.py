"""Sampling of a raw scan: found as it was acquired, or drawn and applied to a fully sampled scan; and its density."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_prep.edges import filtered_edges, nonzero_samples
from data_prep.readers import RawScan
from mrigsure import masks
from mrigsure.errors import InputError
from mrigsure.settings import PrepareSettings

_RAGGED = 0.02  # share of a line that may be zero by accident, or non-zero, in a scan sampled by lines
_HOLES = 0.02  # share of the support that a fully sampled scan may lack (pixelated corners)
_ONE_SIDED = 0.05  # share of the support without a counterpart across the centre; more is partial Fourier
_LEAST_DENSITY = 1e-3  # of a candidate line that no scan of the ensemble happened to sample


@dataclass(frozen=True)
class Acquired:
    """What a scan measured, bool (H, W): `mask`, the samples; `candidates`, those that could have been measured."""

    mask: np.ndarray
    candidates: np.ndarray

    @property
    def is_full(self) -> bool:
        """Every sample of the acquired support was measured, and the support lies evenly about the centre."""
        support = masks.acquired_support(self.mask)
        rows, cols = ((2 * (size // 2) - np.arange(size)) % size for size in support.shape)
        holes = (support & ~self.mask).sum()
        one_sided = (support & ~support[rows][:, cols]).sum()
        return bool(holes <= _HOLES * support.sum() and one_sided <= _ONE_SIDED * support.sum())


@dataclass(frozen=True)
class Sampling:
    """mask bool and density float32 of one shape, (W,) or (H, W); density is 0 outside the acquired support."""

    mask: np.ndarray
    density: np.ndarray


def acquired_samples(raw: RawScan) -> Acquired:
    """The stated mask or the non-zero samples, without zero-padded and filtered edges."""
    shape = raw.kspace.shape[-2:]
    mask = np.broadcast_to(stated_or_found_mask(raw), shape)
    if raw.mask is not None:
        mask = mask & nonzero_samples(raw.kspace)
    if not mask.any():
        raise InputError(raw.source, "k-space that is zero wherever it was sampled", "measured samples")
    candidates = ~filtered_edges(raw.kspace, mask)
    if raw.support is not None:
        candidates &= raw.support
    return Acquired(mask & candidates, candidates)


def stated_or_found_mask(raw: RawScan) -> np.ndarray:
    """The mask that came with the scan, else the one its zeros tell: bool (W,) or (H, W)."""
    return find_mask(raw.kspace, raw.source) if raw.mask is None else raw.mask


def find_mask(kspace: np.ndarray, source="k-space") -> np.ndarray:
    """Sampling from the zeros of kspace (slices, coils, H, W): bool (W,) for whole lines, else (H, W).

    Raises InputError where the slices were sampled differently: a scan has one mask.
    """
    sampled = nonzero_samples(kspace)
    for number, one in enumerate(kspace):
        lacking = int((sampled & ~np.any(one, axis=0)).sum())
        if lacking > _RAGGED * sampled.sum():
            raise InputError(
                source,
                f"slice {number} lacks {lacking} samples that other slices have",
                "the same sampling in every slice; split the file",
            )
    share = sampled.mean(axis=0)
    if ((share < _RAGGED) | (share > 1 - _RAGGED)).all():
        return share > 0.5
    return sampled


def apply_mask(raw: RawScan, settings: PrepareSettings, acquired: Acquired) -> Sampling:
    """Draw the mask that `settings` asks for; its seed derives from settings.seed and the file's name.

    Masks from a file are an ensemble: each scan gets one of them, and the density is that of all.
    Raises InputError for a scan that was acquired undersampled, and for settings that allow no mask.
    """
    if not acquired.is_full:
        raise InputError(
            raw.source,
            f"a scan acquired undersampled ({acquired.mask.mean():.0%} of the matrix)",
            "a fully sampled scan where a pattern is to be applied; without the pattern this scan is prepared as it is",
        )
    seed = mask_seed(settings.seed, raw.source)
    if settings.apply_mask:
        family = _mask_family(settings.apply_mask, acquired.mask.shape)
        chosen, density = family[seed % len(family)], masks.ensemble_density(family)
        return _compact(chosen & acquired.mask, density * acquired.mask)
    arguments = (settings.pattern, acquired.mask.shape, settings.acceleration, settings.center_fraction)
    try:
        mask = masks.make_mask(*arguments, seed=seed, partial_fourier=settings.partial_fourier)
        density = _density(*arguments, settings.partial_fourier)
    except ValueError as error:
        raise InputError(raw.source, str(error), "a pattern, acceleration and centre that fit the matrix") from error
    return _compact(mask & acquired.mask, density * acquired.mask)


def found_sampling(acquired: Acquired, density: np.ndarray) -> Sampling:
    """The sampling of a scan as it was acquired; density (W,) or (H, W), that of the ensemble it belongs to."""
    if acquired.is_full:
        return _compact(acquired.mask, acquired.mask)
    density = np.where(acquired.mask, np.maximum(density, _LEAST_DENSITY), density) * acquired.candidates
    return _compact(acquired.mask, density)


def mask_seed(seed: int, path) -> int:
    """A seed of 32 bits from the settings' seed and the file's stem: independent of the other files and their order."""
    digest = hashlib.sha256(f"{seed}/{Path(path).stem}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


_density = lru_cache(masks.sampling_density)  # a Monte Carlo of seconds for Poisson discs, the same for every file


def _mask_family(path, shape):
    """The masks of a .npy file, bool (n, W) or (n, H, W)."""
    height, width = shape
    try:
        family = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(path, "no complete .npy array", "a .npy file with masks") from error
    if family.shape in ((width,), (height, width)):
        family = family[None]
    fits = family.ndim in (2, 3) and family.shape[1:] in ((width,), (height, width)) and len(family)
    if not fits or family.dtype.kind not in "biuf" or not np.isin(family, (0, 1)).all() or not family.any():
        expected = f"masks of 0 and 1: ([n,] {width}) or ([n,] {height}, {width})"
        raise InputError(path, f"{family.dtype} of shape {family.shape}", expected)
    return family.astype(bool)


def _compact(mask, density):
    """(H, W) -> (W,) where every line is whole."""
    density = np.broadcast_to(density, mask.shape).astype(np.float32)
    if (mask == mask[:1]).all() and (density == density[:1]).all():
        return Sampling(mask[0].copy(), density[0].copy())
    return Sampling(mask, density)
