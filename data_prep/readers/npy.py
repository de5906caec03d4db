"""Plain NumPy arrays of k-space, with the sampling in a mask file or in the zeros."""

from pathlib import Path

import numpy as np

from data_prep.readers.raw import RawScan
from mrigsure.errors import InputError


def read_npy(path, mask: np.ndarray | None = None) -> RawScan:
    """Complex (H, W), (coils, H, W) or (slices, coils, H, W); readout along H, phase encoding along W.

    mask  bool (W,) or (H, W). Raises InputError for anything else.
    """
    path = Path(path)
    kspace = _load(path)
    if kspace.dtype.kind != "c" or kspace.ndim not in (2, 3, 4):
        raise InputError(
            path,
            f"{kspace.dtype} of shape {kspace.shape}",
            "complex k-space (H, W), (coils, H, W) or (slices, coils, H, W)",
        )
    kspace = kspace.reshape((1,) * (4 - kspace.ndim) + kspace.shape)
    return RawScan(kspace=np.ascontiguousarray(kspace, np.complex64), source=path, mask=mask)


def read_mask(path) -> np.ndarray:
    """A sampling mask (W,) or (H, W) as bool. Raises InputError where the values are not 0 and 1."""
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "no such file", "a .npy file with the mask")
    mask = _load(path)
    if mask.ndim not in (1, 2) or mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise InputError(path, f"{mask.dtype} of shape {mask.shape}", "a mask of 0 and 1, (W,) or (H, W)")
    return mask.astype(bool)


def _load(path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(path, "a truncated or foreign file", "a complete .npy array") from error
