"""Augmentation turns images without changing their pixels' magnitudes, scans with them, and crops by chance."""

import numpy as np
import pytest
import torch

from mrigsure.augment import augment, augment_scan, random_crop
from mrigsure.phantoms import random_scan
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


@pytest.mark.parametrize("shape", [(12, 16), (13, 9), (16, 11)])
def test_a_scan_is_turned_as_its_image_is(shape):
    scan = random_scan(np.random.default_rng(3), shape, coils=3, noise=0.0)
    kinds = set()
    for seed in range(40):
        turned = augment_scan(scan, generator(seed))
        expected = turned.mask * turned.batch().operator.coil_kspace(turned.target[None])[0]
        assert torch.allclose(turned.kspace, expected, atol=1e-5)
        assert torch.equal(turned.mask[:, 0] > 0, scan.mask[:, 0] > 0) and turned.mask.sum() == scan.mask.sum()
        assert torch.allclose(turned.density[turned.mask > 0].sum(), scan.density[scan.mask > 0].sum())
        magnitude = turned.target.abs()
        assert magnitude.sum() == pytest.approx(float(scan.target.abs().sum()), rel=1e-5)
        kinds.add(tuple(magnitude.mul(1e3).round().flatten().tolist()))
        kinds.add(("mask", *turned.mask[0].tolist()))
    assert len([kind for kind in kinds if kind[0] == "mask"]) == 2, "the line mask comes as it is and mirrored"
    assert len([kind for kind in kinds if kind[0] != "mask"]) == 4, "four mirror images"


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
