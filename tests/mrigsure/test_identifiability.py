"""What an archive can teach is decided by the ensemble's normal operator, coils included."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mrigsure.errors import InputError
from mrigsure.fourier import fft2c
from mrigsure.identifiability import (
    BLIND,
    LineEnsemble,
    PointEnsemble,
    archive_ensemble,
    refuse_unidentifiable,
)
from mrigsure.masks import acquired_support
from mrigsure.operators import SenseOperator
from mrigsure.phantoms import coil_maps
from mrigsure.scan import PreparedVolume, ScanSet, VolumeFacts, write_prepared

SHAPE = (8, 12)
SIZE = 96


def maps(coils, seed=0):
    if coils == 1:
        return torch.ones(1, *SHAPE, dtype=torch.complex64)
    return torch.from_numpy(coil_maps(np.random.default_rng(seed), coils, SHAPE))


def lines(*sampled):
    mask = np.zeros(SHAPE[1], bool)
    mask[list(sampled)] = True
    return mask


def ensemble(kind, scans):
    """scans: (coils, mask) each."""
    masks = [mask for _, mask in scans]
    support = acquired_support(np.any(masks, axis=0))
    sens_maps = [maps(coils, seed) for seed, (coils, _) in enumerate(scans)]
    return kind(sens_maps, masks, [1 / len(scans)] * len(scans), support)


def dense(scans):
    """Eigenvalues and modes, (pixels, modes), of the same, from unit images: on the support's images only."""
    units = torch.eye(SIZE, dtype=torch.complex128).reshape(-1, *SHAPE)
    normal = torch.zeros(SIZE, SIZE, dtype=torch.complex128)
    for seed, (coils, mask) in enumerate(scans):
        plane = torch.from_numpy(np.broadcast_to(mask, SHAPE).astype(np.float64))[None, None]
        operator = SenseOperator(plane, maps(coils, seed)[None].to(torch.complex128))
        normal += torch.cat([operator.normal(unit[None]) for unit in units]).flatten(1).T / len(scans)
    support = acquired_support(np.any([mask for _, mask in scans], axis=0))
    inside = torch.from_numpy(np.broadcast_to(support, SHAPE).copy()).flatten()
    basis = fft2c(units).flatten(1).conj()[:, inside]  # the image of every k-space sample of the support
    values, modes = torch.linalg.eigh(basis.mH @ normal @ basis)
    return values, basis @ modes


def blind_energy(modes, values):
    blind = modes[:, values < BLIND].T.reshape(-1, *SHAPE)
    return blind.abs().square().sum(0).float(), fft2c(blind).abs().square().sum(0).float()


HALF_BLIND = [(2, lines(1, 3, 6, 7, 11)), (2, lines(1, 3, 5, 6, 11))]


def test_line_masks_give_exact_eigenvalues_and_the_exact_blind_projector():
    values, modes = dense(HALF_BLIND)
    assert 0 < (values < BLIND).sum() < len(values)
    spectrum = ensemble(LineEnsemble, HALF_BLIND).spectrum()
    assert torch.allclose(spectrum.values, values, atol=2e-6)
    assert spectrum.blind_share == pytest.approx(float((values < BLIND).double().mean()))
    assert spectrum.smallest == pytest.approx(max(float(values[0]), 0), abs=2e-6)
    image, kspace = blind_energy(modes, values)
    assert torch.allclose(spectrum.image, image, atol=1e-4)
    assert torch.allclose(spectrum.kspace.mean(0), kspace.mean(0), atol=1e-4)
    assert float(spectrum.image.sum()) == pytest.approx(int((values < BLIND).sum()), abs=1e-3)


def test_lanczos_quadrature_agrees_with_dense_algebra_on_point_masks():
    rng = np.random.default_rng(5)
    scans = [(3, rng.random(SHAPE) < 0.4), (3, rng.random(SHAPE) < 0.4)]
    values, modes = dense(scans)
    spectrum = ensemble(PointEnsemble, scans).spectrum()
    assert spectrum.smallest == pytest.approx(float(values[0]), abs=2e-3)
    assert spectrum.quantiles([0.25, 0.5, 0.75]) == pytest.approx(
        torch.quantile(values, torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)).tolist(), abs=0.06
    )


