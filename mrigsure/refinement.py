"""The E-step of refinement: posterior draws of every training scan, as persistent chains (docs/method.md, section 6).

A chain is a scan's current draw. The first round draws as a reconstruction does; every later round adds noise of 2
sigma_data to the chain and draws from there. A spread below the truth's is compounded by every round, so each round
draws with an R that was calibrated on held-out lines just before (calibrate.py).

The first stage's prior is rough, and its draws hold the texture of R where nothing was measured, which takes rounds to
fade; nor can they complete a scan. So a round of point estimates comes first: they are sharp, and the spread that they
lack the draws bring back. New ones begin at sigma_max: the more levels lie near the image's own variance, the more
often the rough prior errs.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrigsure.diffusion import sigma_schedule
from mrigsure.gaussian import GaussianPrior
from mrigsure.posterior import draw, draw_levels
from mrigsure.scan import SIGMA_DATA, ScanSet, collate
from mrigsure.seeds import complex_noise, generator
from mrigsure.spread import Denoise, Spread

RESTART_SIGMA = 2 * SIGMA_DATA
SWEEPS, SWEEP_STEPS = 6, {"rough": 3, "fine": 8}
"""Of split Gibbs at the end of draws that complete scans. Without them the detail of R is left, which rounds do not
forget by themselves: a prior that learned it draws it again, and what scans say against it is little. Few steps are too
sure, which makes up for the noise that a rough prior lets pass, and is wrong of a better one."""


@dataclass(frozen=True)
class EStep:
    """How a round draws.

    denoise       the current prior
    spread        of R, calibrated
    estimates     a point estimate in place of draws, which are all the same then
    sweeps        of split Gibbs after every draw, of `sweep_steps` each
    levels        of every draw; too few leave in it the texture of R, which the round would learn
    samples       draws kept of each scan
    name          of the noise: draws of other names are independent
    sigma_max     where the prior ends
    sigma_min     where all end
    batch_size    draws at once
    share         (number, count) of the processes that divide the batches; this one draws every count-th
    """

    denoise: Denoise
    spread: Spread
    estimates: bool
    sweeps: int
    sweep_steps: int
    levels: int
    samples: int
    sigma_max: float
    sigma_min: float
    seed: int
    round_number: int
    batch_size: int
    device: object = "cpu"
    share: tuple[int, int] = (0, 1)
    name: str = "chains"

    def update(self, scans: ScanSet, indices: Sequence[int], chains: dict[int, Tensor]) -> Iterable[int]:
        """Replace the chains of the scans `indices` by new draws; yields the number of scans done after each batch.

        chains  scan index -> complex64 (samples, H, W) on the CPU, changed in place
        The draws depend on the seed, the round and the scans' order alone.
        """
        repeats, done = 1 if self.estimates else self.samples, 0
        for part in _batches(scans, indices, chains, max(1, self.batch_size // repeats), self.share):
            rng = generator(self.seed, self.name, self.round_number, part[0], device=self.device)
            batch = _repeated(scans, part, repeats).to(self.device)
            state, sigmas = None, draw_levels(self.levels, self.sigma_min, self.sigma_max)
            if part[0] in chains:
                current = torch.cat([chains[i][:repeats] for i in part]).to(self.device)
                state = current + RESTART_SIGMA * complex_noise(current.shape, rng)
                sigmas = draw_levels(self.levels, self.sigma_min, RESTART_SIGMA)
            elif self.estimates:
                sigmas = sigma_schedule(self.levels, self.sigma_max, self.sigma_min)
                state = self.sigma_max * complex_noise((len(batch.kspace), *batch.kspace.shape[-2:]), rng)
            quiet, sweeps = (math.inf, 0) if self.estimates else (0.0, self.sweeps)
            options = {"spread": self.spread, "quiet_sigma": quiet, "sweeps": sweeps, "generator": rng, "start": state}
            drawn = draw(self.denoise, batch, sigmas, sweep_steps=self.sweep_steps, **options)
            for index, images in zip(part, drawn.cpu().unflatten(0, (len(part), repeats)), strict=True):
                chains[index] = images.expand(self.samples, -1, -1).clone()
            done += len(part)
            yield done


def gaussian_chains(
    prior: GaussianPrior,
    scans: ScanSet,
    indices: Sequence[int],
    chains: dict[int, Tensor],
    *,
    samples: int,
    seed: int,
    batch_size: int,
    device="cpu",
    share: tuple[int, int] = (0, 1),
    name: str = "chains",
) -> Iterable[int]:
    """The first chains where a Gaussian stands for the first stage: exact draws; yields the number of scans done."""
    done = 0
    for part in _batches(scans, indices, chains, max(1, batch_size // samples), share):
        rng = generator(seed, "gaussian", name, part[0], device=device)
        batch = _repeated(scans, part, samples).to(device)
        drawn = prior.draw(batch, rng).cpu().unflatten(0, (len(part), samples))
        chains.update({index: images.clone() for index, images in zip(part, drawn, strict=True)})
        done += len(part)
        yield done


def _repeated(scans, indices, count):
    """A batch of each scan `count` times; a scan is read once."""
    return collate([scan for index in indices for scan in [scans[index]] * count])


def _batches(scans, indices, chains, size, share):
    """Scans of one matrix size, all with a chain or all without: every count-th batch of this process's share."""
    number, count = share
    groups = {}
    for index in indices:
        groups.setdefault((scans.shapes[index], index in chains), []).append(index)
    every = [members[i : i + size] for members in groups.values() for i in range(0, len(members), size)]
    return every[number::count]
