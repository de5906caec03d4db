"""Do stated 90% intervals hold 90% of the truth? Phantoms of the shipped prior's own population.

    python benchmarks/interval_coverage.py [--quick] [--prior FOLDER] [--slices N] [--heads test] [--maps true]

The scans have the distribution of examples/train_shipped_prior.sh at 128 x 128, drawn anew: the heads that training
drew in new cuts, contrasts and phases, 8 to 14 coils, noise 0.03 to 0.06, random and Gaussian lines, a centre of 10%;
at R = 4 and R = 8. `--heads test` takes the head that no training drew. The scans are simulated as raw files and go
through `prepare`, which estimates maps and noise level as it did for training; `--maps true` has the true ones, which
takes out what `prepare` errs by (docs/uncertainty.md). Every slice is a scan by itself, 8 draws of 30 evaluations.
Counted is the body, above 15% of the 99th percentile; air beside.

Prints median and 5th percentile of the slices' coverages, with the prior's spread as it is and with each scan's own
scale, and the scorecards' warnings. The last line holds that median which is farther from 0.9; the bar is 0.87 to 0.93
in the median slice and 0.8 at the 5th percentile, with the scan's own scale, at both rates.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import h5py
import numpy as np

from data_prep.prepare import prepare
from mrigsure.denoiser import load_prior
from mrigsure.errors import ScanWarning
from mrigsure.phantoms import TEST_HEADS, TRAIN_HEADS, random_scan
from mrigsure.progress import status_table, track
from mrigsure.scan import ScanSet
from mrigsure.settings import PrepareSettings, SimulateSettings
from mrigsure.simulate import simulate
from recon.metrics import body_mask, coverage
from recon.reconstruct import reconstruct_scans
from recon.uncertainty import LEVEL, magnitude_interval

RATES, MATRIX = (4, 8), 128
COILS, PATTERNS, CENTER_FRACTION, NOISE = (8, 14), ("random", "gaussian"), 0.1, (0.03, 0.06)
SEED = 31  # training's is 5
MEDIAN, LEAST = (0.87, 0.93), 0.8
COLUMNS = ("draws as they are, body", "with the scan's own scale, body", "with the scan's own scale, air")
JUDGED = 1


def with_true_maps(acceleration, slices, heads):
    """Scans of the population, each with its clean magnitude in the raw data's units."""
    for index in range(slices):
        rng = np.random.default_rng([SEED, acceleration, index])
        scan = random_scan(
            rng,
            (MATRIX, MATRIX),
            coils=int(rng.integers(COILS[0], COILS[1] + 1)),
            acceleration=acceleration,
            pattern=str(rng.choice(PATTERNS)),
            center_fraction=CENTER_FRACTION,
            noise=float(np.exp(rng.uniform(*np.log(NOISE)))),
            heads=TRAIN_HEADS if heads == "train" else TEST_HEADS,
        )
        yield scan, scan.target.abs().numpy() / scan.scale


def prepared(acceleration, slices, heads):
    """The same from raw files, by `simulate` and `prepare`."""
    with tempfile.TemporaryDirectory() as folder:
        raw, truth, out = (str(Path(folder) / name) for name in ("raw", "truth", "prepared"))
        population = {"coils": COILS, "pattern": PATTERNS, "center_fraction": CENTER_FRACTION, "noise": NOISE}
        population |= {"matrix": MATRIX, "acceleration": (float(acceleration),), "split": heads, "seed": SEED}
        simulate(SimulateSettings(out=raw, truth=truth, volumes=slices, slices=1, **population))
        for path in prepare(PrepareSettings(raw=[raw], out=out)):
            with h5py.File(Path(truth) / path.name) as file:
                yield ScanSet([str(path)])[0], abs(file["target"][0])


SCANS = {"true": with_true_maps, "prepared": prepared}


def measure(prior, acceleration, scans, slices, samples, nfe):
    """Coverages (slices, COLUMNS); the scans' scales; and the warnings."""
    rows, scales, said = [], [], []
    for index, (scan, target) in enumerate(track(scans, f"R = {acceleration}", slices)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ScanWarning)
            options = {"samples": samples, "nfe": nfe, "seed": index, "name": str(acceleration), "keep_samples": True}
            made = reconstruct_scans([scan], "posterior", prior, **options)
        said += [f"R = {acceleration}, slice {index}: {warning.message}" for warning in caught]
        scales.append(made.record.get("spread_scale", 1.0))
        draws, body, paired = made.samples[0], body_mask(target), made.record["pairs"]
        ends = [magnitude_interval(draws, LEVEL, paired=paired), (made.lower[0], made.upper[0])]
        row = [coverage(*pair, target, body) for pair in ends]
        rows.append([*row, coverage(*ends[-1], target, ~body) if not body.all() else np.nan])
    return np.array(rows), scales, said


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 slices a rate, 4 draws of 20 evaluations")
    parser.add_argument("--prior", help="folder of a prior; the shipped one if not given")
    parser.add_argument("--slices", type=int, default=32, help="at each rate")
    parser.add_argument("--heads", choices=("train", "test"), default="train")
    parser.add_argument("--maps", choices=SCANS, default="prepared")
    options = parser.parse_args()
    prior = load_prior(options.prior)
    slices, samples, nfe = (2, 4, 20) if options.quick else (options.slices, 8, 30)
    table, judged, messages = [], [], []
    for rate in RATES:
        scans = SCANS[options.maps](rate, slices, options.heads)
        rows, scales, said = measure(prior, rate, scans, slices, samples, nfe)
        messages += said
        medians, lows = np.nanmedian(rows, axis=0), np.nanpercentile(rows, 5, axis=0)
        judged.append((float(medians[JUDGED]), float(lows[JUDGED])))
        for name, median, low in zip(COLUMNS, medians, lows, strict=True):
            scale = f"{min(scales):.2f} to {max(scales):.2f}" if "scale" in name else ""
            table.append([rate, name, f"{median:.3f}", f"{low:.3f}", scale])
    print(f"prior {prior.name} {prior.sha256[:8]}, {options.heads} heads, {MATRIX} x {MATRIX}, {options.maps} maps")
    print(f"{slices} slices a rate, {samples} draws of {nfe} evaluations, stated {LEVEL:.0%}")
    status_table(table, ("R", "intervals", "median", "5th percentile", "scales"))
    for text in messages:
        print(text)
    met = all(MEDIAN[0] <= median <= MEDIAN[1] and low >= LEAST for median, low in judged)
    worst = max((median for median, _ in judged), key=lambda median: abs(median - LEVEL))
    print(f"coverage_median {worst:.3f} {MEDIAN[0]:.2f}-{MEDIAN[1]:.2f} {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
