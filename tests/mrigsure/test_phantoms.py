"""Properties of the embedded data source: heads, slices, coil maps and scans."""

from importlib import resources

import numpy as np
import pytest
import torch

from mrigsure.anatomy import ORIENTATIONS
from mrigsure.phantoms import (
    TEST_HEADS,
    TRAIN_HEADS,
    body,
    coil_maps,
    load_anatomy,
    random_scan,
    random_slice,
    random_volume,
)

SHAPE = (48, 40)


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def volumes():
    rng = generator(1)
    return [random_volume(rng, SHAPE) for _ in range(48)]


@pytest.mark.parametrize("name", TRAIN_HEADS + TEST_HEADS)
def test_every_head_names_its_source_and_its_licence_travels(name):
    head = load_anatomy(name)
    licences = resources.files("mrigsure").joinpath("data", "anatomy", "LICENSES.md").read_text()
    assert f"{name}.npz" in licences and head.source and head.licence
    for notice in (
        "Copyright (c) 2020 Chris Rorden",
        "Copyright (c) 2018 Rudolph Pienaar",
        "(C) 1993-2009 Louis Collins",
    ):
        assert notice in licences
    assert {volume.shape for volume in head.channels.values()} == {head.channels["t1"].shape}
    assert all(volume.dtype == np.uint8 for volume in head.channels.values())


def test_the_heads_fit_in_15_megabytes():
    files = [
        file for file in resources.files("mrigsure").joinpath("data", "anatomy").iterdir() if file.suffix == ".npz"
    ]
    assert len(files) == len(TRAIN_HEADS + TEST_HEADS)
    assert sum(file.stat().st_size for file in files) < 15e6


@pytest.mark.parametrize("name", TRAIN_HEADS + TEST_HEADS)
def test_axes_are_superior_inferior_then_anterior_posterior_then_right_left(name):
    head = load_anatomy(name)
    mirror = [
        np.corrcoef(head.channels["brain"].ravel(), np.flip(head.channels["brain"], axis).ravel())[0, 1]
        for axis in range(3)
    ]
    assert np.argmax(mirror) == 2  # only left and right mirror each other
    brain = head.channels["brain"] > 127
    depth = brain.shape[1] * np.array([0.2, 0.8])
    front, back = (np.flatnonzero(brain[:, int(at)].any(1)).max() for at in depth)
    assert back > front  # the cerebellum reaches lower than the frontal lobe
    top, bottom = np.flatnonzero(brain.any((1, 2)))[[0, -1]]
    if head.stripped:
        crown, stem = brain[(top + (bottom - top) * np.array([0.15, 0.9])).astype(int)].sum((1, 2))
        assert crown > stem
    else:
        crown, neck = ((head.channels["t1"][at] > 8).sum() for at in (0, -1))
        assert neck > crown


def test_the_test_head_is_never_drawn_for_training(volumes):
    assert not set(TRAIN_HEADS) & set(TEST_HEADS)
    assert {volume.head for volume in volumes} == set(TRAIN_HEADS)
    assert random_volume(generator(), SHAPE, heads=TEST_HEADS).head in TEST_HEADS


def test_every_orientation_occurs(volumes):
    assert {volume.orientation for volume in volumes} == set(ORIENTATIONS)


def test_same_seed_same_slice_and_another_seed_another():
    first = random_slice(generator(3), SHAPE)
    assert first.shape == SHAPE and first.dtype == np.complex64
    assert np.array_equal(first, random_slice(generator(3), SHAPE))
    assert np.abs(np.corrcoef(np.abs(first).ravel(), np.abs(random_slice(generator(4), SHAPE)).ravel())[0, 1]) < 0.95


def test_standard_deviation_is_one_in_the_head_and_air_is_zero(volumes):
    for volume in volumes:
        inside = body(volume.images)
        assert np.sqrt((np.abs(volume.images[inside]) ** 2).mean() / 2) == pytest.approx(1, abs=1e-3)
        assert (volume.images == 0).mean() > 0.1


def test_heads_fill_60_to_95_percent_of_the_field_of_view(volumes):
    fills = []
    for volume in volumes:
        occupied = np.abs(volume.images[0]) > 0.05
        fills.append(max(np.ptp(np.flatnonzero(occupied.any(1 - axis))) / SHAPE[axis] for axis in (0, 1)))
    assert 0.65 < np.median(fills) < 0.95
    assert np.percentile(fills, 10) > 0.45


def test_contrasts_range_from_rising_to_falling_with_the_source_intensity(volumes):
    """The order of fluid, grey and white matter differs between draws, as it does between T1 and T2 weighting."""
    from mrigsure.phantoms import _levels

    rng = generator()
    orders = {tuple(np.argsort(_levels(rng))) for _ in range(200)}
    assert {(0, 1, 2), (2, 1, 0), (0, 2, 1)} <= orders
    ratios = [np.std(np.abs(v.images[body(v.images)])) / np.mean(np.abs(v.images[body(v.images)])) for v in volumes]
    assert max(ratios) > 2 * min(ratios)


def test_slices_of_a_volume_are_neighbours():
    volume = random_volume(generator(5), SHAPE, slices=3)
    magnitude = np.abs(volume.images).reshape(3, -1)
    near, far = np.corrcoef(magnitude)[0, 1:]
    assert 1 > near > far > 0.5


@pytest.mark.parametrize("coils", [1, 4, 32])
def test_coil_maps_are_normalised_smooth_and_distinct(coils):
    maps = coil_maps(generator(), coils, SHAPE)
    assert maps.dtype == np.complex64
    assert np.abs((np.abs(maps) ** 2).sum(0) - 1).max() < 1e-5
    steps = np.abs(np.diff(maps, axis=1)).max(), np.abs(np.diff(maps, axis=2)).max()
    assert max(steps) < 0.25 or coils == 1
    if coils > 1:
        gram = np.abs(np.einsum("ahw,bhw->ab", maps.conj(), maps))
        norms = np.sqrt(np.diag(gram))
        assert (gram / norms[:, None] / norms + np.diag([-1.0] * coils)).max() < 0.995


@pytest.mark.parametrize("pattern", ["random", "poisson", "full"])
def test_random_scan_obeys_the_forward_model(pattern):
    scan = random_scan(generator(7), (64, 64), coils=8, pattern=pattern, noise=0.1)
    assert scan.noise_std == pytest.approx(0.05)
    inside = body(scan.target.numpy())
    assert float(scan.target.abs()[inside].square().mean().div(2).sqrt()) == pytest.approx(0.5, rel=1e-3)
    residual = scan.kspace - scan.batch().operator.forward(scan.target[None])[0]
    sampled = scan.mask.bool().expand(residual.shape)
    assert (scan.kspace[~sampled] == 0).all()
    for part in (residual[sampled].real, residual[sampled].imag):
        assert float(part.std()) == pytest.approx(scan.noise_std, rel=0.03)
    assert (scan.density[scan.mask > 0] > 0).all()
    assert torch.equal(scan.kspace, random_scan(generator(7), (64, 64), coils=8, pattern=pattern, noise=0.1).kspace)
