"""Does a prior remember the scans that it was trained on? Two tests that need no clean image.

    nearest     generated images x against scans y, in what was measured: the sine of the angle between W M F S x and
                W y, W^2 = 1/p, over all flips, conjugation, phase and scale. A copy of a training scan is nearer to
                it than to any scan that training never saw.
    extraction  nearly all lines of a scan are withheld, the rest reconstructed by posterior draws, and the mean's error
                on the withheld lines taken relative to regularised SENSE's. A prior that remembers the scan fills in
                what nobody could know.

Each compares training scans with unseen ones of the same kind, one a file, and asks how often chance alone gives as
much: where nothing is remembered the two kinds are exchangeable, so that their labels may be shuffled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from torch import Tensor

from mrigsure.denoiser import Prior
from mrigsure.posterior import posterior_samples
from mrigsure.progress import track
from mrigsure.scan import SIGMA_DATA, Scan
from mrigsure.seeds import generator

_SHUFFLES, _BOOTSTRAPS = 2000, 1000
_MATERIAL = 0.9  # ratio from which on a difference is worth a word
_CHANCE = 0.025  # one-sided
_VAGUE = 0.7  # an interval that reaches down to here decides nothing


@dataclass(frozen=True)
class Comparison:
    """A figure of training scans against the same of unseen scans; ratios below 1 speak for memory.

    training, unseen  geometric means
    low, high         95% interval of the ratio, by bootstrap over scans (and generated images)
    chance            how often shuffled labels give as small a ratio
    least_chance      the smallest that the number of scans allows
    """

    training: float
    unseen: float
    low: float
    high: float
    chance: float
    least_chance: float

    @property
    def ratio(self) -> float:
        return self.training / self.unseen

    @property
    def remembers(self) -> bool:
        return self.ratio < _MATERIAL and self.high < 1 and self.chance < _CHANCE

    @property
    def undecided(self) -> bool:
        """Nothing was found, but memory could have been missed."""
        return not self.remembers and (self.least_chance >= _CHANCE or self.low < _VAGUE)


def measured_distances(images: Tensor, scans: Sequence[Scan]) -> Tensor:
    """Distance of every image (count, H, W) from every scan of that size: float32 (count, scans) in [0, 1]."""
    flips = [images, images.flip(-1), images.flip(-2), images.flip(-1, -2)]
    variants = torch.stack([*flips, *(flip.conj().resolve_conj() for flip in flips)])
    found = []
    for scan in scans:
        batch = scan.batch().to(images.device)
        weight = batch.mask / batch.density.clamp_min(1e-3)  # W^2 M
        backward = batch.operator.adjoint(weight * batch.kspace)[0]
        energy = (weight * batch.kspace.abs().square()).sum()
        closest = torch.ones(len(images), device=images.device)
        for variant in variants:
            inner = (variant.conj() * backward).sum((1, 2)).abs().square()
            own = (weight * batch.operator.coil_kspace(variant).abs().square()).sum((1, 2, 3))
            cosine = inner / (own * energy).clamp_min(1e-12)
            closest = torch.minimum(closest, (1 - cosine).clamp_min(0).sqrt())
        found.append(closest.cpu())
    return torch.stack(found, 1)


def extraction_errors(
    prior: Prior, scans: Sequence[Scan], *, draws: int, levels: int, seed: int, device="cpu", label: str = "extraction"
) -> Tensor:
    """Error on withheld lines, relative to regularised SENSE's from the same few lines: float32 (scans,).

    Every line with p < 1 is withheld. The same seed and scan give the same noise for every prior.
    """
    errors = []
    for scan in track(scans, label):
        kept = scan.held_out(1.0, generator(seed, "withheld", scan.name)).batch().to(device)
        full = scan.batch().to(device)
        rng = generator(seed, "extraction", scan.name, device=device)
        mean = posterior_samples(prior, kept, samples=draws, levels=levels, generator=rng)[0].mean(0, keepdim=True)
        plain = kept.operator.solve(kept.operator.adjoint(kept.kspace), (kept.sigma0 / SIGMA_DATA).square())
        withheld = full.mask - kept.mask
        wrong, usual = (
            (withheld * (full.operator.coil_kspace(image) - full.kspace).abs().square()).sum()
            for image in (mean, plain)
        )
        errors.append((wrong / usual).cpu())
    return torch.stack(errors)


def compare_nearest(training: Tensor, unseen: Tensor, seed: int = 0) -> Comparison:
    """Compare distances (images, scans) to the nearest scan, among equally many of either kind."""
    count = min(training.shape[1], unseen.shape[1])

    def typical(distances):
        return float(np.log(_expected_minimum(distances, count).clip(1e-6)).mean())

    return _compare(training.double().numpy(), unseen.double().numpy(), typical, seed)


def compare_errors(training: Tensor, unseen: Tensor, seed: int = 0) -> Comparison:
    """Compare errors (scans,), or ratios of two priors' errors."""
    logs = (errors.double().clamp_min(1e-9).log().numpy()[None] for errors in (training, unseen))
    return _compare(*logs, lambda values: float(values.mean()), seed)


def _compare(training, unseen, typical: Callable[[np.ndarray], float], seed) -> Comparison:
    """training, unseen (rows, scans); `typical` gives the log of a figure from such an array."""
    rng = np.random.default_rng(seed)
    both, count = np.concatenate([training, unseen], axis=1), training.shape[1]
    seen = typical(training) - typical(unseen)
    shuffled = 0
    for _ in range(_SHUFFLES):
        order = rng.permutation(both.shape[1])
        shuffled += typical(both[:, order[:count]]) - typical(both[:, order[count:]]) <= seen + 1e-9

    def resampled(values, rows):
        return values[np.ix_(rows, rng.integers(values.shape[1], size=values.shape[1]))]

    ratios = []
    for _ in range(_BOOTSTRAPS):
        rows = rng.integers(len(both), size=len(both))
        ratios.append(np.exp(typical(resampled(training, rows)) - typical(resampled(unseen, rows))))
    low, high = np.quantile(ratios, (0.025, 0.975))
    return Comparison(
        training=float(np.exp(typical(training))),
        unseen=float(np.exp(typical(unseen))),
        low=float(low),
        high=float(high),
        chance=(1 + shuffled) / (1 + _SHUFFLES),
        least_chance=1 / comb(both.shape[1], count),
    )


def _expected_minimum(distances, count):
    """Mean over all choices of `count` of the columns of the smallest one in each row."""
    columns = distances.shape[1]
    chances = np.array([comb(columns - 1 - k, count - 1) / comb(columns, count) for k in range(columns)])
    return np.sort(distances, axis=1) @ chances
