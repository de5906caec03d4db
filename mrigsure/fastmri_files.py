"""fastMRI's raw file: the layout that every consumer of fastMRI data can open, written deterministically.

    kspace               complex64 (slices, coils, H, W), or (slices, H, W) for a single coil; readout along H
    mask                 uint8 (W,) or (H, W), where the scan was undersampled
    ismrmrd_header       XML, read by fastmri.data.mri_data.SliceDataset
    reconstruction_rss   float32 (slices, h, w); single-coil files name it reconstruction_esc
    attributes           acquisition, patient_id; max and norm of the reconstruction, where there is one

Layout: Zbontar et al., fastMRI: An Open Dataset and Benchmarks for Accelerated MRI, arXiv 1811.08839.
"""

from collections.abc import Mapping
from types import MappingProxyType

import h5py
import numpy as np

from mrigsure.files import atomic


def write_fastmri(
    path,
    kspace: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    header: str | None = None,
    reconstruction_rss: np.ndarray | None = None,
    attributes: Mapping = MappingProxyType({}),
) -> None:
    """Write a raw file, whole or not at all; the same arguments give the same bytes.

    kspace              complex (slices, coils, H, W), or (slices, H, W) for a single coil
    mask                bool or 0/1, (W,) or (H, W)
    header              ISMRMRD XML, as from `make_header`; fastMRI's SliceDataset cannot do without
    reconstruction_rss  real (slices, h, w)
    attributes          more attributes; they win over the defaults (acquisition and patient_id are empty)
    Raises ValueError for shapes that do not fit together.
    """
    _check(kspace, mask, reconstruction_rss)
    record = {"acquisition": "", "patient_id": ""}
    with atomic(path) as partial, h5py.File(partial, "w") as file:
        file.create_dataset(
            "kspace",
            data=kspace.astype(np.complex64, copy=False),
            chunks=(1, *kspace.shape[1:]),
            compression="gzip",
            compression_opts=1,
        )
        if mask is not None:
            file["mask"] = np.asarray(mask).astype(np.uint8)
        if header is not None:
            file["ismrmrd_header"] = header
        if reconstruction_rss is not None:
            image = reconstruction_rss.astype(np.float32)
            file["reconstruction_rss" if kspace.ndim == 4 else "reconstruction_esc"] = image
            record |= {"max": float(image.max()), "norm": float(np.linalg.norm(image.astype(np.float64)))}
        for key, value in (record | dict(attributes)).items():
            file.attrs[key] = value


def make_header(
    matrix: tuple[int, int],
    voxel_mm: tuple[float, float, float],
    *,
    encoded_matrix: tuple[int, int] | None = None,
    coils: int = 1,
    slices: int = 1,
    field_strength_t: float | None = None,
) -> str:
    """A minimal ISMRMRD header of a 2-D Cartesian multi-slice scan.

    matrix          height (readout) and width (phase encoding) of the image; ISMRMRD calls them x and y
    voxel_mm        size of a voxel along height, width and slice
    encoded_matrix  matrix of k-space; larger than `matrix` where the readout is oversampled,
                    with voxels of the same size
    """
    encoded = encoded_matrix or matrix
    system = "" if field_strength_t is None else _tag("systemFieldStrength_T", f"{field_strength_t:g}")
    system += _tag("receiverChannels", coils)
    limits = {
        "kspace_encoding_step_0": encoded[0],
        "kspace_encoding_step_1": encoded[1],
        "slice": slices,
    }
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        + _tag("acquisitionSystemInformation", system)
        + _tag("experimentalConditions", _tag("H1resonanceFrequency_Hz", _larmor_hz(field_strength_t)))
        + _tag(
            "encoding",
            _space("encodedSpace", encoded, voxel_mm)
            + _space("reconSpace", matrix, voxel_mm)
            + _tag("encodingLimits", "".join(_limit(name, count) for name, count in limits.items()))
            + _tag("trajectory", "cartesian"),
        )
        + "</ismrmrdHeader>\n"
    )


def _check(kspace, mask, reconstruction):
    if kspace.ndim not in (3, 4):
        raise ValueError(f"kspace has {kspace.ndim} axes, expected (slices, [coils,] H, W)")
    height, width = kspace.shape[-2:]
    if mask is not None and np.shape(mask) not in ((width,), (height, width)):
        raise ValueError(f"mask has shape {np.shape(mask)}, expected {(width,)} or {(height, width)}")
    if reconstruction is not None and (reconstruction.ndim != 3 or len(reconstruction) != len(kspace)):
        raise ValueError(f"reconstruction has shape {reconstruction.shape}, expected ({len(kspace)}, h, w)")


def _larmor_hz(field_strength_t):
    """Proton frequency; the schema demands one, and 0 stands for an unknown field."""
    return 0 if field_strength_t is None else round(42.577478518e6 * field_strength_t)


def _space(name, matrix, voxel_mm):
    counts = (*matrix, 1)
    sizes = "".join(_tag(axis, count) for axis, count in zip("xyz", counts, strict=True))
    lengths = "".join(
        _tag(axis, f"{count * voxel:.6g}") for axis, count, voxel in zip("xyz", counts, voxel_mm, strict=True)
    )
    return _tag(name, _tag("matrixSize", sizes) + _tag("fieldOfView_mm", lengths))


def _limit(name, count):
    return _tag(name, _tag("minimum", 0) + _tag("maximum", count - 1) + _tag("center", count // 2))


def _tag(name, content):
    return f"<{name}>{content}</{name}>"
