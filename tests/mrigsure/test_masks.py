"""Masks are fastmri's where it has the pattern, and densities are what the masks do on average."""

import numpy as np
import pytest

from mrigsure.masks import (
    LINE_PATTERNS,
    acquired_support,
    calibration_region,
    ensemble_density,
    make_mask,
    sampling_density,
)

SHAPE = (20, 64)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("random", "RandomMaskFunc"), ("equispaced", "EquispacedMaskFractionFunc"), ("magic", "MagicMaskFunc")],
)
def test_same_seed_same_mask_as_fastmri(pattern, name):
    from fastmri.data import subsample

    for seed in range(5):
        theirs, _ = getattr(subsample, name)([0.08], [4])((1, *SHAPE, 2), seed=seed)
        ours = make_mask(pattern, SHAPE, 4, 0.08, seed)
        assert np.array_equal(ours, theirs.numpy().ravel() > 0)


@pytest.mark.parametrize("pattern", LINE_PATTERNS)
def test_density_is_the_mean_mask(pattern):
    draws = 1000
    mean = np.mean([make_mask(pattern, SHAPE, 4, 0.1, seed) for seed in range(draws)], axis=0)
    density = sampling_density(pattern, SHAPE, 4, 0.1)
    tolerance = 5 * np.sqrt(density * (1 - density) / draws) + 1e-6
    assert (np.abs(mean - density) < tolerance).all()
    if pattern in ("random", "gaussian"):
        assert density.sum() == pytest.approx(SHAPE[1] / 4, rel=1e-5)


def test_poisson_density_and_centre():
    shape = (32, 32)
    masks = np.stack([make_mask("poisson", shape, 4, 0.2, seed) for seed in range(100, 115)])
    density = sampling_density("poisson", shape, 4, 0.2)
    assert density.shape == masks[0].shape == shape
    assert masks.mean() == pytest.approx(density.mean(), rel=0.04)
    rows, columns = calibration_region(masks[0], shape)
    assert rows >= 6 and columns >= 6
    assert not np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0], make_mask("poisson", shape, 4, 0.2, 100))


def test_partial_fourier_leaves_the_last_lines_out():
    mask, density = make_mask("random", SHAPE, 2, 0.1, 0, 0.75), sampling_density("random", SHAPE, 2, 0.1, 0.75)
    assert not mask[48:].any() and not density[48:].any() and density[:48].all()


@pytest.mark.parametrize(("acceleration", "centre"), [(4, 0.3), (0.5, 0.1)])
def test_impossible_requests_are_refused(acceleration, centre):
    with pytest.raises(ValueError, match="acceleration"):
        make_mask("random", SHAPE, acceleration, centre, 0)


def test_calibration_region_is_the_largest_centred_block():
    mask = np.zeros(16, bool)
    mask[6:10] = True
    assert calibration_region(mask, (12, 16)) == (12, 4)
    assert calibration_region(np.ones(16, bool), (12, 16)) == (12, 16)
    assert calibration_region(~mask, (12, 16)) == (0, 0)


def test_support_excludes_padding_and_cut_corners_only():
    line = np.zeros(12, bool)
    line[[2, 5, 6, 9]] = True
    assert acquired_support(line).nonzero()[0].tolist() == list(range(2, 10))
    y, x = np.mgrid[-10:11, -10:11]
    disc = (np.hypot(y, x) <= 10) & (np.random.default_rng(0).random((21, 21)) < 0.5)
    support = acquired_support(disc)
    assert not support[0, 0] and support[10, 10] and support[disc].all()


def test_ensemble_density_pools_few_masks_and_trusts_many():
    masks = np.stack([make_mask("random", SHAPE, 4, 0.1, seed) for seed in range(400)])
    many, few = ensemble_density(masks), ensemble_density(masks[:4])
    exact = sampling_density("random", SHAPE, 4, 0.1)
    assert np.abs(many - exact).max() < 0.1
    assert (few[exact == 1] == 1).all()
    inside = acquired_support(masks[:4].any(0))
    assert few[inside].min() > 0 and np.abs(few[inside] - exact[inside]).mean() < 0.15
