"""Reconstruction of phantoms whose head no training drew: the shipped prior against the classical baselines.

    python benchmarks/reconstruction.py [--quick] [--prior FOLDER] [--slices N]

Every method sees the same scans: 8 coils, true maps, random lines, noise 0.08. The baselines' lambda is chosen without
truth. Prints PSNR in dB and SSIM (mean over slices) and z^2 of the posterior mean; the last line holds the gain of the
posterior mean over the best baseline, averaged over slices and accelerations. The bar is 0 dB: no loss.
"""

import argparse
import sys

import numpy as np
import torch

from mrigsure.denoiser import load_prior
from mrigsure.devices import pick_precision
from mrigsure.phantoms import TEST_HEADS, random_scan
from mrigsure.progress import status_table, track
from recon.metrics import psnr, ssim, z_squared
from recon.reconstruct import reconstruct_scans

METHODS = ("zero-filled", "cg-sense", "l1-wavelet", "tv", "posterior")
CENTER_FRACTION = {2: 0.16, 4: 0.1, 6: 0.08, 8: 0.06}


def measure(prior, acceleration, size, slices, samples, nfe):
    """Method -> (PSNR, SSIM, z^2), means over slices."""
    figures = {method: [] for method in METHODS}
    for index in track(range(slices), f"R = {acceleration}"):
        scan = random_scan(
            np.random.default_rng([11, acceleration, index]),
            (size, size),
            acceleration=acceleration,
            center_fraction=CENTER_FRACTION[acceleration],
            heads=TEST_HEADS,
        )
        target = scan.target.numpy()
        for method in METHODS:
            made = reconstruct_scans([scan], method, prior, samples=samples, nfe=nfe, seed=index)
            image = made.image[0] * scan.scale
            z2 = np.nan
            if made.std is not None:
                z2 = z_squared(image, target, made.std[0] * scan.scale, made.record["scatter"])
            figures[method].append((psnr(abs(image), abs(target)), ssim(abs(image), abs(target)), z2))
    return {method: np.mean(rows, axis=0) for method, rows in figures.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="R = 4 and 8, 64 x 64, 2 slices, 4 draws")
    parser.add_argument("--prior", help="folder of a prior; the shipped one if not given")
    parser.add_argument("--slices", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    prior = load_prior(options.prior, precision=pick_precision("auto", torch.device("cpu")))
    rates = (4, 8) if options.quick else (2, 4, 6, 8)
    setting = (64, 2, 4, 24) if options.quick else (options.size, options.slices, 8, 30)
    rows, gains = [], []
    for rate in rates:
        result = measure(prior, rate, *setting)
        best = max(value[0] for method, value in result.items() if method != "posterior")
        gains.append(result["posterior"][0] - best)
        for method, (decibel, similarity, z2) in result.items():
            rows.append([rate, method, f"{decibel:.2f}", f"{similarity:.3f}", "" if np.isnan(z2) else f"{z2:.2f}"])
    size, slices, samples, nfe = setting
    print(
        f"prior {prior.name} {prior.sha256[:8]}, {size} x {size}, {slices} slices, {samples} draws of {nfe} evaluations"
    )
    status_table(rows, ("R", "method", "PSNR dB", "SSIM", "z^2"))
    gain = float(np.mean(gains))
    print(f"reconstruction_gain_dB {gain:.2f} 0.00 {'met' if gain >= 0 else 'missed'}")
    return 0 if gain >= 0 else 1


if __name__ == "__main__":
    sys.exit(main())
