"""NIfTI-1: float32 (W, H, slices[, repetitions]), scanner coordinates where the source states them.

NIfTI's frame is RAS: the first two of DICOM's axes (LPS) turned round. Without orientation both its codes are 0
(unknown), and without voxel sizes so is the unit, while the sizes, which the format demands, are 1.
"""

import numpy as np

from mrigsure.errors import InputError
from mrigsure.files import atomic
from recon.image_volume import NOTICE, ImageVolume

_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT
_TO_RAS = np.array([-1.0, -1.0, 1.0])
_SHEAR = 1e-4  # of the affine's entries, which a header holds in single precision


def write_nifti(path, volume: ImageVolume) -> None:
    """Write a .nii.gz file; the same volume gives the same bytes.

    Slices keep their order, or are sorted along their stack where theirs is another; repetitions are a fourth axis.
    Raises InputError for slices that no affine map can place: not parallel, or unevenly spaced.
    """
    import nibabel

    data = volume.values.transpose(2, 1, 0)  # (W, H, slices)
    affine = None
    if volume.is_oriented:
        try:
            order, step = volume.geometry.stack()
        except ValueError as error:
            raise InputError(path, str(error), "a regular stack for NIfTI; DICOM holds any slices") from error
        data = data[:, :, order].swapaxes(2, 3)  # (W, H, slices, repetitions)
        data = data[..., 0] if len(order) == 1 else data
        affine = _affine(volume, order[0, 0], step)
    image = nibabel.Nifti1Image(np.ascontiguousarray(data), affine)
    header = image.header
    header["descrip"] = f"{NOTICE}; mrigsure {volume.kind}".encode()
    if affine is not None:
        image.set_sform(affine, _SCANNER)
        image.set_qform(affine, _SCANNER)
        if not np.allclose(image.get_qform(), affine, atol=_SHEAR):
            image.set_qform(None, 0)  # staggered slices: a quaternion cannot say it
    elif volume.geometry is not None:
        height, width, thickness = volume.geometry.voxel_mm
        header.set_zooms((width, height, thickness))
    header.set_xyzt_units("unknown" if volume.geometry is None else "mm")
    with atomic(path) as partial:
        nibabel.save(image, partial)


def _affine(volume, first, step):
    """(column, row, slice, 1) to mm, RAS."""
    height, width, _ = volume.geometry.voxel_mm
    rows, columns, _ = volume.geometry.directions[first]
    affine = np.eye(4)
    corner = volume.geometry.part([first]).corners(volume.values.shape[1:])[0]
    affine[:3] = _TO_RAS[:, None] * np.stack([width * columns, height * rows, step, corner], axis=1)
    return affine
