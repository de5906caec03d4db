"""The Fourier pair is fastmri's and sigpy's, and cropping keeps the centre."""

import numpy as np
import pytest
import torch

from mrigsure.fourier import center_crop, center_pad, fft2c, ifft2c, radial_bands
from mrigsure.seeds import complex_noise, generator

SHAPES = [(8, 8), (7, 10), (9, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_fastmri_and_sigpy(shape):
    import fastmri
    import sigpy

    image = complex_noise((2, *shape), generator(0))
    ours = fft2c(image)
    theirs = torch.view_as_complex(fastmri.fft2c(torch.view_as_real(image)).contiguous())
    assert (ours - theirs).abs().max() < 1e-6
    assert np.abs(ours.numpy() - sigpy.fft(image.numpy(), axes=(-2, -1))).max() < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_is_unitary(shape):
    image = complex_noise(shape, generator(1), torch.complex128)
    assert (ifft2c(fft2c(image)) - image).abs().max() < 1e-12
    assert fft2c(image).norm() == pytest.approx(float(image.norm()), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_keeps_the_centre_where_the_transform_wants_it(shape):
    """Zero-filling k-space interpolates the image: its mean, at k = 0, stays."""
    kspace = fft2c(complex_noise(shape, generator(2)))
    padded = center_pad(kspace, (12, 13))
    assert torch.equal(center_crop(padded, shape), kspace)
    assert padded[6, 6] == kspace[shape[0] // 2, shape[1] // 2]


def test_radial_bands_grow_outwards_in_both_directions():
    bands = radial_bands((16, 32), 4)
    assert bands[8, 16] == 0
    assert bands[0, 16] == bands[8, 0] == bands[0, 0] == 3
    assert (bands[8, 16:].diff() >= 0).all()
