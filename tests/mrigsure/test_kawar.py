"""The seed's setting (docs/gsure_seed.md): VP and VE are one process, the published loss is the risk and a constant."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mrigsure.diffusion import diffuse_adjoint
from mrigsure.fourier import fft2c
from mrigsure.kawar import (
    Masked,
    VPSchedule,
    alpha_bar_of,
    at_levels,
    at_steps,
    diffuse_vp,
    gsure_kawar,
    gsure_vp,
    sigma_of,
)
from mrigsure.masked_images import patch_mask
from mrigsure.objectives import gsure
from mrigsure.phantoms import random_scan
from mrigsure.scan import PreparedVolume, ScanSet, collate, write_prepared
from mrigsure.seeds import complex_noise, generator

SCHEDULE = VPSchedule()
SIZE, SIGMA0, P, PATCH, MASKS = 8, 0.3, 0.6, 2, 40


def linear_denoiser():
    """A fixed real matrix B that mixes all pixels, on the real and on the imaginary part alike."""
    size = SIZE * SIZE
    matrix = 0.5 * torch.eye(size) + 0.4 / SIZE * torch.randn(size, size, generator=generator(0, "matrix"))

    def denoise(x_t, _):
        return (x_t.flatten(1) @ matrix.T.to(x_t.dtype)).view_as(x_t)

    return denoise, matrix


def gaussian_data(count, fourier):
    """The covariance of Gaussian images and `count` measurements of them, whose masks repeat the first MASKS."""
    rng = generator(0, "data")
    size = SIZE * SIZE
    root = 0.6 * torch.eye(size) + 0.5 / SIZE * torch.randn(size, size, generator=rng)
    if fourier:
        masks = (torch.rand(MASKS, 1, SIZE, generator=rng) < P).float().expand(-1, SIZE, -1)
        white, noise = (complex_noise((count, SIZE, SIZE), rng) for _ in range(2))
    else:
        masks = patch_mask(MASKS, (SIZE, SIZE), PATCH, 1 - P, rng)
        white, noise = (torch.randn(count, SIZE, SIZE, generator=rng) for _ in range(2))
    mask = masks.repeat(count // MASKS, 1, 1)
    image = (white.flatten(1) @ root.T.to(white.dtype)).view_as(white)
    clean = fft2c(image) if fourier else image
    density, sigma0 = torch.full_like(mask, P), torch.full((count,), SIGMA0)
    return root @ root.T, Masked(mask * (clean + SIGMA0 * noise), mask, density, sigma0, fourier)


def test_vp_input_is_the_scaled_ve_input_of_one_coil(one_coil_batch):
    batch = one_coil_batch
    step = torch.tensor([120, 400, 999])
    alpha_bar = SCHEDULE.alpha_bar[step].to(batch.mask)
    vp = diffuse_vp(Masked.from_scans(batch), alpha_bar, generator(1))
    ve, _ = diffuse_adjoint(batch.operator, batch.kspace, sigma_of(alpha_bar), batch.sigma0, generator(1))
    scaled = alpha_bar.sqrt()[:, None, None] * ve
    assert (vp - scaled).abs().max() < 2e-6 * vp.abs().max()


def test_levels_and_steps_are_each_other_s_inverse():
    assert torch.equal(SCHEDULE.nearest_step(SCHEDULE.sigma.float()), torch.arange(1000))
    assert torch.allclose(alpha_bar_of(SCHEDULE.sigma), SCHEDULE.alpha_bar, rtol=1e-12)
    assert SCHEDULE.alpha_bar[0] == 1 - 1e-4 and (SCHEDULE.alpha_bar.diff() < 0).all()

    def denoise(x, sigma):
        return x / (1 + sigma.square())[:, None, None]

    x, step = torch.randn(4, 3, 3, generator=generator(2)), torch.tensor([0, 50, 500, 999])
    there_and_back = at_levels(at_steps(denoise, SCHEDULE), SCHEDULE)
    level = SCHEDULE.sigma[step].float()
    assert torch.allclose(there_and_back(x, level), denoise(x, level), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sigma0", [0.0, 0.01, 0.3])
def test_no_step_is_drawn_below_the_noise_of_the_data(sigma0):
    levels = torch.full((4000,), sigma0)
    steps = SCHEDULE.draw_steps(levels, generator(3))
    first = int(SCHEDULE.first_step(levels[:1]))
    assert steps.min() >= first and steps.max() == 999 and float(SCHEDULE.sigma[first]) > sigma0
    assert first == 0 or float(SCHEDULE.sigma[first - 1]) <= sigma0
    assert float(steps.double().mean()) == pytest.approx((first + 999) / 2, abs=4 * 1000 / 12**0.5 / 4000**0.5)


@pytest.mark.parametrize("fourier", [True, False], ids=["one coil", "patches"])
def test_the_loss_is_unbiased_against_the_closed_form(fourier):
    """A linear denoiser on Gaussian data, where the risk given the masks is a trace."""
    count, step = 20000, 300
    covariance, data = gaussian_data(count, fourier)
    denoise, matrix = linear_denoiser()
    loss = gsure_vp(denoise, data, torch.full((count,), step), generator(4), SCHEDULE).detach()
    expected = closed_form(matrix, covariance, data.mask[:MASKS], float(SCHEDULE.alpha_bar[step]), fourier)
    standard_error = float(loss.std()) / count**0.5
    assert abs(float(loss.mean()) - expected) < 3.5 * standard_error
    assert standard_error < 0.01 * expected


def closed_form(matrix, covariance, masks, alpha_bar, fourier):
    """E || W M (V^T B x_t - V^T x) ||^2 per real number, and the target's own noise, averaged over `masks`.

    With T = V M V^T and white w, B x_t - x = (sqrt(alpha_bar) B T - 1) x + sqrt(1 - alpha_bar) B w.
    """
    size = SIZE * SIZE
    basis = torch.eye(size, dtype=torch.complex128)
    if fourier:
        basis = fft2c(basis.view(-1, SIZE, SIZE)).flatten(1).T
    b, c = matrix.to(basis), covariance.to(basis)
    risks = []
    for mask in masks.double().flatten(1):
        projection = basis.mH @ (mask[:, None] * basis)
        error = alpha_bar**0.5 * b @ projection - torch.eye(size)
        second_moment = error @ c @ error.mH + (1 - alpha_bar) * b @ b.mH
        noise = SIGMA0**2 * mask.sum() / P
        risks.append(((projection / P @ second_moment).diagonal().real.sum() + noise) / size)
    return float(torch.stack(risks).mean())


def test_without_the_divergence_the_loss_is_biased():
    """The control: the same mean without 2 sigma0^2 div is off by many standard errors."""
    count = 4000
    _, data = gaussian_data(count, fourier=False)
    denoise, _ = linear_denoiser()
    step = torch.full((count,), 300)
    whole = gsure_vp(denoise, data, step, generator(6), SCHEDULE).detach()
    x_t = diffuse_vp(data, SCHEDULE.alpha_bar[step].float(), generator(6))
    square = (data.mask / P * (denoise(x_t, step) - data.values).square()).mean((1, 2))
    missing = whole - square
    assert float(missing.mean()) > 20 * float(missing.std()) / count**0.5


def test_prepared_fastmri_files_of_one_coil_train_in_this_mode(one_coil_batch):
    """Prepared single-coil files have maps of 1, and `gsure_kawar` gives every scan a finite loss with a gradient."""
    weight = torch.tensor(0.5, requires_grad=True)

    def denoise(x, sigma):
        return weight * x / (1 + sigma.square())[:, None, None]

    sigma = torch.tensor([0.01, 0.5, 4.0])
    loss = gsure_kawar(denoise, one_coil_batch, sigma, generator(7), SCHEDULE)
    (gradient,) = torch.autograd.grad(loss.sum(), weight)
    assert loss.shape == sigma.shape and loss.isfinite().all() and gradient != 0
    above = float(SCHEDULE.sigma[SCHEDULE.first_step(one_coil_batch.sigma0)][0])
    assert sigma[0] < one_coil_batch.sigma0[0] < above
    moved = gsure_kawar(denoise, one_coil_batch, torch.tensor([above, 0.5, 4.0]), generator(7), SCHEDULE)
    assert torch.equal(loss, moved), "a level below the data's noise is moved above it"


def test_at_the_same_draws_the_loss_is_that_of_objectives_gsure_up_to_the_probe(one_coil_batch):
    """Without a divergence (a constant denoiser) the two forms of the published loss agree to rounding."""
    constant = complex_noise((3, 16, 12), generator(8))
    sigma = SCHEDULE.sigma[[200, 500, 800]].float()

    def denoise(x, sigma):
        return constant + 0 * x

    vp = gsure_kawar(denoise, one_coil_batch, sigma, generator(9), SCHEDULE)
    ve = gsure(denoise, one_coil_batch, sigma, generator(9))
    assert torch.allclose(vp, ve, rtol=1e-5)


def test_several_coils_are_refused(one_coil_batch):
    two = {key: getattr(one_coil_batch, key).expand(-1, 2, -1, -1) for key in ("kspace", "sens_maps")}
    with pytest.raises(ValueError, match="one coil"):
        Masked.from_scans(replace(one_coil_batch, **two))


@pytest.fixture(scope="module")
def one_coil_batch(tmp_path_factory):
    """Three slices of a prepared single-coil file, as `prepare` writes it: maps of 1."""
    scans = [random_scan(np.random.default_rng(seed), (16, 12), coils=1, acceleration=2) for seed in range(3)]
    path = tmp_path_factory.mktemp("single") / "knee.h5"
    volume = PreparedVolume(
        kspace=np.stack([scan.kspace.numpy() * scans[0].mask.numpy() for scan in scans]),
        mask=scans[0].mask[0].numpy() > 0,
        sens_maps=np.ones((3, 1, 16, 12), np.complex64),
        sampling_density=scans[0].density[0].numpy(),
        noise_std=0.04,
        scale=1.0,
    )
    write_prepared(path, volume)
    scans = ScanSet([path])
    return collate([scans[index] for index in range(3)])
