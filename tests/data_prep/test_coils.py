import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from data_prep.calibration import sensitivity_maps
from data_prep.coils import coil_matrices, gcc_matrices, svd_matrix, virtual_coils
from data_prep.pipeline import prepare_volume
from data_prep.readers import RawScan
from data_prep.readout import readout_image
from mrigsure.errors import InputError, ScanWarning
from mrigsure.fourier import fft2c, ifft2c
from mrigsure.settings import PrepareSettings

METHODS = ("svd", "gcc")
FULL = np.ones(48, bool)


def _noise(shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


@pytest.fixture(scope="module")
def kspace(make_kspace):
    """Twelve coils in three rings along the readout, each of which sees a third of it: (2, 12, 64, 48)."""
    rings = [make_kspace((64, 48), coils=4, slices=2, noise_std=0, seed=ring) for ring in range(3)]
    row = np.arange(64) - 32
    parts = []
    for ring, one in enumerate(rings):
        seen = np.exp(-(((row - 20 * (ring - 1)) / 12.0) ** 2))[:, None]
        image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(one, axes=-2), axis=-2), axes=-2)
        parts.append(np.fft.fftshift(np.fft.fft(np.fft.ifftshift(seen * image, axes=-2), axis=-2), axes=-2))
    return np.concatenate(parts, axis=1).astype(np.complex64) + 0.01 * _noise((2, 12, 64, 48))


def _compress(kspace, coils, method, mask=FULL, calibration=(64, 48)):
    """Every slice with matrices of its own: (slices, coils, H, W)."""
    return np.stack(
        [virtual_coils(one, coil_matrices(one, coils, method, mask, calibration, "scan.h5")) for one in kspace]
    )


def _share_kept(kspace, coils, method):
    return np.linalg.norm(_compress(kspace, coils, method)) ** 2 / np.linalg.norm(kspace) ** 2


@pytest.mark.parametrize("method", METHODS)
def test_noise_stays_white_and_of_the_same_level(kspace, method):
    matrices = coil_matrices(kspace[0], 5, method, FULL, (64, 48))
    out = virtual_coils(_noise((12, 64, 4096), seed=1), matrices)
    covariance = out.reshape(5, -1) @ out.reshape(5, -1).conj().T / out[0].size
    assert np.abs(covariance - 2 * np.eye(5)).max() < 0.04


def test_gcc_matrices_have_orthonormal_rows(kspace):
    matrices = gcc_matrices(readout_image(kspace[0]), 4)
    assert np.abs(matrices @ matrices.conj().transpose(0, 2, 1) - np.eye(4)).max() < 1e-5


def test_svd_from_the_centre_keeps_the_energy_that_any_matrix_can(kspace):
    for coils in (3, 6, 9):
        energy = np.linalg.svd(kspace[0].reshape(12, -1), compute_uv=False) ** 2
        best = energy[:coils].sum() / energy.sum()
        assert best - 0.01 < _share_kept(kspace[:1], coils, "svd") <= best + 1e-5


def test_gcc_keeps_the_energy_that_any_matrices_can_and_more_than_svd(kspace):
    for coils in (2, 4, 6):
        rows = readout_image(kspace[0]).transpose(1, 0, 2)
        energy = np.linalg.svd(rows, compute_uv=False) ** 2
        best = energy[:, :coils].sum() / energy.sum()
        gcc = _share_kept(kspace[:1], coils, "gcc")
        assert best - 0.01 < gcc <= best + 1e-5
        assert gcc > _share_kept(kspace[:1], coils, "svd")
    assert _share_kept(kspace, 2, "gcc") > 0.99 > 0.85 > _share_kept(kspace, 2, "svd")


def test_gcc_is_the_papers_row_by_row(kspace):
    """Written out: singular vectors of every row, then each turned onto its neighbour, from the strongest row on."""
    rows = readout_image(kspace[0])[..., 12:36]
    expected = [np.linalg.svd(rows[:, row])[0][:, :4].conj().T for row in range(64)]
    start = int((np.abs(rows) ** 2).sum((0, 2)).argmax())
    for row in range(start + 1, 64):
        expected[row] = (
            orthogonal_procrustes(expected[row].conj().T, expected[row - 1].conj().T)[0].conj().T @ expected[row]
        )
    for row in range(start - 1, -1, -1):
        expected[row] = (
            orthogonal_procrustes(expected[row].conj().T, expected[row + 1].conj().T)[0].conj().T @ expected[row]
        )
    ours = gcc_matrices(rows, 4)
    turn = np.stack(expected)[start] @ ours[start].conj().T  # eigenvectors are known up to their phases
    assert np.abs(turn @ ours - np.stack(expected)).max() < 2e-3
    virtual = _compress(kspace[:1], 4, "gcc")[0]
    direct = np.einsum("hnc,chw->nhw", ours, readout_image(kspace[0]))
    assert np.abs(readout_image(virtual) - direct).max() < 1e-4 * np.abs(direct).max()


