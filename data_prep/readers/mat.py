"""MATLAB's .mat files: version 5 (and 4) through scipy, version 7.3, which is HDF5, through h5py.

Axes are those that MATLAB shows, size(kspace) = [readout, phase encoding, coils, slices], the last ones left out where
they are 1; HDF5 stores them in reverse order, which is undone. k-space is the variable named `kspace`, else the only
complex array of 3 or 4 axes. There may be `mask` [1, W] or [H, W], `noise` complex [samples, coils], acquired without
signal, and `reference` complex [h, w, coils, slices], a fully sampled reference scan of the same field of view.
Nothing else in the file is read.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from data_prep.readers.npy import as_mask, scan_of_arrays
from data_prep.readers.raw import RawScan
from mrigsure.errors import InputError

_BESIDE = ("mask", "noise", "reference")
_AXES = "[readout, phase encoding, coils, slices]"


def read_mat(path, mask: np.ndarray | None = None) -> RawScan:
    """Read k-space and what stands beside it.

    mask  bool (W,) or (H, W), which wins over the file's own
    Raises InputError where no variable or several may be k-space, and where its third axis, longer than the first or
    the second, is hardly that of the coils.
    """
    path = Path(path)
    file = _open(path)
    kspace = file.read(_name(file, path))
    _plane(kspace.shape, path)
    arrays = {"kspace": _numpy_order(kspace)}
    del kspace
    found = {name: file.read(name) for name in _BESIDE if name in file.shapes}
    if "mask" in found:
        arrays["mask"] = _vector(found["mask"])
    if "noise" in found:
        arrays["noise"] = found["noise"].T
    if "reference" in found:
        arrays["reference"] = _numpy_order(found["reference"])
    return scan_of_arrays(arrays, path, mask)


def mat_sampling(path) -> tuple[np.ndarray | None, tuple[int, int]]:
    """The file's own mask, if it has one, and (H, W); k-space is read only where its name does not tell it."""
    path = Path(path)
    file = _open(path)
    shape = _plane(file.shapes[_name(file, path)], path)
    return as_mask(_vector(file.read("mask")), path) if "mask" in file.shapes else None, shape


@dataclass(frozen=True)
class _Mat5:
    """shapes: of the numeric variables, as MATLAB shows them."""

    path: Path
    shapes: dict[str, tuple[int, ...]]

    def read(self, name) -> np.ndarray:
        import scipy.io

        try:
            return scipy.io.loadmat(self.path, variable_names=[name])[name]
        except Exception as error:  # whatever a damaged file makes of scipy's parser
            raise _unreadable(self.path, error) from error

    def is_complex(self, name) -> bool:
        return self.read(name).dtype.kind == "c"


@dataclass(frozen=True)
class _Mat73:
    path: Path
    shapes: dict[str, tuple[int, ...]]

    def read(self, name) -> np.ndarray:
        try:
            with h5py.File(self.path, "r") as file:
                stored = file[name][()]
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if stored.dtype.names != ("real", "imag"):
            return stored.T
        array = np.empty(stored.shape, np.result_type(stored.dtype["real"], np.complex64))
        array.real, array.imag = stored["real"], stored["imag"]
        return array.T

    def is_complex(self, name) -> bool:
        with h5py.File(self.path, "r") as file:
            return file[name].dtype.names == ("real", "imag")


def _open(path):
    if h5py.is_hdf5(path):
        try:
            with h5py.File(path, "r") as file:
                arrays = [name for name in file if isinstance(file[name], h5py.Dataset)]
                return _Mat73(path, {name: file[name].shape[::-1] for name in arrays})
        except OSError as error:
            raise _unreadable(path, error) from error
    import scipy.io

    try:
        found = scipy.io.whosmat(path)
    except Exception as error:  # whatever a foreign file makes of scipy's parser
        raise _unreadable(path, error) from error
    return _Mat5(path, {name: shape for name, shape, kind in found if kind in ("double", "single")})


def _unreadable(path, error):
    return InputError(path, f"a truncated or foreign file ({type(error).__name__})", "a complete .mat file")


def _name(file, path):
    """Of the variable that holds k-space."""
    if "kspace" in file.shapes:
        return "kspace"
    candidates = [name for name, shape in file.shapes.items() if len(shape) in (3, 4) and name not in _BESIDE]
    found = [name for name in candidates if file.is_complex(name)]
    if len(found) != 1:
        what = f"several complex arrays, {', '.join(found)}" if found else "no complex array of 3 or 4 axes"
        raise InputError(path, what, f"one named `kspace`, {_AXES}")
    return found[0]


def _plane(shape, path):
    """(H, W) of MATLAB's axes."""
    if len(shape) not in (2, 3, 4):
        raise InputError(path, f"k-space of shape {shape}", f"MATLAB's axes {_AXES}")
    if len(shape) > 2 and shape[2] > min(shape[:2]):
        raise InputError(
            path,
            f"k-space of MATLAB's shape {shape}, an order of axes that is not clear",
            f"{_AXES}, no more coils than lines; permute it, or save it as .npz (slices, coils, H, W)",
        )
    return tuple(shape[:2])


def _numpy_order(array):
    """MATLAB's (H, W, coils, slices) -> (slices, coils, H, W), without the axes that are left out."""
    return array.transpose(*range(array.ndim - 1, 1, -1), 0, 1)


def _vector(mask):
    """MATLAB has no vectors, only rows and columns."""
    return mask.reshape(-1) if mask.ndim == 2 and 1 in mask.shape else mask
