"""fastMRI's .h5 files, multi-coil and single-coil; files of the challenges with their mask and padding.

Layout: Zbontar et al., fastMRI: An Open Dataset and Benchmarks for Accelerated MRI, arXiv 1811.08839.
"""

from pathlib import Path

import numpy as np

from data_prep.readers.raw import RawScan, header_voxel, public_header
from mrigsure.errors import InputError
from mrigsure.scan import open_hdf5

_EXPECTED = "a fastMRI file: `kspace` complex (slices, coils, H, W) or (slices, H, W)"


def read_fastmri(path) -> RawScan:
    """Read `kspace`, `mask`, the padding and the header; nothing about the patient.

    Raises InputError for files that are missing, truncated or misshapen.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        kspace = _kspace(file, path)
        try:
            kspace = kspace[()].astype(np.complex64, copy=False)
            mask = file["mask"][()] if "mask" in file else None
            header = file["ismrmrd_header"][()] if "ismrmrd_header" in file else None
        except OSError as error:
            raise InputError(path, "data that cannot be read (a truncated file)", "a complete HDF5 file") from error
        acquisition = _text(file.attrs.get("acquisition", ""))
        support = _support(file.attrs, kspace.shape[-1])
    header = None if header is None else public_header(_text(header), path)
    if kspace.ndim == 3:
        kspace = kspace[:, None]
    return RawScan(
        kspace=kspace,
        source=path,
        mask=None if mask is None else _as_mask(mask, kspace.shape, path),
        support=support,
        header=header,
        voxel_mm=None if header is None else header_voxel(header),
        acquisition=acquisition,
    )


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
    squeezed = mask if mask.ndim == 2 else mask.squeeze()
    if squeezed.shape not in ((width,), (height, width)):
        raise InputError(path, f"a mask of shape {mask.shape}", f"{(width,)} or {(height, width)}")
    return squeezed > 0


def _support(attributes, width):
    """padding_left and padding_right: the columns between them were candidates, those outside are zero-padding."""
    if "padding_left" not in attributes or "padding_right" not in attributes:
        return None
    columns = np.arange(width)
    return (columns >= int(attributes["padding_left"])) & (columns < int(attributes["padding_right"]))


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
