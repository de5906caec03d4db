"""Everything that needs a GPU, in one command: throughput of training, draws and ESPIRiT, agreement with the CPU.

    python benchmarks/gpu.py [--device cuda] [--quick]

Scans of 320 x 320 x 15 coils, random lines at R = 4, 0.6 M parameters, batches of 8. Training counts whole updates of
the default objective (held-out split GSURE, perturb-and-solve) and of a round (denoising of draws), from scans in main
memory to the optimizer's step; reconstruction counts posterior draws of 20 levels, 30 evaluations; ESPIRiT takes a
24 x 24 block of every coil to maps. Each is warmed up, then the least of the repeats counts. Agreement is the largest
difference from the CPU over the largest value, in float32: a denoised image, the direct solve of a line mask,
conjugate gradients with a point mask, a draw of one seed, maps, and maps where there is signal.
Without a GPU it says so and exits with status 2; --device cpu --quick runs the same on tiny arrays, to test the script.
The last line holds the faster precision's training throughput; the bar is 20 scans/s, an epoch over 10,000 slices in
less than ten minutes.
"""

import argparse
import sys
import time

import numpy as np
import torch

from data_prep.calibration import espirit
from mrigsure.denoiser import Denoiser, DenoiserConfig, Prior
from mrigsure.diffusion import sigma_schedule
from mrigsure.fourier import center_crop
from mrigsure.losses import scan_losses
from mrigsure.optimizer import MuonAdam
from mrigsure.phantoms import random_scan
from mrigsure.posterior import draw, posterior_samples
from mrigsure.progress import status_table
from mrigsure.scan import collate
from mrigsure.seeds import complex_noise, generator
from mrigsure.settings import TrainSettings
from mrigsure.spread import PixelSpectrumSpread

BAR = 20.0  # scans/s
AGREEMENT = 1e-3
CHANNELS = (24, 48, 64, 64)
CALIBRATION = 24
VARIANTS = ((False, False), (True, False), (True, True))  # bfloat16, compiled


class Bench:
    """The scans, sizes and device of one run."""

    def __init__(self, device, quick):
        self.device, self.quick = torch.device(device), quick
        self.size, self.coils, self.batch = (32, 3, 2) if quick else (320, 15, 8)
        self.repeats, self.levels = (1, 4) if quick else (5, 20)
        self.scans = [self.scan(index) for index in range(self.batch)]

    def scan(self, index, pattern="random"):
        rng = np.random.default_rng(index)
        options = dict(coils=self.coils, center_fraction=0.1, pattern=pattern)
        return random_scan(rng, (self.size, self.size), **options)

    def seconds(self, work):
        """The least of the repeats, after one that warms up."""
        work()
        times = []
        for _ in range(self.repeats):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
        return min(times)

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def denoiser(self, device=None):
        """The same weights every time, none of them 0."""
        torch.manual_seed(0)
        model = Denoiser(CHANNELS)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return model.to(device or self.device)


def training(bench, images, bfloat16, compiled):
    """Scans per second of whole updates; of draws where `images`, else of the first stage."""
    model = bench.denoiser()
    if compiled:
        model.network.compile()
    optimizer = MuonAdam(model, 1e-4)
    settings = TrainSettings(prepared=[], out="")
    draws = torch.stack([scan.target for scan in bench.scans])
    steps = iter(range(10**9))

    def denoise(x, sigma):
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bfloat16):
            return model(x, sigma)

    def update():
        model.zero_grad()
        batch = (draws if images else collate(bench.scans)).to(bench.device)
        common = dict(sigma_data=0.5, lowest_refined=0.01, device=bench.device)
        _, losses = scan_losses(settings, denoise, batch, (0, next(steps), 0), **common)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return bench.batch / bench.seconds(update)


