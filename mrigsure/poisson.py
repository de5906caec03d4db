"""Variable-density Poisson-disc sampling of a plane, fast enough for an archive, and its density p(k).

Points are visited in random order, and one is sampled unless it lies in the disc of a point sampled before. The disc's
radius grows with the distance r from the fully sampled centre, as in sigpy's `poisson` (after Bridson, SIGGRAPH 2007):

    radius = (0.7 + slope r) u,   u uniform in [0.7, 1.3]

The random u lets every acceleration from 1 upward be met on a grid. The slope is found once for a matrix, an
acceleration and a centre: all masks share it, so that p(k) is one function of r. Corners beyond r = 1 stay empty.
Imports numba; import this module where it is used.
"""

from functools import lru_cache

import numba
import numpy as np
from scipy.ndimage import uniform_filter1d

_TRIALS = 2**20  # samples of the masks whose mean rate the slope is fitted to
_STEPS = 22
_FAR = 1e3
_ERROR = 0.005  # relative standard error of the density by counting
_BUDGET = 2**24  # samples of all masks that are counted
_LEAST_DRAWS, _MOST_DRAWS = 64, 16384
_ROUGH = 16  # samples, along r, of a first estimate
_TINY = 1e-9


def poisson_mask(shape: tuple[int, int], acceleration: float, center_fraction: float, seed: int) -> np.ndarray:
    """One mask, bool (H, W), whose mean rate over the seeds is 1 / acceleration of the matrix.

    center_fraction  share of either axis in the fully sampled centre, at least two samples
    Raises ValueError where centre and empty corners leave no such mask.
    """
    return _mask(shape, _center(shape, center_fraction), _slope(shape, acceleration, center_fraction), seed)


@lru_cache(maxsize=64)
def poisson_density(shape: tuple[int, int], acceleration: float, center_fraction: float) -> np.ndarray:
    """p(k) of `poisson_mask` over its seeds, float64 (H, W), read-only.

    Monte Carlo: samples are counted over many masks, and averaged over rings of equal r, each just wide enough to bring
    the counting error below 0.5%; linear within it.
    """
    center, slope = _center(shape, center_fraction), _slope(shape, acceleration, center_fraction)
    r = _distance(shape, center)
    draws = int(np.clip(_BUDGET // r.size, _LEAST_DRAWS, _MOST_DRAWS))
    counts = np.zeros(shape)
    for draw in range(draws):
        counts += _mask(shape, center, slope, 2**40 + draw)  # beyond the seeds of any scan
    density = np.where(r == 0, 1.0, 0.0)
    free = np.flatnonzero((r > 0) & (r < 1))
    outward = free[np.argsort(r.flat[free], kind="stable")]
    if len(outward):
        share, distance = counts.flat[outward] / draws, r.flat[outward]
        rough = uniform_filter1d(share, _ROUGH, mode="nearest")
        needed = np.maximum((1 - rough) / np.maximum(rough, _TINY) / (draws * _ERROR**2), 1)
        ring = np.cumsum(1 / needed).astype(int)
        points = np.maximum(np.bincount(ring), 1)
        mean = np.bincount(ring, share) / points
        between = np.interp(distance, np.bincount(ring, distance) / points, mean)
        density.flat[outward] = between * (mean * points / np.maximum(np.bincount(ring, between), _TINY))[ring]
    density.setflags(write=False)
    return density


@lru_cache(maxsize=64)
def _slope(shape, acceleration, center_fraction):
    center, target = _center(shape, center_fraction), shape[0] * shape[1] / acceleration
    r = _distance(shape, center)
    least, most = int((r == 0).sum()), int((r < 1).sum())
    if target < least:
        raise ValueError(
            f"the centre alone ({center[0]} x {center[1]}) exceeds what acceleration {acceleration:g} allows "
            f"({target:.0f} samples)"
        )
    if target >= most:
        if acceleration > 1:
            raise ValueError(f"acceleration {acceleration:g} is below {r.size / most:.2f}, that of all but the corners")
        return 0.0
    low, high = 0.0, _FAR
    trials = int(np.clip(_TRIALS // r.size, 4, 64))
    for _ in range(_STEPS):
        middle = (low + high) / 2 if low else high / 2
        rate = np.mean([_mask(shape, center, middle, 2**41 + trial).sum() for trial in range(trials)])
        low, high = (middle, high) if rate > target else (low, middle)
    return (low + high) / 2


def _center(shape, center_fraction):
    return tuple(max(2, round(size * center_fraction)) for size in shape)


def _distance(shape, center):
    """r: 0 in the centre, 1 where the middle of an edge is reached."""
    along = []
    for size, block in zip(shape, center, strict=True):
        offset = np.arange(size) - size // 2
        outside = np.maximum(np.maximum(-(block // 2) - offset, offset - (block - block // 2 - 1)), 0)
        along.append(outside / max(outside.max(), 1))
    return np.hypot(along[0][:, None], along[1][None])


def _mask(shape, center, slope, seed):
    rng = np.random.default_rng(seed)
    r = _distance(shape, center)
    radius = (0.7 + slope * r) * rng.uniform(0.7, 1.3, shape)
    order = rng.permutation(r.size)
    return _throw(order, radius, (r == 0), r < 1, shape[0] / max(shape), shape[1] / max(shape))


@numba.njit(cache=True)
def _throw(order, radius, center, inside, scale_y, scale_x):
    """Sample points in this order unless a disc sampled before covers them; discs are ellipses like the matrix."""
    height, width = radius.shape
    mask = center.copy()
    free = inside.copy()
    for index in order:
        y, x = index // width, index % width
        if not free[y, x]:
            continue
        mask[y, x] = True
        if center[y, x]:
            continue
        reach_y, reach_x = int(radius[y, x] * scale_y), int(radius[y, x] * scale_x)
        limit = radius[y, x] ** 2
        for v in range(max(y - reach_y, 0), min(y + reach_y + 1, height)):
            for u in range(max(x - reach_x, 0), min(x + reach_x + 1, width)):
                if ((v - y) / scale_y) ** 2 + ((u - x) / scale_x) ** 2 < limit:
                    free[v, u] = False
    return mask
