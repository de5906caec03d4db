"""The transform along the readout alone, under which whole lines stay apart; and the crop of its oversampling."""

import numpy as np


def readout_image(kspace: np.ndarray) -> np.ndarray:
    """Centred orthonormal inverse transform along H: (..., H, W) -> (..., H, W). Lines never sampled stay 0."""
    shifted = np.fft.ifftshift(kspace, axes=-2)
    return np.fft.fftshift(np.fft.ifft(shifted, axis=-2, norm="ortho"), axes=-2)


def crop_readout(kspace: np.ndarray, height: int) -> np.ndarray:
    """Crop the image along the readout to `height`: complex64 (..., H, W) -> (..., height, W).

    Exact for line masks, and the noise level stays, because the transforms are orthonormal.
    """
    start = kspace.shape[-2] // 2 - height // 2
    shifted = np.fft.ifftshift(readout_image(kspace)[..., start : start + height, :], axes=-2)
    cropped = np.fft.fftshift(np.fft.fft(shifted, axis=-2, norm="ortho"), axes=-2)
    return np.ascontiguousarray(cropped, np.complex64)
