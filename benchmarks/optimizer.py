"""What Muon is worth: denoising error after as many updates as by Adam alone.

    python benchmarks/optimizer.py [--quick]

The default network learns to denoise clean 64 x 64 phantoms of the embedded heads, 2,000 updates of 8 images, the rate
falling all the way, by Adam and by Muon beside Adam (mrigsure/optimizer.py), at the default rate and at twice that.
Each sees the same images, levels and noise, in bfloat16 on one thread; ms is processor time an update, of which Muon's
own share does not grow with the images. NMSE x 1000 on a head that training never drew, at levels in sigma_data.
--quick has 32 x 32, 350 updates, the higher rate alone and a bar of 0.99: Muon leads by the more, the longer they
learn. The last line: Muon's NMSE over Adam's, geometric mean over the levels, each at the better of its rates.
"""

import argparse
import sys
import time

import numpy as np
import torch

from mrigsure.denoiser import Denoiser
from mrigsure.losses import scan_losses
from mrigsure.optimizer import MuonAdam
from mrigsure.phantoms import TEST_HEADS, TRAIN_HEADS, random_slice
from mrigsure.progress import status_table, track
from mrigsure.scan import SIGMA_DATA
from mrigsure.seeds import complex_noise, generator
from mrigsure.settings import TrainSettings

BAR, QUICK_BAR = 0.95, 0.99
LEVELS = (0.0125, 0.05, 0.1, 0.2, 0.4, 0.8)  # of SIGMA_DATA
LOWEST = 0.005
SETTINGS = TrainSettings([], "", objective="supervised", rounds=0, log_sigma=(-2.5, 1.5))
BATCH, TESTED, IMAGES, WARMUP = 8, 64, 2000, 50


class Adam:
    """torch.optim.Adam alone, as MuonAdam is called."""

    def __init__(self, network, learning_rate):
        self.adam = torch.optim.Adam(network.parameters(), learning_rate)
        self.step = self.adam.step

    @property
    def learning_rate(self):
        return self.adam.param_groups[0]["lr"]

    @learning_rate.setter
    def learning_rate(self, value):
        self.adam.param_groups[0]["lr"] = value


def phantom(split, heads, size, number):
    image = random_slice(np.random.default_rng([split, number]), (size, size), heads)
    return torch.from_numpy(SIGMA_DATA * image)


def learned(kind, rate, images, updates):
    """The denoiser and the seconds of an update."""
    torch.manual_seed(0)
    model = Denoiser(SETTINGS.channels, SIGMA_DATA)
    optimizer = kind(model, rate)
    common = dict(sigma_data=SIGMA_DATA, lowest_refined=LOWEST, device="cpu")
    start = time.process_time()
    for number in track(range(updates), f"{kind.__name__} at {rate:g}", updates):
        picks = torch.randint(len(images), (BATCH,), generator=generator(0, number))
        batch = torch.stack([images[i] for i in picks])
        optimizer.learning_rate = rate * min(1, (number + 1) / WARMUP) * (1 - number / updates)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            _, losses = scan_losses(SETTINGS, model, batch, (0, number, 0), **common)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model, (time.process_time() - start) / updates


@torch.no_grad()
def errors(model, images):
    found = []
    for number, level in enumerate(LEVELS):
        sigma = level * SIGMA_DATA
        noise = sigma * complex_noise(images.shape, generator(1, number), images.dtype)
        output = model(images + noise, torch.full((len(images),), sigma))
        found.append(((output - images).abs().square().sum() / images.abs().square().sum()).item())
    return np.array(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="32 x 32, 350 updates, one rate")
    quick = parser.parse_args().quick
    size, updates, faster = (32, 350, (2,)) if quick else (64, 2000, (1, 2))
    torch.set_num_threads(1)
    images = [phantom(1, TRAIN_HEADS, size, number) for number in range(300 if quick else IMAGES)]
    tested = torch.stack([phantom(2, TEST_HEADS, size, number) for number in range(TESTED)])
    default = SETTINGS.learning_rate
    best, rows = {}, []
    for kind in (Adam, MuonAdam):
        for rate in (default * factor for factor in faster):
            model, seconds = learned(kind, rate, images, updates)
            found = errors(model, tested)
            rows.append([kind.__name__, f"{rate:g}", f"{1e3 * seconds:.0f}", *(f"{1e3 * v:.4g}" for v in found)])
            best[kind] = min(best.get(kind, np.inf), np.exp(np.log(found).mean()))
    status_table(rows, ("optimizer", "rate", "ms", *map(str, LEVELS)))
    ratio = best[MuonAdam] / best[Adam]
    bar = QUICK_BAR if quick else BAR
    met = ratio <= bar
    print(f"optimizer_nmse_ratio {ratio:.3f} {bar} {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
