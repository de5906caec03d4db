"""Cartesian sampling masks and their densities p(k) = P(M_k = 1).

Line patterns give a mask of shape (W,), phase encoding along the last axis as in fastMRI; `poisson` gives (H, W).
The random, equispaced and magic patterns are fastmri's own mask functions, so the same seed gives the same mask.
"""

import contextlib

import numpy as np

LINE_PATTERNS = ("random", "equispaced", "magic", "gaussian")
PATTERNS = ("full", *LINE_PATTERNS, "poisson")
_POISSON_DRAWS = 16
_POISSON_ATTEMPTS = 8


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
        mask = _poisson(shape, acceleration, center_fraction, seed)
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

    Exact, but for `poisson`: there a Monte-Carlo mean, averaged over elliptical rings because its design is radial.
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
        draws = [_poisson(shape, acceleration, center_fraction, seed) for seed in range(_POISSON_DRAWS)]
        density = _ring_average(np.mean(draws, axis=0))
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
    density = masks.mean(axis=0, dtype=np.float64)
    if len(masks) >= 64:
        return density.astype(np.float32)
    from scipy.ndimage import uniform_filter

    plane = np.atleast_2d(masks.all(axis=0))
    center = np.zeros(plane.shape, bool)
    _block(center, *calibration_region(plane, plane.shape))[...] = True
    free = acquired_support(masks.any(axis=0)) & ~center.reshape(density.shape)
    weight = uniform_filter(free.astype(float), 5, mode="constant")
    pooled = uniform_filter(np.where(free, density, 0.0), 5, mode="constant") / np.maximum(weight, 1e-9)
    return np.where(free, np.clip(pooled, 1e-3, 1), density).astype(np.float32)


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


def _poisson(shape, acceleration, center_fraction, seed):
    import sigpy.mri

    calibration = [max(2, round(n * center_fraction)) for n in shape]
    state = np.random.get_state()  # noqa: NPY002 (sigpy draws from NumPy's global one)
    try:
        for attempt in range(_POISSON_ATTEMPTS):  # for some seeds sigpy's search never meets the acceleration
            with contextlib.suppress(ValueError):
                other = (seed + attempt * 2**20) % 2**32
                return sigpy.mri.poisson(shape, acceleration, calib=calibration, seed=other) != 0
    finally:
        np.random.set_state(state)  # noqa: NPY002
    raise ValueError(f"no Poisson disc of acceleration {acceleration:g} was found in a matrix of {shape}")


def _ring_average(density):
    height, width = density.shape
    y, x = (np.arange(height) - height // 2) / (height / 2), (np.arange(width) - width // 2) / (width / 2)
    ring = (np.hypot(y[:, None], x[None]) * min(height // 2, width // 2, 48)).astype(int)
    free = density < 1
    total = np.bincount(ring[free], density[free], minlength=ring.max() + 1)
    count = np.bincount(ring[free], minlength=ring.max() + 1)
    return np.where(free, (total / np.maximum(count, 1))[ring], density)


def _partial_support(width, partial_fourier):
    return np.arange(width) < round(width * partial_fourier)
