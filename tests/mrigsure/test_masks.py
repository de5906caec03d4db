"""Masks are fastmri's where it has the pattern, and densities are what the masks do on average."""

import numpy as np
import pytest

from mrigsure.masks import (
    LINE_PATTERNS,
    acquired_support,
    calibration_region,
    counted_density,
    ensemble_density,
    make_mask,
    partial_fourier_share,
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


@pytest.mark.parametrize("pattern", LINE_PATTERNS)
@pytest.mark.parametrize(("acceleration", "centre"), [(2, 0.0), (3, 0.2), (8, 0.04)])
def test_every_line_pattern_meets_its_density_at_any_rate_and_centre(pattern, acceleration, centre):
    draws = 600
    mean = np.mean([make_mask(pattern, SHAPE, acceleration, centre, seed) for seed in range(draws)], axis=0)
    density = sampling_density(pattern, SHAPE, acceleration, centre)
    assert (np.abs(mean - density) < 5 * np.sqrt(density * (1 - density) / draws) + 1e-6).all()


def rings(shape, count):
    y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return np.minimum((np.hypot(y, x) * count).astype(int), count)


@pytest.mark.parametrize(("shape", "acceleration"), [((48, 40), 6), ((21, 33), 3)])
def test_poisson_density_is_right_to_1_percent_in_every_ring(shape, acceleration):
    draws = 3000
    mean = np.mean([make_mask("poisson", shape, acceleration, 0.1, seed) for seed in range(draws)], axis=0)
    density = sampling_density("poisson", shape, acceleration, 0.1)
    ring = rings(shape, 6)
    found, expected = (np.bincount(ring.ravel(), values.ravel()) for values in (mean, density))
    assert found[:6] == pytest.approx(expected[:6], rel=0.01)
    assert mean.mean() == pytest.approx(1 / acceleration, rel=0.015)


@pytest.mark.parametrize("acceleration", [1.3, 1.7, 10])
def test_poisson_meets_any_acceleration_and_keeps_its_centre(acceleration):
    masks = np.stack([make_mask("poisson", (64, 48), acceleration, 0.1, seed) for seed in range(20)])
    assert masks.mean() == pytest.approx(1 / acceleration, rel=0.02)
    rows, columns = calibration_region(masks.all(axis=0), (64, 48))
    assert rows >= 6 and columns >= 5
    assert not np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[3], make_mask("poisson", (64, 48), acceleration, 0.1, 3))


def test_poisson_samples_keep_their_distance():
    mask = make_mask("poisson", (64, 64), 8, 0.05, 0)
    assert not (mask[:, 1:] & mask[:, :-1])[:, 48:].any(), "at the edge no two neighbours are sampled"


def test_partial_fourier_leaves_the_last_lines_out():
    mask, density = make_mask("random", SHAPE, 2, 0.1, 0, 0.75), sampling_density("random", SHAPE, 2, 0.1, 0.75)
    assert not mask[48:].any() and not density[48:].any() and density[:48].all()


@pytest.mark.parametrize(
    ("pattern", "acceleration", "centre"),
    [("random", 4, 0.3), ("random", 0.5, 0.1), ("magic", 4.5, 0.1), ("poisson", 9, 0.5), ("poisson", 1.1, 0.1)],
)
def test_impossible_requests_are_refused(pattern, acceleration, centre):
    with pytest.raises(ValueError, match="acceleration"):
        make_mask(pattern, SHAPE, acceleration, centre, 0)


def test_partial_fourier_is_recognised_and_padding_is_not():
    mask = make_mask("random", SHAPE, 2, 0.1, 0, 0.75)
    mask[0] = mask[47] = True
    assert partial_fourier_share(mask) == pytest.approx((1, 0.75), abs=0.02)
    padded = np.ones(64, bool)
    padded[:8] = padded[57:] = False
    assert partial_fourier_share(padded) == (1, 1)
    corner = np.ones((32, 64), bool)
    corner[:6] = False
    assert partial_fourier_share(corner) == pytest.approx((1 - 6 / 32, 1), abs=0.02)
    assert partial_fourier_share(np.ones(64, bool)) == (1, 1) == partial_fourier_share(np.ones((21, 33), bool))


def test_counts_give_the_same_density_as_the_masks():
    for draws in (3, 80):
        masks = np.stack([make_mask("random", SHAPE, 4, 0.1, seed) for seed in range(draws)])
        assert np.array_equal(counted_density(masks.sum(axis=0), draws), ensemble_density(masks))


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
