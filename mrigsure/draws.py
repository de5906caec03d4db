"""The images that a round learns from: which scans are drawn anew, and how.

from round 1 on      posterior draws under the current prior, as persistent chains (refinement.py); where scans
                     teach too (settings.targets) they are given more noise, of which y~ is independent; beside them
                     comes a pair of images for the levels that draws alone teach
start gaussian       the first draws come from a Gaussian fitted to the scans instead (gaussian.py)
objective denoised   the first images are the fully sampled noisy scans themselves, denoised once
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from mrigsure.archive import Archive
from mrigsure.devices import at_once
from mrigsure.diffusion import noisier_scan
from mrigsure.gaussian import fit_gaussian
from mrigsure.refinement import SWEEP_STEPS, SWEEPS, EStep, gaussian_chains
from mrigsure.scan import Scan, ScanSet
from mrigsure.seeds import complex_noise, generator
from mrigsure.settings import TrainSettings
from mrigsure.shrinkage import mean_gain
from mrigsure.spread import Denoise, Spread

Draw = Callable[..., Iterable[int]]
_GAUSSIAN_SCANS = 96


def split_scan(scan: Scan, seed: int, round_number: int, index: int) -> Scan:
    """The scan with more noise that its draws are made from, the same all through a round."""
    return noisier_scan(scan, generator(seed, "split", round_number, index))


@dataclass(frozen=True)
class _SplitScans(Sequence):
    """`split_scan` of every scan."""

    scans: ScanSet
    seed: int
    round_number: int

    def __len__(self):
        return len(self.scans)

    def __getitem__(self, index):
        return split_scan(self.scans[index], self.seed, self.round_number, index)

    @property
    def shapes(self):
        return self.scans.shapes


@dataclass(frozen=True)
class _SimulatedScans(Sequence):
    """The scans as they would have been, other noise and all, had these images, complex (1, H, W), been what was
    scanned."""

    scans: ScanSet
    images: Mapping[int, Tensor]
    seed: int
    round_number: int

    def __len__(self):
        return len(self.scans)

    def __getitem__(self, index):
        scan, rng = self.scans[index], generator(self.seed, "simulated", self.round_number, index)
        noise = scan.noise_std * complex_noise(scan.kspace.shape, rng, scan.kspace.dtype)
        whole = scan.batch().operator.coil_kspace(self.images[index])[0]
        return replace(scan, kspace=scan.mask * (whole + noise))

    @property
    def shapes(self):
        return self.scans.shapes


def scans_to_draw(settings: TrainSettings, archive: Archive, round_number: int) -> list[int]:
    """The training scans whose draws this round replaces, sorted: all in turn, in an order of its own each time; the
    last round of a turn is filled up with its first scans."""
    pool = archive.training
    count = min(settings.round_scans or len(pool), len(pool))
    turn, place = divmod(round_number - 1, -(-len(pool) // count))
    order = torch.randperm(len(pool), generator=generator(settings.seed, "scans", turn)).tolist()
    return sorted(pool[order[(place * count + k) % len(pool)]] for k in range(count))


def how_to_draw(
    settings: TrainSettings,
    archive: Archive,
    round_number: int,
    *,
    denoise: Denoise,
    spread: Spread,
    lowest: float,
    device,
    share: tuple[int, int],
) -> Draw:
    """How this round draws: (scans, indices, chains, **fields of EStep that differ) -> how many are done, again and
    again, of this process's share.

    lowest  the least level at which `denoise` is defined
    share   (number, count) of the processes that divide the work
    """
    if settings.objective == "denoised" and round_number == 1:
        return partial(_denoised, settings.round_samples, denoise, lowest, device, share)
    if settings.start == "gaussian" and round_number == 1:
        pool = archive.training
        stride = max(1, len(pool) // _GAUSSIAN_SCANS)
        prior = fit_gaussian([archive.scans[i] for i in pool[::stride][:_GAUSSIAN_SCANS]], settings.seed)
        options = {"seed": settings.seed, "batch_size": settings.batch_size, "device": device, "share": share}
        return partial(gaussian_chains, prior, samples=settings.round_samples, **options)
    step = EStep(
        denoise=denoise,
        spread=spread,
        estimates=settings.estimates(round_number),
        sweeps=SWEEPS if settings.taught_by_scans(round_number) else 0,
        sweep_steps=SWEEP_STEPS[settings.refine],
        levels=settings.round_levels,
        samples=settings.round_samples,
        sigma_max=settings.sigma_max,
        sigma_min=lowest,
        seed=settings.seed,
        round_number=round_number,
        batch_size=at_once(device, archive.scans.most_samples, settings.batch_size),
        device=device,
        share=share,
    )
    return lambda *arguments, **fields: replace(step, **fields).update(*arguments)


def draw_scans(
    draw: Draw,
    settings: TrainSettings,
    archive: Archive,
    indices: Sequence[int],
    chains: dict[int, Tensor],
    round_number: int,
) -> Iterable[int]:
    """New draws of the scans `indices` into `chains`; yields how many are done."""
    scans = archive.scans
    if settings.taught_by_scans(round_number):
        scans = _SplitScans(scans, settings.seed, round_number)
    return draw(scans, indices, chains)


def draw_pairs(
    draw: Draw,
    settings: TrainSettings,
    archive: Archive,
    indices: Sequence[int],
    pairs: dict[int, Tensor],
    round_number: int,
) -> Iterable[int]:
    """A draw of each scan and, unless settings.bootstrap is 0, one of the scan simulated from it, made alike: complex
    (2 or 1, H, W) into `pairs`; yields how many images are done."""
    done, first, second = 0, {}, {}
    for done in draw(archive.scans, indices, first, samples=1, name="pairs"):
        yield done
    if not settings.bootstrap:
        pairs.update(first)
        return
    simulated = _SimulatedScans(archive.scans, first, settings.seed, round_number)
    for again in draw(simulated, indices, second, samples=1, name="bootstrap"):
        yield done + again
    pairs.update({index: torch.cat([image, second[index]]) for index, image in first.items()})


def gain_of_draws(
    settings: TrainSettings, archive: Archive, indices: Sequence[int], chains: dict[int, Tensor], round_number, device
) -> tuple[float, ...]:
    """`mean_gain` of this round's new draws of the scans `indices`, which teach."""
    scans = ((index, archive.scans[index]) for index in indices)  # read once
    return mean_gain(
        ((scan, split_scan(scan, settings.seed, round_number, index), chains[index]) for index, scan in scans), device
    )


def _denoised(samples, denoise, lowest, device, share, scans, indices, chains):
    """Fully sampled noisy scans to their GSURE-denoised images, which stand for clean ones from then on."""
    for done, index in enumerate(indices[share[0] :: share[1]], 1):
        batch = scans[index].batch().to(device)
        image = denoise(batch.operator.adjoint(batch.kspace), batch.sigma0.clamp_min(lowest)).cpu()
        chains[index] = image.expand(samples, *image.shape[1:]).clone()
        yield done
