"""Posterior samplers behind one signature: the project's own ("default") and the published ones, as references.

docs/samplers.md has what each claims, what it costs, and its measured bias on a Gaussian prior with known posterior.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from mrigsure.denoiser import Prior
from mrigsure.errors import InputError
from mrigsure.posterior import START_SIGMA, draw, draw_levels, lowest_level
from mrigsure.scan import ScanBatch
from mrigsure.seeds import Randomness, some
from mrigsure.spread import PixelSpectrumSpread
from recon.samplers.ald import ald
from recon.samplers.common import Denoise
from recon.samplers.daps import daps
from recon.samplers.dds import dds
from recon.samplers.diffpir import diffpir
from recon.samplers.dps import dps
from recon.samplers.mmps import mmps
from recon.samplers.pigdm import pigdm
from recon.samplers.ula import ula


class Sampler(Protocol):
    def __call__(
        self,
        denoise: Denoise,
        batch: ScanBatch,
        *,
        nfe: int,
        sigma_max: float,
        sigma_min: float,
        generator: torch.Generator,
    ) -> Tensor:
        """One sample of every scan: complex (batch, H, W), of kspace's precision, in prepared units, without gradients.

        denoise    f(x, sigma) = E[x | x + sigma w], complex (batch, H, W) and real (batch,); gradients flow to x
        nfe        budget of evaluations of `denoise` a sample, from which the sampler makes its noise levels; backward
                   passes are not counted, each module says how many it takes
        sigma_max, sigma_min  highest and lowest level
        Raises InputError for a budget of fewer than 2 levels and, but for the default, for several sets of maps.
        """


def default_sampler(spread: PixelSpectrumSpread) -> Sampler:
    """The project's own (mrigsure/posterior.py; docs/method.md, section 7). A prior's spread is `prior.spread`."""

    @torch.no_grad()
    def default(denoise, batch, *, nfe, sigma_max, sigma_min, generator):
        if nfe < 3:
            raise InputError("nfe", str(nfe), "at least 3, for two levels")
        sigmas = draw_levels(spread.most_levels(nfe), sigma_min, sigma_max)
        return draw(denoise, batch, sigmas, spread=spread, generator=generator)

    return default


DEFAULT = "default"
SAMPLERS: dict[str, Sampler] = {
    DEFAULT: default_sampler(PixelSpectrumSpread()),
    "ald": ald,
    "daps": daps,
    "dds": dds,
    "diffpir": diffpir,
    "dps": dps,
    "mmps": mmps,
    "pigdm": pigdm,
    "ula": ula,
}


def draws(
    sampler_name: str,
    prior: Prior,
    batch: ScanBatch,
    *,
    samples: int,
    nfe: int,
    generator: Randomness,
    chunk: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Samples of every scan under a prior: complex (batch, samples, H, W), in prepared units.

    All begin at START_SIGMA, where each of them but pigdm at many levels does better than higher up (docs/samplers.md).

    sampler_name  one of `SAMPLERS`; the default takes the prior's calibrated spread
    nfe           network evaluations a sample
    generator     one for all; or one for every sample, scan by scan, which makes them the same for any `chunk`
    chunk         samples computed at once
    progress      called after every evaluation with those done and to be done, over all samples
    Raises InputError for a name that is unknown, and where the sampler does.
    """
    if sampler_name not in SAMPLERS:
        raise InputError("sampler", repr(sampler_name), f"one of {', '.join(SAMPLERS)}")
    sample = default_sampler(prior.spread) if sampler_name == DEFAULT else SAMPLERS[sampler_name]
    lowest = lowest_level(prior, batch)
    scans = batch.sigma0.shape[0]
    done, total = 0, nfe * samples * scans

    def denoise(x, sigma):
        nonlocal done
        done += len(x)
        if progress:
            progress(min(done, total), total)
        return prior(x, sigma)

    images = [
        sample(
            denoise,
            _repeated(batch, items),
            nfe=nfe,
            sigma_max=min(START_SIGMA, prior.config.sigma_max),
            sigma_min=lowest,
            generator=some(generator, number * chunk, (number + 1) * chunk),
        )
        for number, items in enumerate(torch.arange(scans).repeat_interleave(samples).split(chunk))
    ]
    return torch.cat(images).unflatten(0, (scans, samples))


def _repeated(batch, items):
    """The scans `items`; of one scan alone mask and maps are kept once, so that its solves are factorised once."""
    shared = items[:1] if bool((items == items[0]).all()) else items
    return ScanBatch(
        batch.kspace[items], batch.mask[shared], batch.sens_maps[shared], batch.density[shared], batch.sigma0[items]
    )
