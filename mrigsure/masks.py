"""Cartesian sampling masks and their densities p(k) = P(M_k = 1).

Line patterns give a mask of shape (W,), phase encoding along the last axis as in fastMRI; `poisson` gives (H, W).
The random, equispaced and magic patterns are fastmri's own mask functions, so the same seed gives the same mask.
"""

import numpy as np

LINE_PATTERNS = ("random", "equispaced", "magic", "gaussian")
PATTERNS = ("full", *LINE_PATTERNS, "poisson")
_POOLED = 64  # masks below which an ensemble's mean is pooled with its neighbours
_ONE_SIDED = 0.05  # of k-space, by which one end may reach further than the other without being partial Fourier


def make_mask(
    pattern: str,
    shape: tuple[int, int],
    acceleration: float,
    center_fraction: float,
    seed: int,
    partial_fourier: float = 1.0,
) -> np.ndarray:
    """One sampling mask, bool, (W,) for line patterns and `full`, (H, W) for `poisson`.

    center_fraction  share of the W lines (poisson: of each axis) in the fully sampled centre
    partial_fourier  share of the W lines that may be sampled at all; the last ones are left out
    Raises ValueError for an unknown pattern, or where the centre alone exceeds the acceleration's budget.
    """
    height, width = shape
    _check(pattern, width, acceleration, center_fraction)
    if pattern == "full":
        mask = np.ones(width, bool)
    elif pattern == "gaussian":
        probability = _gaussian_density(width, acceleration, center_fraction)
        mask = np.random.default_rng(seed).uniform(size=width) < probability
    elif pattern == "poisson":
        from mrigsure.poisson import poisson_mask

        mask = poisson_mask(tuple(shape), acceleration, center_fraction, seed)
    else:
        function = _fastmri_function(pattern, acceleration, center_fraction)
        mask = function((1, width, 1), seed=seed)[0].numpy().reshape(width) > 0
    return mask & _partial_support(width, partial_fourier)


def sampling_density(
    pattern: str,
    shape: tuple[int, int],
    acceleration: float,
    center_fraction: float,
    partial_fourier: float = 1.0,
) -> np.ndarray:
    """p(k) of `make_mask` over its seeds, float32, of the mask's shape.

    Exact, but for `poisson`: there a Monte-Carlo mean over rings, each known to 0.3% (poisson.py).
    """
    _, width = shape
    _check(pattern, width, acceleration, center_fraction)
    if pattern == "full":
        density = np.ones(width)
    elif pattern == "random":
        center = _center_lines(width, center_fraction)
        lines = center.sum()
        density = np.where(center, 1.0, (width / acceleration - lines) / (width - lines))
    elif pattern == "gaussian":
        density = _gaussian_density(width, acceleration, center_fraction)
    elif pattern == "poisson":
        from mrigsure.poisson import poisson_density

        density = poisson_density(tuple(shape), acceleration, center_fraction)
    else:
        function = _fastmri_function(pattern, acceleration, center_fraction)
        lines = _center_lines(width, center_fraction).sum()
        spacing = acceleration
        if pattern == "equispaced":  # fastmri's own correction, which makes the mean rate exact
            spacing = acceleration * (lines - width) / (lines * acceleration - width)
        draws = [function((1, width, 1), offset=offset)[0].numpy() for offset in range(round(spacing))]
        density = np.mean(draws, axis=0).reshape(width)
    return (density * _partial_support(width, partial_fourier)).astype(np.float32)


def ensemble_density(masks: np.ndarray) -> np.ndarray:
    """p(k) of scans acquired undersampled: the mean of their masks (scans, ...), float32.

    With few scans the mean is coarse, and a sample that all of them took is no proof of p = 1: outside the fully
    sampled centre, samples are pooled with their neighbours (a window of 5).
    """
    return counted_density(masks.sum(axis=0), len(masks))


def counted_density(counts: np.ndarray, scans: int) -> np.ndarray:
    """`ensemble_density` from the number of scans that took each sample: no more than one mask need be in memory."""
    density = counts / scans
    if scans >= _POOLED:
        return density.astype(np.float32)
    from scipy.ndimage import uniform_filter

    plane = np.atleast_2d(counts == scans)
    center = np.zeros(plane.shape, bool)
    _block(center, *calibration_region(plane, plane.shape))[...] = True
    free = acquired_support(counts > 0) & ~center.reshape(density.shape)
    weight = uniform_filter(free.astype(float), 5, mode="constant")
    pooled = uniform_filter(np.where(free, density, 0.0), 5, mode="constant") / np.maximum(weight, 1e-9)
    return np.where(free, np.clip(pooled, 1e-3, 1), density).astype(np.float32)


