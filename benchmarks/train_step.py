"""Time of one training step at 64 x 64 x 8 coils: the objectives against plain denoising, our network against MONAI's.

    python benchmarks/train_step.py [--quick] [--compile]

A step is what training repeats: inputs out of 8 scans, network, loss, gradient, clipping, Muon; one thread, processor
time, the least of the repeats, which take turns so that a busy machine slows all alike. The first table has our
network, bfloat16 as `train` has by default, under each objective and in a refinement round; the ratio is to plain
denoising, and `solves` the share of the step inside operator.solve (direct, for these line masks). --compile adds the
same through torch.compile, which needs a C++ compiler and a minute or more before the first step. The second table has
plain denoising and the default objective by MONAI's DiffusionModelUNet of equal channels inside the same
preconditioning (pip install 'mrigsure[benchmark]'), in whichever of float32 and bfloat16 it is faster. Bars: split
GSURE with adjoint inputs at most 1.15 times plain denoising; our step at most 0.6 times MONAI's, both with the default
objective.
"""

import argparse
import sys
import time

import numpy as np
import torch
from torch import nn

from mrigsure.denoiser import Denoiser
from mrigsure.losses import Drawn, scan_losses
from mrigsure.operators import SenseOperator
from mrigsure.optimizer import MuonAdam
from mrigsure.phantoms import random_scan
from mrigsure.progress import status_table
from mrigsure.scan import collate
from mrigsure.settings import TrainSettings

BAR, SPLIT_BAR = 0.6, 1.15
SIZE, COILS, BATCH = 64, 8, 8
CHANNELS = (24, 48, 64, 64)
ROUND, COMPILED = "a refinement round", ", compiled"
OBJECTIVES = {
    "denoising": ("supervised", "solve"),
    ROUND: ("heldout", "solve"),
    "split GSURE, adjoint": ("split", "adjoint"),
    "held-out, adjoint": ("heldout", "adjoint"),
    "held-out, solve (default)": ("heldout", "solve"),
    "GSURE (Hutchinson), adjoint": ("gsure", "adjoint"),
}


class MonaiUNet(nn.Module):
    """MONAI's network behind UNet's call. Its sinusoids of ln(sigma)/4 hardly move unless they are scaled."""

    def __init__(self, channels):
        super().__init__()
        from monai.networks.nets import DiffusionModelUNet

        self.network = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=2,
            out_channels=2,
            channels=channels,
            num_res_blocks=1,
            attention_levels=(False,) * len(channels),
            norm_num_groups=8,
        )

    def forward(self, image, level):
        return self.network(image, 250 * level / 4)


def monai_denoiser():
    denoiser = Denoiser(CHANNELS)
    denoiser.network = MonaiUNet(CHANNELS)
    return denoiser


class Clock:
    """Processor seconds inside SenseOperator.solve since the last reset."""

    def __init__(self):
        self.seconds, plain = 0.0, SenseOperator.solve

        def solve(operator, *arguments):
            start = time.process_time()
            result = plain(operator, *arguments)
            self.seconds += time.process_time() - start
            return result

        SenseOperator.solve = solve


class Step:
    """One way to train, its step repeated by `run`; `seconds` is the least so far, `share` that of its solves."""

    def __init__(self, model, scans, name, bfloat16):
        self.model, self.scans, self.bfloat16, self.refining = model, scans, bfloat16, name.startswith(ROUND)
        objective, kind = OBJECTIVES[name.removesuffix(COMPILED)]
        self.settings = TrainSettings(prepared=[], out="", objective=objective, input=kind, rounds=0)
        self.optimizer = MuonAdam(model, 1e-4)
        self.seconds, self.share = float("inf"), 0.0

    def denoise(self, x, sigma):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            return self.model(x, sigma)

    def run(self, number, clock):
        clean = self.settings.objective == "supervised"
        images = torch.stack([scan.target for scan in self.scans]) if clean or self.refining else None
        batch = images if clean else collate(self.scans)
        batch = Drawn(images, batch) if self.refining else batch
        clock.seconds, start = 0.0, time.process_time()
        self.model.zero_grad()
        common = dict(sigma_data=0.5, lowest_refined=0.01, device="cpu")
        _, losses = scan_losses(self.settings, self.denoise, batch, (int(self.refining), number, 0), **common)
        losses.mean().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        seconds = time.process_time() - start
        if number and seconds < self.seconds:  # the first warms up
            self.seconds, self.share = seconds, clock.seconds / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats, about a minute")
    parser.add_argument("--compile", action="store_true", help="our steps through torch.compile too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    scans = [random_scan(rng, (SIZE, SIZE), coils=COILS, center_fraction=0.125) for _ in range(BATCH)]
    against = ("denoising", "held-out, solve (default)")
    ours = {name: Step(Denoiser(CHANNELS), scans, name, bfloat16=True) for name in OBJECTIVES}
    if options.compile:
        for name in (*against, ROUND):
            model = Denoiser(CHANNELS)
            model.network.compile()
            ours[name + COMPILED] = Step(model, scans, name + COMPILED, bfloat16=True)
    theirs = {(name, b): Step(monai_denoiser(), scans, name, bfloat16=b) for name in against for b in (False, True)}
    clock = Clock()
    for number in range((4 if options.quick else 15) + 1):
        for step in (*ours.values(), *theirs.values()):
            step.run(number, clock)
    plain = ours["denoising"].seconds
    print(f"{BATCH} scans of {SIZE} x {SIZE} x {COILS} coils, channels {CHANNELS}, one thread")
    rows = [[n, f"{s.seconds:.3f} s", f"{s.seconds / plain:.2f}", f"{s.share:.0%}"] for n, s in ours.items()]
    status_table(rows, ("objective", "step", "ratio", "solves"))
    rows, ratios = [], {}
    for name in against:
        times = [theirs[name, bfloat16].seconds for bfloat16 in (False, True)]
        ratios[name] = ours[name].seconds / min(times)
        rows.append([name, *(f"{t:.3f} s" for t in (ours[name].seconds, *times)), f"{ratios[name]:.2f}"])
    status_table(rows, ("objective", "ours", "MONAI float32", "MONAI bfloat16", "ours / MONAI"))
    split = ours["split GSURE, adjoint"].seconds / plain
    print(f"split_gsure_step_ratio {split:.3f} {SPLIT_BAR} {'met' if split <= SPLIT_BAR else 'missed'}")
    ratio = ratios["held-out, solve (default)"]
    print(f"train_step_ratio {ratio:.3f} {BAR} {'met' if ratio <= BAR else 'missed'}")
    return 0 if ratio <= BAR and split <= SPLIT_BAR else 1


if __name__ == "__main__":
    sys.exit(main())
