"""A small simulated acquisition as raw k-space, for the tests of stage 1."""

import numpy as np
import pytest
import torch

from mrigsure.fourier import fft2c


def make_kspace(shape=(64, 56), coils=4, slices=1, noise_std=0.05, covariance=None, seed=0):
    """Ellipses of standard deviation 1 with phase, seen by `coils`; complex64 (slices, coils, H, W)."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    image = np.zeros((slices, *shape), np.complex64)
    for number in range(slices):
        image[number] += ((y / 0.7) ** 2 + (x / 0.6) ** 2 < 1) * 1.5
        image[number] -= ((y + 0.1 * number) ** 2 / 0.06 + (x - 0.2) ** 2 / 0.03 < 1) * 0.9
    image *= np.exp(1j * (0.6 * x + 0.8 * y**2))
    maps = make_maps(shape, coils)
    noise = rng.standard_normal((slices, coils, *shape)) + 1j * rng.standard_normal((slices, coils, *shape))
    factor = np.eye(coils) if covariance is None else np.linalg.cholesky(covariance)
    noise = np.einsum("cd,sdyx->scyx", factor, noise)
    clean = fft2c(torch.from_numpy(maps * image[:, None])).numpy()
    return (clean + noise_std * noise).astype(np.complex64)


def make_maps(shape, coils):
    """Smooth sensitivities, sum |S|^2 = 1: complex64 (coils, H, W)."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    angle = 2 * np.pi * np.arange(coils)[:, None, None] / coils
    distance = (y - np.sin(angle)) ** 2 + (x - np.cos(angle)) ** 2
    maps = np.exp(-distance / 2 + 1j * (angle + 0.5 * x * np.cos(angle)))
    return (maps / np.linalg.norm(maps, axis=0)).astype(np.complex64)


@pytest.fixture(name="make_kspace", scope="session")
def _make_kspace():
    return make_kspace


@pytest.fixture(name="make_maps", scope="session")
def _make_maps():
    return make_maps
