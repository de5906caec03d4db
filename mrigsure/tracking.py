"""What a training shows in TensorBoard: losses by noise level, learning rate, the truth-free figures, samples.

loss/all                   mean over the scans since the last point
loss/sigma 0.013 to 0.058  the same of one band of noise levels, BANDS of them, equally wide in ln sigma
held out/residual, z2, energy; held out power/band 1, ...
samples                    unconditional, in every round
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from mrigsure.errors import InputError
from mrigsure.validation import HeldOutFigures

BANDS = 6
_EVERY = 20  # updates


class Tracker:
    """Writes event files into FOLDER/tensorboard. What an interrupted run wrote beyond `updates` is hidden.

    lowest, highest  the noise levels of training
    Raises InputError where TensorBoard is not installed.
    """

    def __init__(self, folder, updates: int, lowest: float, highest: float):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError("--tensorboard", "no tensorboard", "pip install 'mrigsure[tensorboard]'") from error
        self._writer = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=updates or None)
        self._edges = torch.linspace(math.log(lowest), math.log(highest), BANDS + 1).exp()
        self._sums = torch.zeros(2, BANDS)

    def update(self, updates: int, seen: Tensor, rate: float) -> None:
        """After an update: `seen` (scans, 2), the noise level and the loss of each; `rate` the learning rate."""
        sigma, loss = seen.cpu().T.contiguous()
        band = torch.bucketize(sigma, self._edges[1:-1])
        self._sums += torch.stack([torch.bincount(band, loss, BANDS), torch.bincount(band, minlength=BANDS)])
        if updates % _EVERY:
            return
        total, count = self._sums
        self._writer.add_scalar("loss/all", total.sum() / count.sum(), updates)
        for low, high, mean, scans in zip(self._edges, self._edges[1:], total / count, count, strict=False):
            if scans:
                self._writer.add_scalar(f"loss/sigma {low:.2g} to {high:.2g}", mean, updates)
        self._writer.add_scalar("learning rate", rate, updates)
        self._sums.zero_()

    def figures(self, updates: int, figures: HeldOutFigures) -> None:
        """The truth-free figures of validation.py."""
        for name in ("residual", "z2", "energy"):
            self._writer.add_scalar(f"held out/{name}", getattr(figures, name), updates)
        for band, power in enumerate(figures.power, 1):
            if power is not None:
                self._writer.add_scalar(f"held out power/band {band}", power, updates)

    def samples(self, updates: int, images: Tensor) -> None:
        """Magnitudes of complex images (count, H, W), side by side."""
        magnitude = torch.cat(list(images.abs().cpu()), dim=1)
        self._writer.add_image("samples", (magnitude / magnitude.quantile(0.995)).clamp(0, 1)[None], updates)

    def close(self) -> None:
        self._writer.close()
