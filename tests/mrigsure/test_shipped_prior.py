"""The prior that ships, on a head that it never saw and at matrix sizes that it was not trained at."""

import numpy as np
import pytest
import torch

from mrigsure.denoiser import load_prior
from mrigsure.phantoms import TEST_HEADS, random_scan, random_slice
from mrigsure.posterior import posterior_samples
from mrigsure.scan import SIGMA_DATA
from mrigsure.seeds import complex_noise, generator

SIZES = [(230, 180), (320, 320)]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("sigma", [0.3, 3.0])
def test_it_denoises_far_better_than_the_best_linear_shrinkage(shape, sigma):
    image = torch.from_numpy(SIGMA_DATA * random_slice(np.random.default_rng(0), shape, TEST_HEADS))[None]
    denoised = load_prior().denoise(image + sigma * complex_noise(image.shape, generator(1)), sigma)
    error = float((denoised - image).abs().square().mean() / image.abs().square().mean())
    power = float(image.abs().square().mean() / 2)
    assert error < 0.4 * sigma**2 / (sigma**2 + power)


def test_draws_at_another_size_are_nearer_to_the_truth_than_the_zero_filled_image():
    scan = random_scan(np.random.default_rng(1), SIZES[0], coils=4, acceleration=4, heads=TEST_HEADS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        drawn = posterior_samples(load_prior(), scan.batch(), samples=2, levels=8, generator=generator(2))[0].mean(0)
    zero_filled = scan.batch().operator.adjoint(scan.kspace[None])[0]
    errors = [float((image.abs() - scan.target.abs()).square().sum()) for image in (drawn, zero_filled)]
    assert errors[0] < 0.8 * errors[1]
