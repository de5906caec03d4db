import numpy as np

from data_prep.readout import crop_readout, readout_image


def test_crop_keeps_the_image_the_noise_level_and_empty_lines(make_kspace):
    kspace = make_kspace((64, 56))
    kspace[..., ::3] = 0
    cropped = crop_readout(kspace, 32)
    assert np.allclose(readout_image(cropped), readout_image(kspace)[..., 16:48, :], atol=1e-4)
    assert not cropped[..., ::3].any()
    noise = np.random.default_rng(0).standard_normal((64, 500, 2)) @ [1, 1j]
    assert abs(np.std(crop_readout(noise, 32)) / np.std(noise) - 1) < 0.02
