"""The encoding operator and its solves."""

import pytest
import torch

from mrigsure.operators import SenseOperator, conjugate_gradients
from mrigsure.seeds import complex_noise, generator


def operator(lines, batch=2, coils=4, shape=(12, 10), sets=None):
    rng = generator(0, lines)
    maps = complex_noise((batch, coils, *shape), rng)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    if sets:
        many = torch.linalg.qr(complex_noise((batch, *shape, coils, sets), rng))[0]
        maps = many.permute(0, 4, 3, 1, 2)
    mask = (torch.rand(batch, 1, 1 if lines else shape[0], shape[1], generator=rng) < 0.4).float()
    return SenseOperator(mask.expand(batch, 1, *shape), maps)


@pytest.mark.parametrize("lines", [True, False])
def test_adjoint(lines):
    a = operator(lines)
    rng = generator(1)
    image, kspace = complex_noise((2, 12, 10), rng), complex_noise((2, 4, 12, 10), rng)
    left = (a.forward(image).conj() * kspace).sum()
    right = (image.conj() * a.adjoint(kspace)).sum()
    assert abs(left - right) < 1e-5 * abs(left)


@pytest.mark.parametrize("lines", [True, False])
def test_white_noise_of_the_samples_has_the_covariance_of_the_normal_operator_in_the_image(lines):
    shape, coils, images = (4, 6), 2, torch.eye(24, dtype=torch.complex64).view(-1, 4, 6)
    a = operator(lines, batch=1, coils=coils, shape=shape)
    assert torch.equal(a.samples(1)[0], torch.fft.ifftshift(a.mask[0, 0]).flatten().nonzero()[:, 0])
    count = coils * len(a.samples(1)[0])
    each = torch.eye(count, dtype=torch.complex64).view(count, coils, -1)
    seen = torch.cat([a.normal(torch.zeros(1, *shape), [noise]) for noise in each]).flatten(1)
    normal = torch.cat([a.normal(image[None]) for image in images]).flatten(1).T
    assert (seen.T @ seen.conj() - normal).abs().max() < 1e-5
    both = a.normal(images[:1], [each[0]])
    assert (both - a.normal(images[:1]) - seen[0].view(shape)).abs().max() < 1e-6


@pytest.mark.parametrize("lines", [True, False])
def test_the_normal_operator_is_the_adjoint_of_the_forward(lines):
    a, image = operator(lines), complex_noise((2, 12, 10), generator(6))
    assert (a.normal(image) - a.adjoint(a.forward(image))).abs().max() < 1e-5


def test_full_sampling_is_the_identity():
    a = operator(True)
    full = SenseOperator(torch.ones_like(a.mask), a.sens_maps)
    image = complex_noise((2, 12, 10), generator(2))
    assert (full.normal(image) - image).abs().max() < 1e-5


def test_row_matrices_are_the_normal_operator_of_a_line_mask():
    a = operator(True)
    image = complex_noise((2, 12, 10), generator(3))
    by_rows = (a.row_matrices @ image[..., None])[..., 0]
    assert (by_rows - a.normal(image)).abs().max() < 1e-5


@pytest.mark.parametrize("factorised", [True, False])
@pytest.mark.parametrize("lines", [True, False])
def test_solve_inverts_the_shifted_normal_operator(lines, factorised):
    a = operator(lines)
    if factorised:
        a.factorise()
    assert a.is_line_mask == lines
    rhs, shift = complex_noise((2, 12, 10), generator(4)), torch.tensor([0.006, 0.3])
    x = a.solve(rhs, shift, tolerance=1e-6)
    back = a.normal(x) + shift[:, None, None] * x
    assert (back - rhs).abs().max() < 1e-4 * rhs.abs().max()


def test_conjugate_gradients_start_where_told_and_say_when_they_fail():
    diagonal = torch.logspace(-6, 0, 40, dtype=torch.float64)[None]
    rhs = torch.ones(1, 40, dtype=torch.float64)
    solution = rhs / diagonal
    assert torch.equal(conjugate_gradients(lambda x: diagonal * x, rhs, start=solution), solution)
    with pytest.raises(ArithmeticError, match="relative residual"):
        conjugate_gradients(lambda x: diagonal * x, rhs, max_iterations=5)


@pytest.mark.parametrize("lines", [True, False])
def test_sets_of_maps_keep_every_property(lines):
    """Adjoint; S is the sum over sets; S^H S = 1, so that white noise in k-space is white over all images; solves."""
    a, rng = operator(lines, sets=2), generator(5)
    image, kspace = complex_noise((2, 2, 12, 10), rng), complex_noise((2, 4, 12, 10), rng)
    left, right = (a.forward(image).conj() * kspace).sum(), (image.conj() * a.adjoint(kspace)).sum()
    assert abs(left - right) < 1e-5 * abs(left)
    each = [SenseOperator(a.mask, a.sens_maps[:, number]).forward(image[:, number]) for number in range(2)]
    assert (a.forward(image) - sum(each)).abs().max() < 1e-5
    full = SenseOperator(torch.ones_like(a.mask), a.sens_maps)
    assert (full.adjoint(full.forward(image)) - image).abs().max() < 1e-5
    assert (a.normal(image) - a.adjoint(a.forward(image))).abs().max() < 1e-5
    shift = torch.tensor([0.006, 0.3])
    x = a.solve(image, shift, tolerance=1e-6)
    assert (a.normal(x) + shift[:, None, None, None] * x - image).abs().max() < 1e-4 * image.abs().max()
    a.factorise()
    assert (a.solve(image, shift, tolerance=1e-6) - x).abs().max() < 1e-3 * x.abs().max()
