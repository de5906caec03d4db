"""Does a prior beat an unrolled network that was trained on the same undersampled scans?

    python benchmarks/unrolled.py [--quick]                      the table of the committed results
    python benchmarks/unrolled.py --run --work FOLDER [...]      train, measure, add to the results

The competitor is MoDL trained by SSDU (`mrigsure train-unrolled`) with the U-Net of our priors, on the 2,000 scans at
R = 4 of prior_parity.py's phantom bench (FOLDER is that of its runs, too) until its loss on held-apart scans ends to
fall. It is tested on that bench's slices at the trained acceleration and at others, beside the last prior of `solve`
and the oracle: PSNR in dB of one image and of the mean of 8 draws.

The last line holds the least of the gains of our mean of 8 over the network at R = 2, 4, 6, 8, in dB, less half its
paired 95% interval; the bar is 0. `--quick` trains a few updates anew and compares the loss with the committed one.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import committed
import numpy as np
from prior_parity import BENCH as PRIORS
from prior_parity import BEST, RATES, archive, is_last, paired, simulate

from mrigsure.progress import status_table, track
from mrigsure.settings import TrainUnrolledSettings
from recon.metrics import psnr, ssim
from recon.train_unrolled import train_unrolled
from recon.unrolled import RECORD, Unrolled, load_unrolled, unrolled_image

BENCH = "unrolled"
CHANNELS = (24, 48, 64, 64)  # of our priors
QUICK = {"scans": 24, "steps": 10, "batch_size": 2, "channels": (8, 8), "unrolls": 2, "every": 10}


def train(work, scans, seed=0, **options) -> tuple[Unrolled, dict]:
    """The network, and what training.json says of it."""
    prepared = archive(Path(work) / ("phantom-R4" if scans == 2000 else f"phantom-R4-{scans}"), "phantom", scans, [4])
    out = Path(work) / f"unrolled-seed{seed}-{options['steps']}"
    train_unrolled(
        TrainUnrolledSettings(prepared=[str(prepared)], out=str(out), seed=seed, resume=True, device="cpu", **options)
    )
    return load_unrolled(out), json.loads((out / RECORD).read_text())


def quick_loss() -> float:
    """Of a few updates on a few scans, on those held apart."""
    with tempfile.TemporaryDirectory() as folder:
        return train(folder, **QUICK)[1]["loss"]


def measure(model, slices) -> dict:
    """Per rate PSNR and SSIM, slice by slice."""
    rates = {}
    for rate in RATES:
        pairs = []
        for number in track(range(slices), f"R = {rate}"):
            scan = simulate("phantom", number, "test", rate)
            pairs.append((unrolled_image(model, scan).abs().numpy(), scan.target.abs().numpy()))
        rates[str(rate)] = {
            "psnr_mean": [round(psnr(*pair), 3) for pair in pairs],
            "ssim_mean": [round(ssim(*pair), 4) for pair in pairs],
        }
    return rates


def show(rows, priors) -> float:
    """The table; returns the least gain of the last prior of `solve` over a network of its seed, less its interval."""
    table, margins = [], []
    for key, row in rows.items():
        seed = row["seed"]
        table.append([f"{key}, update {row['update']}", *_cells(row)])
        for name, prior in priors.items():
            bench, arm, rates, of_seed, number = name.split("-")
            if (bench, rates, of_seed) != ("phantom", "R4", f"seed{seed}") or not (
                arm == "oracle" or (arm == BEST and is_last(number, prior))
            ):
                continue
            table.append([name, *_cells(prior, len(row["rates"]["4"]["psnr_mean"]))])
            if arm == BEST:
                gains = [paired(prior, row, rate) for rate in RATES]
                table.append(["gain", *(f"{gain:+.2f} +- {half:.2f}" for gain, half in gains)])
                margins += [gain - half for gain, half in gains]
    print("PSNR in dB (one draw / mean of 8 draws) and SSIM; networks trained at R = 4 alone")
    status_table(table, ("", *(f"R = {rate}" for rate in RATES)))
    return min(margins, default=float("nan"))


def _cells(row, most=None):
    """Means over the slices, at most so many, by rate."""
    for rate in RATES:
        found = {key: values[:most] for key, values in row["rates"][str(rate)].items() if key != "power"}
        one = f"{np.mean(found['psnr_one']):.2f} / " if "psnr_one" in found else ""
        yield f"{one}{np.mean(found['psnr_mean']):.2f} {np.mean(found['ssim_mean']):.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="also train a few updates")
    parser.add_argument("--run", action="store_true", help="train and measure")
    parser.add_argument("--work", help="folder for scans and network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scans", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--unrolls", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--slices", type=int, default=32)
    options = parser.parse_args()
    if options.run:
        training = {
            k: getattr(options, k) for k in ("scans", "steps", "unrolls", "batch_size", "learning_rate", "seed")
        }
        model, told = train(options.work, **training, channels=CHANNELS, validation=0.02)
        row = {"rates": measure(model, options.slices), "update": told["update"], "loss": told["loss"]}
        committed.record(BENCH, f"unrolled-R4-seed{options.seed}-{options.steps}", row | training)
        committed.record(BENCH, "quick", {"loss": quick_loss()})
        return 0
    margin, same = show({k: v for k, v in committed.rows(BENCH).items() if k != "quick"}, committed.rows(PRIORS)), True
    if options.quick:
        now, before = quick_loss(), committed.rows(BENCH)["quick"]["loss"]
        print(f"{QUICK['steps']} updates: loss {now:.4f} again, {before:.4f} committed")
        same = abs(now - before) < 0.02
    met = same and margin >= 0
    print(f"unrolled_least_gain_dB {margin:.2f} 0.00 {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
