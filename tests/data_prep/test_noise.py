from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.noise import NoiseEstimate, add_noise, estimate_noise, noise_for_snr, whiten
from data_prep.null_space import null_space_noise
from data_prep.prepare import prepare_volume
from data_prep.readers import RawScan
from data_prep.readout import crop_readout, outside_samples, readout_image, readout_kspace
from data_prep.sense_noise import sense_noise
from mrigsure.errors import InputError, ScanWarning
from mrigsure.fourier import fft2c
from mrigsure.masks import make_mask
from mrigsure.phantoms import coil_maps, random_slice
from mrigsure.scan import SIGMA_DATA
from mrigsure.settings import PrepareSettings

COILS = 4


def _covariance():
    rng = np.random.default_rng(1)
    factor = np.eye(COILS) + 0.3 * (rng.standard_normal((COILS, COILS)) + 1j * rng.standard_normal((COILS, COILS)))
    covariance = factor @ factor.conj().T
    return covariance / np.trace(covariance).real * COILS


def _scan(kspace, **options):
    return RawScan(kspace=kspace, source=Path("scan"), **options)


def _whitened(estimate, truth):
    factor = np.linalg.inv(np.linalg.cholesky(estimate))
    return factor @ truth @ factor.conj().T


@pytest.mark.parametrize(("pattern", "excess"), [("full", 0.12), ("random", 0.12), ("poisson", 0.17)])
def test_simulated_covariance_is_recovered(make_kspace, pattern, excess):
    """But for what the hard-edged ellipses still have in the corners of k-space."""
    shape, noise_std = (96, 96), 0.1
    kspace = make_kspace(shape, COILS, slices=2, noise_std=noise_std, covariance=_covariance())
    mask = make_mask(pattern, shape, 3, 0.1, seed=0)
    estimate = estimate_noise(_scan(kspace * mask), mask).covariance
    truth = noise_std**2 * _covariance()
    assert 0.97 < np.trace(estimate).real / np.trace(truth).real < 1 + excess
    assert np.linalg.norm(estimate - truth) < 0.2 * np.linalg.norm(truth)


def test_air_tells_the_noise_where_signal_reaches_the_rim(make_kspace):
    noise_std = 0.01
    mask = make_mask("random", (64, 56), 3, 0.1, seed=0)
    estimate = estimate_noise(_scan(make_kspace(slices=2, noise_std=noise_std) * mask), mask).covariance
    assert np.sqrt(np.trace(estimate).real / COILS) == pytest.approx(noise_std, rel=0.15)


def test_noise_samples_are_taken_before_kspace(make_kspace):
    rng = np.random.default_rng(0)
    noise = np.linalg.cholesky(_covariance()) @ (rng.standard_normal((COILS, 20000, 2)) @ [1, 1j])
    raw = _scan(make_kspace(noise_std=1.0), noise=(0.9 * noise).astype(np.complex64))
    assert np.abs(estimate_noise(raw, np.ones(56, bool)).covariance - 0.81 * _covariance()).max() < 0.03


def test_noise_samples_louder_than_kspace_are_scaled_with_a_warning(make_kspace):
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal((COILS, 5000, 2)) @ [1, 1j]).astype(np.complex64)
    with pytest.warns(ScanWarning, match="times as loud as quiet k-space"):
        estimate = estimate_noise(_scan(make_kspace(noise_std=0.1), noise=noise), np.ones(56, bool)).covariance
    assert np.trace(estimate).real / COILS == pytest.approx(0.01, rel=0.15)


def test_whitening_leaves_noise_white_and_its_mean_level(make_kspace):
    rng = np.random.default_rng(2)
    noise = np.linalg.cholesky(3 * _covariance()) @ (rng.standard_normal((COILS, 40000, 2)) @ [1, 1j])
    estimate = noise @ noise.conj().T / 80000
    fresh = np.linalg.cholesky(3 * _covariance()) @ (rng.standard_normal((COILS, 40000, 2)) @ [1, 1j])
    white, noise_std = whiten(fresh.reshape(1, COILS, 200, 200), estimate)
    white = white.reshape(COILS, -1) / noise_std
    assert noise_std**2 == pytest.approx(3, rel=0.02)
    assert np.abs(white @ white.conj().T / 80000 - np.eye(COILS)).max() < 0.03


