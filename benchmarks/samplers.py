"""What the default posterior sampler is worth: quality, speed and spread against the classical and published ways.

    python benchmarks/samplers.py [--quick]                       tables, docs/samplers_quality.png and bars of the rows
    python benchmarks/samplers.py --run SECTION [--slices N ...]  measure a section, row by row, into the results

A row that is there already and was made with the prior at hand is kept, so that a run which was stopped goes on; a row
of another prior keeps its baselines. Where samplers, baselines or preparation have changed, --again measures all anew.
"Ours" is always what `mrigsure reconstruct` does untouched: 8 samples at 30 evaluations. Baselines are measured with
lambda chosen on held-out lines, as a user would, and on the truth, as nobody can; the bars take the second.

    phantoms     a head that training never drew, 128 x 128, 8 coils, true maps, random lines, noise 0.08
    real-slices  real images of shared/data with simulated coils and phase
    brain-16     the real 16-coil brain that ships, masked anew, against the SENSE image of all its lines
    brains-8     shared/data's 8-coil brains: one fully sampled, masked anew; one acquired by Poisson disc, whose
                 samples held out of every method are predicted (no truth)
    evaluations  every sampler at 5 to 1000 network evaluations, on phantoms of 128 x 128, a draw at a time on one
                 thread; 4 draws each, ours in antithetic pairs as `mrigsure reconstruct` has them
    overhead     ours at 128 x 128 and 8 coils: processor time over that of as many bare network evaluations
    spread       64 slices of one phantom volume from vertex to base at three noise levels

Seconds are processor time of one thread; bare evaluations are timed in turn with the draws, and samplers' times are
compared in them. A section whose data is not there is skipped and said. The last line holds the worst margin to a bar
in dB, speeds and times as 10 log10 of their ratio to the bar.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.resources import files
from pathlib import Path

import committed
import numpy as np
import torch
from prior_parity import simulate
from samplers_table import show

from data_prep.prepare import prepare
from mrigsure.denoiser import Prior, load_prior
from mrigsure.fourier import fft2c
from mrigsure.masks import make_mask, sampling_density
from mrigsure.phantoms import TEST_HEADS, coil_maps, complex_normal, random_scan, random_volume
from mrigsure.progress import say, track
from mrigsure.scan import SIGMA_DATA, Scan, read_prepared
from mrigsure.seeds import generator, in_pairs
from mrigsure.settings import PrepareSettings
from mrigsure.workers import keep_freed_memory
from recon.baselines import baseline, best_lambda_with_truth, choose_lambda
from recon.metrics import body_mask, psnr, z_squared
from recon.reconstruct import reconstruct_scans
from recon.samplers import DEFAULT, SAMPLERS, draws
from recon.uncertainty import body_sums, moments, scatter

BENCH = "samplers"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BASELINES = ("cg-sense", "l1-wavelet", "tv")
CENTER_FRACTION = {4: 0.1, 6: 0.08, 8: 0.06}
SAMPLES, NFE = 8, 30
BRAIN_LINES = {4: 12, 6: 12, 8: 8}  # of 128 in the centre
BRAIN_MASKS, POISSON_MASKS = 4, 8
POISSON_CENTER = 0.1
HELD_OUT = 0.15
EVALUATIONS = (5, 10, 20, 30, 50, 100, 200, 500, 1000)
FEWEST = {"default": 3, "ald": 6}
SIZE, DRAWS, MOST_BARE = 128, 4, 100
VOLUME_SLICES, NOISES = 64, (0.04, 0.08, 0.16)
LEVELS = ("vertex", "upper", "middle", "base")
QUICK = f"evaluations/{DEFAULT}/30/0"

Row = dict
Measure = Callable[[Row], Row]
"""Of the row as another prior had it, {} where there is none."""


def phantoms(prior: Prior, options) -> Iterator[tuple[str, Measure]]:
    """Section: names of rows, each with the function that measures it. So are the others below."""
    for rate in (4, 6, 8):
        for number in range(options.slices or 16):
            yield f"R = {rate}/{number}", partial(_compare, prior, lambda r=rate, n=number: _phantom(r, n, 128), number)


def real_slices(prior, options):
    _needed("images/real_t2_128_test.npy")
    for rate in (4, 8):
        for number in range(options.slices or 16):
            scan = partial(simulate, "real", number, "test", rate)
            yield f"R = {rate}/{number}", partial(_compare, prior, scan, number)


def brain_16(prior, options):
    raw = files("mrigsure") / "data" / "scans" / "brain_16ch.h5"
    for number in range(options.slices or BRAIN_MASKS):
        for rate, lines in BRAIN_LINES.items():
            scan = partial(_masked, raw, number, "random", rate, lines / 128)
            yield f"R = {rate}/{number}", partial(_compare, prior, scan, number, measured=True)


def brains_8(prior, options):
    full, undersampled = _needed("raw/brain_8ch_full.cfl"), _needed("raw/brain_8ch_poisson.npy")
    masks = [("random", rate, CENTER_FRACTION[rate], BRAIN_MASKS) for rate in (4, 6, 8)]
    masks += [("poisson", rate, POISSON_CENTER, POISSON_MASKS) for rate in (8, 12)]
    for pattern, rate, center, count in masks:
        for number in range(options.slices or count):
            scan = partial(_masked, full, number, pattern, rate, center)
            name = "R" if pattern == "random" else "Poisson R"
            yield f"{name} = {rate}/{number}", partial(_compare, prior, scan, number, measured=True)
    for number in range(options.slices or BRAIN_MASKS):
        yield f"held out/{number}", partial(_predict, prior, undersampled, number)


def evaluations(prior, options):
    chosen = options.samplers or list(SAMPLERS)
    for nfe in options.nfe or EVALUATIONS:
        for number in range(options.slices or 2):
            for name in chosen:
                if nfe >= FEWEST.get(name, 2):
                    scan = partial(_phantom, 4, number, SIZE)
                    yield f"{name}/{nfe}/{number}", partial(_timed, prior, scan, name, nfe, DRAWS)


def overhead(prior, options):
    for number in range(options.slices or 2):
        yield f"default/{NFE}/{number}", partial(_timed, prior, partial(_phantom, 4, number, SIZE), "default", NFE, 3)


def spread(prior, options):
    chosen = np.linspace(0, VOLUME_SLICES - 1, options.slices or VOLUME_SLICES).round().astype(int).tolist()
    for noise in NOISES:
        for index in chosen:
            level = LEVELS[index * len(LEVELS) // VOLUME_SLICES]
            yield f"{noise}/{level}/{index}", partial(_slice, prior, noise, index)


SECTIONS = {
    "phantoms": phantoms,
    "real-slices": real_slices,
    "brain-16": brain_16,
    "brains-8": brains_8,
    "evaluations": evaluations,
    "overhead": overhead,
    "spread": spread,
}


def _compare(prior, make_scan, seed, before, measured=False) -> Row:
    """PSNR of the baselines, of the mean of the samples and of one (their average), z^2.

    A measured target has noise, of which the scan shares what it sampled: the rest counts in z^2, and `ceiling` is the
    PSNR that an image without any error would have (in air the magnitude has both parts of the noise).
    """
    scan = make_scan()
    noise = scan.noise_std * float(1 - scan.mask.mean()) ** 0.5 if measured else 0.0
    target = scan.target.abs().numpy()
    row = {by: before.get(by, {}) for by in ("held-out", "truth")}
    for method in () if before else BASELINES:
        choices = {
            "held-out": choose_lambda(method, scan, generator(seed, "lambda")),
            "truth": best_lambda_with_truth(method, scan, scan.target),
        }
        for by, choice in choices.items():
            row[by][method] = round(psnr(baseline(method, scan, choice.value).abs().numpy(), target), 3)
    made = reconstruct_scans([scan], "posterior", prior, samples=SAMPLES, nfe=NFE, seed=seed, keep_samples=True)
    if measured:
        row["ceiling"] = round(20 * np.log10(target.max() / noise) - 10 * np.log10(2 - body_mask(target).mean()), 3)
    return row | _figures(made.samples[0] * scan.scale, scan.target.numpy(), made.record["pairs"], noise)


def _figures(images, target, paired, noise=0.0) -> Row:
    """PSNR of the mean of complex (samples, H, W), of one, and z^2."""
    found, truth = moments(images, paired=paired), np.abs(target)
    z2 = z_squared(found.mean, target, np.sqrt(found.variance), scatter([body_sums(found)]), noise)
    return {
        "mean": round(psnr(np.abs(found.mean), truth), 3),
        "one": round(float(np.mean([psnr(np.abs(image), truth) for image in images])), 3),
        "z2": round(z2, 3),
    }


def _predict(prior, raw, seed, before) -> Row:
    """Share of the signal's energy that each method misses on samples held out of all, the noise's taken off."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(PrepareSettings(raw=[str(raw)], out=folder, seed=seed))
        scan = read_prepared(Path(folder, f"{Path(raw).stem}.h5")).scan(0, Path(raw).stem)
    kept = scan.held_out(HELD_OUT, generator(seed, "held out"))
    held = (scan.mask - kept.mask).bool().expand(scan.kspace.shape)
    noise = 2 * scan.noise_std**2 * int(held.sum())

    def missed(image):
        error = scan.kspace - scan.batch().operator.coil_kspace(image[None])[0]
        return round(
            float((error[held].abs().square().sum() - noise) / (scan.kspace[held].abs().square().sum() - noise)), 4
        )

    row = {"held-out": before.get("held-out", {})}
    for method in () if before else BASELINES:
        choice = choose_lambda(method, kept, generator(seed, "lambda"))
        row["held-out"][method] = missed(baseline(method, kept, choice.value))
    made = reconstruct_scans([kept], "posterior", prior, samples=SAMPLES, nfe=NFE, seed=seed, keep_samples=True)
    images = torch.from_numpy(made.samples[0]) * scan.scale
    return row | {"mean": missed(images.mean(0)), "one": round(float(np.mean([missed(image) for image in images])), 4)}


