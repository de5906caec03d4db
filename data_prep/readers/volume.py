"""3-D Cartesian k-space cut into slices along a fully sampled axis, which leaves 2-D scans of their own.

Along an axis that every line of the other two covers whole, the inverse transform is exact whatever was left out
elsewhere. The axis is the first of these that is fully sampled, x being the readout and y, z the phase encodings:

    z   slices (x, y): the layout of a 2-D scan, lines along W
    y   slices (x, z): the same, where z is undersampled
    x   slices (y, z): both axes undersampled; a mask of points

A scan of one partition is a volume whose only slice is itself.
"""

from dataclasses import dataclass, replace

import numpy as np

from mrigsure.errors import InputError
from mrigsure.fourier import center_crop
from mrigsure.masks import calibration_region

_PLANES = ((1, 2), (0, 2), (0, 1))  # the axes that become H and W, by the axis that is cut


@dataclass(frozen=True)
class Cut:
    """axis: the one that is cut, 0 to 2; span: its acquired samples, with k = 0 at their n // 2; mask: of every slice,
    bool (W,) for whole lines, else (H, W)."""

    axis: int
    span: slice
    mask: np.ndarray

    @property
    def plane(self) -> tuple[int, int]:
        """The axes that become H and W."""
        return _PLANES[self.axis]

    @property
    def depth(self) -> int:
        """Number of slices."""
        return self.span.stop - self.span.start


def plan_cut(sampled: np.ndarray, source) -> Cut:
    """Choose the axis from the samples alone: bool (x, y, z), k = 0 at n // 2.

    Zero-padding that lies evenly about the centre of the axis is cut off: the slices are as thick as was measured.
    Raises InputError where no axis is fully sampled.
    """
    for axis in (2, 1, 0):
        plane = sampled.any(axis=axis)
        reached = np.flatnonzero(sampled.any(axis=_PLANES[axis]))
        if not reached.size:
            break
        start, stop = reached[0], reached[-1] + 1
        centred = start + (stop - start) // 2 == sampled.shape[axis] // 2
        if centred and sampled.sum() == plane.sum() * (stop - start):
            return Cut(axis, slice(int(start), int(stop)), line_mask(plane))
    raise InputError(
        source,
        f"k-space of {' x '.join(map(str, sampled.shape))} with {sampled.mean():.0%} sampled and no axis whole",
        "a 3-D scan that is fully sampled along one axis at least, along which it can be cut into slices",
    )


def cut_volume(kspace: np.ndarray, cut: Cut, keep: int | None = None) -> np.ndarray:
    """Complex (volumes, coils, x, y, z) -> complex64 (volumes * slices, coils, H, W), each volume's slices in order.

    keep  the slices to keep, those in the middle: the others lie outside the field of view that was asked for
    The transform is orthonormal, so that the noise level stays.
    """
    if cut.axis == 2 and kspace.shape[-1] == 1:  # 2-D: not copied
        return np.ascontiguousarray(kspace[..., 0], np.complex64)
    volumes, coils = kspace.shape[:2]
    keep = cut.depth if keep is None else min(keep, cut.depth)
    first = cut.depth // 2 - keep // 2
    slices = np.empty((volumes, keep, coils, *(kspace.shape[2 + axis] for axis in cut.plane)), np.complex64)
    for volume in range(volumes):
        for coil in range(coils):  # one at a time: no second copy of the volume
            planes = np.moveaxis(kspace[volume, coil], cut.axis, 0)[cut.span]
            shifted = np.fft.ifftshift(planes, axes=0)
            image = np.fft.fftshift(np.fft.ifft(shifted, axis=0, norm="ortho"), axes=0)
            slices[volume, :, coil] = image[first : first + keep]
    return slices.reshape(volumes * keep, *slices.shape[2:])


def cut_reference(kspace: np.ndarray, sampled: np.ndarray, cut: Cut, keep: int | None = None) -> np.ndarray | None:
    """The fully sampled centre of another scan of the same field of view, cut into the same slices as the first.

    kspace (volumes, coils, x, y, z) on a grid of its own, sampled bool (x, y, z); along the axis of `cut` it is cropped
    or zero-padded to as many samples. None where no whole block of 2 x 2 samples or more lies in the centre.
    """
    lines = sampled.any(axis=cut.plane)
    size, wanted = len(lines), cut.depth
    whole = sampled.sum(axis=cut.axis) == lines.sum()
    region = calibration_region(whole, whole.shape)
    if min(region) < 2:
        return None
    before, after = min(size // 2, wanted // 2), min(size - size // 2, wanted - wanted // 2)
    shape = list(kspace.shape)
    shape[2 + cut.axis] = wanted
    resized = np.moveaxis(np.zeros(shape, np.complex64), 2 + cut.axis, 0)
    centre = slice(size // 2 - before, size // 2 + after)
    resized[wanted // 2 - before : wanted // 2 + after] = np.moveaxis(kspace, 2 + cut.axis, 0)[centre]
    slices = cut_volume(np.moveaxis(resized, 0, 2 + cut.axis), replace(cut, span=slice(0, wanted)), keep)
    return center_crop(slices, region)


def line_mask(plane: np.ndarray) -> np.ndarray:
    """bool (H, W) -> (W,) where every line is whole."""
    return plane[0].copy() if (plane == plane[:1]).all() else plane
