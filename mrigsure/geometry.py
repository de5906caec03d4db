"""Where the pixels of a volume lie: voxel sizes always, positions and directions where the source states them.

Coordinates are the patient's, in mm, in DICOM's frame (LPS): x grows to the patient's left, y to the back, z to the
head. Pixel (H // 2, W // 2), where a centred transform has its origin, is the centre; pixel (row, column) of slice s
lies at

    positions[s] + (row - H // 2) height directions[s, 0] + (column - W // 2) width directions[s, 1]

In HDF5 files: float64 `voxel_mm` (3,), `positions_mm` (slices, 3), `directions` (slices, 3, 3); none of them where
nothing is known. Nothing else about the patient or the table is kept.
"""

from dataclasses import dataclass

import h5py
import numpy as np

from mrigsure.errors import InputError

_UNIT = 1e-3  # by which products of directions, which files state in single precision, may miss 0 and 1
_SAME = 1e-2  # mm; nearer positions are one
_EVEN = 0.01  # share of the distance by which slices may miss their place in a regular stack
_VOXEL, _POSITIONS, _DIRECTIONS = "voxel_mm", "positions_mm", "directions"


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of a volume's slices lie.

    voxel_mm    height, width, and thickness of the slices
    positions   float64 (slices, 3), the centre of every slice, mm; or None
    directions  float64 (slices, 3, 3), unit vectors along increasing rows, along increasing columns, and across the
                slice, along increasing slices where those were encoded; or None with the positions
    Raises ValueError for what cannot be a geometry.
    """

    voxel_mm: tuple[float, float, float]
    positions: np.ndarray | None = None
    directions: np.ndarray | None = None

    def __post_init__(self):
        if len(self.voxel_mm) != 3 or not all(np.isfinite(size) and size > 0 for size in self.voxel_mm):
            raise ValueError(f"voxel sizes {tuple(self.voxel_mm)}, expected three lengths in mm")
        if (self.positions is None) != (self.directions is None):
            raise ValueError("positions without directions, or directions without positions")
        if self.positions is None:
            return
        if self.positions.shape[1:] != (3,) or self.directions.shape != (len(self.positions), 3, 3):
            raise ValueError(f"positions {self.positions.shape} and directions {self.directions.shape} do not fit")
        if not np.isfinite(self.positions).all() or not are_axes(self.directions):
            raise ValueError("positions that are no numbers, or directions that are no orthogonal unit vectors")

    @property
    def is_oriented(self) -> bool:
        """Whether positions and directions are known."""
        return self.positions is not None

    def fits(self, slices: int) -> bool:
        """Whether it is that of so many slices."""
        return not self.is_oriented or len(self.positions) == slices

    def part(self, selection) -> "Geometry":
        """That of some of the slices; `selection` as NumPy takes it along an axis."""
        if not self.is_oriented:
            return self
        return Geometry(self.voxel_mm, self.positions[selection], self.directions[selection])

    def corners(self, shape: tuple[int, int]) -> np.ndarray:
        """The centre of pixel (0, 0) of every slice of shape (H, W): float64 (slices, 3)."""
        steps = np.multiply(self.voxel_mm[:2], [size // 2 for size in shape])
        return self.positions - np.einsum("a,sax->sx", steps, self.directions[:, :2])

    def repetitions(self) -> np.ndarray:
        """How many earlier slices lie at the same place as each: int (slices,)."""
        near = np.tril(np.abs(self.positions[:, None] - self.positions).max(axis=-1) < _SAME, -1)
        later, earlier = np.nonzero(near)
        parallel = np.abs(self.directions[later] - self.directions[earlier]).max(axis=(-2, -1)) < _UNIT
        return np.bincount(later[parallel], minlength=len(self.positions))

    def stack(self) -> tuple[np.ndarray, np.ndarray]:
        """The slices as a regular stack: their numbers, int (repetitions, slices), and the step from one to the next,
        float64 (3,), mm.

        They keep their order where it is that of the stack, and are sorted along it where not. Raises ValueError where
        the slices are not parallel, are not evenly spaced, or are not repeated alike.
        """
        if np.ptp(self.directions, axis=0).max() > _UNIT:
            raise ValueError("slices that are not parallel")
        times = self.repetitions()
        count = int((times == 0).sum())
        if (np.bincount(times) != count).any():
            raise ValueError("slices that are not repeated equally often")
        groups = np.array([np.flatnonzero(times == time) for time in range(times.max() + 1)])
        if count == 1:
            return groups, self.voxel_mm[2] * self.directions[0, 2]
        along = self.positions @ self.directions[0, 2]
        along = along if along[groups[0, -1]] > along[groups[0, 0]] else -along
        order = np.stack([group[np.argsort(along[group])] for group in groups])
        places = self.positions[order]
        step = (places[0, -1] - places[0, 0]) / (count - 1)
        regular = places[0, 0] + np.arange(count)[:, None] * step
        if np.abs(places - regular).max() > max(_SAME, _EVEN * np.linalg.norm(step)):
            raise ValueError("slices that are not evenly spaced")
        return order, step


def are_axes(directions: np.ndarray) -> bool:
    """Whether (..., 3, 3) holds orthogonal unit vectors; those that were never stated are 0."""
    return bool(np.allclose(directions @ directions.swapaxes(-1, -2), np.eye(3), atol=_UNIT))


def write_geometry(file: h5py.File, geometry: Geometry | None) -> None:
    """Write what is known into an open HDF5 file."""
    if geometry is None:
        return
    file[_VOXEL] = np.array(geometry.voxel_mm, np.float64)
    if geometry.is_oriented:
        file[_POSITIONS] = geometry.positions.astype(np.float64)
        file[_DIRECTIONS] = geometry.directions.astype(np.float64)


def read_geometry(file: h5py.File) -> Geometry | None:
    """What `write_geometry` wrote, or None. Raises InputError where it is malformed."""
    if _VOXEL not in file:
        return None
    try:
        voxel = tuple(float(size) for size in file[_VOXEL][()])
        return Geometry(voxel, *(file[key][()] if key in file else None for key in (_POSITIONS, _DIRECTIONS)))
    except (ValueError, TypeError, OSError) as error:
        expected = f"`{_VOXEL}` and perhaps `{_POSITIONS}` and `{_DIRECTIONS}`"
        raise InputError(file.filename, str(error), expected) from error
