"""BART's .cfl/.hdr pairs: dimensions in text, complex64 in column-major order.

BART's dimensions: 0 readout, 1 phase encoding 1, 2 phase encoding 2, 3 coils, 13 slices; all others must be 1.
(x, y, 1, coils, ..., slices) becomes H = x, W = y. (1, y, z, coils), a plane of a 3-D scan after the transform along
the readout, becomes H = y, W = z: both axes are then phase encoded. Format: https://mrirecon.github.io/bart/
"""

from pathlib import Path

import numpy as np

from data_prep.readers.raw import RawScan
from mrigsure.errors import InputError

_COILS, _SLICES = 3, 13


def read_bart(path, mask: np.ndarray | None = None) -> RawScan:
    """Read either file of the pair. Raises InputError for a missing half, a truncated or an unsuitable array."""
    path = Path(path).with_suffix(".cfl")
    dims = _dims(path.with_suffix(".hdr"))
    if not path.is_file():
        raise InputError(path, "no such file", "the data beside its .hdr")
    samples = path.stat().st_size / np.dtype(np.complex64).itemsize
    if samples != np.prod(dims):
        raise InputError(
            path, f"{samples:g} samples", f"{np.prod(dims)} samples, the product of {tuple(dims)} in the .hdr"
        )
    array = np.fromfile(path, np.complex64).reshape(dims, order="F")
    plane = [axis for axis in range(3) if dims[axis] > 1]
    others = [size for axis, size in enumerate(dims) if axis > 2 and axis not in (_COILS, _SLICES)]
    if len(plane) != 2 or any(size > 1 for size in others):
        raise InputError(
            path, f"dimensions {tuple(dims)}", "two encoded axes among 0-2, coils in 3, slices in 13, else 1"
        )
    kspace = array.transpose(_SLICES, _COILS, *plane, *(set(range(len(dims))) - {_SLICES, _COILS, *plane}))
    kspace = np.ascontiguousarray(kspace.reshape(kspace.shape[:4]))
    return RawScan(kspace=kspace, source=path, mask=mask)


def _dims(path) -> list[int]:
    if not path.is_file():
        raise InputError(path, "no such file", "the header beside its .cfl")
    lines = path.read_text(errors="replace").splitlines()
    try:
        dims = [int(size) for size in lines[lines.index("# Dimensions") + 1].split()]
    except (ValueError, IndexError) as error:
        raise InputError(path, "no line of sizes after `# Dimensions`", "a BART header") from error
    return dims + [1] * (16 - len(dims))
