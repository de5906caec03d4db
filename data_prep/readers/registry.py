"""Which reader opens which file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.readers.bart import read_bart
from data_prep.readers.fastmri import fastmri_sampling, read_fastmri
from data_prep.readers.npy import read_mask, read_npy
from data_prep.readers.raw import RawScan
from data_prep.readers.twix import read_twix
from mrigsure.errors import InputError

_READERS = {".h5": read_fastmri, ".dat": read_twix, ".cfl": read_bart, ".npy": read_npy}
_MASKABLE = (".cfl", ".npy")
RAW_SUFFIXES = tuple(_READERS)


def read_raw(path, mask_path=None) -> RawScan:
    """Read one raw file by its suffix; `mask_path`, a .npy file, states the sampling of .npy and BART files.

    Raises InputError for missing, foreign, truncated, misshapen or non-finite files.
    """
    path = Path(path)
    suffix = ".cfl" if path.suffix == ".hdr" else path.suffix.lower()
    if suffix not in _READERS:
        raise InputError(path, f"suffix {path.suffix or 'none'!r}", f"one of {', '.join(RAW_SUFFIXES)}")
    if not path.is_file():
        raise InputError(path, "no such file", "an existing file")
    if suffix in _MASKABLE:
        return _READERS[suffix](path, None if mask_path is None else read_mask(mask_path))
    return _READERS[suffix](path)


def read_sampling(path, mask_path=None) -> tuple[np.ndarray | None, tuple[int, int]]:
    """The stated mask (None where the zeros must tell) and (H, W), read as cheaply as the format allows."""
    path = Path(path)
    if path.suffix.lower() == ".h5":
        return fastmri_sampling(path)
    raw = read_raw(path, mask_path)
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
