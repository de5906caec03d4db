"""Where slices lie in the patient, from what scanners write beside their lines.

Scanners state the directions of their gradients and the centre of every slice or slab; here these become directions of
an image's growing indices. Siemens' samples are conjugate to the convention of the inverse transform: after that
transform all encoded axes run against the stated directions (mrpro, pull request 833; twixtools' geometry.py has the
same signs). Sequences written in Pulseq play gradients of their own along axes that the header does not tell, so that
nothing is said of their orientation.
"""

import numpy as np

from data_prep.readers.volume import Cut
from mrigsure.geometry import Geometry, are_axes


def place_slices(
    voxel_mm: tuple[float, float, float], cut: Cut, keep: int, centers: np.ndarray, axes: np.ndarray, different: int
) -> Geometry:
    """The geometry of volumes cut into `keep` slices each, as `volume.cut_volume` orders them.

    voxel_mm   height, width, slice
    centers    (volumes, 3), mm, LPS: where sample n // 2 of x, y and z lies
    axes       (volumes, 3, 3), the directions of growing x, y, z, x being the readout
    different  how many of the volumes, the first ones, are no repetitions
    Without orientation where the axes are not orthogonal unit vectors (never stated: 0), and where different slices are
    said to lie at one place.
    """
    directions = axes[:, [*cut.plane, cut.axis]]
    if not are_axes(directions) or not np.isfinite(centers).all():
        return Geometry(voxel_mm)
    offsets = voxel_mm[2] * (np.arange(keep) - keep // 2)
    positions = centers[:, None] + offsets[:, None] * directions[:, None, 2]
    placed = Geometry(voxel_mm, positions.reshape(-1, 3), np.repeat(directions, keep, axis=0))
    return Geometry(voxel_mm) if placed.part(slice(different * keep)).repetitions().any() else placed


def is_pulseq(sequence: str) -> bool:
    """Whether a sequence of this name plays a Pulseq file."""
    return "pulseq" in sequence.lower()
