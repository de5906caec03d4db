"""Images with missing patches and noise, the second degradation of GSURE-Diffusion: making, drawing, inpainting.

y = M (x + z): M drops square patches of a fixed grid, each with the same probability; z is white of level sigma0. All
images are real, (batch, H, W). The objective is kawar.gsure_vp; networks are conditioned on the step alone.
"""

import torch
from torch import Tensor

from mrigsure.kawar import DenoiseAtStep, Masked, VPSchedule

SIGNAL_VARIANCE = 0.5  # of pixels scaled to [-1, 1]


def patch_mask(count: int, shape: tuple[int, int], patch: int, missing: float, generator: torch.Generator) -> Tensor:
    """Masks (count, H, W), 0 on the patch x patch squares that are dropped, each with probability `missing`.

    The grid starts at the upper left corner; the last squares may be cut by the border.
    """
    height, width = shape
    kept = torch.rand(count, -(-height // patch), -(-width // patch), generator=generator) >= missing
    return kept.float().repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, :height, :width]


def corrupt(images: Tensor, patch: int, missing: float, sigma0: float, generator: torch.Generator) -> Masked:
    """One measurement of every image: patches missing, noise on the rest."""
    mask = patch_mask(len(images), tuple(images.shape[1:]), patch, missing, generator)
    noise = torch.randn(images.shape, generator=generator)
    return Masked(
        values=mask * (images + sigma0 * noise),
        mask=mask,
        density=torch.full_like(mask, 1 - missing),
        sigma0=torch.full((len(images),), sigma0),
        fourier=False,
    )


@torch.no_grad()
def generate(
    denoise: DenoiseAtStep,
    shape: tuple[int, int, int],
    schedule: VPSchedule,
    generator: torch.Generator,
    *,
    levels: int = 50,
    last: int = 0,
) -> Tensor:
    """Images (count, H, W) by DDIM (Song et al. 2021, eta = 0), from pure noise down to step `last`."""
    x_t = torch.randn(shape, generator=generator)
    steps = _falling(schedule, levels, last)
    for step, following in zip(steps, steps[1:], strict=False):
        x0 = denoise(x_t, torch.full(shape[:1], step))
        now, then = schedule.alpha_bar[step], schedule.alpha_bar[following]
        w = (x_t - float(now.sqrt()) * x0) / float((1 - now).sqrt())
        x_t = float(then.sqrt()) * x0 + float((1 - then).sqrt()) * w
    return denoise(x_t, torch.full(shape[:1], last))


@torch.no_grad()
def inpaint(
    denoise: DenoiseAtStep,
    data: Masked,
    schedule: VPSchedule,
    generator: torch.Generator,
    *,
    levels: int = 30,
    last: int = 0,
) -> Tensor:
    """One posterior draw for every image of `data`, (batch, H, W): docs/method.md, section 7, with M diagonal.

    At each level the denoised image and the measurement are weighed by r^2 = sigma^2 s^2 / (sigma^2 + s^2) and
    sigma0^2, both perturbed, so that the outcome is a draw; the last level returns the mean. The network sees the
    state and the step; mask and measurement enter here alone, so that any mask can be inpainted by one network.
    """
    sigma0 = data.sigma0[:, None, None]
    x_t = data.noise(generator)
    steps = _falling(schedule, levels, last)
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        x0 = denoise(x_t, torch.full((len(x_t),), step))
        variance = float(schedule.sigma[step] ** 2)
        r2 = variance * SIGNAL_VARIANCE / (variance + SIGNAL_VARIANCE)
        gain = data.mask * r2 / (r2 + sigma0.square())
        if following is None:
            return x0 + gain * (data.values - x0)
        guess = x0 + r2**0.5 * data.noise(generator)
        drawn = guess + gain * (data.values + sigma0 * data.noise(generator) - guess)
        then = schedule.alpha_bar[following]
        x_t = float(then.sqrt()) * drawn + float((1 - then).sqrt()) * data.noise(generator)
    raise ValueError("levels is 0")


def _falling(schedule: VPSchedule, levels: int, last: int) -> list[int]:
    return torch.linspace(schedule.steps - 1, last, levels).round().long().tolist()
