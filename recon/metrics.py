"""PSNR, SSIM and NMSE of magnitude images as in fastMRI's evaluation, and the fit of an uncertainty.

Zbontar et al., fastMRI: An Open Dataset and Benchmarks for Accelerated MRI, arXiv 1811.08839; fastmri.evaluate. All
on one slice, with the target's maximum as data range.
"""

import numpy as np

BODY = 0.15  # of the 99th percentile: what counts as inside the body


def psnr(image: np.ndarray, target: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of real (H, W) arrays; infinite where they are equal."""
    error = np.mean((image.astype(np.float64) - target) ** 2)
    return float(10 * np.log10(float(target.max()) ** 2 / error)) if error > 0 else float("inf")


def ssim(image: np.ndarray, target: np.ndarray) -> float:
    """Structural similarity (7 x 7 uniform windows, scikit-image's defaults) of real (H, W) arrays."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(target, image, data_range=float(target.max())))


def nmse(image: np.ndarray, target: np.ndarray) -> float:
    """||image - target||^2 / ||target||^2."""
    target = target.astype(np.float64)
    return float(np.sum((image - target) ** 2) / np.sum(target**2))


def body_mask(target: np.ndarray) -> np.ndarray:
    """Where the magnitude of (H, W) is clearly above the background, bool (H, W)."""
    magnitude = np.abs(target)
    return magnitude > BODY * np.percentile(magnitude, 99)


def coverage(lower: np.ndarray, upper: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    """Share of the pixels of `mask` whose magnitude |target| lies in [lower, upper]; (H, W) each, the mask bool.

    Raises ValueError for an empty mask.
    """
    if not mask.any():
        raise ValueError("coverage of no pixel")
    magnitude = np.abs(target)
    return float(np.mean(((lower <= magnitude) & (magnitude <= upper))[mask]))


def z_squared(
    image: np.ndarray, target: np.ndarray, std: np.ndarray, scatter: float, target_noise: float = 0.0
) -> float:
    """Squared error of the mean of K draws over what their spread announces, (1 + scatter) std^2, inside the body.

    scatter  variance of the mean over that of a draw: 1/K of independent draws, less of pairs (recon/uncertainty.py)
    target_noise  deviation per real part of a measured target's noise that the scan does not share; announced too
    1 where the uncertainty is right, above where it is too small. Complex images of the same phase convention are
    compared as they are; of real magnitudes the error is expected to be half of it, the part along the phase.
    """
    body = body_mask(target)
    error = np.sum(np.abs(image - target)[body].astype(np.float64) ** 2)
    expected = np.sum(std[body].astype(np.float64) ** 2) * (1 + scatter) + 2 * target_noise**2 * np.sum(body)
    return float(error / (expected if np.iscomplexobj(target) else expected / 2))
