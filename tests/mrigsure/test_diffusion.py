"""The diffused inputs of docs/method.md, sections 1, 4 and 6: exactly white, and independent of their targets."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from mrigsure import diffusion
from mrigsure.diffusion import (
    complete_and_solve,
    diffuse_adjoint,
    draw_sigma,
    independent_kspace,
    lowest_solve_sigma,
    noisier_scan,
    perturb_and_solve,
    smaller_root,
    solve_shift,
)
from mrigsure.operators import SenseOperator
from mrigsure.phantoms import random_scan
from mrigsure.seeds import complex_noise, generator

SIZE, COILS, SIGMA0 = 8, 8, 0.04


def sense(batch, size=SIZE, coils=COILS, lines=True, dtype=torch.float64, rate=4):
    """An operator with random smooth-free maps and an R = 4 mask, repeated `batch` times."""
    rng = generator(0, "operator", size)
    cdtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    maps = complex_noise((1, coils, size, size), rng, cdtype)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    if lines:
        mask = torch.zeros(1, 1, size, size, dtype=dtype)
        mask[..., torch.randperm(size, generator=rng)[: size // rate]] = 1
    else:
        mask = (torch.rand(1, 1, size, size, generator=rng) < 1 / rate).to(dtype)
    return SenseOperator(mask.expand(batch, -1, -1, -1), maps.expand(batch, -1, -1, -1))


def split_and_complete(operator, kspace, sigma, sigma0, rng):
    """`complete_and_solve` of k-space that is made noisier here, with draws that are 0, and its target."""
    noise = diffusion.complex_noise(kspace.shape, rng, kspace.dtype)
    noisier = kspace + (diffusion.GAMMA - 1) ** 0.5 * sigma0[:, None, None, None] * operator.mask * noise
    nothing = torch.zeros(kspace.shape[0], *kspace.shape[-2:], dtype=kspace.dtype)
    x_sigma = complete_and_solve(operator, noisier, nothing, sigma, sigma0, rng)
    return x_sigma, independent_kspace(kspace, noisier)


def responses(diffuse, sigma, monkeypatch):
    """Dense responses of x_sigma to the data's noise and to every noise drawn inside; the target's to the first two."""
    kspace_size, image_size = COILS * SIZE**2, SIZE**2
    basis = {
        "kspace": torch.eye(kspace_size, dtype=torch.complex128).reshape(-1, COILS, SIZE, SIZE),
        "image": torch.eye(image_size, dtype=torch.complex128).reshape(-1, SIZE, SIZE),
    }

    inside = {diffuse_adjoint: "", perturb_and_solve: "i", split_and_complete: "ki"}[diffuse]

    def respond(kind, position):
        units = basis["image" if kind == "i" else "kspace"]
        operator = sense(len(units))
        kspace = operator.mask * units if kind == "data" else torch.zeros(len(units), COILS, SIZE, SIZE).cdouble()
        calls = []

        def noise(shape, rng, dtype):
            calls.append(shape)
            return units if kind != "data" and len(calls) - 1 == position else torch.zeros(shape, dtype=dtype)

        monkeypatch.setattr(diffusion, "complex_noise", noise)
        level = torch.full((len(units),), sigma, dtype=torch.float64)
        image, target = diffuse(operator, kspace, level, torch.full_like(level, SIGMA0), None)
        return image.flatten(1).T, target.flatten(1).T

    return respond("data", None), respond("drawn", 0), [respond(kind, p)[0] for p, kind in enumerate(inside, 1)]


@pytest.mark.parametrize("diffuse", [diffuse_adjoint, perturb_and_solve, split_and_complete])
@pytest.mark.parametrize("sigma", [0.07, 0.2, 1.0, 20.0])
def test_noise_is_exactly_white_and_independent_of_the_target(diffuse, sigma, monkeypatch):
    (data, target_data), (drawn, target_drawn), images = responses(diffuse, sigma, monkeypatch)
    covariance = SIGMA0**2 * data @ data.mH + drawn @ drawn.mH + sum(r @ r.mH for r in images)
    expected = sigma**2 * torch.eye(SIZE**2, dtype=torch.complex128)
    assert (covariance - expected).abs().max() < 1e-10 * max(1, sigma**2)
    cross = SIGMA0**2 * data @ target_data.mH + drawn @ target_drawn.mH
    assert cross.abs().max() < 1e-10
    control = SIGMA0**2 * data @ target_data.mH  # the target without its share of the drawn noise: y itself
    assert control.abs().max() > 1e-5


def test_a_fully_sampled_scan_passes_unchanged():
    """(1 + mu)(T + mu)^-1 T x = x at T = 1: without the factor the prior is useless."""
    operator = sense(1)
    full = SenseOperator(torch.ones_like(operator.mask), operator.sens_maps)
    image = complex_noise((1, SIZE, SIZE), generator(1), torch.complex128)
    tiny = torch.tensor([1e-9], dtype=torch.float64)
    sigma = lowest_solve_sigma(tiny) * 1.0001
    x_sigma, _ = perturb_and_solve(full, full.forward(image), sigma, tiny, generator(2))
    assert (x_sigma - image).abs().max() < 1e-7


@pytest.mark.parametrize("lines", [True, False])
def test_the_true_image_completes_its_scan_to_itself(lines, monkeypatch):
    """Without any noise x_sigma is x, at levels where the solve alone has lost a part of it."""
    monkeypatch.setattr(diffusion, "complex_noise", lambda shape, rng, dtype: torch.zeros(shape, dtype=dtype))
    operator = sense(1, lines=lines)
    image = complex_noise((1, SIZE, SIZE), generator(1), torch.complex128)
    sigma, sigma0 = (torch.tensor([value], dtype=torch.float64) for value in (0.08, SIGMA0))
    kspace = operator.forward(image)
    whole = complete_and_solve(operator, kspace, image, sigma, sigma0, None, tolerance=1e-10)
    assert (whole - image).abs().max() < 1e-7
    alone = complete_and_solve(operator, kspace, torch.zeros_like(image), sigma, sigma0, None)
    assert (alone - image).abs().square().sum() > 0.1 * image.abs().square().sum()


def test_a_noisier_scan_is_noisier_where_it_was_sampled_and_says_so():
    scan = random_scan(np.random.default_rng(0), (64, 64), noise=0.08)
    noisier = noisier_scan(scan, generator(3))
    added = (noisier.kspace - scan.kspace)[:, scan.mask > 0]
    assert float(added.abs().square().mean() / 2) == pytest.approx(noisier.noise_std**2 - scan.noise_std**2, rel=0.05)
    assert noisier.noise_std**2 == pytest.approx(diffusion.GAMMA * scan.noise_std**2)
    assert torch.equal(noisier.kspace[:, scan.mask == 0], scan.kspace[:, scan.mask == 0])


def test_conjugate_gradients_keep_the_noise_white_on_every_eigenvalue():
    size, draws, sigma = 10, 4000, 0.3
    operator = sense(1, size, lines=False, dtype=torch.float32, rate=6)
    units = torch.eye(size**2, dtype=torch.complex64).reshape(-1, size, size)
    many = SenseOperator(operator.mask.expand(size**2, -1, -1, -1), operator.sens_maps.expand(size**2, -1, -1, -1))
    values, vectors = torch.linalg.eigh(many.normal(units).flatten(1).T)
    many = SenseOperator(operator.mask.expand(draws, -1, -1, -1), operator.sens_maps.expand(draws, -1, -1, -1))
    assert not many.is_line_mask
    rng = generator(3)
    kspace = many.mask * SIGMA0 * complex_noise((draws, COILS, size, size), rng)
    x_sigma, _ = perturb_and_solve(
        many, kspace, torch.full((draws,), sigma), torch.full((draws,), SIGMA0), rng, tolerance=1e-5
    )
    variance = (x_sigma.flatten(1) @ vectors.conj()).abs().square().mean(0) / (2 * sigma**2)
    for group in torch.argsort(values).chunk(5):
        assert variance[group].mean() == pytest.approx(1, abs=0.03)


def test_the_smaller_root_does_not_cancel_in_float32():
    c = torch.tensor(np.append(np.logspace(-6, np.log10(0.2499), 200), 0.25), dtype=torch.float32)
    exact = smaller_root(c.double())
    assert (exact / (1 + exact) ** 2 / c - 1).abs().max() < 1e-12 and exact.max() <= 1
    assert (smaller_root(c) / exact - 1).abs().max() < 1e-5
    textbook = (1 - 2 * c - (1 - 4 * c).sqrt()) / (2 * c)
    assert (textbook / exact - 1).abs().max() > 1e-2


def test_the_shift_gives_the_noise_that_the_data_can_carry():
    """4 sigma^2 mu / (1 + mu)^2 = gamma sigma0^2, or more where c_min binds, never less than sigma0^2."""
    sigma = torch.logspace(np.log10(0.0566), 1.3, 60, dtype=torch.float64)
    mu = solve_shift(sigma, torch.tensor(SIGMA0, dtype=torch.float64))
    carried = 4 * sigma**2 * mu / (1 + mu) ** 2 / SIGMA0**2
    binds = sigma**2 * 4 * diffusion.C_MIN > diffusion.GAMMA * SIGMA0**2
    assert torch.allclose(carried[~binds], torch.full_like(carried[~binds], diffusion.GAMMA), rtol=1e-6)
    assert (carried[binds] >= diffusion.GAMMA - 1e-6).all() and binds.any() and (~binds).any()


@pytest.mark.parametrize("diffuse", [diffuse_adjoint, perturb_and_solve])
def test_target_variance_is_the_stated_one(diffuse):
    draws, sigma = 400, 0.12
    operator = sense(draws, dtype=torch.float32)
    rng = generator(5)
    noise = SIGMA0 * operator.mask * complex_noise((draws, COILS, SIZE, SIZE), rng)
    level = torch.full((draws,), sigma)
    _, target = diffuse(operator, noise, level, torch.full((draws,), SIGMA0), rng)
    kept = operator.mask.expand_as(target) > 0
    measured = float(target[kept].abs().square().mean()) / 2
    if diffuse is diffuse_adjoint:
        stated = SIGMA0**2 * sigma**2 / (sigma**2 - SIGMA0**2)
    else:
        stated = SIGMA0**2 * diffusion.GAMMA / (diffusion.GAMMA - 1)
    assert measured == pytest.approx(stated, rel=0.01)


def test_training_levels_have_their_distribution_one_by_one_and_fill_its_quantiles_together():
    low, high, rng = torch.tensor([0.01, 0.02, 0.05, 0.01]), 5.0, generator(0)
    normal = torch.distributions.Normal(-1.0, 1.2)
    drawn = torch.stack([draw_sigma(low, high, (-1.0, 1.2), rng) for _ in range(2000)]).log()
    below, above = normal.cdf(low.log()), normal.cdf(torch.tensor(high).log())
    quantile = (normal.cdf(drawn) - below) / (above - below)
    for entry in quantile.T:
        assert kstest(entry.numpy(), "uniform").pvalue > 1e-3
    assert ((4 * quantile.sort(dim=1).values).floor() == torch.arange(4)).all(), "one in every quarter"
    assert abs(torch.corrcoef(quantile.T)[0, 1] + 1 / 3) < 0.1, "of which any entry may have any"
