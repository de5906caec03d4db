"""What one update of a training minimises: the scans it takes, their noise levels, and the weighted loss of each.

The loss of a scan is lambda(sigma) times the squared error of objectives.py, with lambda = (sigma^2 + sigma_data^2) /
(sigma sigma_data)^2 (Karras et al. 2022, table 1). Every random number comes from the seed and the names (round, step,
part) alone: an update can be redone, on any process.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mrigsure.archive import Archive
from mrigsure.augment import Turn, augment, augment_scan, random_crop
from mrigsure.devices import send
from mrigsure.diffusion import diffuse_adjoint, draw_sigma, lowest_solve_sigma, perturb_and_solve
from mrigsure.draws import split_scan
from mrigsure.fourier import fft1c, ifft1c
from mrigsure.objectives import Denoise, completed, denoising, gsure, split_gsure
from mrigsure.scan import SIGMA_DATA, ScanBatch, collate
from mrigsure.seeds import generator
from mrigsure.settings import TrainSettings
from mrigsure.tweedie import ambient_tweedie

_ABOVE = 1.02  # of sigma0: as near to it as objectives without a split come


@dataclass(frozen=True)
class Drawn:
    """Draws of scans, complex (batch, H, W), and the scans that they are draws of, augmented alike.

    where the scans teach too
    others   as many more draws of the same scans
    noisier  the k-space that the draws were made from
    pairs    (batch, 2, H, W), draws of the scans as they are and of their bootstrap (draws.draw_pairs)
    """

    images: Tensor
    scans: ScanBatch
    others: Tensor | None = None
    noisier: Tensor | None = None
    pairs: Tensor | None = None

    def to(self, device) -> "Drawn":
        parts = (self.others, self.noisier, self.pairs)
        more = (part if part is None else send(part, device) for part in parts)
        return Drawn(send(self.images, device), self.scans.to(device), *more)


def pick_batch(
    settings: TrainSettings,
    archive: Archive,
    chains: dict[int, Tensor],
    pairs: dict[int, Tensor],
    drawn_in: dict[int, int],
    names: tuple[int, int, int],
) -> ScanBatch | Drawn | Tensor:
    """Scans of one matrix size, or images (batch, H, W): the rounds' draws, with their scans or without, or an oracle's
    truth; augmented, and images cropped.

    drawn_in  of the scans that teach where scans do, the round that their draws are of
    In a round a share `anchor` of the updates keeps to the scans and the first stage's objective.
    """
    rng = generator(settings.seed, "batch", *names)
    refining = names[0] > 0 and float(torch.rand((), generator=rng)) >= settings.anchor
    by_scans = refining and settings.taught_by_scans(names[0])
    pool = sorted(drawn_in if by_scans else chains) if refining else archive.training
    scans, size = archive.scans, settings.batch_size
    first = pool[int(torch.randint(len(pool), (1,), generator=rng))]
    alike = [i for i in pool if scans.shapes[i] == scans.shapes[first]]
    picks = [alike[pick] for pick in torch.randint(len(alike), (size,), generator=rng).tolist()]
    if refining:
        count = settings.round_samples
        which = torch.randint(count, (size,), generator=rng)
        images = [chains[i][k] for i, k in zip(picks, which, strict=True)]
        if by_scans:
            apart = torch.randint(1, count // 2, (size,), generator=rng)
            twos = (which // 2 + apart) % (count // 2)  # a draw's own partner is in it (shrinkage.py)
            partners = 2 * twos + torch.randint(2, (size,), generator=rng)
            others = [chains[i][k] for i, k in zip(picks, partners, strict=True)]
            pair = [pairs[i] for i in picks]
            read = [scans[i] for i in picks]
            split = [split_scan(scan, settings.seed, drawn_in[i], i) for scan, i in zip(read, picks, strict=True)]
            drawn = _with_split_scans(read, split, images, others, pair, rng)
        elif settings.measured:
            drawn = _with_scans(scans, picks, images, rng)
        else:
            return random_crop(augment(torch.stack(images), rng), settings.crop, rng)
        return _cropped(drawn, settings.crop, rng)
    if settings.objective == "supervised":
        return random_crop(augment(torch.stack([scans[i].target for i in picks]), rng), settings.crop, rng)
    return collate([augment_scan(scans[i], rng) for i in picks])


def scan_losses(
    settings: TrainSettings,
    denoise: Denoise,
    batch: ScanBatch | Drawn | Tensor,
    names: tuple[int, int, int],
    *,
    sigma_data: float,
    lowest_refined: float,
    device,
) -> tuple[Tensor, Tensor]:
    """Noise level and weighted loss of each scan or image of a batch of `pick_batch`: two of (batch,). All on `device`.

    lowest_refined  the least level that images are trained at; scans have their own, of lowest_first_stage
    """
    rng = generator(settings.seed, "update", *names)
    noise = generator(settings.seed, "noise", *names, device=device)
    levels = settings.sigma_max, settings.log_sigma
    if isinstance(batch, Tensor):
        sigma = draw_sigma(torch.full((len(batch),), lowest_refined, device=device), *levels, rng)
        loss = denoising(denoise, batch, sigma, noise)
    elif isinstance(batch, Drawn):
        sigma = draw_sigma(torch.full((len(batch.images),), lowest_refined, device=device), *levels, rng)
        options = {"scans": batch.scans, "measured": settings.measured}
        if batch.noisier is None:
            loss = denoising(denoise, batch.images, sigma, noise, **options)
        else:
            options |= {"other": batch.others, "noisier": batch.noisier, "pair": batch.pairs}
            loss = completed(denoise, batch.images, sigma, noise, bootstrap=settings.bootstrap, **options)
    else:
        lowest = lowest_first_stage(settings, batch.sigma0)
        if settings.objective == "tweedie" and names[1] < settings.steps // 2:
            lowest = batch.sigma0 * _ABOVE  # what lies below follows from what the data teach here
        sigma = draw_sigma(lowest, *levels, rng)
        loss = _first_stage(settings, denoise, batch, sigma, noise)
    return sigma, (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2 * loss


def _with_scans(scans, picks, images, rng):
    """The draws with their scans, each turned by chance."""
    turned = [Turn.random(rng)(replace(scans[i], target=image)) for i, image in zip(picks, images, strict=True)]
    return Drawn(_targets(turned), collate(turned))


def _with_split_scans(scans, split, images, others, pairs, rng):
    """Two draws of each and its pair, its scan and the noisier half of that, turned alike."""
    turned, noisier, paired = [], [], []
    for scan, half, image, other, pair in zip(scans, split, images, others, pairs, strict=True):
        turn = Turn.random(rng)
        turned.append(turn(replace(scan, target=image)))
        noisier.append(turn(replace(half, target=other)))
        paired.append(turn.image(pair))
    return Drawn(_targets(turned), collate(turned), _targets(noisier), collate(noisier).kspace, torch.stack(paired))


def _targets(scans):
    return torch.stack([scan.target for scan in scans])


def _cropped(drawn: Drawn, side: int, rng: torch.Generator) -> Drawn:
    """`side` neighbouring rows, or all: along the readout of line masks a scan can be cut, and only there."""
    height, scans = drawn.images.shape[1], drawn.scans
    if not side or side >= height or not scans.operator.is_line_mask:
        return drawn
    start = int(torch.randint(height - side + 1, (1,), generator=rng))

    def rows(kspace):
        return fft1c(ifft1c(kspace, -2).narrow(-2, start, side), -2)

    parts = {key: getattr(scans, key).narrow(-2, start, side) for key in ("mask", "sens_maps", "density")}
    cut = Drawn(drawn.images.narrow(1, start, side), replace(scans, kspace=rows(scans.kspace), **parts))
    if drawn.noisier is None:
        return cut
    others, pairs = (part.narrow(-2, start, side) for part in (drawn.others, drawn.pairs))
    return replace(cut, others=others, noisier=rows(drawn.noisier), pairs=pairs)


def lowest_first_stage(settings: TrainSettings, sigma0: Tensor) -> Tensor:
    """The least level that the first stage can be trained at, for scans of noise `sigma0`."""
    if settings.objective in ("supervised", "tweedie"):
        return sigma0 / 4
    if _input(settings) == "solve":
        return lowest_solve_sigma(sigma0)
    # the target of split GSURE has twice the data's variance there; Hutchinson's form needs only sigma > sigma0
    return sigma0 * (2**0.5 if settings.objective in ("split", "heldout") else _ABOVE)


def _first_stage(settings, denoise, batch, sigma, noise):
    diffuse = {"solve": perturb_and_solve, "adjoint": diffuse_adjoint}[_input(settings)]
    if settings.objective == "tweedie":
        return ambient_tweedie(denoise, batch, sigma, noise)
    if settings.objective in ("gsure", "denoised"):
        return gsure(denoise, batch, sigma, noise, diffuse=diffuse)
    most = settings.delta if settings.objective == "heldout" else (0.0, 0.0)
    delta = _held_out_share(sigma, most, noise)
    return split_gsure(denoise, batch, sigma, delta, noise, weights=settings.weights, diffuse=diffuse)


def _input(settings):
    """What is fully sampled needs no solve, and its zero-filled image can be trained down to its own noise."""
    return "adjoint" if settings.objective == "denoised" else settings.input


def _held_out_share(sigma, most, rng):
    """delta per scan: uniform up to a limit between most[0] at low sigma and most[1] at high (section 5)."""
    limit = most[0] + (most[1] - most[0]) * sigma / (sigma + SIGMA_DATA)
    return limit * torch.rand(sigma.shape, generator=rng, device=sigma.device)
