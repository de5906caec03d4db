"""Figures that judge a prior without any truth: predictions of lines that were held out of the reconstruction.

From K draws given the kept lines, on the held-out samples y of every coil, with m their mean and v their variance
(docs/method.md, section 6):

    residual  (sum |y - m|^2 - 2 sigma0^2 - v/K) / (sum |y|^2 - 2 sigma0^2), the error of the mean of endlessly many
              draws: noise taken off, and what so few draws add
    z2        sum |y - m|^2 / sum (2 sigma0^2 + v (1 + 1/K)), 1 where the spread is right
    energy    the energy score of the predictive distribution per radial band, relative to |y| there, and the bands'
              mean: of all samples at once it is that of the few strongest, and hardly follows the true error
    power     per radial band, power of the draws over that of the data, noise taken off: below 1 a prior collapses
    gain      per radial band, sum <y, m> over sum <x_i, x_j> of two draws: what their mean is to be multiplied by to
              come nearest to the data. A posterior's mean leaves it at 1; above 1 it is shrunk; None where draws share
              nothing
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from mrigsure.devices import at_once
from mrigsure.fourier import radial_bands
from mrigsure.posterior import draw
from mrigsure.scan import Scan, collate
from mrigsure.seeds import complex_noise, generator
from mrigsure.spread import Denoise, Spread

BANDS = 8
FEW = 4  # scans at once, on a CPU
_LEAST_RATIO = 0.3  # of which scans are guessed to scatter by as much
_MOST_GAIN = 1.5
_LEAST_SIGNAL = 0.02  # power over the noise's, below which the data's own power is not known


@dataclass(frozen=True)
class HeldOutFigures:
    """The figures above, the tuples with one value per radial band, None where no sample was held out.

    spread_needed is the error over the draws' variance, noise taken off; power_needed the factor on that variance which
    would give the draws the data's power once a shrunk mean has been multiplied by `gain`; spread_error and power_error
    the standard errors of the two, by how much the scans differ; signal the data's power over the noise's. drawn has
    the draws' power scan by scan, (scans, BANDS); scores has the scans' shares in the energy, (scans,), of mean energy.
    """

    residual: float
    z2: float
    energy: float
    power: tuple[float | None, ...]
    gain: tuple[float | None, ...]
    band_z2: tuple[float | None, ...]
    spread_needed: tuple[float | None, ...]
    power_needed: tuple[float | None, ...]
    spread_error: tuple[float | None, ...]
    power_error: tuple[float | None, ...]
    signal: tuple[float | None, ...]
    drawn: Tensor = field(compare=False, repr=False)
    scores: Tensor = field(compare=False, repr=False)

    def as_dict(self) -> dict:
        """Plain numbers for JSON, four significant digits; all but `drawn` and `scores`."""
        return {
            key: [_four_digits(v) for v in value] if isinstance(value, tuple) else _four_digits(value)
            for key, value in asdict(self).items()
            if key not in ("drawn", "scores")
        }

    def collapsed(self) -> tuple[int, ...]:
        """Bands above the noise in which the draws have lost a tenth of the data's power or more."""
        return tuple(
            band
            for band, (power, signal) in enumerate(zip(self.power, self.signal, strict=True))
            if power is not None and power < 0.9 and signal > 1
        )

    def power_change(self, before: Tensor) -> tuple[Tensor, Tensor]:
        """Per band, the draws' power over that of `before`, draws for the same lines, and its standard error."""
        return _ratio(self.drawn, before, guesses=0)

    def surely_worse(self, scores: Tensor) -> bool:
        """Is the energy above that of `scores`, of the same scans, by two standard errors of the difference?"""
        change = self.scores - scores
        return bool(change.mean() > 2 * change.std() / len(change) ** 0.5)