class _Counted:
    """A prior that counts its evaluations."""

    def __init__(self, prior):
        self.prior, self.config, self.spread, self.count = prior, prior.config, prior.spread, 0

    def __call__(self, x, sigma):
        self.count += len(x)
        return self.prior(x, sigma)


def _timed(prior, make_scan, name, nfe, count, _=None) -> Row:
    """Draws one by one, after each as many bare evaluations, at most MOST_BARE; seconds a draw of either."""
    scan = make_scan()
    counted, seconds, bare, images = _Counted(prior), 0.0, 0.0, []
    x = torch.zeros_like(scan.target)[None]
    prior.denoise(x, 1.0)  # the first call sets up
    paired = name == DEFAULT and count % 2 == 0
    random = in_pairs(count, 0, name, nfe) if paired else [generator(n, "draw", name, nfe) for n in range(count)]
    for number in range(count):
        rng = random[number : number + 1]
        counted.count, started = 0, time.process_time()
        images.append(draws(name, counted, scan.batch(), samples=1, nfe=nfe, generator=rng)[0, 0].numpy())
        seconds += time.process_time() - started
        repeats, started = min(counted.count, MOST_BARE), time.process_time()
        for _ in range(repeats):
            prior.denoise(x, 1.0)
        bare += (time.process_time() - started) * counted.count / repeats
    times = {"seconds": round(seconds / count, 4), "bare": round(bare / count, 4), "made": counted.count}
    return _figures(np.stack(images), scan.target.numpy(), paired) | times