def reconstruction(bench, bfloat16, compiled):
    """Posterior draws per second, a batch of scans at once."""
    model = bench.denoiser()
    if compiled:
        model.network.compile()
    prior = Prior(model, DenoiserConfig(channels=CHANNELS))
    batch = collate(bench.scans).to(bench.device)

    def work():
        rng = generator(0, "reconstruction", device=bench.device)
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bfloat16):
            posterior_samples(prior, batch, samples=1, levels=bench.levels, generator=rng, chunk=bench.batch)

    return bench.batch / bench.seconds(work)


def maps(bench, device):
    """Sensitivity maps (scans, coils, H, W) of fully sampled scans on `device`."""
    kspace = np.stack([bench.scan(index, "full").kspace.numpy() for index in range(2)])
    block = torch.from_numpy(np.ascontiguousarray(center_crop(kspace, (CALIBRATION, CALIBRATION)))).to(device)
    return lambda: espirit(block, (bench.size, bench.size))[:, 0]


def agreement(bench):
    """(what, largest difference of the device from the CPU over the CPU's largest value)."""

    def differ(make):
        here, there = make(torch.device("cpu")), make(bench.device).cpu()
        return largest(here - there, here)

    def largest(difference, values):
        return float(difference.abs().max() / values.abs().max())

    scans = bench.scans[:2]
    x = complex_noise((2, bench.size, bench.size), generator(0))
    points = collate([bench.scan(index, "poisson") for index in range(2)])

    def denoised(device):
        with torch.no_grad():
            return bench.denoiser(device)(x.to(device), torch.tensor([0.1, 1.0], device=device))

    def solved(batch):
        return lambda device: batch.to(device).operator.solve(x.to(device), torch.full((2,), 0.02, device=device))

    def drawn(device):
        model = bench.denoiser(device)
        batch, sigmas = collate(scans).to(device), sigma_schedule(6, 5.0, 0.02)
        with torch.no_grad():  # one generator on the CPU, whose noise goes to either device
            return draw(model, batch, sigmas, spread=PixelSpectrumSpread(), generator=generator(1))

    yield "denoised image", differ(denoised)
    yield "direct solve, line mask", differ(solved(collate(scans)))
    yield "conjugate gradients, point mask", differ(solved(points))
    yield "posterior draw, 6 levels", differ(drawn)
    images = torch.stack([bench.scan(index, "full").target for index in range(2)]).abs()
    signal = (images > 0.1 * images.max())[:, None]
    here, there = maps(bench, torch.device("cpu"))(), maps(bench, bench.device)().cpu()
    yield "ESPIRiT maps", largest(here - there, here)
    yield "ESPIRiT maps, in the body", largest(signal * (here - there), here)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny arrays, one repeat, no compiler")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was measured (--device cpu --quick tests the script)")
        return 2
    bench = Bench(options.device, options.quick)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}; {bench.size} x {bench.size} x {bench.coils} coils, batch {bench.batch}")
    rows, best = [], 0.0
    for bfloat16, compiled in VARIANTS[:2] if options.quick else VARIANTS:
        first, later = (training(bench, images, bfloat16, compiled) for images in (False, True))
        draws = reconstruction(bench, bfloat16, compiled)
        best = max(best, first)
        figures = [f"{value:.1f}" for value in (first, later, draws)]
        rows.append(["bfloat16" if bfloat16 else "float32", "yes" if compiled else "no", *figures])
    status_table(rows, ("precision", "compiled", "first stage scans/s", "rounds images/s", "draws/s"))
    print(f"ESPIRiT: {2 / bench.seconds(maps(bench, bench.device)):.1f} slices/s")
    differences = list(agreement(bench))
    status_table([[what, f"{value:.1e}"] for what, value in differences], ("against the CPU", "difference"))
    worst = max(value for _, value in differences)
    print(f"gpu_agreement {worst:.1e} {AGREEMENT} {'met' if worst <= AGREEMENT else 'missed'}")
    print(f"gpu_train_scans_per_s {best:.1f} {BAR:g} {'met' if best >= BAR else 'missed'}")
    return 0 if best >= BAR and worst <= AGREEMENT else 1


if __name__ == "__main__":
    sys.exit(main())