def held_out_figures(
    denoise: Denoise,
    scans: Sequence[Scan],
    sigmas: Tensor,
    *,
    spread: Spread,
    seed: int,
    samples: int = 2,
    fraction: float = 0.3,
    device="cpu",
) -> HeldOutFigures:
    """Hold out a `fraction` of each scan's lines, draw `samples` times from the rest, and compare.

    Scans of unequal matrix sizes are allowed. The same seed holds out the same lines and draws the same noise.
    Raises ValueError where no scan has a line to hold out.
    """
    names = ("error", "noise", "variance", "data", "drawn", "agreement", "shared", "score", "norm")
    parts = {name: [torch.zeros(0, BANDS, dtype=torch.float64)] for name in names}  # scan by scan, (scans, BANDS)
    chunk = at_once(device, max((scan.kspace.numel() for scan in scans), default=1), FEW)
    for start in range(0, len(scans), chunk):
        for group in by_shape(scans[start : start + chunk]):
            rng = generator(seed, "held out", start, *group[0].shape)
            kept = [scan.held_out(fraction, rng) for scan in group]
            rng_device = generator(seed, "draws", start, *group[0].shape, device=device)
            part = collate(kept).to(device)
            draws = torch.stack(
                [draw(denoise, part, sigmas, spread=spread, generator=rng_device) for _ in range(samples)]
            )
            full = collate(list(group)).to(device)
            live = full.sens_maps.abs().amax((2, 3), keepdim=True) > 0  # coils that are no filling
            held = (full.mask - part.mask).bool() & live
            predicted = torch.stack([full.operator.coil_kspace(d) for d in draws])
            mean, variance = predicted.mean(0), predicted.var(0)
            noise = 2 * full.sigma0.square()[:, None, None, None].expand_as(variance)
            terms = {
                "error": (full.kspace - mean).abs().square(),
                "noise": noise,
                "variance": variance * (1 + 1 / samples),
                "data": full.kspace.abs().square(),
                "drawn": predicted.abs().square().mean(0),
                "agreement": (full.kspace.conj() * mean).real,
                "shared": mean.abs().square() - variance / samples,
            }
            index = radial_bands(group[0].shape, BANDS, device).expand_as(held)
            bins = (index + BANDS * torch.arange(len(group), device=device)[:, None, None, None])[held]
            for name, value in terms.items():
                total = torch.bincount(bins, value[held].double(), minlength=BANDS * len(group))
                parts[name].append(total.cpu().view(len(group), BANDS))
            score, norm = _energy(full.kspace, predicted, noise, held, index, rng_device)
            parts["score"].append(score)
            parts["norm"].append(norm)
    scan_sums = {name: torch.cat(values) for name, values in parts.items()}
    sums = {name: values.sum(0) for name, values in scan_sums.items()}
    if not sums["noise"].sum():
        raise ValueError("no scan has a line that may be held out")
    total = {name: float(value.sum()) for name, value in sums.items()}
    signal = sums["data"] - sums["noise"]

    def seen(values):
        return tuple(v if s else None for v, s in zip(values.tolist(), sums["noise"] > 0, strict=True))

    def per_band(above, below):
        return seen(above / below.clamp_min(1e-12))

    needed, needed_error = _ratio(scan_sums["error"] - scan_sums["noise"], scan_sums["variance"])
    spread = scan_sums["variance"] / (1 + 1 / samples)
    gain = given_gain(sums["agreement"], sums["shared"])
    unshrunk = scan_sums["drawn"] + (gain**2 - 1) * scan_sums["shared"]
    missing, missing_error = _ratio(scan_sums["data"] - scan_sums["noise"] - unshrunk, spread)

    scores = (scan_sums["score"] / sums["norm"])[:, sums["norm"] > 0].mean(1) * len(scans)

    heard = per_band(signal, sums["noise"])  # the data's own power over the noise's

    def where_heard(values):
        return tuple(v if h is not None and h > _LEAST_SIGNAL else None for v, h in zip(values, heard, strict=True))

    pairs = zip(sums["agreement"].tolist(), sums["shared"].tolist(), strict=True)
    shrunk = [agreement / shared if shared > 0 else None for agreement, shared in pairs]  # no mean is left at 0

    return HeldOutFigures(
        residual=(total["error"] - total["noise"] - total["variance"] / (samples + 1))
        / max(total["data"] - total["noise"], 1e-12),
        z2=total["error"] / (total["noise"] + total["variance"]),
        energy=float(scores.mean()),
        power=where_heard(per_band(sums["drawn"], signal)),
        gain=where_heard(shrunk),
        band_z2=per_band(sums["error"], sums["noise"] + sums["variance"]),
        spread_needed=seen(needed),
        power_needed=seen(1 + missing),
        spread_error=seen(needed_error),
        power_error=seen(missing_error),
        signal=heard,
        drawn=scan_sums["drawn"],
        scores=scores,
    )


def given_gain(agreement: Tensor, shared: Tensor) -> Tensor:
    """The gain that a round gives its draws, of sums per band: from 1 to 1.5, and 1 where draws share nothing."""
    return torch.where(shared > 0, agreement / shared.clamp_min(1e-12), 1.0).clamp(1, _MOST_GAIN)


def _ratio(above, below, guesses=2):
    """Per band, sum over scans of `above` over that of `below`, and its standard error; both arrays (scans, BANDS).

    How a few scans scatter is no more than a guess: `guesses` more count with it, that scatter by the ratio itself.
    """
    total, count = below.sum(0).clamp_min(1e-12), (below > 0).sum(0).clamp_min(1)
    ratio = above.sum(0) / total
    scatter = (count * (above - ratio * below) / total).square().sum(0)
    guessed = guesses * ratio.square().clamp_min(_LEAST_RATIO**2)
    return ratio, ((scatter + guessed) / (count - 1 + guesses).clamp_min(1) / count).sqrt()


def _four_digits(value):
    return None if value is None else float(f"{value:.4g}")


def by_shape(scans: Sequence[Scan]) -> Iterable[list[Scan]]:
    """The scans in groups of one matrix size."""
    groups = {}
    for scan in scans:
        groups.setdefault(scan.shape, []).append(scan)
    return groups.values()


def _energy(kspace, predicted, noise, held, index, rng):
    """Of every scan, (scans, BANDS): mean ||Y_i - y|| - 1/2 mean ||Y_i - Y_j||, Y noisy draws, and ||y||."""

    def norms(difference):
        power = [
            torch.bincount(i[h], d[h].abs().square().double(), minlength=BANDS)
            for d, h, i in zip(difference, held, index, strict=True)
        ]
        return torch.stack(power).sqrt().cpu()

    samples = [p + (noise / 2).sqrt() * complex_noise(p.shape, rng) for p in predicted]
    to_data = sum(norms(s - kspace) for s in samples) / len(samples)
    pairs = [norms(a - b) for i, a in enumerate(samples) for b in samples[:i]]
    between = sum(pairs) / max(len(pairs), 1)
    return to_data - between / 2, norms(kspace)