def _slice(prior, noise, index, before) -> Row:
    """Ours on one slice of the volume, and CG-SENSE with the middle slice's lambda as `mrigsure reconstruct` has it."""
    scan = _volume_scan(noise, index)
    made = reconstruct_scans([scan], "posterior", prior, samples=SAMPLES, nfe=NFE, seed=index, keep_samples=True)
    row = _figures(made.samples[0] * scan.scale, scan.target.numpy(), made.record["pairs"])
    if before:
        return row | {"cg-sense": before["cg-sense"]}
    image = baseline("cg-sense", scan, _volume_lambda(noise)).abs().numpy()
    return row | {"cg-sense": round(psnr(image, scan.target.abs().numpy()), 3)}


def _phantom(rate, number, size) -> Scan:
    """The same scans as benchmarks/reconstruction.py's."""
    rng = np.random.default_rng([11, rate, number])
    options = {"acceleration": rate, "center_fraction": CENTER_FRACTION[rate], "heads": TEST_HEADS}
    return random_scan(rng, (size, size), **options)


def _masked(raw, seed, pattern, rate, center) -> Scan:
    """A fully sampled scan under a mask, prepared as `mrigsure prepare` does, with the SENSE image of all as target."""
    with tempfile.TemporaryDirectory() as folder:
        mask = {"pattern": pattern, "acceleration": rate, "center_fraction": center}
        prepare(PrepareSettings(raw=[str(raw)], out=folder, seed=seed, keep_target=True, **mask))
        stem = Path(str(raw)).stem
        return read_prepared(Path(folder, f"{stem}.h5"), target=True).scan(0, stem)