def test_uncorrelated_coils_are_not_mixed_by_chance(make_kspace):
    kspace = make_kspace((48, 48), 16, noise_std=0.5)
    estimate = estimate_noise(_scan(kspace), np.ones(48, bool)).covariance
    assert np.abs(_whitened(estimate / 0.25, np.eye(16)) - np.eye(16)).max() < 0.2


def _noise(covariance, count, seed):
    """Complex Gaussian samples (coils, count) of a covariance per real part."""
    rng = np.random.default_rng(seed)
    return np.linalg.cholesky(covariance) @ (rng.standard_normal((len(covariance), count, 2)) @ [1, 1j])


def _random_covariance(coils, seed):
    rng = np.random.default_rng(seed)
    factor = np.eye(coils) + 0.3 * (rng.standard_normal((coils, coils)) + 1j * rng.standard_normal((coils, coils)))
    factor *= rng.uniform(0.5, 2, coils)[:, None]
    return factor @ factor.conj().T


@pytest.mark.parametrize("coils", [1, 4, 12])
@pytest.mark.parametrize("origin", ["noise scan", "image rows outside the field of view", "rim of k-space"])
def test_20000_samples_give_the_covariance_to_5_percent_and_whiten_to_3(coils, origin):
    for seed in range(3):
        covariance = _random_covariance(coils, seed)
        samples = _noise(covariance, 20000, seed).astype(np.complex64)
        kspace = samples.reshape(coils, 200, 100)[None]
        if origin == "rim of k-space":
            raw = _scan(kspace)
        else:
            loud = 3 * kspace  # k-space as a signal would make it
            raw = _scan(loud, **{"noise" if origin == "noise scan" else "outside": samples})
        found = estimate_noise(raw, np.ones(100, bool))
        assert found.origin == origin
        if origin != "rim of k-space":
            assert found.samples == pytest.approx(20000, rel=0.003)
        assert found.noise_std == pytest.approx(np.sqrt(np.trace(covariance).real / coils), rel=0.05)
        if found.samples < 19000:  # the rim's, chosen from as many
            continue
        assert np.linalg.norm(found.covariance - covariance) < 0.05 * np.linalg.norm(covariance)
        fresh = _noise(covariance, 200000, seed + 100)
        white, noise_std = whiten(fresh[None], found.covariance)
        identity = (white[0] / noise_std) @ (white[0] / noise_std).conj().T / 400000
        assert np.abs(identity - np.eye(coils)).max() < 0.03


def test_stated_uncertainty_is_the_spread_of_the_estimate():
    covariance = _random_covariance(4, 0)
    truth = np.sqrt(np.trace(covariance).real / 4)
    loud = (100 * _noise(covariance, 256, 999).reshape(1, 4, 16, 16)).astype(np.complex64)
    estimates = [
        estimate_noise(_scan(loud, noise=_noise(covariance, 200, seed).astype(np.complex64)), np.ones(16, bool))
        for seed in range(300)
    ]
    errors = np.array([estimate.noise_std for estimate in estimates]) / truth - 1
    stated = np.mean([estimate.relative_error for estimate in estimates])
    assert stated == pytest.approx(errors.std(), rel=0.15)
    assert abs(errors.mean()) < 0.01


def test_rows_outside_the_field_of_view_tell_the_noise_where_the_body_fills_it(make_kspace):
    noise_std = 0.02
    wide = make_kspace((128, 56), slices=3, noise_std=0)
    small = np.zeros_like(wide)
    small[:, :, 32:96] = crop_readout(wide, 64)  # the body reaches beyond the cropped field of view
    small = np.fft.ifftshift(np.fft.fft(np.fft.fftshift(_image_rows(small), axes=-2), axis=-2, norm="ortho"), axes=-2)
    rng = np.random.default_rng(0)
    oversampled = small + noise_std * (rng.standard_normal((*small.shape, 2)) @ [1, 1j])
    outside = outside_samples(oversampled.astype(np.complex64), np.ones((3, 56), bool), 64)
    assert outside.shape == (4, 3 * 56 * 28)
    raw = _scan(crop_readout(oversampled, 64), outside=outside)
    found = estimate_noise(raw, np.ones(56, bool))
    assert found.origin.endswith("outside the field of view")
    assert found.noise_std == pytest.approx(noise_std, rel=0.03)
    assert (
        estimate_noise(_scan(raw.kspace), np.ones(56, bool)).noise_std < 1.07 * noise_std
    )  # nor does the null space fail


