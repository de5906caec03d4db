"""Augmentation of the images and scans that training learns from: what it does to an image leaves it plausible.

A scan is augmented by doing to its maps, k-space and mask what turns its image: with k = 0 and x = 0 at n // 2 a mirror
image has the mirrored k-space, and a conjugate one the mirrored conjugate. Its noise stays white.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mrigsure.scan import Scan


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """A global phase, conjugation and flips for each of complex images (batch, H, W), on the CPU."""
    phase = 2 * torch.pi * torch.rand(len(images), 1, 1, generator=rng)
    turned = images * torch.polar(torch.ones_like(phase), phase)
    choice = torch.rand(len(images), 3, generator=rng) < 0.5
    out = []
    for image, (flip_rows, flip_columns, conjugate) in zip(turned, choice.tolist(), strict=True):
        image = image.flip(0) if flip_rows else image
        image = image.flip(1) if flip_columns else image
        out.append(image.conj().resolve_conj() if conjugate else image)
    return torch.stack(out)


@dataclass(frozen=True)
class Turn:
    """A global phase, conjugation and flips of the image of a scan; the same for all scans that it is applied to."""

    phase: Tensor
    flip_rows: bool
    flip_columns: bool
    conjugate: bool

    @classmethod
    def random(cls, rng: torch.Generator) -> "Turn":
        angle = 2 * torch.pi * torch.rand((), generator=rng)
        return cls(torch.polar(torch.ones(()), angle), *(torch.rand(3, generator=rng) < 0.5).tolist())

    def __call__(self, scan: Scan) -> Scan:
        axes = self._axes
        opposite = [axis for axis in (-2, -1) if (axis in axes) != self.conjugate]  # conjugation mirrors k-space too
        kspace, maps = self.phase * scan.kspace, scan.sens_maps
        if self.conjugate:
            kspace, maps = kspace.conj().resolve_conj(), maps.conj().resolve_conj()
        return replace(
            scan,
            kspace=_mirror(kspace, opposite),
            mask=_mirror(scan.mask, opposite),
            density=_mirror(scan.density, opposite),
            sens_maps=_mirror(maps, axes),
            target=None if scan.target is None else self.image(scan.target),
        )

    def image(self, images: Tensor) -> Tensor:
        """Complex images (..., H, W), turned."""
        turned = _mirror(self.phase * images, self._axes)
        return turned.conj().resolve_conj() if self.conjugate else turned

    @property
    def _axes(self):
        return [axis for axis, flipped in ((-2, self.flip_rows), (-1, self.flip_columns)) if flipped]


def augment_scan(scan: Scan, rng: torch.Generator) -> Scan:
    """A random `Turn` of the scan."""
    return Turn.random(rng)(scan)


def _mirror(array, axes):
    """i -> -i on each of the axes, counted from n // 2."""
    for axis in axes:
        array = array.flip(axis).roll(1 - array.shape[axis] % 2, axis)
    return array


def random_crop(images: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """A random window of (batch, H, W), `side` or the whole of each axis; `side` 0 leaves the images whole."""
    for axis in (1, 2) if side else ():
        room = max(images.shape[axis] - side, 0)
        start = int(torch.randint(room + 1, (1,), generator=rng))
        images = images.narrow(axis, start, images.shape[axis] - room)
    return images