@cache
def _volume():
    """(64, 128, 128): axial planes of one head from vertex to base, of one contrast; the first such that turns up."""
    for seed in range(100):
        made = random_volume(np.random.default_rng([13, seed]), (128, 128), VOLUME_SLICES, TEST_HEADS)
        if made.orientation == "axial":
            return SIGMA_DATA * made.images
    raise RuntimeError("no axial volume in 100")


def _volume_scan(noise, index) -> Scan:
    """R = 4; coils and mask are those of the volume."""
    target = torch.from_numpy(_volume()[index])
    shape = tuple(target.shape)
    maps = torch.from_numpy(coil_maps(np.random.default_rng([14, 0]), 8, shape))
    made = (
        make_mask("random", shape, 4, CENTER_FRACTION[4], 0),
        sampling_density("random", shape, 4, CENTER_FRACTION[4]),
    )
    mask, density = (torch.from_numpy(np.broadcast_to(np.asarray(p, np.float32), shape).copy()) for p in made)
    white = torch.from_numpy(complex_normal(np.random.default_rng([15, index]), maps.shape))
    kspace = mask * (fft2c(maps * target) + noise * SIGMA_DATA * white)
    return Scan(kspace, mask, maps, density, noise * SIGMA_DATA, name=f"slice {index}", target=target)


@cache
def _volume_lambda(noise):
    return choose_lambda("cg-sense", _volume_scan(noise, VOLUME_SLICES // 2), generator(0, "lambda")).value


class _Missing(Exception):
    """Data that does not ship and is not there."""


def _needed(name):
    path = SHARED / name
    if not path.is_file():
        raise _Missing(f"{name} is needed in shared/data beside the repository; it does not ship")
    return path


def run(section, prior, options):
    """Measure the rows that are missing, or of another prior; all where they are to be measured again."""
    fingerprint = prior.sha256[:8]
    try:
        rows = [(f"{section}/{name}", measure) for name, measure in SECTIONS[section](prior, options)]
    except _Missing as error:
        say(f"{section} skipped: {error}")
        return
    known = {} if options.again else committed.rows(BENCH)
    missing = [(key, measure) for key, measure in rows if known.get(key, {}).get("prior") != fingerprint]
    say(f"{section}: {len(missing)} of {len(rows)} rows to measure with prior {fingerprint}")
    for key, measure in track(missing, section):
        committed.record(BENCH, key, measure(known.get(key, {})) | {"prior": fingerprint})


def rerun_small(prior) -> bool:
    """One small row again; it must come out as committed."""
    before = committed.rows(BENCH).get(QUICK)
    now = _timed(prior, partial(_phantom, 4, 0, SIZE), "default", NFE, DRAWS)["mean"]
    if before is None or before["prior"] != prior.sha256[:8]:
        print(f"{QUICK}: {now:.2f} dB, but no row of this prior is committed")
        return False
    print(f"{QUICK}: {now:.2f} dB again, {before['mean']:.2f} committed")
    return abs(now - before["mean"]) < 0.1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="also measure one small row again")
    parser.add_argument("--run", dest="section", choices=SECTIONS, help="measure this section")
    parser.add_argument("--again", action="store_true", help="also the rows that are there")
    parser.add_argument("--prior", help="folder of a prior; the shipped one if not given")
    parser.add_argument("--slices", type=int, help="slices, or masks of a brain, to measure")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, help="of evaluations")
    parser.add_argument("--nfe", type=int, nargs="+", help="of evaluations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `mrigsure reconstruct` does
    if options.section:
        run(options.section, load_prior(options.prior), options)
        return 0
    margin, met = show(committed.rows(BENCH))
    if options.quick:
        met = rerun_small(load_prior(options.prior)) and met
    print(f"samplers_worst_margin {margin:.2f} 0.00 {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