def _mild_covariance(coils, seed):
    """As of real coils: levels that differ by up to a factor 2, correlations of some 0.3, mean diagonal 1."""
    rng = np.random.default_rng(seed)
    factor = np.eye(coils) + 0.4 * _noise(np.eye(coils), coils, rng) / np.sqrt(2 * coils)
    factor *= rng.uniform(0.7, 1.4, coils)[:, None]
    covariance = factor @ factor.conj().T
    return covariance / np.trace(covariance).real * coils


def _head(coils, pattern, acceleration, noise_std=0.04, seed=0, size=128, gain=None):
    """A simulated head, whose signal reaches the rim of k-space: the scan, its mask, and the noise's true covariance.

    gain (H,): of the noise of every image row, as a receiver's filter has it
    """
    rng = np.random.default_rng(seed)
    image, maps = random_slice(rng, (size, size)), coil_maps(rng, coils, (size, size))
    mask = make_mask(pattern, (size, size), acceleration, 0.1, seed=seed)
    covariance = noise_std**2 * _mild_covariance(coils, seed)
    noise = _noise(covariance, size**2, rng).reshape(coils, size, size)
    if gain is not None:
        noise = readout_kspace(gain[:, None] * readout_image(noise))
    kspace = fft2c(torch.from_numpy(maps * image)).numpy() + noise
    return _scan((mask * kspace).astype(np.complex64)[None]), mask, covariance


def _errors(found, truth):
    """Relative error of the level, and of the least and largest eigenvalue beyond what chance makes of them."""
    relative = np.linalg.eigvalsh(_whitened(truth, found.covariance))
    chance = np.sqrt(len(truth) / found.samples)
    level = found.noise_std / np.sqrt(np.trace(truth).real / len(truth)) - 1
    return level, relative[0] / (1 - chance) ** 2 - 1, relative[-1] / (1 + chance) ** 2 - 1


@pytest.mark.parametrize(
    ("coils", "pattern", "acceleration", "seed"),
    [
        (4, "random", 4, 0),
        (4, "random", 4, 2),
        (8, "random", 4, 0),
        (8, "random", 4, 2),
        (8, "equispaced", 4, 0),
        (8, "full", 1, 0),
        (8, "full", 1, 2),
        (16, "random", 6, 0),
        (32, "random", 4, 0),
    ],
)
def test_signal_that_reaches_the_rim_is_not_taken_for_noise(coils, pattern, acceleration, seed):
    scan, mask, truth = _head(coils, pattern, acceleration, seed=seed)
    level, least, largest = _errors(estimate_noise(scan, mask), truth)
    assert abs(level) < 0.03 and least > -0.15 and largest < 0.15


def test_signal_at_the_rim_is_not_taken_for_noise_where_points_are_sampled():
    scan, mask, truth = _head(8, "poisson", 4, seed=2)
    level, least, largest = _errors(estimate_noise(scan, mask), truth)
    assert abs(level) < 0.04 and least > -0.15 and largest < 0.4


@pytest.mark.parametrize(("coils", "acceleration", "most"), [(4, 3, 0.01), (4, 4, 0.025), (16, 6, 0.015)])
def test_sampled_points_tell_the_noise_from_signal_by_a_fit(coils, acceleration, most):
    """In the mean of six heads; windows alone leave 0.014, 0.036 and 0.024."""
    levels = []
    for seed in range(6):
        scan, mask, truth = _head(coils, "poisson", acceleration, seed=seed)
        found = estimate_noise(scan, mask)
        levels.append(_errors(found, truth)[0])
    assert abs(np.mean(levels)) < most


def test_of_noise_alone_a_fit_leaves_the_noise():
    covariance = _random_covariance(4, 0)
    mask = make_mask("poisson", (96, 80), 3, 0.12, seed=0)
    kspace = mask * _noise(covariance, 96 * 80, 1).reshape(1, 4, 96, 80)
    found, samples = sense_noise(kspace.astype(np.complex64), mask, 2 * covariance)
    assert 100 < samples < mask.sum() / 2  # of the outer half
    relative = np.linalg.eigvalsh(_whitened(covariance, found))
    assert np.abs(relative - 1).max() < 3 * np.sqrt(4 / samples)


