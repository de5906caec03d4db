"""Unconditional samples of a prior: the probability-flow equation, from noise to image, with no measurement."""

from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

import mrigsure
from mrigsure.denoiser import Prior, load_prior
from mrigsure.devices import pick_device
from mrigsure.diffusion import sigma_schedule
from mrigsure.errors import InputError
from mrigsure.files import atomic
from mrigsure.progress import say, track
from mrigsure.seeds import complex_noise, generator
from mrigsure.settings import SampleSettings


def sample_prior(prior: Prior, shape: tuple[int, int, int], levels: int, rng: torch.Generator) -> Tensor:
    """Images (count, H, W), complex64: Heun's steps down a rho = 7 schedule (Karras et al. 2022, algorithm 1)."""
    sigmas = sigma_schedule(max(levels // 2, 2), prior.config.sigma_max, prior.config.sigma_min).tolist()
    x = sigmas[0] * complex_noise(shape, rng)

    def slope(state, sigma):
        return (state - prior.denoise(state, torch.full(shape[:1], sigma, device=state.device))) / sigma

    for sigma, following in track(list(zip(sigmas, sigmas[1:], strict=False)), "sampling"):
        first = slope(x, sigma)
        trial = x + (following - sigma) * first
        x = x + (following - sigma) * (first + slope(trial, following)) / 2
    return prior.denoise(x, torch.full(shape[:1], sigmas[-1], device=x.device))


def sample(settings: SampleSettings) -> Path:
    """Draw images and write OUT.h5 (`samples`, complex64) and OUT.png; returns the .h5 path."""
    if settings.count < 1 or settings.levels < 4:
        raise InputError("sample", f"count {settings.count}, levels {settings.levels}", "count >= 1, levels >= 4")
    device = pick_device(settings.device)
    prior = load_prior(settings.prior, device)
    size = (settings.matrix, settings.matrix) if isinstance(settings.matrix, int) else tuple(settings.matrix)
    rng = generator(settings.seed, "sample", device=device)
    images = sample_prior(prior, (settings.count, *size), settings.levels, rng).cpu().numpy()
    path = Path(settings.out).with_suffix(".h5")
    with atomic(path) as partial, h5py.File(partial, "w") as file:
        file["samples"] = images
        file.attrs.update(prior=prior.name, prior_sha256=prior.sha256, seed=settings.seed, version=mrigsure.__version__)
    _picture(path.with_suffix(".png"), np.abs(images))
    say(f"{settings.count} samples of {prior.name} ({prior.sha256[:8]}) in {path} and {path.with_suffix('.png')}")
    return path


def _picture(path, magnitudes):
    from matplotlib.figure import Figure

    columns = min(4, len(magnitudes))
    rows = -(-len(magnitudes) // columns)
    height, width = magnitudes.shape[-2:]
    figure = Figure(figsize=(2.5 * columns, 2.5 * rows * height / width), facecolor="black", layout="constrained")
    for axis, image in zip(figure.subplots(rows, columns, squeeze=False).flat, magnitudes, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=np.quantile(image, 0.995), interpolation="nearest")
    for axis in figure.axes:
        axis.set_axis_off()
    with atomic(path) as partial:
        figure.savefig(partial, dpi=150, facecolor="black")
