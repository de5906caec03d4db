"""A body wider than the field of view, from raw k-space to image: one set of maps leaves an artefact, two do not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.pipeline import prepare_volume
from data_prep.readers import RawScan
from mrigsure.denoiser import load_prior
from mrigsure.errors import InputError
from mrigsure.fourier import fft2c
from mrigsure.phantoms import coil_maps, complex_normal
from mrigsure.posterior import posterior_samples
from mrigsure.seeds import generator
from mrigsure.settings import PrepareSettings
from recon.baselines import cg_sense, choose_lambda, l1_wavelet

WIDTH, CALIBRATION = 44, 16
NOISE_STD = 0.003


@pytest.fixture(scope="module")
def folded():
    """A disc of 54 columns in a field of view of 44, half sampled: raw scan, coil images (coils, H, W), overlap."""
    y, x = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64), indexing="ij")
    image = 0.7 * ((y / 0.85) ** 2 + (x / 0.85) ** 2 < 1) - 0.35 * ((y / 0.3) ** 2 + (x / 0.3) ** 2 < 1)
    rng = np.random.default_rng(0)
    wide = coil_maps(rng, 12, (64, 64)) * image * np.exp(0.7j * x + 0.4j * y)
    coils, bodies = np.zeros((12, 64, WIDTH), np.complex64), np.zeros((64, WIDTH))
    for column in range(64):
        folds_to = (column - 32 + WIDTH // 2) % WIDTH
        coils[:, :, folds_to] += wide[:, :, column]
        bodies[:, folds_to] += image[:, column] > 0
    kspace = fft2c(torch.from_numpy(coils)).numpy() + NOISE_STD * complex_normal(rng, coils.shape)
    mask = np.arange(WIDTH) % 2 == 0
    mask[WIDTH // 2 - CALIBRATION // 2 : WIDTH // 2 + CALIBRATION // 2] = True
    noise = NOISE_STD * complex_normal(rng, (12, 2**16))  # white: whitening leaves the coils as they are
    raw = RawScan(kspace=(kspace * mask)[None], source=Path("folded.npy"), mask=mask, noise=noise)
    return raw, torch.from_numpy(coils), torch.from_numpy(bodies > 1)


def _prepared(folded, sets):
    """The scan, and the true image of its first set outside the overlap, where it alone is in question."""
    raw, coils, overlap = folded
    scan = prepare_volume(raw, PrepareSettings(raw=[], out="", map_sets=sets)).scan(0, "folded")
    first = scan.sens_maps if sets == 1 else scan.sens_maps[0]
    return scan, scan.scale * (first.conj() * coils).sum(0) * ~overlap, ~overlap


def _error(image, truth, where):
    return float(((image - truth)[where].abs().square().sum() / truth[where].abs().square().sum()).sqrt())


def test_cg_sense_needs_two_sets(folded):
    errors = []
    for sets in (1, 2):
        scan, truth, where = _prepared(folded, sets)
        errors.append(_error(cg_sense(scan, 1e-4), truth, where))
    assert errors[0] > 0.05 and errors[1] < 0.03


def test_posterior_draw_under_the_shipped_prior_needs_two_sets(folded):
    errors = []
    for sets in (1, 2):
        scan, truth, where = _prepared(folded, sets)
        draws = posterior_samples(load_prior(), scan.batch(), samples=1, levels=12, generator=generator(0))
        assert draws.shape == (1, 1, 64, WIDTH)
        errors.append(_error(draws[0, 0], truth, where))
    assert errors[1] < 0.6 * errors[0]


def test_lambda_is_chosen_with_two_sets_and_wavelets_refuse_them(folded):
    scan, _, _ = _prepared(folded, 2)
    choice = choose_lambda("cg-sense", scan, generator(0))
    assert 1e-4 <= choice.value <= 1
    with pytest.raises(InputError, match="folded: found 2 sets of maps; expected one for l1-wavelet"):
        l1_wavelet(scan, 1e-3)
