"""Lines of a Siemens twix file, placed into k-space by their own counters.

What was never acquired stays zero and out of the mask: twixtools' mapped arrays fill and average without saying where.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.readout import crop_readout, readout_image
from mrigsure.errors import InputError

_DETERMINED = 0.5  # singular values: nearly all are 1 (measured) or 0 (not)
_RESOLVED = 0.99  # share of a row that the measured modes explain
_PARALLEL = 1e-3  # of the quaternions
_UNIT = 1e-4  # by which the norm of a quaternion may miss 1
_AXES = ("Sag", "Cor", "Tra")  # to the patient's left, back and head


@dataclass(frozen=True)
class Grid:
    """Where the lines go: sizes of the axes, and the offsets that bring k = 0 to n // 2.

    `slots` maps (repetition, slice counter) to the volume's index: repetitions outermost, slices in spatial order.
    """

    slots: dict[tuple[int, int], int]
    coils: int
    columns: int
    height: int
    row: int
    partitions: int
    partition_offset: int
    width: int
    line_offset: int


def make_grid(blocks: Sequence, repetitions: str) -> Grid:
    """The grid of imaging lines; `repetitions` as in PrepareSettings: further volumes, or averaged into one."""
    coils, columns = blocks[0].mdh.UsedChannels, blocks[0].mdh.SamplesInScan
    height, row = _extent(blocks[0].mdh.CenterCol, columns)
    partitions, partition_offset = _extent(blocks[0].mdh.CenterPar, 1 + max(block.cPar for block in blocks))
    width, line_offset = _extent(blocks[0].mdh.CenterLin, 1 + max(block.cLin for block in blocks))
    order = spatial_order(blocks)
    counted = sorted({block.cRep for block in blocks})
    slots = {
        (rep, number): order.index(number) + (0 if repetitions == "average" else position * len(order))
        for position, rep in enumerate(counted)
        for number in order
    }
    return Grid(slots, coils, columns, height, row, partitions, partition_offset, width, line_offset)


def spatial_order(blocks: Sequence) -> list[int]:
    """The slice counters, which count in the order of excitation, sorted by the slices' positions along their stack.

    From the feet upwards, or from the front or the right where that is the stack's main direction. Slices that are not
    parallel or whose positions are not stated (all equal) keep the order of their counters.
    """
    first = {block.cSlc: block.mdh.SliceData for block in reversed(blocks)}
    counters = sorted(first)
    positions = np.array([[getattr(first[c].SlicePos, axis) for axis in _AXES] for c in counters])
    turned = np.array([first[c].Quaternion for c in counters])
    along = positions - positions.mean(axis=0)
    direction = np.linalg.svd(along, full_matrices=False)[2][0]
    depth = along @ direction * np.sign(direction[np.abs(direction).argmax()])
    if np.ptp(turned, axis=0).max() > _PARALLEL or len(np.unique(depth.round(3))) < len(counters):
        return counters
    return [counters[index] for index in np.argsort(depth)]


def slice_axes(blocks: Sequence, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Of every volume the centre (volumes, 3), mm, LPS, and the axes of readout, phase encoding and partitions
    (volumes, 3, 3), as growing indices run after the inverse transform; 0 where they are not stated."""
    from twixtools.geometry import quat_to_rotmat

    first = {grid.slots[block.cRep, block.cSlc]: block.mdh.SliceData for block in reversed(blocks)}
    centers, axes = np.zeros((len(first), 3)), np.zeros((len(first), 3, 3))
    for volume, data in first.items():
        centers[volume] = [getattr(data.SlicePos, axis) for axis in _AXES]
        if abs(np.linalg.norm(data.Quaternion) - 1) < _UNIT:
            phase, readout, slab = quat_to_rotmat(*data.Quaternion).T
            axes[volume] = -readout, -phase, -slab  # orientation.py says why
    return centers, axes


def place(blocks: Sequence, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The lines averaged, complex64 (volumes, partitions, coils, H, W), and their number (volumes, partitions, W)."""
    volumes = 1 + max(grid.slots.values())
    total = np.zeros((volumes, grid.partitions, grid.width, grid.coils, grid.height), np.complex64)
    count = np.zeros((volumes, grid.partitions, grid.width), int)
    first, last = measured_columns(blocks[0])
    rows = slice(grid.row + first, grid.row + last)
    for block in blocks:
        slot = grid.slots[block.cRep, block.cSlc]
        where = slot, grid.partition_offset + block.cPar, grid.line_offset + block.cLin
        total[where][:, rows] += block.data[:, first:last]
        count[where] += 1
    total /= np.maximum(count, 1)[..., None, None]
    return total.transpose(0, 1, 3, 4, 2), count


def sampled_rows(block, grid: Grid) -> np.ndarray:
    """The rows of the readout that were measured: bool (H,); an asymmetric echo lacks some at one end."""
    rows = np.zeros(grid.height, bool)
    first, last = measured_columns(block)
    rows[grid.row + first : grid.row + last] = True
    return rows


def measured_columns(block) -> tuple[int, int]:
    """First and last measured column of a line: the scanner fills those of its cut-off with zeros."""
    return block.mdh.CutOff.Pre, block.mdh.SamplesInScan - block.mdh.CutOff.Post


def without_oversampling(kspace: np.ndarray, rows: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Crop the image along the readout to `height`; kspace (..., H, W), rows bool (H,) -> the same of the new height.

    Where an echo is asymmetric, a plain crop would smear its cut over all of k-space. There the readout is fitted, in
    the sense of least squares, by an image inside the cropped field of view, which is the crop again where all rows
    were measured; the rows that the fit does not determine count as not measured.
    """
    if rows.all():
        return crop_readout(kspace, height), np.ones(height, bool)
    measured = _padded_readout(height, len(rows))[rows]
    left, values, right = np.linalg.svd(measured, full_matrices=False)
    sure = values > _DETERMINED
    inverse = (right[sure].conj().T / values[sure]) @ left[:, sure].conj().T
    kept = (np.abs(right[sure]) ** 2).sum(axis=0) > _RESOLVED
    fitted = inverse.astype(np.complex64) @ kspace[..., rows, :]
    fitted[..., ~kept, :] = 0
    return fitted, kept


def check_shapes(blocks: Sequence, path: Path) -> None:
    """Every line has the same coils and samples, and is read in one direction."""
    if any(block.is_flag_set("REFLECT") for block in blocks):
        raise InputError(path, "readouts in both directions (EPI)", "Cartesian lines read in one direction")
    shapes = {(int(block.mdh.UsedChannels), int(block.mdh.SamplesInScan)) for block in blocks}
    if len(shapes) > 1:
        raise InputError(path, f"lines of shapes {sorted(shapes)}", "the same coils and samples in every line")


def _padded_readout(height, padded):
    """The matrix (padded, height) that turns k-space into that of the image padded with zeros."""
    image = np.zeros((padded, height), complex)
    start = padded // 2 - height // 2
    image[start : start + height] = readout_image(np.eye(height))
    return np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, axes=0), axis=0, norm="ortho"), axes=0)


def _extent(center, count):
    """Size of an axis whose sample `center` is k = 0, and where sample 0 then lies. Pulseq leaves `center` at 0."""
    center = int(center) or count // 2
    size = max(count, 2 * center, 2 * (count - center) - count % 2)
    return size, size // 2 - center
