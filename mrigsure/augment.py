"""Augmentation of the images that training learns from: what it does to an image leaves it plausible."""

import torch
from torch import Tensor


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


def random_crop(images: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """A random window of (batch, H, W), `side` or the whole of each axis; `side` 0 leaves the images whole."""
    for axis in (1, 2) if side else ():
        room = max(images.shape[axis] - side, 0)
        start = int(torch.randint(room + 1, (1,), generator=rng))
        images = images.narrow(axis, start, images.shape[axis] - room)
    return images
