"""Centred orthonormal Fourier pairs, 2-D on the last two axes or 1-D, and centred crop and pad.

Same convention as fastmri.fft2c and sigpy.fft: k = 0 at index n // 2, ||F x|| = ||x||.
"""

from functools import lru_cache

import torch
from torch import Tensor

_AXES = (-2, -1)


def fft2c(image: Tensor) -> Tensor:
    """F: complex (..., H, W) -> complex (..., H, W)."""
    shifted = torch.fft.ifftshift(image, dim=_AXES)
    return torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=_AXES)


def ifft2c(kspace: Tensor) -> Tensor:
    """F^H, the inverse of `fft2c`."""
    shifted = torch.fft.ifftshift(kspace, dim=_AXES)
    return torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=_AXES)


def fft1c(image: Tensor, axis: int) -> Tensor:
    """`fft2c` along one axis alone."""
    shifted = torch.fft.ifftshift(image, dim=axis)
    return torch.fft.fftshift(torch.fft.fft(shifted, dim=axis, norm="ortho"), dim=axis)


def ifft1c(kspace: Tensor, axis: int) -> Tensor:
    """The inverse of `fft1c`."""
    shifted = torch.fft.ifftshift(kspace, dim=axis)
    return torch.fft.fftshift(torch.fft.ifft(shifted, dim=axis, norm="ortho"), dim=axis)


def center_crop(array, shape: tuple[int, int]):
    """Cut the last two axes to `shape`, keeping index n // 2 at index m // 2. NumPy or torch."""
    starts = [n // 2 - m // 2 for n, m in zip(array.shape[-2:], shape, strict=True)]
    return array[..., starts[0] : starts[0] + shape[0], starts[1] : starts[1] + shape[1]]


def center_pad(array: Tensor, shape: tuple[int, int]) -> Tensor:
    """Zero-pad the last two axes to `shape`, keeping index n // 2 at index m // 2."""
    padded = array.new_zeros(*array.shape[:-2], *shape)
    center_crop(padded, array.shape[-2:])[...] = array
    return padded


def radial_bands(shape: tuple[int, int], bands: int, device=None) -> Tensor:
    """Index of the radial k-space band of every sample, int64 (H, W) in [0, bands).

    The last band ends at the edge of k-space in both directions; the corners beyond it belong to it.
    """
    return (radius(shape, device) * bands).long().clamp(max=bands - 1)


def radius(shape: tuple[int, int], device=None) -> Tensor:
    """Distance of every sample from the centre of k-space, float32 (H, W), 1 at its edge along either axis."""
    y, x = ((torch.arange(n, device=device) - n // 2) / (n / 2) for n in shape)
    return (y[:, None] ** 2 + x[None, :] ** 2).sqrt()


def blur(image: Tensor) -> Tensor:
    """Gaussian blur of real (batch, H, W), standard deviation a 32nd of the shorter side, at least 2 pixels."""
    shape = image.shape[-2:]
    return torch.fft.irfft2(torch.fft.rfft2(image) * _gaussian(tuple(shape), image.device), s=shape)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _gaussian(shape, device):
    """Transfer function of `blur`, on the half of k-space that rfft2 keeps."""
    height, width = shape
    deviation = max(2.0, min(height, width) / 32)
    y, x = torch.fft.fftfreq(height, device=device), torch.fft.rfftfreq(width, device=device)
    return torch.exp(-2 * (torch.pi * deviation) ** 2 * (y[:, None] ** 2 + x[None] ** 2))
