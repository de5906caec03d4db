"""Images with missing patches: the corruption has the stated law, drawing and inpainting the stated outcome."""

import pytest
import torch

from mrigsure.kawar import Masked, VPSchedule
from mrigsure.masked_images import SIGNAL_VARIANCE, corrupt, generate, inpaint, patch_mask
from mrigsure.seeds import generator

SCHEDULE = VPSchedule()


def exact(x_t, step):
    """E[x | x_t] for white Gaussian images of the variance that `inpaint` assumes."""
    keep = SCHEDULE.alpha_bar[step].to(x_t)[:, None, None]
    return keep.sqrt() * SIGNAL_VARIANCE / (keep * SIGNAL_VARIANCE + 1 - keep) * x_t


def test_whole_patches_are_missing_with_the_stated_probability():
    mask = patch_mask(4000, (5, 6), 2, 0.3, generator(0))
    assert mask.shape == (4000, 5, 6) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert (mask[:, 0, 0] == mask[:, 1, 1]).all() and (mask[:, 4, 4] == mask[:, 4, 5]).all()
    assert (mask[:, 1, 1] != mask[:, 2, 1]).any() and (mask[:, 1, 1] != mask[:, 1, 2]).any()
    assert (mask.mean(0) - 0.7).abs().max() < 4 * (0.21 / 4000) ** 0.5


def test_noise_lies_on_what_is_measured_and_nowhere_else():
    data = corrupt(torch.full((3000, 4, 4), 2.0), 2, 0.5, 0.1, generator(1))
    inside = data.values[data.mask > 0]
    assert (data.values[data.mask == 0] == 0).all() and (data.density == 0.5).all()
    assert float(inside.mean()) == pytest.approx(2, abs=0.003)
    assert float(inside.std()) == pytest.approx(0.1, rel=0.03)


def test_generated_images_have_the_prior_s_variance():
    images = generate(exact, (4000, 3, 3), SCHEDULE, generator(2), levels=200)
    assert float(images.var()) == pytest.approx(SIGNAL_VARIANCE, rel=0.05)


def test_inpainting_draws_from_the_posterior():
    """White Gaussian pixels: N(gain y, gain sigma0^2) where measured, the prior where missing."""
    sigma0, count = 0.4, 6000
    mask = torch.zeros(count, 2, 2)
    mask[:, 0] = 1
    data = Masked(mask * 0.9, mask, torch.full_like(mask, 0.5), torch.full((count,), sigma0), fourier=False)
    drawn = inpaint(exact, data, SCHEDULE, generator(3), levels=40)
    gain = SIGNAL_VARIANCE / (SIGNAL_VARIANCE + sigma0**2)
    assert float(drawn[:, 0].mean()) == pytest.approx(gain * 0.9, abs=0.02)
    assert float(drawn[:, 0].var()) == pytest.approx(gain * sigma0**2, rel=0.06)
    assert float(drawn[:, 1].mean()) == pytest.approx(0, abs=0.03)
    assert float(drawn[:, 1].var()) == pytest.approx(SIGNAL_VARIANCE, rel=0.06)
