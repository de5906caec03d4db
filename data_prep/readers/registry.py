"""Which reader opens which file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.readers.bart import bart_shape, read_bart
from data_prep.readers.fastmri import fastmri_sampling, read_fastmri
from data_prep.readers.ismrmrd import is_ismrmrd, ismrmrd_sampling, read_ismrmrd
from data_prep.readers.mat import mat_sampling, read_mat
from data_prep.readers.npy import npy_shape, npz_sampling, read_mask, read_npy, read_npz
from data_prep.readers.raw import RawScan
from data_prep.readers.twix import read_twix
from mrigsure.errors import InputError

RAW_SUFFIXES = (".h5", ".mrd", ".dat", ".cfl", ".npy", ".npz", ".mat")
_MASKABLE = {".cfl": read_bart, ".npy": read_npy, ".npz": read_npz, ".mat": read_mat}


def read_raw(path, mask_path=None, *, encoding: int | None = None, repetitions: str = "separate") -> RawScan:
    """Read one raw file by its suffix, and .h5 by its content: fastMRI's array or ISMRMRD's lines.

    mask_path    .npy file that states the sampling of BART, .npy, .npz and .mat files
    encoding     which of several encodings of an ISMRMRD file
    repetitions  of ISMRMRD and twix files: "separate", as more slices, or "average"
    Raises InputError for missing, foreign, truncated, misshapen or non-finite files.
    """
    path, suffix = _known(path)
    if suffix in _MASKABLE:
        return _MASKABLE[suffix](path, None if mask_path is None else read_mask(mask_path))
    if suffix == ".dat":
        return read_twix(path, repetitions)
    return read_ismrmrd(path, encoding, repetitions) if _has_lines(path, suffix) else read_fastmri(path)


def read_middle_slice(path, mask_path=None, **options) -> RawScan:
    """The middle slice of a raw file; of fastMRI files nothing else is read. Arguments as for `read_raw`."""
    path, suffix = _known(path)
    if suffix == ".h5" and not _has_lines(path, suffix):
        return read_fastmri(path, middle=True)
    raw = read_raw(path, mask_path, **options)
    return raw.part(slice(len(raw.kspace) // 2, len(raw.kspace) // 2 + 1))


def read_sampling(
    path, mask_path=None, *, encoding: int | None = None, repetitions: str = "separate"
) -> tuple[np.ndarray | None, tuple[int, int]]:
    """The stated mask (None where the zeros must tell) and (H, W), read as cheaply as the format allows.

    Without k-space: fastMRI, ISMRMRD, .npy, .npz, .mat, and BART but for 3-D scans. Arguments as for `read_raw`.
    """
    path, suffix = _known(path)
    if suffix in (".h5", ".mrd"):
        return ismrmrd_sampling(path, encoding, repetitions) if _has_lines(path, suffix) else fastmri_sampling(path)
    mask = None if mask_path is None or suffix == ".dat" else read_mask(mask_path)
    if suffix == ".npy":
        return mask, npy_shape(path)
    if suffix in (".npz", ".mat"):
        own, shape = npz_sampling(path) if suffix == ".npz" else mat_sampling(path)
        return own if mask is None else mask, shape
    if suffix == ".cfl" and (shape := bart_shape(path)) is not None:
        return mask, shape
    raw = read_raw(path, mask_path, encoding=encoding, repetitions=repetitions)
    return raw.mask, raw.kspace.shape[-2:]


def raw_files(paths: Sequence) -> list[Path]:
    """The raw files among `paths` and inside the folders among them, sorted within each folder.

    A BART pair counts once, as its .cfl. Raises InputError for a missing file or a folder without raw files.
    """
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in RAW_SUFFIXES and not p.name.startswith("."))
            if not found:
                raise InputError(path, "no raw file in this folder", f"files ending in {', '.join(RAW_SUFFIXES)}")
            files += found
        elif path.is_file():
            files.append(path.with_suffix(".cfl") if path.suffix == ".hdr" else path)
        else:
            raise InputError(path, "no such file or folder", "raw k-space")
    return list(dict.fromkeys(files))


def _known(path):
    path = Path(path)
    suffix = ".cfl" if path.suffix == ".hdr" else path.suffix.lower()
    if suffix not in RAW_SUFFIXES:
        raise InputError(path, f"suffix {path.suffix or 'none'!r}", f"one of {', '.join(RAW_SUFFIXES)}")
    if not path.is_file():
        raise InputError(path, "no such file", "an existing file")
    return path, suffix


def _has_lines(path, suffix):
    return suffix == ".mrd" or is_ismrmrd(path)
