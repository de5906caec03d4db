"""Plain NumPy arrays of k-space, with the sampling in a mask file, beside k-space or in its zeros.

.npy is k-space alone. .npz holds it as `kspace` and may hold `mask` (W,) or (H, W), `noise` complex (coils, samples)
acquired without signal, and `reference` complex (coils, h, w) or (slices, coils, h, w), a fully sampled reference
scan of the same field of view. Nothing else in the file is read.
"""

import zipfile
from pathlib import Path

import numpy as np

from data_prep.readers.raw import RawScan
from mrigsure.errors import InputError

_EXPECTED = "complex k-space (H, W), (coils, H, W) or (slices, coils, H, W)"
_NPZ = "a complete .npz archive of plain arrays, `kspace` among them"


def read_npy(path, mask: np.ndarray | None = None) -> RawScan:
    """Complex (H, W), (coils, H, W) or (slices, coils, H, W); readout along H, phase encoding along W.

    mask  bool (W,) or (H, W). Raises InputError for anything else.
    """
    path = Path(path)
    return RawScan(kspace=with_axes(_load(path), path), source=path, mask=mask)


def npy_shape(path) -> tuple[int, int]:
    """(H, W) of k-space, without reading it."""
    return _load(Path(path), mmap_mode="r").shape[-2:]


def read_npz(path, mask: np.ndarray | None = None) -> RawScan:
    """The arrays `kspace`, `mask`, `noise` and `reference`; k-space as in `read_npy`.

    mask  bool (W,) or (H, W), which wins over the file's own. Raises InputError for a missing or misshapen array.
    """
    path = Path(path)
    arrays = _load_npz(path, "kspace", "mask", "noise", "reference")
    return scan_of_arrays(arrays, path, mask)


def npz_sampling(path) -> tuple[np.ndarray | None, tuple[int, int]]:
    """The file's own mask, if it has one, and (H, W), without reading k-space."""
    path = Path(path)
    mask = _load_npz(path, "mask").get("mask")
    try:
        with zipfile.ZipFile(path) as archive, archive.open("kspace.npy") as file:
            first = np.lib.format.read_magic(file) == (1, 0)
            shape = (np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0)(file)[0]
    except (KeyError, ValueError) as error:
        raise InputError(path, "no array `kspace`", _NPZ) from error
    return None if mask is None else as_mask(mask, path), shape[-2:]


def read_mask(path) -> np.ndarray:
    """A sampling mask (W,) or (H, W) as bool. Raises InputError where the values are not 0 and 1."""
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "no such file", "a .npy file with the mask")
    return as_mask(_load(path), path)


def scan_of_arrays(arrays: dict[str, np.ndarray], path, mask: np.ndarray | None = None) -> RawScan:
    """A scan from `kspace` and, where there are any, `mask`, `noise` and `reference`; `mask` wins over theirs."""
    if "kspace" not in arrays:
        raise InputError(path, "no array `kspace`", "`kspace`, and perhaps `mask`, `noise` and `reference`")
    kspace = with_axes(arrays["kspace"], path)
    slices, coils = kspace.shape[:2]
    if mask is None and "mask" in arrays:
        mask = as_mask(arrays["mask"], path)
    noise = arrays.get("noise")
    if noise is not None and (noise.dtype.kind != "c" or noise.ndim != 2 or len(noise) != coils):
        raise InputError(path, f"noise {noise.dtype} of shape {noise.shape}", f"complex ({coils} coils, samples)")
    reference = arrays.get("reference")
    if reference is not None:
        reference = with_axes(reference, path, "reference")
        if reference.shape[:2] != (slices, coils):
            expected = f"(slices, coils, h, w) with {slices} slices and {coils} coils, as k-space has"
            raise InputError(path, f"a reference of shape {reference.shape}", expected)
    return RawScan(
        kspace=kspace,
        source=path,
        mask=mask,
        noise=None if noise is None else np.ascontiguousarray(noise, np.complex64),
        reference=reference,
    )


def with_axes(array: np.ndarray, path, name: str = "k-space") -> np.ndarray:
    """Complex64 (slices, coils, H, W), the missing axes in front."""
    if array.dtype.kind != "c" or array.ndim not in (2, 3, 4):
        raise InputError(path, f"{array.dtype} of shape {array.shape}", _EXPECTED.replace("k-space", name))
    return np.ascontiguousarray(array.reshape((1,) * (4 - array.ndim) + array.shape), np.complex64)


def as_mask(mask: np.ndarray, path) -> np.ndarray:
    """A mask (W,) or (H, W) as bool. Raises InputError for values besides 0 and 1."""
    if mask.ndim not in (1, 2) or mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        raise InputError(path, f"{mask.dtype} of shape {mask.shape}", "a mask of 0 and 1, (W,) or (H, W)")
    return mask.astype(bool)


def _load(path, mmap_mode=None) -> np.ndarray:
    try:
        return np.load(path, mmap_mode, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(path, "a truncated or foreign file", "a complete .npy array") from error


def _load_npz(path, *names):
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names if name in archive}
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(path, "a truncated or foreign file", _NPZ) from error
