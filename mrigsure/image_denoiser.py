"""Training a network (x_t, t) on clean images, on masked ones by GSURE, or by GSURE and refinement; and a small MLP.

    clean     || f(x_t, t) - x ||^2
    gsure     kawar.gsure_vp on one corrupted measurement of every image; no clean image is read
    refined   the same for the first updates, then plain denoising of posterior draws of those measurements, drawn anew
              several times under the network as it stands (docs/method.md, section 6)

One budget of updates for all three, so that they can be compared. Each trains the network that it is given, and returns
the running average of its weights.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mrigsure.kawar import Masked, VPSchedule, gsure_vp
from mrigsure.masked_images import SIGNAL_VARIANCE, inpaint
from mrigsure.seeds import generator

_FREQUENCIES = 32


class ImageDenoiser(nn.Module):
    """f(x_t, t), an MLP over all pixels with the skip connection of EDM (Karras et al. 2022, table 1).

    forward(x_t, step): real (batch, H, W), int64 (batch,) -> (batch, H, W)
    """

    def __init__(self, pixels: int, schedule: VPSchedule, width: int = 256, blocks: int = 2):
        super().__init__()
        self.schedule = schedule
        self.enter = nn.Linear(pixels, width)
        self.level = nn.Sequential(nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, pixels))

    def forward(self, x_t: Tensor, step: Tensor) -> Tensor:
        angle = step[:, None] * torch.exp(-math.log(1000) * torch.arange(_FREQUENCIES) / _FREQUENCIES)
        level = self.level(torch.cat([angle.sin(), angle.cos()], 1))
        flat = x_t.flatten(1)
        hidden = self.enter(flat) + level
        for block, shift in zip(self.blocks, self.shifts, strict=True):
            hidden = hidden + block(hidden + shift(level))
        keep = self.schedule.alpha_bar[step].to(flat)[:, None]
        total = keep * SIGNAL_VARIANCE + 1 - keep
        skip, out = keep.sqrt() * SIGNAL_VARIANCE / total, ((1 - keep) * SIGNAL_VARIANCE / total).sqrt()
        return (skip * flat + out * self.leave(hidden)).view_as(x_t)


@dataclass(frozen=True)
class ImageTraining:
    """What two networks must share to be compared.

    start   share of the updates by GSURE before the first round of `refined`
    rounds  rounds in the updates that are left
    draws   posterior draws of every measurement in a round
    """

    updates: int = 3000
    batch_size: int = 64
    learning_rate: float = 1e-3
    ema: float = 0.995
    start: float = 0.4
    rounds: int = 6
    draws: int = 2


def train_clean(
    network: nn.Module, images: Tensor, schedule: VPSchedule, training: ImageTraining, seed: int
) -> nn.Module:
    """The reference: plain denoising of clean images (count, H, W)."""
    fit = _Fit(network, schedule, training, seed)
    fit.denoise(images, training.updates)
    return fit.average


def train_gsure(
    network: nn.Module, data: Masked, schedule: VPSchedule, training: ImageTraining, seed: int, refine: bool = False
) -> nn.Module:
    """Trained on one measurement of every image, by the published loss; with `refine`, then on its own draws."""
    fit = _Fit(network, schedule, training, seed)
    if not refine:
        fit.gsure(data, training.updates)
        return fit.average
    begun = round(training.start * training.updates)
    fit.gsure(data, begun)
    lowest = int(schedule.first_step(data.sigma0.max()))
    for number in range(training.rounds):
        rng = generator(seed, "draws", number)
        drawn = [inpaint(fit.average, data, schedule, rng, last=lowest) for _ in range(training.draws)]
        until = begun + (training.updates - begun) * (number + 1) // training.rounds
        fit.denoise(torch.cat(drawn), until - fit.done)
    return fit.average


class _Fit:
    """Weights, their average and the optimiser, which stay warm from stage to stage."""

    def __init__(self, network, schedule, training, seed):
        self.network, self.schedule, self.training, self.done = network, schedule, training, 0
        self._averaged = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(training.ema))
        self.optimizer = torch.optim.Adam(self.network.parameters(), training.learning_rate)
        self.decay = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, training.updates)
        self.rng = generator(seed, "updates")

    @property
    def average(self):
        return self._averaged.module.requires_grad_(False)

    def denoise(self, images, updates):
        sigma0 = torch.zeros(self.training.batch_size)

        def loss():
            x = images[self._pick(len(images))]
            step = self.schedule.draw_steps(sigma0, self.rng)
            keep = self.schedule.alpha_bar[step].to(x)[:, None, None]
            x_t = keep.sqrt() * x + (1 - keep).sqrt() * torch.randn(x.shape, generator=self.rng)
            return (self.network(x_t, step) - x).square().mean()

        self._run(loss, updates)

    def gsure(self, data, updates):
        def loss():
            part = data[self._pick(len(data.values))]
            step = self.schedule.draw_steps(part.sigma0, self.rng)
            return gsure_vp(self.network, part, step, self.rng, self.schedule).mean()

        self._run(loss, updates)

    def _pick(self, count):
        return torch.randint(count, (self.training.batch_size,), generator=self.rng)

    def _run(self, loss, updates):
        for _ in range(updates):
            self.optimizer.zero_grad()
            loss().backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self.decay.step()
            self._averaged.update_parameters(self.network)
            self.done += 1
