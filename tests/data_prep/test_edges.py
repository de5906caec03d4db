from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.edges import filtered_edges, nonzero_samples
from data_prep.prepare import prepare_volume
from data_prep.readers import RawScan, read_raw
from data_prep.readout import crop_readout
from data_prep.windows import windowed_samples
from mrigsure.fourier import fft2c
from mrigsure.masks import make_mask
from mrigsure.settings import PrepareSettings


def _position(size):
    return (np.arange(size) - size // 2) / (size / 2)


def _tukey(size, start=0.7):
    ramp = np.clip((np.abs(_position(size)) - start) / (1 - start), 0, 1)
    return 0.5 * (1 + np.cos(np.pi * ramp))


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize("noise_std", [0.02, 0.3])
def test_plain_scans_have_no_filtered_edges(make_kspace, coils, noise_std):
    for seed in range(4):
        kspace = make_kspace(coils=coils, noise_std=noise_std, seed=seed)
        assert not filtered_edges(kspace, nonzero_samples(kspace)).any()


def test_tukey_window_along_the_lines_is_recognised(make_kspace):
    kspace = (make_kspace(noise_std=0.3) * _tukey(56)).astype(np.complex64)
    filtered = filtered_edges(kspace, nonzero_samples(kspace))
    assert (filtered == filtered[:1]).all()
    assert filtered[0, _tukey(56) < 0.5].all()
    assert not filtered[0, _tukey(56) > 0.99].any()


def test_elliptic_window_is_recognised_and_the_inside_kept(make_kspace):
    y, x = _position(64)[:, None], _position(56)[None]
    window = 1 / (1 + np.exp((np.hypot(y, x) - 0.85) / 0.03))  # Fermi
    kspace = (make_kspace(noise_std=0.3) * window).astype(np.complex64)
    filtered = filtered_edges(kspace, nonzero_samples(kspace))
    sampled = nonzero_samples(kspace)
    assert filtered[sampled & (window < 0.25)].mean() > 0.95
    assert not filtered[window > 0.99].any()


def test_padded_and_numerically_empty_samples_are_zero(make_kspace):
    kspace = make_kspace()
    kspace[..., :6] = 0
    kspace[..., 50:] = 1e-9 * np.abs(kspace).max()
    assert np.flatnonzero(~nonzero_samples(kspace)[0]).tolist() == [*range(6), *range(50, 56)]


WINDOWS = {
    "hamming": lambda u: 0.54 + 0.46 * np.cos(np.pi * u),
    "general hamming, edge 0.2": lambda u: 0.6 + 0.4 * np.cos(np.pi * u),
    "general hamming, edge 0.3": lambda u: 0.65 + 0.35 * np.cos(np.pi * u),
    "gauss": lambda u: np.exp(-2 * u**2),
    "kaiser": lambda u: np.i0(3 * np.sqrt(1 - u**2)) / np.i0(3),
}


def _over(shape, window, axes):
    """The window along lines, readout, both, or the radius, clipped at 1: (H, W)."""
    y, x = np.abs(_position(shape[0]))[:, None], np.abs(_position(shape[1]))[None]
    if axes == "radius":
        return window(np.minimum(np.hypot(y, x), 1))
    along, across = window(y) * np.ones_like(x), window(x) * np.ones_like(y)
    return {"readout": along, "lines": across, "both": along * across}[axes]


@pytest.mark.parametrize("axes", ["lines", "readout", "both", "radius"])
@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize(
    ("shape", "slices", "noise_std", "pattern"),
    [((64, 56), 1, 0.02, "full"), ((64, 56), 1, 0.1, "full"), ((96, 80), 2, 0.1, "random")],
)
def test_gentle_windows_are_recognised_in_the_noise(make_kspace, axes, name, shape, slices, noise_std, pattern):
    mask = np.broadcast_to(make_mask(pattern, shape, 2.5, 0.2, seed=2), shape)
    window = _over(shape, WINDOWS[name], axes)
    kspace = (make_kspace(shape, slices=slices, noise_std=noise_std, seed=2) * window * mask).astype(np.complex64)
    filtered = filtered_edges(kspace, mask)
    assert filtered[window < 0.5].mean() > 0.9
    assert filtered[window > 0.85].mean() < 0.05


@pytest.mark.parametrize("pattern", ["full", "random", "equispaced"])
@pytest.mark.parametrize("noise_std", [0.003, 0.03, 0.3, 1.0])
def test_unwindowed_noise_gives_no_false_alarm(make_kspace, pattern, noise_std):
    for seed, coils in enumerate((1, 2, 4, 8)):
        mask = np.broadcast_to(make_mask(pattern, (64, 56), 2.5, 0.2, seed=seed), (64, 56))
        kspace = make_kspace(coils=coils, noise_std=noise_std, seed=seed) * mask
        assert not filtered_edges(kspace, mask).any()
        nearly = _over((64, 56), lambda u: 0.9 + 0.1 * np.cos(np.pi * u), "lines")  # never below 0.8
        assert not filtered_edges((kspace * nearly).astype(np.complex64), mask).any()


def test_a_bad_sample_is_not_taken_for_windowed_noise(make_kspace):
    """It stands in every row of the image, on one line."""
    for seed in range(4):
        mask = np.broadcast_to(make_mask("random", (64, 56), 2.5, 0.2, seed=seed), (64, 56))
        kspace = make_kspace(slices=2, seed=seed) * mask
        kspace[0, 0, 32, 28] *= 2
        assert not filtered_edges(kspace, mask).any()


def test_signal_in_every_row_is_not_taken_for_windowed_noise(make_kspace, make_maps):
    rng = np.random.default_rng(0)
    for seed in range(3):
        for noise_std in (1e-4, 0.01, 0.1):
            noise = noise_std * (rng.standard_normal((1, 4, 64, 96, 2)) @ [1, 1j])
            cut = crop_readout(make_kspace((128, 96), noise_std=0, seed=seed), 64) + noise  # through the body
            y, x = np.fft.fftfreq(64)[:, None], np.fft.fftfreq(96)[None]
            texture = np.fft.ifft2(np.fft.fft2(rng.standard_normal((64, 96))) / (1e-3 + np.hypot(y, x)) ** 1.5)
            image = make_maps((64, 96), 4) * (texture / texture.std())  # all over the field of view
            filled = fft2c(torch.from_numpy(image.astype(np.complex64)))[None].numpy() + noise
            for kspace in (cut, filled):
                assert not windowed_samples(kspace.astype(np.complex64), np.ones((64, 96), bool)).any()


def test_windowed_samples_leave_noise_mask_and_density(make_kspace):
    window = _over((96, 96), WINDOWS["general hamming, edge 0.2"], "lines")
    kspace = (make_kspace((96, 96), slices=2, noise_std=0.1) * window).astype(np.complex64)
    volume = prepare_volume(RawScan(kspace=kspace, source=Path("scan.h5")), PrepareSettings(raw=[], out=""))
    kept = volume.mask if volume.mask.ndim == 1 else volume.mask.any(axis=0)
    assert not kept[window[0] < 0.55].any() and kept[window[0] > 0.85].all()
    assert not volume.sampling_density[..., ~kept].any()
    assert not volume.kspace[..., ~kept].any()
    assert 0.6 < volume.noise_std / volume.scale / 0.1 < 1.1  # the window is 0.7 to 1 where it is measured


def test_real_scans_have_no_window_until_one_is_laid_over_them(shared_data, root):
    for path in (root / "mrigsure" / "data" / "scans" / "brain_16ch.h5", shared_data / "raw" / "brain_8ch_full.cfl"):
        kspace = read_raw(path).kspace
        mask = nonzero_samples(kspace)
        assert not filtered_edges(kspace, mask).any()
        for axes in ("lines", "radius"):
            window = _over(mask.shape, WINDOWS["hamming"], axes)
            filtered = filtered_edges((kspace * window).astype(np.complex64), mask)
            assert filtered[window < 0.55].mean() > 0.9 and filtered[window > 0.85].mean() < 0.05
    for name in ("brain_2ch_bodycoil_xa61.dat", "phantom_32ch_ve11.dat", "brain_8ch_poisson.npy"):
        kspace = read_raw(shared_data / "raw" / name).kspace
        assert not filtered_edges(kspace, nonzero_samples(kspace)).any()
