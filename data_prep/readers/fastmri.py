"""fastMRI's .h5 files, brain and knee, multi-coil and single-coil; test and challenge files with their mask.

Lines outside padding_left and padding_right were never candidates (zero-padding, partial Fourier). Where no attribute
states them they come from the header, as fastMRI's own reader takes them: the centre of the encoding limits lies in the
middle of the matrix. Layout: Zbontar et al., fastMRI: An Open Dataset and Benchmarks for Accelerated MRI, arXiv
1811.08839.
"""

from pathlib import Path

import numpy as np

from data_prep.readers.raw import (
    RawScan,
    header_padding,
    header_voxel,
    identifiers,
    patient_id,
    public_header,
    public_text,
)
from mrigsure.errors import InputError
from mrigsure.geometry import Geometry
from mrigsure.scan import open_hdf5

_PADDING = ("padding_left", "padding_right")
_EXPECTED = "a fastMRI file: `kspace` complex (slices, coils, H, W) or (slices, H, W)"


def read_fastmri(path, middle: bool = False) -> RawScan:
    """Read `kspace`, `mask`, the padding and the header; of the patient the identifier alone.

    middle  read the middle slice alone
    Raises InputError for files that are missing, truncated or misshapen.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        kspace = _kspace(file, path)
        try:
            center = len(kspace) // 2
            kspace = kspace[slice(center, center + 1) if middle else ()].astype(np.complex64, copy=False)
            mask = file["mask"][()] if "mask" in file else None
            header = file["ismrmrd_header"][()] if "ismrmrd_header" in file else None
        except OSError as error:
            raise InputError(path, "data that cannot be read (a truncated file)", "a complete HDF5 file") from error
        acquisition = _acquisition(file)
        padding = [int(file.attrs[name]) for name in _PADDING if name in file.attrs]
        patient = _patient(file)
    header = None if header is None else public_header(_text(header), path)
    if kspace.ndim == 3:
        kspace = kspace[:, None]
    return RawScan(
        kspace=kspace,
        source=path,
        mask=None if mask is None else _as_mask(mask, kspace.shape, path),
        support=_support(kspace, padding, header),
        header=header,
        geometry=None if header is None else _geometry(header),
        acquisition=acquisition,
        patient=patient,
    )


def fastmri_patient(path) -> str:
    """The patient's identifier, "" where there is none."""
    with open_hdf5(path) as file:
        return _patient(file)


def fastmri_sampling(path) -> tuple[np.ndarray | None, tuple[int, int]]:
    """The mask, if the file has one, and (H, W), without reading k-space."""
    path = Path(path)
    with open_hdf5(path) as file:
        shape = _kspace(file, path).shape
        return _as_mask(file["mask"][()], shape, path) if "mask" in file else None, shape[-2:]


def _kspace(file, path):
    if "kspace" not in file:
        raise InputError(path, f"no kspace among {', '.join(sorted(file)) or 'nothing'}", _EXPECTED)
    kspace = file["kspace"]
    if kspace.ndim not in (3, 4) or 0 in kspace.shape or kspace.dtype.kind != "c":
        raise InputError(path, f"kspace {kspace.dtype} of shape {kspace.shape}", _EXPECTED)
    return kspace


def _as_mask(mask, shape, path):
    height, width = shape[-2:]
    squeezed = mask if mask.shape == (height, width) else mask.squeeze()
    if squeezed.shape not in ((width,), (height, width)):
        raise InputError(path, f"a mask of shape {mask.shape}", f"{(width,)} or {(height, width)}")
    return squeezed > 0


def _support(kspace, padding, header):
    """Lines that were candidates, where stated: bool (W,). The header is believed only where k-space agrees."""
    width = kspace.shape[-1]
    stated = len(padding) == 2
    if not stated:
        padding = header_padding(header, width) if header else None
        if padding is None:
            return None
    lines = (np.arange(width) >= padding[0]) & (np.arange(width) < padding[1])
    return lines if stated or (lines.any() and not kspace[..., ~lines].any()) else None


def _geometry(header):
    """Voxel sizes alone: no fastMRI header states where the slices lie."""
    voxel = header_voxel(header)
    return None if voxel is None or min(voxel) <= 0 else Geometry(voxel)


def _acquisition(file):
    """The protocol's name, unless it names the patient."""
    private = [_text(file.attrs.get("patient_id", ""))]
    if "ismrmrd_header" in file:
        private += identifiers(_text(file["ismrmrd_header"][()]))
    return public_text(_text(file.attrs.get("acquisition", "")), private)


def _patient(file):
    """The identifier in the attributes or, where that is empty, in the header."""
    stated = _text(file.attrs.get("patient_id", "")).strip()
    return stated or (patient_id(_text(file["ismrmrd_header"][()])) if "ismrmrd_header" in file else "")


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
