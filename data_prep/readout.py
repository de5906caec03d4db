"""The transform along the readout alone, under which whole lines stay apart; and the crop of its oversampling."""

import numpy as np

_MARGIN = 8  # one part in so many of the oversampled field of view, at each end, where receivers filter
_GUARD = 2  # rows beside the crop, into which the body may ring
_MOST = 2**18  # samples a coil; their standard error is 0.1% of the noise level


def readout_image(kspace: np.ndarray) -> np.ndarray:
    """Centred orthonormal inverse transform along H: (..., H, W) -> (..., H, W). Lines never sampled stay 0."""
    shifted = np.fft.ifftshift(kspace, axes=-2)
    return np.fft.fftshift(np.fft.ifft(shifted, axis=-2, norm="ortho"), axes=-2)


def readout_kspace(rows: np.ndarray) -> np.ndarray:
    """The inverse of `readout_image`."""
    shifted = np.fft.ifftshift(rows, axes=-2)
    return np.fft.fftshift(np.fft.fft(shifted, axis=-2, norm="ortho"), axes=-2)


def crop_readout(kspace: np.ndarray, height: int) -> np.ndarray:
    """Crop the image along the readout to `height`: complex64 (..., H, W) -> (..., height, W).

    Exact for line masks, and the noise level stays, because the transforms are orthonormal.
    """
    start = kspace.shape[-2] // 2 - height // 2
    cropped = readout_kspace(readout_image(kspace)[..., start : start + height, :])
    return np.ascontiguousarray(cropped, np.complex64)


def outside_samples(kspace: np.ndarray, lines: np.ndarray, height: int) -> np.ndarray | None:
    """What the crop to `height` cuts off and holds no signal: noise of the kept image, complex64 (coils, samples).

    kspace (slices, coils, H, W), lines bool (slices, W): those sampled over the whole readout. At most 2**18 samples a
    coil, of lines spread over all. None where the oversampling is too small to leave rows clear of the field of view
    and of the receiver's filter at the ends.
    """
    size = kspace.shape[-2]
    start = size // 2 - height // 2
    rows = np.r_[size // _MARGIN : start - _GUARD, start + height + _GUARD : size - size // _MARGIN]
    where = np.argwhere(lines)
    if not rows.size or not len(where):
        return None
    where = where[:: -(-len(where) * rows.size // _MOST)]
    chosen = np.stack([kspace[number, :, :, line] for number, line in where], axis=-1)  # (coils, H, lines)
    samples = readout_image(chosen)[:, rows]
    return np.ascontiguousarray(samples.reshape(len(samples), -1), np.complex64)
