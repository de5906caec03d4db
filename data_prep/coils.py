"""Coil compression: fewer virtual coils that hold nearly all of the signal, slice by slice, after whitening.

svd  one matrix a slice, the leading eigenvectors of the coils' covariance in the centre of k-space.
     Buehrer et al., Magn Reson Med 57:1131 (2007)
gcc  geometric coil compression: one matrix for every position x along the readout, from the transform of the central
     lines along it, because fewer coils see a row than see the slice; neighbouring matrices are turned to agree,
     A_x <- U A_x with the unitary U nearest to A_{x-1} A_x^H, so that virtual coils are smooth along x.
     Zhang et al., Magn Reson Med 69:571 (2013)

Matrices have orthonormal rows: white noise stays white, of the same level.
"""

import warnings
from typing import Literal

import numpy as np

from data_prep.readout import readout_image, readout_kspace
from mrigsure.errors import InputError, ScanWarning
from mrigsure.fourier import center_crop

_CENTRE = 24  # lines, and samples along the readout for svd


def coil_matrices(
    kspace: np.ndarray,
    coils: int,
    method: Literal["svd", "gcc"],
    mask: np.ndarray,
    calibration: tuple[int, int],
    name="scan",
) -> np.ndarray | None:
    """Matrices from one whitened slice (physical coils, H, W): (coils, physical), or (H, coils, physical) for gcc.

    mask         bool (W,) or (H, W): the samples that the scan took; gcc needs whole lines
    calibration  height and width of the centred, fully sampled block of kspace, from which the matrices come; 24 of
                 each are enough. Without a block (0, 0) they come from all of kspace

    None for a scan that has no more coils than asked for, and a ScanWarning says so.
    Raises InputError for gcc where the readout is not fully sampled.
    """
    physical, *shape = kspace.shape
    if coils >= physical:
        warnings.warn(
            f"{name}: {physical} coils, and {coils} virtual ones asked for: not compressed", ScanWarning, stacklevel=2
        )
        return None
    mask = np.broadcast_to(mask, shape)
    if method == "gcc" and (mask != mask.any(axis=0)).any():
        raise InputError(name, "lines that are not sampled along the whole readout", "--compression svd for such scans")
    height, width = (min(size, _CENTRE) or full for size, full in zip(calibration, shape, strict=True))
    if method == "svd":
        return svd_matrix(center_crop(kspace, (height, width)), coils)
    return gcc_matrices(readout_image(center_crop(kspace, (shape[0], width))), coils)


def virtual_coils(kspace: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Mix the coils: (physical coils, H, W) -> complex64 (coils, H, W)."""
    if matrices.ndim == 2:
        return np.tensordot(matrices, kspace, axes=1).astype(np.complex64)
    virtual = matrices @ readout_image(kspace).transpose(1, 0, 2)
    return np.ascontiguousarray(readout_kspace(virtual.transpose(1, 0, 2)), np.complex64)


def svd_matrix(samples: np.ndarray, coils: int) -> np.ndarray:
    """The rows that keep most energy of samples (physical coils, ...): complex64 (coils, physical coils)."""
    flat = samples.reshape(len(samples), -1)
    return _leading(flat @ flat.conj().T, coils)


def gcc_matrices(rows: np.ndarray, coils: int) -> np.ndarray:
    """One matrix a row of (physical coils, H, lines), aligned from the strongest row on: (H, coils, physical coils)."""
    by_row = rows.transpose(1, 0, 2)
    covariance = by_row @ by_row.conj().transpose(0, 2, 1)
    matrices = _leading(covariance, coils)
    energy = np.trace(covariance, axis1=1, axis2=2).real
    start = int(energy.argmax())
    for position in (*range(start + 1, len(matrices)), *range(start - 1, -1, -1)):
        neighbour = position - 1 if position > start else position + 1
        left, _, right = np.linalg.svd(matrices[neighbour] @ matrices[position].conj().T)
        matrices[position] = left @ right @ matrices[position]
    return matrices


def _leading(covariance, count):
    """Leading eigenvectors of (..., coils, coils) as conjugated rows: complex64 (..., count, coils)."""
    vectors = np.linalg.eigh(covariance)[1][..., ::-1][..., :count]
    return vectors.conj().swapaxes(-1, -2).astype(np.complex64)