@pytest.mark.parametrize("slices", [1, 3])
def test_stated_uncertainty_of_what_no_image_explains_is_its_spread(slices):
    clean, mask, _ = _head(6, "poisson", 3, noise_std=1e-6, seed=5, size=64)
    errors, stated = [], []
    for seed in range(24):
        noise = 0.04 * _noise(np.eye(6), slices * 64 * 64, seed).reshape(6, slices, 64, 64).swapaxes(0, 1)
        kspace = (clean.kspace + mask * noise).astype(np.complex64)
        found = NoiseEstimate(*sense_noise(kspace, mask, 0.002 * np.eye(6)), "")
        errors.append(found.noise_std / 0.04 - 1)
        stated.append(found.relative_error)
    assert 0.6 < np.std(errors) / np.mean(stated) < 1.6
    assert abs(np.mean(errors)) < 0.05  # what signal is left


@pytest.mark.parametrize("seed", [1, 2])
def test_a_fit_that_leaves_little_keeps_the_start(seed):
    """Of four coils at R = 8 one combination is left next to no noise: it alone would be 1.5 to 1.7 times too loud."""
    scan, mask, truth = _head(4, "poisson", 8, seed=seed)
    found, samples = sense_noise(scan.kspace, mask, truth)
    assert samples > 100
    assert np.abs(np.linalg.eigvalsh(_whitened(truth, found)) - 1).max() < 0.35


def test_a_dead_coil_does_not_hide_the_noise_of_the_others():
    """A single coil is left, all of which a fit explains: what is left of it says nothing."""
    scan, mask, truth = _head(2, "poisson", 3, seed=1)
    scan.kspace[:, 0] = 0
    assert 0.95 < np.sqrt(estimate_noise(scan, mask).covariance[1, 1].real / truth[1, 1].real) < 1.15


def test_a_fit_needs_a_sampled_centre_and_several_coils(make_kspace):
    mask = make_mask("poisson", (64, 56), 3, 0.15, seed=0)
    assert sense_noise(make_kspace() * mask, mask, np.eye(4)) is not None
    assert sense_noise(make_kspace()[:, :1] * mask, mask, np.eye(1)) is None
    mask[30:34:2, 26:30:2] = False
    assert sense_noise(make_kspace() * mask, mask, np.eye(4)) is None


@pytest.mark.parametrize("coils", [4, 12])
def test_a_receivers_filter_does_not_hide_noise(coils):
    """The estimate is of all rows; without the autocorrelation it would favour those outside the body."""
    gain = np.ones(128)
    gain[:20], gain[-20:] = np.linspace(0.2, 1, 20), np.linspace(1, 0.2, 20)
    scan, mask, truth = _head(coils, "random", 4, gain=gain)
    level, *_ = _errors(estimate_noise(scan, mask), (gain**2).mean() * truth)
    assert abs(level) < 0.04


def test_stated_uncertainty_of_what_no_signal_explains_is_its_spread():
    errors, stated = [], []
    clean, mask, _ = _head(6, "random", 3, noise_std=1e-6, seed=5, size=64)
    for seed in range(24):
        noise = 0.04 * _noise(np.eye(6), 64 * 64, seed).reshape(clean.kspace.shape)
        covariance, samples = null_space_noise(
            (clean.kspace + mask * noise).astype(np.complex64), np.broadcast_to(mask, (64, 64)), 0.003 * np.eye(6)
        )
        found = NoiseEstimate(covariance, samples, "")
        errors.append(found.noise_std / 0.04 - 1)
        stated.append(found.relative_error)
    assert 0.6 < np.std(errors) / np.mean(stated) < 1.6
    assert abs(np.mean(errors)) < 0.03  # what signal is left


def test_noise_alone_has_no_null_space_to_be_left_out():
    covariance = _random_covariance(4, 0)
    kspace = _noise(covariance, 64 * 64, 1).reshape(1, 4, 64, 64).astype(np.complex64)
    found, samples = null_space_noise(kspace, np.ones((64, 64), bool), 2 * covariance)
    assert samples > 1000
    assert np.linalg.norm(found - covariance) < 0.08 * np.linalg.norm(covariance)


def test_null_space_needs_a_sampled_centre(make_kspace):
    mask = np.ones((64, 56), bool)
    mask[:, ::3] = False
    assert null_space_noise(make_kspace() * mask, mask, np.eye(4)) is None


def _image_rows(kspace):
    """The rows 32 to 96 hold k-space of 64 rows: its image there, nothing outside."""
    image = np.zeros_like(kspace)
    inner = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace[:, :, 32:96], axes=-2), axis=-2, norm="ortho"), axes=-2)
    image[:, :, 32:96] = inner
    return image