def partial_fourier_share(mask: np.ndarray) -> tuple[float, float]:
    """Share of the acquired extent of k-space, along H and W, that a mask (W,) or (H, W) reaches: 1 where symmetric.

    The extent is twice the longer half, so that zero-padding alike on both sides is no partial Fourier.
    """
    support = acquired_support(mask)
    axes = [support.any(axis=0)] if support.ndim == 2 else [support]
    axes = [support.any(axis=1), *axes] if support.ndim == 2 else [np.ones(1, bool), *axes]
    return tuple(_reached(axis) for axis in axes)


def acquired_support(mask: np.ndarray) -> np.ndarray:
    """The region inside which an undersampled acquisition chose its samples, bool, of the mask's shape.

    Lines: from the first to the last sampled one. Points: the convex hull of the sampled points. Outside lie
    zero-padding and cut corners, which were never candidates.
    """
    mask = np.asarray(mask, bool)
    if mask.ndim == 1:
        sampled = np.flatnonzero(mask)
        support = np.zeros_like(mask)
        support[sampled[0] : sampled[-1] + 1] = True
        return support
    from skimage.morphology import convex_hull_image

    return convex_hull_image(mask)


def calibration_region(mask: np.ndarray, shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the largest centred, fully sampled block of k-space; (0, 0) where the centre is missing.

    Grown evenly in both axes, so that a Poisson mask's square centre is found and a line mask gives (H, lines).
    """
    mask = np.broadcast_to(np.asarray(mask, bool), shape)
    height, width = shape
    rows = cols = 0
    grow_rows, grow_cols = True, True
    while grow_rows or grow_cols:
        if grow_rows:
            grow_rows = rows < height and bool(_block(mask, rows + 1, max(cols, 1)).all())
            rows += grow_rows
        if grow_cols:
            grow_cols = cols < width and bool(_block(mask, max(rows, 1), cols + 1).all())
            cols += grow_cols
    return (rows, cols) if rows and cols else (0, 0)


def _reached(sampled):
    """Reached share of the symmetric extent along one axis; 1 unless one end falls short clearly."""
    first, last = np.flatnonzero(sampled)[[0, -1]]
    center, odd = len(sampled) // 2, len(sampled) % 2
    extent = max(1, 2 * max(center - first, last - center + 1 - odd) + odd)  # of an even axis the left half is longer
    share = min(1.0, (last - first + 1) / extent)
    return float(share) if 1 - share > _ONE_SIDED / 2 + 1 / extent else 1.0


def _block(mask, rows, cols):
    top, left = mask.shape[0] // 2 - rows // 2, mask.shape[1] // 2 - cols // 2
    return mask[top : top + rows, left : left + cols]


def _check(pattern, width, acceleration, center_fraction):
    if pattern not in PATTERNS:
        raise ValueError(f"unknown pattern {pattern!r}; expected one of {', '.join(PATTERNS)}")
    if pattern == "full":
        return
    if acceleration < 1:
        raise ValueError(f"acceleration {acceleration:g} is below 1")
    if pattern == "magic" and acceleration != int(acceleration):
        raise ValueError(f"acceleration {acceleration:g} of the magic pattern is no whole number")
    if pattern != "poisson" and round(width * center_fraction) >= width / acceleration:
        raise ValueError(
            f"the centre alone ({round(width * center_fraction)} of {width} lines) exceeds what "
            f"acceleration {acceleration:g} allows ({width / acceleration:.1f} lines)"
        )


def _fastmri_function(pattern, acceleration, center_fraction):
    from fastmri.data import subsample

    function = {
        "random": subsample.RandomMaskFunc,
        "equispaced": subsample.EquispacedMaskFractionFunc,
        "magic": subsample.MagicMaskFunc,
    }[pattern]
    rate = int(acceleration) if pattern == "magic" else acceleration
    return function([center_fraction], [rate])


def _center_lines(width, center_fraction):
    lines = round(width * center_fraction)
    start = (width - lines + 1) // 2
    center = np.zeros(width, bool)
    center[start : start + lines] = True
    return center


def _gaussian_density(width, acceleration, center_fraction):
    """Independent lines, p proportional to a Gaussian of a quarter of k-space, scaled to W / R lines on average."""
    center = _center_lines(width, center_fraction)
    distance = (np.arange(width) - width // 2) / (width / 4)
    shape = np.exp(-(distance**2) / 2) + 0.05
    target = width / acceleration

    def lines(scale):
        return np.where(center, 1.0, np.minimum(1.0, scale * shape))

    low, high = 0.0, 1e3
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if lines(middle).sum() < target else (low, middle)
    return lines(high)


def _partial_support(width, partial_fourier):
    return np.arange(width) < round(width * partial_fourier)
