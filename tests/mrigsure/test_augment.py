"""Augmentation turns images without changing their pixels' magnitudes, and crops by chance."""

import torch

from mrigsure.augment import augment, random_crop
from mrigsure.seeds import complex_noise, generator


def test_magnitudes_are_only_moved_and_every_image_is_turned_by_itself():
    images = complex_noise((1, 5, 7), generator(0)).expand(64, -1, -1)
    turned = augment(images, generator(1))
    kinds = set()
    for image in turned:
        flips = [f for f in ((), (0,), (1,), (0, 1)) if torch.allclose(image.abs().flip(f), images[0].abs(), atol=1e-5)]
        assert len(flips) == 1
        back, original = image.flip(flips[0]), images[0]
        conjugate = not _one_phase(back / original)
        assert _one_phase(back / original.conj()) if conjugate else True
        kinds.add((flips[0], conjugate))
    assert len(kinds) == 8
    assert (turned[:, 0, 0].angle().unique().numel()) == 64


def _one_phase(ratio):
    return bool((ratio - ratio[0, 0]).abs().max() < 1e-4)


def test_crops_are_windows_of_the_side_asked_for_or_the_whole_axis():
    images = torch.arange(2 * 6 * 9).view(2, 6, 9)
    starts = set()
    for seed in range(40):
        window = random_crop(images, 7, generator(seed))
        assert window.shape == (2, 6, 7)
        start = int(window[0, 0, 0])
        assert torch.equal(window, images[:, :, start : start + 7])
        starts.add(start)
    assert starts == {0, 1, 2}
    assert random_crop(images, 0, generator(0)) is images
