"""Coil sensitivity maps from a fully sampled centre of k-space.

ESPIRiT, after Uecker et al., Magn Reson Med 71:990 (2014): the row space of the calibration matrix, seen from one
pixel, is a positive operator on the coils; its leading eigenvector is the pixel's sensitivity. Same result as sigpy's
EspiritCalib at crop=0 (tested); this one sums the kernels' correlations before the transform to the image, which
takes a tenth of the time, and also accepts calibration regions that are not square.
"""

import warnings

import numpy as np
import torch

from mrigsure.errors import ScanWarning
from mrigsure.fourier import center_crop, ifft2c

KERNEL_WIDTH = 6
CALIBRATION_WIDTH = 24
_THRESHOLD = 0.02  # singular values kept, relative to the largest
_POWER_ITERATIONS = 12
_ROWS = 8


def sensitivity_maps(kspace: np.ndarray, calibration: tuple[int, int], name="scan") -> np.ndarray:
    """Maps with sum |S|^2 = 1 at every pixel, background included: kspace (coils, H, W) -> complex64 (coils, H, W).

    calibration  height and width of the centred, fully sampled block; at most 24 of each are used

    The phase is that of a virtual coil, the combination of most energy, which is smooth where any coil is. Where the
    block is smaller than ESPIRiT's kernel the maps come from its low-resolution images, and a ScanWarning says so.
    """
    if len(kspace) == 1:
        return np.ones_like(kspace, np.complex64)
    block = tuple(min(size, CALIBRATION_WIDTH) for size in calibration)
    if min(block) > KERNEL_WIDTH:
        maps = espirit_maps(kspace, block)
    else:
        warnings.warn(
            f"{name}: calibration region {block[0]} x {block[1]}, smaller than ESPIRiT needs "
            f"({KERNEL_WIDTH + 1} x {KERNEL_WIDTH + 1}): maps from low-resolution images instead",
            ScanWarning,
            stacklevel=2,
        )
        block = tuple(max(size, 2 * KERNEL_WIDTH) for size in block)
        maps = low_resolution(kspace, block)
    return _normalise(maps, _virtual_coil(kspace, block))


def espirit_maps(kspace: np.ndarray, calibration: tuple[int, int]) -> np.ndarray:
    """Leading eigenvector of ESPIRiT's operator at every pixel: (coils, H, W), of unit norm, its phase arbitrary."""
    correlations = _kernel_correlations(center_crop(kspace, calibration))
    start = low_resolution(kspace, calibration)
    height, width = kspace.shape[1:]
    basis_y, basis_x = _lag_basis(height), _lag_basis(width)
    maps = np.empty_like(start)
    for top in range(0, height, _ROWS):  # few rows at a time, whose operators fit the cache
        rows = slice(top, top + _ROWS)
        operator = np.einsum("cdyx,hy,wx->cdhw", correlations, basis_y[rows], basis_x, optimize=True)
        maps[:, rows] = _leading_eigenvectors(operator, start[:, rows])
    return maps


def low_resolution(kspace: np.ndarray, block: tuple[int, int], window=np.hanning) -> np.ndarray:
    """Images of the centred `block` of k-space under a window: (..., H, W) -> complex64 (..., H, W)."""
    windows = [window(size + 2)[1:-1] for size in block]
    low = np.zeros(kspace.shape, np.complex64)
    center_crop(low, block)[...] = center_crop(kspace, block) * np.outer(*windows).astype(np.float32)
    return ifft2c(torch.from_numpy(low)).numpy()


def _kernel_correlations(block):
    """R_cd(lag) = sum over kernels and positions of k_c(u) conj k_d(u - lag): (coils, coils, 2 w - 1, 2 w - 1).

    The image of R_cd is sum over kernels of k_c(r) conj k_d(r), ESPIRiT's operator at pixel r.
    """
    coils = len(block)
    windows = np.lib.stride_tricks.sliding_window_view(block, (KERNEL_WIDTH, KERNEL_WIDTH), axis=(1, 2))
    matrix = windows.transpose(1, 2, 0, 3, 4).reshape(-1, coils * KERNEL_WIDTH**2)
    energy, left = np.linalg.eigh(matrix @ matrix.conj().T)
    kept = energy > _THRESHOLD**2 * energy[-1]
    kernels = (left[:, kept].conj().T @ matrix) / np.sqrt(energy[kept])[:, None]
    padded = (2 * KERNEL_WIDTH - 1,) * 2  # room for every lag: no wrap-around
    spectra = np.fft.fft2(kernels.reshape(-1, coils, KERNEL_WIDTH, KERNEL_WIDTH), padded).transpose(2, 3, 1, 0)
    power = spectra @ spectra.conj().swapaxes(-1, -2)  # (2 w - 1, 2 w - 1, coils, coils)
    return np.fft.fftshift(np.fft.ifft2(power, axes=(0, 1)), axes=(0, 1)).transpose(2, 3, 0, 1).astype(np.complex64)


def _lag_basis(size):
    """exp(2 pi i lag r / size), centred: (size, 2 w - 1)."""
    lags = np.arange(1 - KERNEL_WIDTH, KERNEL_WIDTH)
    return np.exp(2j * np.pi * np.outer(np.arange(size) - size // 2, lags) / size).astype(np.complex64)


def _leading_eigenvectors(operator, start):
    """Power iteration: operator (coils, coils, ...) positive, start (coils, ...) -> (coils, ...), of unit norm."""
    vectors = start + np.float32(1e-3) * np.abs(start).max()  # nowhere 0
    for _ in range(_POWER_ITERATIONS):
        vectors = np.einsum("cd...,d...->c...", operator, vectors)
        vectors /= np.linalg.norm(vectors, axis=0)
    return vectors


def _virtual_coil(kspace, block):
    """Weights of the combination of coils with most energy in the centre, real for its main coil: (coils,)."""
    samples = center_crop(kspace, block).reshape(len(kspace), -1)
    weights = np.linalg.eigh(samples @ samples.conj().T)[1][:, -1]
    main = weights[np.abs(weights).argmax()]
    return weights * main.conj() / np.abs(main)


def _normalise(maps, reference):
    """Unit norm at every pixel, and phase 0 in the combination `reference`; pixels without signal: all coils alike."""
    norm = np.linalg.norm(maps, axis=0)
    maps = np.where(norm > 0, maps / np.where(norm > 0, norm, 1), len(maps) ** -0.5)
    phase = np.tensordot(reference.conj(), maps, axes=1)
    size = np.abs(phase)
    maps = maps * np.where(size > 0, phase.conj() / np.where(size > 0, size, 1), 1)
    return (maps / np.linalg.norm(maps, axis=0)).astype(np.complex64)
