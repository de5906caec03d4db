"""BART's .cfl/.hdr pairs: dimensions in text, complex64 in column-major order.

BART's dimensions: 0 readout, 1 phase encoding 1, 2 phase encoding 2, 3 coils, 13 slices; all others must be 1.
(x, y, 1, coils, ..., slices) becomes H = x, W = y. (1, y, z, coils), a plane of a 3-D scan after the transform along
the readout, becomes H = y, W = z: both axes are then phase encoded. (x, y, z, coils), a 3-D scan, is cut into slices
along the axis that its zeros show to be fully sampled (volume.py). Format: https://mrirecon.github.io/bart/
"""

from pathlib import Path

import numpy as np

from data_prep.edges import nonzero_samples
from data_prep.readers.raw import RawScan
from data_prep.readers.volume import cut_volume, plan_cut
from mrigsure.errors import InputError

_COILS, _SLICES = 3, 13
_NAMES = (
    *("readout", "phase 1", "phase 2", "coils", "maps", "echoes", "coefficients", "coefficients 2"),
    *("iterations", "shifts", "time", "time 2", "levels", "slices", "averages", "batch"),
)


def read_bart(path, mask: np.ndarray | None = None) -> RawScan:
    """Read either file of the pair. Raises InputError for a missing half, a truncated or an unsuitable array.

    mask  bool (W,) or (H, W), of a 3-D scan as it is after the cut
    """
    path = Path(path).with_suffix(".cfl")
    dims, axes = _encoded(path)
    if not path.is_file():
        raise InputError(path, "no such file", "the data beside its .hdr")
    samples = path.stat().st_size / np.dtype(np.complex64).itemsize
    if samples != np.prod(dims):
        raise InputError(
            path, f"{samples:g} samples", f"{np.prod(dims)} samples, the product of {tuple(dims)} in the .hdr"
        )
    array = np.fromfile(path, np.complex64).reshape(dims, order="F")
    kspace = array.transpose(_SLICES, _COILS, *axes, *(set(range(len(dims))) - {_SLICES, _COILS, *axes}))
    kspace = kspace.reshape(kspace.shape[: 2 + len(axes)])
    if len(axes) == 3:
        cut = plan_cut(nonzero_samples(kspace), path)
        return RawScan(kspace=cut_volume(kspace, cut), source=path, mask=cut.mask if mask is None else mask)
    return RawScan(kspace=np.ascontiguousarray(kspace), source=path, mask=mask)


def bart_shape(path) -> tuple[int, int] | None:
    """(H, W) from the header alone; None for a 3-D scan, where the zeros must tell."""
    dims, axes = _encoded(Path(path).with_suffix(".cfl"))
    return tuple(dims[axis] for axis in axes) if len(axes) == 2 else None


def _encoded(path):
    """The 16 dimensions, and the encoded ones among the first three."""
    dims = _dims(path.with_suffix(".hdr"))
    others = [axis for axis, size in enumerate(dims) if size > 1 and axis > 2 and axis not in (_COILS, _SLICES)]
    if others:
        found = ", ".join(f"{dims[axis]} {_NAMES[axis]} (dimension {axis})" for axis in others)
        raise InputError(path, found, "k-space of one image a slice: only dimensions 0 to 3 and 13 above 1")
    axes = [axis for axis in range(3) if dims[axis] > 1]
    if len(axes) < 2:
        raise InputError(path, f"dimensions {tuple(dims)}", "two or three encoded axes among dimensions 0 to 2")
    return dims, axes


def _dims(path) -> list[int]:
    if not path.is_file():
        raise InputError(path, "no such file", "the header beside its .cfl")
    lines = path.read_text(errors="replace").splitlines()
    try:
        dims = [int(size) for size in lines[lines.index("# Dimensions") + 1].split()]
    except (ValueError, IndexError) as error:
        raise InputError(path, "no line of sizes after `# Dimensions`", "a BART header") from error
    return dims + [1] * (16 - len(dims))
