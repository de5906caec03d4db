"""Trainings of a second: tiny scans, settings, what they left behind; shared by the tests of training and its parts."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch

from mrigsure.checkpoint import CHECKPOINT
from mrigsure.phantoms import random_scan
from mrigsure.scan import PreparedVolume, write_prepared
from mrigsure.settings import TrainSettings
from mrigsure.training import Trainer, train
from mrigsure.validation import HeldOutFigures

SIZE = 24
NOISE = 0.04  # noise_std of the scans below


def write_scans(folder, count, coils=4, same_mask=False, pattern="random"):
    for index in range(count):
        rng = np.random.default_rng(index)
        scan = random_scan(rng, (SIZE, SIZE), coils=coils, center_fraction=0.15, pattern=pattern)
        mask, kspace = scan.mask.numpy(), scan.kspace.numpy()
        if same_mask:
            mask = np.broadcast_to((np.arange(SIZE) % 2 == 0) | (np.abs(np.arange(SIZE) - SIZE // 2) < 3), (SIZE, SIZE))
            kspace = kspace * mask
        volume = PreparedVolume(
            kspace=kspace[None],
            mask=mask[0] > 0,
            sens_maps=scan.sens_maps[None].numpy(),
            sampling_density=scan.density[0].numpy(),
            noise_std=scan.noise_std,
            scale=1.0,
            target=scan.target[None].numpy(),
        )
        write_prepared(folder / f"scan_{index:03}.h5", volume)
    return folder


def settings(scans, out, **changes):
    small = TrainSettings(
        prepared=[str(scans)],
        out=str(out),
        steps=2,
        rounds=1,
        estimate_rounds=0,
        round_steps=2,
        round_scans=4,
        round_levels=2,
        batch_size=2,
        channels=(8, 8),
        validation_scans=2,
        checkpoint_minutes=9.0,
        precision="no",
        device="cpu",
        threads=1,
    )
    return replace(small, **changes)


def checkpoint_of(folder):
    return torch.load(Path(folder) / CHECKPOINT, weights_only=True)


def history_of(folder):
    return json.loads((Path(folder) / "training.json").read_text())["history"]


def losses_of(monkeypatch, chosen):
    """The mean loss of every update of a training."""
    curve, plain = [], Trainer._update

    def update(self, batches):
        seen = plain(self, batches)
        curve.append(float(seen[:, 1].mean()))
        return seen

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", update)
        train(chosen)
    return np.array(curve)


def figures_of(energy, power=1.0):
    """Figures of 8 alike bands far above the noise, 1 but for these."""
    ones = {field.name: (1.0,) * 8 for field in fields(HeldOutFigures)}
    known = {"residual": 0.5, "z2": 1.0, "energy": energy, "power": (power,) * 8}
    known |= {"signal": (9.0,) * 8, "drawn": torch.full((4, 8), power), "scores": torch.full((4,), energy)}
    return HeldOutFigures(**ones | known)


def script_judgements(module):
    """Every kept round adds 0.1 to the first band; from 1.2 on the round has collapsed. Energy falls once."""

    def calibrate(*_, start, **__):
        bands = (start[0] + 0.1, *start[1:])
        return bands, figures_of(energy=abs(bands[0] - 1.2), power=0.5 if start[0] > 1.15 else 1.0)

    module.calibrate_spread = calibrate
    module.held_out_figures = lambda *_, **__: figures_of(energy=0.5, power=0.5)  # a collapsed round's second look
