import warnings

import numpy as np
import pytest
import torch

from data_prep.calibration import sensitivity_maps
from mrigsure.errors import ScanWarning
from mrigsure.fourier import fft2c, ifft2c


def _angle(a, b):
    """Degrees between two coil vectors at every pixel."""
    cosine = np.abs((a.conj() * b).sum(0)) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)
    return np.degrees(np.arccos(np.clip(cosine, 0, 1)))


def _body(shape):
    y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return (y / 0.65) ** 2 + (x / 0.55) ** 2 < 1


def test_maps_agree_with_sigpys_espirit_in_the_body(make_kspace):
    app = pytest.importorskip("sigpy.mri.app")
    kspace = make_kspace(noise_std=0.02)[0]
    theirs = app.EspiritCalib(kspace, calib_width=24, crop=0, show_pbar=False).run()
    assert _angle(sensitivity_maps(kspace, (64, 56)), theirs)[_body((64, 56))].max() < 1


@pytest.mark.parametrize("calibration", [(24, 24), (64, 12), (20, 56)])
def test_maps_agree_with_the_truth_from_square_and_other_regions(make_kspace, make_maps, calibration):
    kspace = make_kspace(noise_std=0.02)[0]
    maps = sensitivity_maps(kspace, calibration)
    assert _angle(maps, make_maps((64, 56), 4))[_body((64, 56))].mean() < 2


def test_maps_use_nothing_outside_the_calibration_region(make_kspace):
    kspace = make_kspace()[0]
    inner = np.zeros_like(kspace)
    inner[:, 20:44, 22:34] = kspace[:, 20:44, 22:34]
    assert np.array_equal(sensitivity_maps(kspace, (24, 12)), sensitivity_maps(inner, (24, 12)))


def test_maps_have_unit_norm_at_every_pixel_and_smooth_phase(make_kspace):
    kspace = make_kspace(noise_std=0.02)[0]
    kspace[2] = 0  # a dead coil
    maps = sensitivity_maps(kspace, (24, 24))
    assert maps.dtype == np.complex64
    assert np.abs((np.abs(maps) ** 2).sum(0) - 1).max() < 1e-5
    steps = np.abs(np.diff(maps, axis=1)).max(0)
    assert steps[_body((64, 56))[1:]].max() < 0.15


def test_phase_of_the_image_stays_out_of_the_maps(make_kspace):
    kspace = make_kspace(noise_std=0.02)[0]
    phase = torch.exp(2j * torch.linspace(-1, 1, 64)[:, None])
    turned = fft2c(phase * ifft2c(torch.from_numpy(kspace))).numpy()
    maps, same = sensitivity_maps(kspace, (24, 24)), sensitivity_maps(turned, (24, 24))
    global_phase = np.vdot(maps, same) / np.abs(np.vdot(maps, same))
    assert np.abs(same - global_phase * maps)[:, _body((64, 56))].mean() < 0.05


def test_one_coil_has_maps_of_one(make_kspace):
    assert np.array_equal(sensitivity_maps(make_kspace(coils=1)[0], (24, 24)), np.ones((1, 64, 56)))


@pytest.mark.parametrize("calibration", [(64, 5), (0, 0)])
def test_small_region_falls_back_with_a_warning(make_kspace, make_maps, calibration):
    with pytest.warns(ScanWarning, match="scan.h5: calibration region .* low-resolution"):
        maps = sensitivity_maps(make_kspace(noise_std=0.02)[0], calibration, "scan.h5")
    assert np.abs((np.abs(maps) ** 2).sum(0) - 1).max() < 1e-5
    assert _angle(maps, make_maps((64, 56), 4))[_body((64, 56))].mean() < 10


def test_large_region_does_not_warn(make_kspace):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sensitivity_maps(make_kspace()[0], (64, 7))
