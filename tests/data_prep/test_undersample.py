from pathlib import Path

import numpy as np
import pytest

from data_prep.readers import RawScan
from data_prep.undersample import acquired_samples, apply_mask, find_mask, found_sampling, mask_seed
from mrigsure import masks
from mrigsure.errors import InputError
from mrigsure.settings import PrepareSettings


def _scan(kspace, name="scan.h5", **options):
    return RawScan(kspace=kspace.astype(np.complex64), source=Path(name), **options)


def _settings(**options):
    return PrepareSettings(raw=[], out="", **options)


@pytest.mark.parametrize("pattern", ["random", "equispaced", "poisson"])
def test_mask_is_found_from_the_zeros(make_kspace, pattern):
    mask = masks.make_mask(pattern, (64, 56), 3, 0.15, seed=0)
    kspace = make_kspace(slices=2) * mask
    kspace[0, 1, 5, np.flatnonzero(np.broadcast_to(mask, (64, 56))[5])[0]] = 0  # one sample that is 0 by accident
    assert np.array_equal(find_mask(kspace), mask)


def test_slices_sampled_differently_are_refused(make_kspace):
    kspace = make_kspace(slices=2)
    kspace[0, ..., ::2] = 0
    with pytest.raises(InputError, match="scan.h5: found slice 0 lacks 1792 samples"):
        find_mask(kspace, "scan.h5")


def test_padded_columns_are_outside_mask_and_density(make_kspace):
    kspace = make_kspace()
    kspace[..., :4] = kspace[..., 52:] = 0
    acquired = acquired_samples(_scan(kspace))
    assert acquired.is_full
    sampling = apply_mask(_scan(kspace), _settings(pattern="random", acceleration=3, center_fraction=0.1), acquired)
    assert sampling.mask.shape == (56,)
    outside = np.r_[0:4, 52:56]
    assert not sampling.mask[outside].any() and not sampling.density[outside].any()
    assert (sampling.density[4:52] > 0).all()


def test_cut_corners_count_as_fully_sampled(make_kspace):
    y, x = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 56), indexing="ij")
    inside = np.hypot(y, x) < 1
    acquired = acquired_samples(_scan(make_kspace() * inside))
    assert acquired.is_full
    assert np.array_equal(found_sampling(acquired, acquired.mask).density, inside)


@pytest.mark.parametrize("lines", [np.arange(56) % 2 == 0, np.arange(56) >= 14])
def test_a_scan_acquired_undersampled_takes_no_second_mask(make_kspace, lines):
    raw = _scan(make_kspace() * lines)
    with pytest.raises(InputError, match="scan.h5: found a scan acquired undersampled"):
        apply_mask(raw, _settings(pattern="random"), acquired_samples(raw))


def test_mask_depends_on_seed_and_name_only(make_kspace):
    raw = _scan(make_kspace())
    acquired = acquired_samples(raw)

    def mask(name="a.h5", seed=0):
        settings = _settings(pattern="random", acceleration=3, center_fraction=0.1, seed=seed)
        return apply_mask(_scan(raw.kspace, name), settings, acquired).mask

    assert np.array_equal(mask(), mask("folder/a.dat"))
    assert not np.array_equal(mask(), mask("b.h5")) and not np.array_equal(mask(), mask(seed=1))
    assert mask_seed(0, "a.h5") == 3542182797  # never changes: prepared archives depend on it


def test_applied_density_is_the_closed_form(make_kspace):
    raw = _scan(make_kspace())
    settings = _settings(pattern="random", acceleration=3, center_fraction=0.1)
    density = apply_mask(raw, settings, acquired_samples(raw)).density
    assert np.array_equal(density, masks.sampling_density("random", (64, 56), 3, 0.1))


def test_mask_that_does_not_fit_is_named(make_kspace):
    raw = _scan(make_kspace())
    settings = _settings(pattern="random", acceleration=8, center_fraction=0.5)
    with pytest.raises(InputError, match=r"scan.h5: found the centre alone \(28 of 56 lines\)"):
        apply_mask(raw, settings, acquired_samples(raw))


def test_stated_padding_bounds_the_density(make_kspace):
    mask = masks.make_mask("random", (64, 56), 3, 0.15, seed=0)
    mask[:4] = mask[52:] = False
    support = np.zeros(56, bool)
    support[4:52] = True
    raw = _scan(make_kspace() * mask, mask=mask, support=support)
    sampling = found_sampling(acquired_samples(raw), np.full(56, 0.3, np.float32))
    assert np.array_equal(sampling.density > 0, support)


def test_zero_kspace_is_refused():
    with pytest.raises(InputError, match="scan.h5: found k-space that is zero"):
        acquired_samples(_scan(np.zeros((1, 2, 8, 8))))


def test_partial_fourier_is_part_of_the_mask_and_its_density(make_kspace):
    raw = _scan(make_kspace())
    settings = _settings(pattern="random", acceleration=2, center_fraction=0.1, partial_fourier=0.75)
    sampling = apply_mask(raw, settings, acquired_samples(raw))
    assert not sampling.mask[42:].any() and not sampling.density[42:].any() and sampling.density[:42].all()


@pytest.mark.parametrize("count", [None, 1, 80])
def test_masks_from_a_file_are_an_ensemble(tmp_path, make_kspace, count):
    drawn = np.stack([masks.make_mask("random", (64, 56), 3, 0.15, seed) for seed in range(count or 1)])
    np.save(tmp_path / "masks.npy", drawn if count else drawn[0].astype(np.uint8))
    settings = _settings(apply_mask=str(tmp_path / "masks.npy"))
    raw = _scan(make_kspace())
    acquired = acquired_samples(raw)
    found = [apply_mask(_scan(raw.kspace, f"{name}.h5"), settings, acquired) for name in "abc"]
    for sampling in found:
        assert any(np.array_equal(sampling.mask, one) for one in drawn)
        assert np.array_equal(sampling.density, masks.ensemble_density(drawn))
    if count == 80:
        assert not np.array_equal(found[0].mask, found[1].mask)


def test_masks_of_points_come_from_a_file_too(tmp_path, make_kspace):
    points = np.random.default_rng(0).random((64, 56)) < 0.5
    np.save(tmp_path / "points.npy", points)
    raw = _scan(make_kspace())
    sampling = apply_mask(raw, _settings(apply_mask=str(tmp_path / "points.npy")), acquired_samples(raw))
    assert np.array_equal(sampling.mask, points)


@pytest.mark.parametrize("content", [np.ones(55), np.full(56, 0.5), np.zeros((2, 56)), np.ones((2, 3, 64, 56))])
def test_a_file_of_no_fitting_masks_is_named(tmp_path, make_kspace, content):
    np.save(tmp_path / "masks.npy", content)
    raw = _scan(make_kspace())
    with pytest.raises(InputError, match="masks.npy: found .*; expected masks of 0 and 1"):
        apply_mask(raw, _settings(apply_mask=str(tmp_path / "masks.npy")), acquired_samples(raw))


def test_a_pattern_and_a_mask_file_exclude_each_other():
    with pytest.raises(InputError, match="--apply-mask: found --pattern random too"):
        _settings(pattern="random", apply_mask="masks.npy")