def test_rows_outside_that_hold_signal_are_not_believed(make_kspace):
    kspace = make_kspace(slices=2, noise_std=0.2)
    loud = (_noise(np.eye(4), 5000, 0)).astype(np.complex64)
    found = estimate_noise(_scan(kspace, outside=loud), np.ones(56, bool))
    assert found.origin != "image rows outside the field of view"
    assert found.noise_std == pytest.approx(0.2, rel=0.1)


def test_no_rows_are_outside_where_oversampling_is_small(make_kspace):
    kspace = make_kspace()
    assert outside_samples(kspace, np.ones((1, 56), bool), 56) is None
    assert outside_samples(kspace, np.zeros((1, 56), bool), 32) is None


def test_added_noise_brings_the_prepared_scan_to_the_snr_asked_for(make_kspace):
    raw = _scan(make_kspace((96, 96), slices=2, noise_std=0.05, covariance=_covariance()))
    plain = prepare_volume(raw, PrepareSettings(raw=[], out=""))
    noisy = prepare_volume(raw, PrepareSettings(raw=[], out="", add_noise=12.0, keep_target=True))
    assert 20 * np.log10(SIGMA_DATA / noisy.noise_std) == pytest.approx(12, abs=1e-4)
    assert noisy.scale == pytest.approx(plain.scale, rel=1e-6)
    added = noisy.kspace - plain.kspace
    expected = np.sqrt(noisy.noise_std**2 - plain.noise_std**2)
    assert np.sqrt((np.abs(added) ** 2).mean() / 2) == pytest.approx(expected, rel=0.01)
    samples = added.transpose(1, 0, 2, 3).reshape(4, -1) / expected
    assert np.abs(samples @ samples.conj().T / (2 * samples.shape[1]) - np.eye(4)).max() < 0.03
    assert noisy.noise["added_std"] == pytest.approx(expected, rel=1e-5) and noisy.parameters["add_noise"] == 12.0
    again = prepare_volume(raw, PrepareSettings(raw=[], out="", add_noise=12.0))
    other = prepare_volume(raw, PrepareSettings(raw=[], out="", add_noise=12.0, seed=1))
    assert np.array_equal(again.kspace, noisy.kspace) and not np.array_equal(other.kspace, noisy.kspace)
    assert again.noise["added_seed"] != other.noise["added_seed"]
    error = noisy.target - prepare_volume(raw, PrepareSettings(raw=[], out="", keep_target=True)).target
    assert np.abs(error).mean() < 0.2 * expected  # the truth has the scan's own noise only


def test_noise_is_added_where_sampled_and_not_to_scans_noisier_than_asked_for(make_kspace):
    mask = make_mask("random", (64, 56), 3, 0.1, seed=0)
    noisy = prepare_volume(_scan(make_kspace() * mask), PrepareSettings(raw=[], out="", add_noise=10.0))
    assert not noisy.kspace[..., ~mask].any()
    with pytest.raises(InputError, match=r"scan: found an SNR of .* dB, below the 60 dB of --add-noise"):
        prepare_volume(_scan(make_kspace() * mask), PrepareSettings(raw=[], out="", add_noise=60.0))
    assert noise_for_snr(20, 1.0, 0.0, "scan") == pytest.approx(0.1)
    assert noise_for_snr(20, 1.0, 0.06, "scan") == pytest.approx(0.08)
    assert not add_noise(np.zeros((1, 2, 8, 8), np.complex64), np.zeros(8, bool), 1.0, 0).any()


def test_real_scans_have_the_noise_that_is_known_of_them(root, shared_data):
    from data_prep.readers import read_raw

    full = read_raw(shared_data / "raw" / "brain_8ch_full.cfl")
    found = estimate_noise(full, np.ones(180, bool))
    assert found.noise_std == pytest.approx(1.7 / np.sqrt(2), rel=0.05)  # 1.7 of the complex sample, in the corners
    shipped = read_raw(root / "mrigsure" / "data" / "scans" / "brain_16ch.h5")
    assert 0 < estimate_noise(shipped, np.ones(128, bool)).relative_error < 0.01
    for acceleration, most in ((4, 1.06), (8, 1.15)):  # by windows alone 1.18 and 1.22
        mask = make_mask("poisson", (230, 180), acceleration, 0.1, seed=1)
        points = estimate_noise(_scan(full.kspace * mask), mask)
        assert 0.97 < points.noise_std / found.noise_std < most
        assert points.origin == "what no image explains of k-space"