def test_points_and_lines_agree_where_both_are_right():
    """Coils carry signal across the edge of a zero-padded support; images that live there do not count as modes."""
    padded = [(3, lines(3, 5, 6, 8)), (3, lines(3, 6, 7, 8))]
    exact = ensemble(LineEnsemble, padded).spectrum()
    planes = [(coils, np.broadcast_to(mask, SHAPE)) for coils, mask in padded]
    quadrature = ensemble(PointEnsemble, planes).spectrum()
    assert quadrature.smallest == pytest.approx(exact.smallest, abs=1e-3) and exact.smallest > 0.05
    shares = [0.25, 0.5, 0.75]
    assert quadrature.quantiles(shares) == pytest.approx(exact.quantiles(shares), abs=0.08)


def test_the_blind_projector_of_point_masks_is_unbiased():
    """One coil: the projector onto the unmeasured samples of the support, known in closed form."""
    rng = np.random.default_rng(6)
    mask = rng.random(SHAPE) < 0.5
    spectrum = ensemble(PointEnsemble, [(1, mask)]).spectrum()
    missing = acquired_support(mask) & ~mask
    share = missing.sum() / acquired_support(mask).sum()
    assert spectrum.blind_share == pytest.approx(share, abs=0.08)
    assert spectrum.kspace[torch.from_numpy(missing)].mean() == pytest.approx(1, abs=0.15)
    assert spectrum.kspace[~torch.from_numpy(missing)].max() < 1e-3
    assert spectrum.image.mean() == pytest.approx(missing.sum() / SIZE, abs=0.08)


def test_one_density_for_all_stands_for_every_mask():
    density = np.linspace(0.1, 1, SHAPE[1])
    everywhere = np.ones(SHAPE[1], bool)
    own = LineEnsemble([maps(4)], [density], [1.0], everywhere).spectrum()
    common = LineEnsemble([maps(4)], [everywhere], [1.0], everywhere).spectrum(density)
    assert torch.allclose(own.values, common.values, atol=1e-6)
    assert own.smallest > 0.1 and own.below > BLIND, "no blind mode: the maps show the weakest"


def test_coils_see_lines_that_are_never_sampled():
    half = np.arange(SHAPE[1]) % 2 == 0
    half[-1] = True
    eight = ensemble(LineEnsemble, [(8, half)]).spectrum()
    assert eight.blind_share == 0 and 0.05 < eight.smallest < 0.5
    one = ensemble(LineEnsemble, [(1, half)]).spectrum()
    assert one.blind_share == pytest.approx(5 / 12) and one.smallest < 1e-5


def test_the_mean_mask_of_all_files_counts_and_not_the_stored_density(tmp_path):
    """A density pooled over neighbouring lines would hide that one coil never sampled every second line."""
    mask = np.arange(SHAPE[1]) % 2 == 0
    for index in range(3):
        kspace = np.zeros((1, 1, *SHAPE), np.complex64)
        volume = PreparedVolume(kspace, mask, maps(1)[None].numpy(), np.full(SHAPE[1], 0.5, np.float32), 0.1, 1.0)
        write_prepared(tmp_path / f"{index}.h5", volume)
    spectrum = archive_ensemble(ScanSet([tmp_path]), range(3)).spectrum()
    assert spectrum.blind_share == pytest.approx(5 / 11)


def facts(coils, sampled, name="a.h5"):
    mask = np.zeros(16, bool)
    mask[sampled] = True
    return VolumeFacts(Path(name), (1, coils, 16, 16), mask, 0.1)


def test_single_coil_lines_that_no_scan_sampled_are_refused_with_their_share():
    with pytest.raises(InputError, match=r"3 of 10 k-space lines \(30% of the modes\)"):
        refuse_unidentifiable([facts(1, [3, 4, 7, 8, 12]), facts(1, [5, 7, 8, 10, 12])], "archive")


def test_zero_padding_is_no_blind_spot_and_coils_are_never_refused():
    refuse_unidentifiable([facts(1, [4, 6, 7, 9]), facts(1, [4, 5, 8, 9])], "archive")
    refuse_unidentifiable([facts(8, [3, 8, 12])], "archive")
    assert ensemble(LineEnsemble, [(1, lines(3, 4, 5, 6))]).spectrum().smallest == pytest.approx(1, abs=1e-5)