def test_svd_is_the_leading_left_singular_vectors(kspace):
    samples = kspace[0][..., 20:44, 12:36]
    left = np.linalg.svd(samples.reshape(12, -1))[0][:, :4]
    product = np.abs(svd_matrix(samples, 4) @ left)
    assert np.abs(product - np.eye(4)).max() < 1e-3


def test_neighbouring_gcc_coils_agree(kspace):
    rows = readout_image(kspace[0])
    aligned = gcc_matrices(rows, 2)
    apart = np.stack([svd_matrix(rows[:, row], 2) for row in range(64)])
    steps, unaligned = (np.linalg.norm(np.diff(one, axis=0), axis=(1, 2)).mean() for one in (aligned, apart))
    assert steps < 0.6 * unaligned


@pytest.mark.parametrize("method", METHODS)
def test_virtual_coils_have_sensitivity_maps_that_explain_the_data(kspace, method):
    virtual = _compress(kspace, 4, method)
    maps = sensitivity_maps(virtual, (24, 24))
    image = (maps.conj() * ifft2c(torch.from_numpy(virtual)).numpy()).sum(1)
    explained = fft2c(torch.from_numpy(maps * image[:, None])).numpy()
    assert np.linalg.norm(explained - virtual) < 0.06 * np.linalg.norm(virtual)


@pytest.mark.parametrize("method", METHODS)
def test_matrices_come_from_the_centre_and_lines_never_sampled_stay_empty(kspace, method):
    mask = np.random.default_rng(0).random(48) < 0.4
    mask[18:30] = True
    sampled = kspace[0] * mask
    matrices = coil_matrices(sampled, 4, method, mask, (64, 12))
    assert not virtual_coils(sampled, matrices)[..., ~mask].any()
    sampled[..., :18] *= 1.5
    assert np.array_equal(coil_matrices(sampled, 4, method, mask, (64, 12)), matrices)


def test_what_cannot_be_compressed_is_said(kspace):
    with pytest.warns(ScanWarning, match="scan.h5: 12 coils, and 12 virtual ones asked for: not compressed"):
        assert coil_matrices(kspace[0], 12, "svd", FULL, (64, 48), "scan.h5") is None
    points = np.random.default_rng(0).random((64, 48)) < 0.5
    with pytest.raises(InputError, match="scan.h5: found lines that are not sampled along the whole readout; expected"):
        _compress(kspace * points, 4, "gcc", points, (0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _compress(kspace * points, 4, "svd", points, (0, 0)).shape == (2, 4, 64, 48)


@pytest.mark.parametrize("method", METHODS)
def test_prepare_compresses_after_whitening_and_keeps_noise_level_and_signal(make_kspace, method):
    full = make_kspace((64, 56), coils=8, slices=2, noise_std=0.05)
    mask = np.arange(56) % 2 == 0
    mask[18:38] = True
    raw = RawScan(kspace=full * mask, source=Path("scan.npy"), mask=mask, noise=0.05 * _noise((8, 4096)))
    settings = PrepareSettings(raw=[], out="", compress=4, compression=method)
    volume, whole = prepare_volume(raw, settings), prepare_volume(raw, PrepareSettings(raw=[], out=""))
    assert volume.kspace.shape == (2, 4, 64, 56) and volume.sens_maps.shape == (2, 4, 64, 56)
    assert not volume.kspace[..., ~mask].any() and np.array_equal(volume.mask, mask)
    assert volume.noise_std / volume.scale == pytest.approx(whole.noise_std / whole.scale)
    assert volume.scale == pytest.approx(whole.scale, rel=0.02)
    kept = np.linalg.norm(volume.kspace / volume.scale) / np.linalg.norm(whole.kspace / whole.scale)
    assert 0.98 < kept < 1
    assert volume.parameters["compress"] == 4 and volume.parameters["compression"] == method
