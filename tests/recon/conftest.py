"""A small simulated scan, a Gaussian prior, and a prepared file, for the tests of stage 3."""

import numpy as np
import pytest
import torch

from mrigsure.denoiser import DenoiserConfig, Prior
from mrigsure.fourier import fft2c
from mrigsure.masks import make_mask, sampling_density
from mrigsure.scan import PreparedVolume, Scan, write_prepared


def _image(shape):
    """A head-like slice: nested ellipses, fine bars, smooth phase; standard deviation 0.5 in the body."""
    height, width = shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")

    def ellipse(cy, cx, ry, rx):
        return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1

    image = 0.6 * ellipse(0, 0, 0.85, 0.7) + 0.4 * ellipse(0, 0, 0.75, 0.6)
    image -= 0.5 * ellipse(-0.1, 0.2, 0.3, 0.12) + 0.5 * ellipse(-0.1, -0.2, 0.3, 0.12)
    image += 0.3 * ellipse(0.4, 0, 0.2, 0.4) * (np.sin(24 * x) > 0)
    image = image * np.exp(1j * (0.8 * x + 0.5 * y**2))
    body = np.abs(image) > 0
    return image * 0.5 / np.sqrt(np.mean(np.abs(image[body]) ** 2) / 2)


def _maps(shape, coils):
    height, width = shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    angles = 2 * np.pi * np.arange(coils)[:, None, None] / coils
    cy, cx = 1.2 * np.sin(angles), 1.2 * np.cos(angles)
    maps = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 1.5 + 1j * (angles + 0.7 * x * np.cos(angles)))
    return maps / np.sqrt((np.abs(maps) ** 2).sum(0))


def make_scan(shape=(48, 40), coils=4, pattern="random", acceleration=2.5, noise_std=0.03, seed=0) -> Scan:
    """Patterns of mrigsure.masks, or "points": independent random points around a full centre."""
    if pattern == "points":
        density = np.full(shape, 1 / acceleration)
        density[shape[0] // 2 - 4 : shape[0] // 2 + 4, shape[1] // 2 - 4 : shape[1] // 2 + 4] = 1
        mask = np.random.default_rng(seed).uniform(size=shape) < density
    else:
        mask = make_mask(pattern, shape, acceleration, 0.15, seed)
        density = sampling_density(pattern, shape, acceleration, 0.15)
    generator = torch.Generator().manual_seed(seed)
    target = torch.from_numpy(_image(shape)).to(torch.complex64)
    maps = torch.from_numpy(_maps(shape, coils)).to(torch.complex64)
    kspace = fft2c(maps * target)
    noise = torch.randn(kspace.shape + (2,), generator=generator)
    plane = torch.from_numpy(np.broadcast_to(mask, shape).astype(np.float32).copy())
    return Scan(
        kspace=(kspace + noise_std * torch.view_as_complex(noise)) * plane,
        mask=plane,
        sens_maps=maps,
        density=torch.from_numpy(np.broadcast_to(density, shape).astype(np.float32).copy()),
        noise_std=noise_std,
        name="phantom#0",
        target=target,
    )


def write_scan(path, scan: Scan, slices=1, scale=1.0, target=False, geometry=None):
    """The scan as every slice of a prepared file, slice i being brighter by 1 + i / 10."""
    gains = (1 + np.arange(slices) / 10)[:, None, None, None]
    write_prepared(
        path,
        PreparedVolume(
            kspace=scan.kspace.numpy()[None] * gains,
            mask=scan.mask.numpy(),
            sens_maps=np.repeat(scan.sens_maps.numpy()[None], slices, 0),
            sampling_density=scan.density.numpy(),
            noise_std=scan.noise_std,
            scale=scale,
            source="phantom",
            target=scan.target.numpy()[None] * gains[:, 0] if target else None,
            geometry=geometry,
        ),
    )
    return path


@pytest.fixture(name="make_scan")
def _make_scan():
    return make_scan


@pytest.fixture(name="write_scan")
def _write_scan():
    return write_scan


class _Wiener(torch.nn.Module):
    """E[x | x + sigma w] for white Gaussian images of standard deviation `sigma_data` per real part."""

    def __init__(self, sigma_data=0.5):
        super().__init__()
        self.variance = torch.nn.Parameter(torch.tensor(sigma_data**2))

    def forward(self, x, sigma):
        return x * (self.variance / (self.variance + sigma[:, None, None] ** 2))


@pytest.fixture
def gaussian_prior():
    training = {"archive": {"noise_std": [0.02, 0.06], "matrix": [[48, 40], [40, 48]]}}
    return Prior(
        denoiser=_Wiener(),
        config=DenoiserConfig(sigma_max=10.0),
        record=training,
        name="gaussian",
        sha256="0" * 64,
    )
