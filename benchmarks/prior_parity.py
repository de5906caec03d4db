"""Is a prior that saw undersampled noisy scans alone as good as one trained on the clean images? The oracle's gap.

    python benchmarks/prior_parity.py [--quick]                        the table of the committed results
    python benchmarks/prior_parity.py --run ARM --work FOLDER [...]    train and measure an arm, add it to the results

Bench: 8 coils, true maps, 1-D random masks, noise 0.08 of the image's standard deviation. `phantom`: 64 x 64, 2,000
training scans of the embedded heads, tested on a head that training never drew. `real`: 180 real slices of the
development data at 128 x 128, three heads in three orientations, each scanned once, with simulated coils and phase, 18
of them held apart; tested on 30 slices of other stacks. Arms: `gsure`, `split`, `heldout` (adjoint input) and `solve`
(perturb-and-solve input, held-out lines) are the starts of docs/method.md, 1 to 5, followed by refinement rounds that
the scans teach; in those of `draws`, which starts as `solve` does, draws alone do; `gaussian` starts the rounds from a
fitted Gaussian; `oracle` is the same network trained on the clean images with as many updates, `oracle500` (`oracle45`
of the real) on 500 of them, as many as the scanner makes in the hours that the 2,000 took at R = 4. Every prior's
draws are calibrated on held-out lines by the same rule. Every arm ends with long rounds of larger batches: what is
left of the gap at high noise levels is the noise of gradients. A training that was stopped goes on where it was.

All rows but the tiny one are of priors that Adam trained, not Muon (mrigsure/optimizer.py). Rows of `solve`, seeds 1
and 2, and of their oracles are of the defaults; of seed 1 the last two rows of `solve` with `--last-memory 8`, those
after 0 to 8 rounds of an earlier training. That one, seed 2 and seed 0 drew scans by chance, not in turn. Of seed 0 the
ten rounds, the first stage and the oracle's beginning are of noise levels of ln sigma ~ N(-1.5, 1.5^2), where the
defaults have N(-2.5, 1.5^2): 6,500 updates of 8, the rate of the first five fine rounds as if six, not eight, were to
come, and 6,400 of 16; the oracle's 7,500 of 8 and as many; a second stage of as many follows at the defaults' levels,
for the oracle too. Rows of `draws` were trained while draws still began at 40 sigma_data and rounds drew with 8 levels,
and at fewer low levels. They were measured with a spread calibrated band by band, which cost up to .2 dB, and on 16
scans, where all 40 held apart are used now: that moves a row by up to .1 dB, of `solve`, seed 0, too, but for round 26.
`gsure`, `split` and `heldout` are of the defaults but eight rounds and no long ones (`--rounds 8 --last-steps --slices
32 --compile`). `oracle500` is of the recipe of seed 2's oracle, compiled. Rows of R = 8 and of R = 2, 4, 6, 8 in turn
are of the recipe of seed 2, compiled. The oracle on real slices was trained and measured on a GPU, without long rounds,
when 2,000 scans drew each of them eleven times, `solve` there not to its end.

The bar, of priors trained at R = 4: mean gap to the oracle at most 0.3 dB at R = 4 and 0.5 dB at R = 2, 6, 8, over the
seeds and the slices, with its paired 95% interval below it. The last line holds the largest excess over it, in dB.
"""

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import committed
import numpy as np
import torch

from mrigsure.archive import open_archive
from mrigsure.calibrate import calibrate_spread
from mrigsure.denoiser import Prior, load_prior
from mrigsure.devices import at_once
from mrigsure.fourier import fft2c, radial_bands
from mrigsure.masks import make_mask, sampling_density
from mrigsure.phantoms import TEST_HEADS, TRAIN_HEADS, coil_maps, complex_normal, random_slice
from mrigsure.posterior import draw_levels, posterior_samples
from mrigsure.progress import say, status_table, track
from mrigsure.scan import SIGMA_DATA, PreparedVolume, Scan, collate, write_prepared
from mrigsure.seeds import complex_noise, generator, in_pairs
from mrigsure.settings import TrainSettings
from mrigsure.training import train
from mrigsure.validation import held_out_figures
from recon.metrics import psnr, ssim, z_squared
from recon.uncertainty import body_sums, moments, scatter

BENCH = "prior_parity"
RATES = (2, 4, 6, 8)
CENTER = {2: 0.16, 4: 0.125, 6: 0.08, 8: 0.06}
ORACLE_RATES, BEST = "R4", "solve"
STARTS, STARTS_AFTER = ("gsure", "split", "heldout", "solve"), (0, 1, 3, 8)  # rounds
BAR = {2: 0.5, 4: 0.3, 6: 0.5, 8: 0.5}
SIGMA0, COILS, BANDS, SAMPLES, LEVELS = 0.0233, 8, 8, 8, 20
VALIDATION_SCANS = 16
LEVELS_OF_NMSE = (0.2, 0.4, 1.2, 4.0)  # of SIGMA_DATA
ARMS = {
    "gsure": {"objective": "gsure", "input": "adjoint"},
    "split": {"objective": "split", "input": "adjoint"},
    "heldout": {"objective": "heldout", "input": "adjoint"},
    "solve": {"objective": "heldout", "input": "solve"},
    "draws": {"objective": "heldout", "input": "solve", "targets": "draws", "round_samples": 1},
    "gaussian": {"start": "gaussian"},
    "oracle": {"objective": "supervised"},
    "oracle500": {"objective": "supervised"},
    "oracle45": {"objective": "supervised"},
}
FEWER = {"oracle500": 500, "oracle45": 45}  # scans, where an arm has its own number
QUARTER = {"phantom": "oracle500", "real": "oracle45"}  # the same hours on the scanner as of SCANS at R = 4
SIZE = {"phantom": 64, "real": 128, "tiny": 32}
SCANS = {"phantom": 2000, "real": 180, "tiny": 48}
VALIDATION = {"phantom": 0.02, "real": 0.1, "tiny": 0.02}
TINY = {
    "bench": "tiny", "arm": "solve", "rates": [4], "seed": 0, "scans": SCANS["tiny"], "steps": 60, "rounds": 2,
    "round_steps": 30, "round_levels": 4, "round_scans": 24, "batch_size": 4, "learning_rate": 1.5e-3, "decay": 0.0,
    "log_sigma": [-1.5, 1.5],
    "last_rounds": 0, "last_steps": [], "device": "cpu", "compile": False, "measure": [2], "slices": 2,
}  # fmt: skip


def clean_image(bench, number, split):
    """Complex (H, W), standard deviation SIGMA_DATA inside the body."""
    size = SIZE[bench]
    if bench != "real":
        rng = np.random.default_rng([1 if split == "train" else 2, number])
        return SIGMA_DATA * random_slice(rng, (size, size), TRAIN_HEADS if split == "train" else TEST_HEADS)
    slices = _real_slices(split)
    image = slices[77 * number % len(slices)].astype(np.float32)  # the first few are from all stacks
    image = image[..., 0] + 1j * image[..., 1]
    magnitude = np.abs(image)
    body = magnitude > 0.15 * np.percentile(magnitude, 99)
    y, x = np.meshgrid(*(np.linspace(-1, 1, size),) * 2, indexing="ij")
    a = np.random.default_rng([3, number, split == "train"]).normal(size=5)
    phase = np.exp(1j * (np.pi * a[0] + a[1] * x + a[2] * y + a[3] * x * y + a[4] * (x**2 - y**2)))
    return (image * phase * SIGMA_DATA / np.sqrt((magnitude[body] ** 2).mean() / 2)).astype(np.complex64)


def _real_slices(split):
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / "images" / f"real_t2_128_{split}.npy"
    if not path.is_file():
        sys.exit(f"{path.name} is needed in shared/data/images beside the repository; it does not ship")
    return np.load(path, mmap_mode="r")


def simulate(bench, number, split, rate) -> Scan:
    """One scan of clean_image(number) with true maps; everything depends on the arguments alone."""
    target = clean_image(bench, number, split)
    rng = np.random.default_rng([4, number, rate, split == "train"])
    shape = target.shape
    maps = torch.from_numpy(coil_maps(rng, COILS, shape))
    mask = make_mask("random", shape, rate, CENTER[rate], seed=int(rng.integers(2**31)))
    density = sampling_density("random", shape, rate, CENTER[rate])
    noise = torch.from_numpy(SIGMA0 * complex_normal(rng, maps.shape))
    plane, p = (torch.from_numpy(np.broadcast_to(a.astype(np.float32), shape).copy()) for a in (mask, density))
    target = torch.from_numpy(target)
    return Scan(plane * (fft2c(maps * target) + noise), plane, maps, p, SIGMA0, name=f"{split}{number}", target=target)


def archive(folder, bench, count, rates):
    """Prepared files of `count` training scans, their rates in turn; made once."""
    missing = [number for number in range(count) if not _scan_file(folder, number).exists()]
    if missing:
        with ProcessPoolExecutor() as pool:
            made = pool.map(partial(_write_scan, folder, bench, rates), missing)
            list(track(made, f"{bench}, R = {' '.join(map(str, rates))}", len(missing)))
    return folder


def _scan_file(folder, number):
    return folder / f"scan_{number:05}.h5"


def _write_scan(folder, bench, rates, number):
    scan = simulate(bench, number, "train", rates[number % len(rates)])
    write_prepared(
        _scan_file(folder, number),
        PreparedVolume(
            kspace=scan.kspace[None].numpy(),
            mask=scan.mask[0].numpy() > 0,
            sens_maps=scan.sens_maps[None].numpy(),
            sampling_density=scan.density[0].numpy(),
            noise_std=scan.noise_std,
            scale=1.0,
            target=scan.target[None].numpy(),
        ),
    )


def without_truth(prior: Prior, scans: list[Scan], seed, device="cpu") -> dict:
    """Figures of scans that training did not use, as it chooses its prior by."""
    figures = held_out_figures(
        prior.denoise,
        scans,
        draw_levels(LEVELS, prior.config.sigma_min, prior.config.sigma_max),
        spread=prior.spread,
        seed=seed,
        device=device,
    ).as_dict()
    return {key: figures[key] for key in ("residual", "z2", "energy")}


def calibrated_on(prior: Prior, scans: list[Scan], levels: int, seed: int, device="cpu") -> Prior:
    """The prior with its spread calibrated on lines held out of these scans, for draws of so many levels."""
    sigmas = draw_levels(levels, prior.config.sigma_min, prior.config.sigma_max)
    bands, _ = calibrate_spread(prior.denoise, scans, sigmas, jacobian=prior.config.jacobian, seed=seed, device=device)
    return prior.with_spread(bands)


def measure(prior: Prior, bench, rates, slices, samples=SAMPLES, levels=LEVELS, device="cpu") -> dict:
    """Figures of one prior: per rate PSNR and SSIM of one sample and of the mean, slice by slice, z^2, power; NMSE."""
    shape = (SIZE[bench],) * 2
    index = radial_bands(shape, BANDS)
    row = {"slices": slices, "samples": samples, "levels": levels, "spread": list(prior.config.spread), "rates": {}}
    for rate in rates:
        figures = {key: [] for key in ("psnr_one", "psnr_mean", "ssim_one", "ssim_mean", "z2")}
        drawn, true = np.zeros(BANDS), np.zeros(BANDS)
        for scan, draws in track(_drawn(prior, bench, rate, slices, samples, levels, device), f"R = {rate}", slices):
            found = moments(draws.numpy(), paired=samples % 2 == 0)
            target, mean = scan.target.numpy(), found.mean
            for key, image in (("one", draws[0].numpy()), ("mean", mean)):
                figures[f"psnr_{key}"].append(round(psnr(abs(image), abs(target)), 3))
                figures[f"ssim_{key}"].append(round(ssim(abs(image), abs(target)), 4))
            z2 = z_squared(mean, target, np.sqrt(found.variance), scatter([body_sums(found)]))
            figures["z2"].append(round(z2, 3))
            for sums, images in ((drawn, draws[:1]), (true, scan.target[None])):
                power = fft2c(images).abs().square().sum(0).flatten()
                sums += torch.bincount(index.flatten(), power, minlength=BANDS).numpy()
        row["rates"][str(rate)] = figures | {"power": [round(float(p), 3) for p in drawn / true]}
    row["nmse"] = [round(value, 5) for value in _nmse(prior, bench, device)]
    return row


def _drawn(prior, bench, rate, slices, samples, levels, device):
    """Each test scan with its draws, complex64 (samples, H, W) on the CPU."""
    together = max(1, at_once(device, COILS * SIZE[bench] ** 2, samples) // samples)
    for numbers in torch.arange(slices).split(together):
        scans = [simulate(bench, number, "test", rate) for number in numbers.tolist()]
        rng = [one for number in numbers.tolist() for one in in_pairs(samples, 7, rate, number, device=device)]
        options = {"samples": samples, "levels": levels, "generator": rng, "chunk": len(rng)}
        yield from zip(scans, posterior_samples(prior, collate(scans).to(device), **options).cpu(), strict=True)


def _nmse(prior, bench, device):
    images = torch.from_numpy(np.stack([clean_image(bench, number, "test") for number in range(16)])).to(device)
    for factor in LEVELS_OF_NMSE:
        sigma = factor * SIGMA_DATA
        noisy = images + sigma * complex_noise(images.shape, generator(8, str(factor))).to(device)
        error = torch.cat([prior.denoise(part, sigma) for part in noisy.split(8)]) - images
        yield float(error.abs().square().sum() / images.abs().square().sum())


def run(options):
    """Train one arm and measure the priors of the rounds asked for."""
    work, rates = Path(options.work), options.rates
    name = f"{options.bench}-{options.arm}-R{'+'.join(map(str, rates))}-seed{options.seed}"
    count = FEWER.get(options.arm, options.scans)
    folder = f"{options.bench}-R{'+'.join(map(str, rates))}" + (f"-{count}" if options.arm in FEWER else "")
    scans = archive(work / folder, options.bench, count, rates)
    oracle = ARMS[options.arm].get("objective") == "supervised"
    steps = 0 if options.arm == "gaussian" else options.steps
    settings = TrainSettings(
        prepared=[str(scans)],
        out=str(work / name),
        steps=steps + options.rounds * options.round_steps if oracle else steps,
        rounds=0 if oracle else options.rounds,
        round_steps=options.round_steps,
        round_levels=options.round_levels,
        round_scans=options.round_scans,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        validation=VALIDATION[options.bench],
        validation_scans=VALIDATION_SCANS,
        decay=options.decay,
        log_sigma=tuple(options.log_sigma),
        keep_rounds=True,
        resume=True,
        compile=options.compile,
        device=options.device,
        threads=1,
        seed=options.seed,
        **ARMS[options.arm],
    )
    train(settings)
    folders = {number: work / name / f"round_{number}" for number in range(settings.rounds + 1)}
    if options.last_steps:
        folders |= _last(settings, options)
    opened = open_archive([str(scans)], VALIDATION[options.bench], options.seed)
    for number, folder in folders.items():
        if number not in (*options.measure, max(folders)):
            continue
        if not folder.is_dir():
            say(f"{name}: no round {number}, it was refused or not reached")
        else:
            prior = load_prior(folder, options.device, precision="bf16")
            apart = opened.held_apart(count)
            prior = calibrated_on(prior, apart, LEVELS, options.seed, options.device)
            row = measure(prior, options.bench, options.test_rates, options.slices, device=options.device)
            row["without_truth"] = without_truth(prior, apart, options.seed, options.device)
            row["settings"] = {k: v for k, v in vars(options).items() if k not in ("work", "quick", "compile")}
            yield f"{name}-round{number}", row


def _last(settings, options) -> dict[int, Path]:
    """Go on by stages of long rounds of larger batches, each from the prior that the stage before chose. The rate falls
    all through a stage and begins at half of the one before's: raised to the full again it cost the draws power."""
    rounds, oracle = options.last_rounds, settings.objective == "supervised"
    longer = {
        "round_scans": options.last_scans,
        "round_memory": options.last_memory,
        "batch_size": options.last_batch_size,
        "decay": 1.0,
    }
    if not oracle:
        longer |= {"steps": 0, "rounds": rounds, "estimate_rounds": 0, "refine": "fine"}
    folders, out = {}, Path(settings.out)
    for stage, steps in enumerate(options.last_steps):
        longer |= {"steps": rounds * steps} if oracle else {"round_steps": steps}
        before, out = out, Path(f"{settings.out}-last{stage + 1}")
        rate = settings.learning_rate / 2**stage
        train(replace(settings, out=str(out), init_from=str(before), learning_rate=rate, **longer))
        first = options.rounds + stage * rounds
        folders |= {first + number: out / f"round_{number}" for number in range(1, rounds + 1)}
    return {0: out / "round_0"} if oracle else folders


def show(results):
    """Every prior's figures, then the last rounds' gaps to the oracle; returns the largest excess over the bar, of the
    mean over seeds."""
    rows = []
    for key, row in results.items():
        cells = [key]
        for rate in row["rates"].values():
            one, mean, similarity = (np.mean(rate[k]) for k in ("psnr_one", "psnr_mean", "ssim_mean"))
            cells.append(f"{one:.2f} {mean:.2f} {similarity:.3f} {np.mean(rate['z2']):.2f}")
        rows.append([*cells, " ".join(f"{v:.4f}" for v in row["nmse"])])
    print("PSNR of one sample and of the mean of 8 in dB, SSIM and z^2 of the mean")
    status_table(rows, ("prior", *(f"R = {r}" for r in RATES), "NMSE at .2 .4 1.2 4"))
    _correlation(results)
    rows, arms, unlike = [], {}, []
    for key, row in results.items():
        bench, arm, rates, seed, number = key.split("-")
        oracle = results.get(f"{bench}-oracle-{ORACLE_RATES}-{seed}-round0")
        if arm.startswith("oracle") or oracle is None or not is_last(number, row):
            continue
        if (made := long_updates(row)) != long_updates(oracle):
            unlike.append(f"{key}: no gap, of {made} updates of long rounds, its oracle of {long_updates(oracle)}")
            continue
        gaps = {rate: _gains(oracle, row, rate) for rate in RATES}
        arms.setdefault((bench, arm, rates), []).append(gaps)
        rows.append([key, *map(_cell, gaps.values())])
    excess = []
    for name, seeds in arms.items():
        gaps = {rate: _mean_over_seeds([one[rate] for one in seeds]) for rate in RATES}
        if len(seeds) > 1:
            rows.append([f"{'-'.join(name)}, mean of {len(seeds)}", *map(_cell, gaps.values())])
        if name[1:] == (BEST, ORACLE_RATES):
            excess += [sum(_interval(values)) - BAR[rate] for rate, values in gaps.items()]
    print("\ngap to the oracle in dB, mean of 8 samples, with its paired 95% interval")
    status_table(rows, ("prior", *(f"R = {r}" for r in RATES)))
    for line in unlike:
        print(line)
    _starts(results)
    _equal_scanner_time(results)
    return max(excess, default=float("nan"))


def is_last(number, row):
    """Is "round17" the prior that the training ended with?"""
    settings = row["settings"]
    return int(number[5:]) == settings["rounds"] + len(_stages(row)) * settings.get("last_rounds", 1)


def long_updates(row):
    """Updates of the long rounds at the end."""
    return row["settings"].get("last_rounds", 1) * sum(_stages(row))


def _stages(row):
    """Updates of a long round, stage by stage; once they were one number for all."""
    settings = row["settings"]
    steps = settings.get("last_steps") or []
    return steps if isinstance(steps, list) else [steps] * settings.get("last_stages", 1)


def _starts(results):
    """What rounds make of every start, on the slices that all have."""
    found = {}
    for key, row in results.items():
        bench, arm, rates, seed, number = key.split("-")
        after = int(number[5:])
        if arm in STARTS and after in STARTS_AFTER:
            name = f"{bench}-{arm}-{rates}-{seed}, rounds: {after}"
            found[after, name] = [row["rates"][str(rate)]["psnr_mean"] for rate in RATES]
    if not found:
        return
    slices = min(len(values) for rates in found.values() for values in rates)
    rows = [[name, *(f"{np.mean(v[:slices]):.2f}" for v in rates)] for (_, name), rates in sorted(found.items())]
    print(f"\nthe four starts and what rounds make of them: PSNR in dB, mean of 8 samples, {slices} slices")
    status_table(rows, ("prior", *(f"R = {r}" for r in RATES)))


def _equal_scanner_time(results):
    """Ours from all scans at R = 4 against the oracle from a quarter as many clean ones."""
    rows = []
    for key, row in results.items():
        bench, arm, rates, seed, number = key.split("-")
        few = results.get(f"{bench}-{QUARTER.get(bench)}-{ORACLE_RATES}-{seed}-round0")
        if (arm, rates) == (BEST, "R4") and few and is_last(number, row):
            rows.append([key, *(_cell(_gains(row, few, rate), "+") for rate in RATES)])
    if rows:
        print("\nthe same hours on the scanner: dB above the oracle of a quarter as many clean scans, mean of 8")
        status_table(rows, ("prior", *(f"R = {r}" for r in RATES)))


def paired(row, other, rate):
    """PSNR of the mean, `row` above `other` on the slices that both have: mean, half its 95% interval."""
    return _interval(_gains(row, other, rate))


def _gains(row, other, rate):
    """Slice by slice."""
    pair = [np.array(r["rates"][str(rate)]["psnr_mean"]) for r in (row, other)]
    return np.subtract(*(values[: min(map(len, pair))] for values in pair))


def _mean_over_seeds(seeds):
    """Of gains on the same slices: slice by slice."""
    return np.mean([values[: min(map(len, seeds))] for values in seeds], axis=0)


def _interval(gains):
    return gains.mean(), 1.96 * gains.std(ddof=1) / len(gains) ** 0.5


def _cell(gains, sign=""):
    mean, half = _interval(gains)
    return f"{mean:{sign}.2f} +- {half:.2f}"


def _correlation(results):
    """Of the truth-free figures with the true PSNR at the rate of training, over the priors of one bench and rate."""
    groups = {}
    for key, row in results.items():
        bench, arm, rates = key.split("-")[:3]
        if not arm.startswith("oracle") and rates[1:] in row["rates"]:
            groups.setdefault((bench, rates), []).append(row)
    for (bench, rates), rows in groups.items():
        if len(rows) > 2:
            true = [np.mean(row["rates"][rates[1:]]["psnr_mean"]) for row in rows]
            told = {k: np.corrcoef([r["without_truth"][k] for r in rows], true)[0, 1] for k in ("residual", "energy")}
            said = ", ".join(f"{key} {value:.2f}" for key, value in told.items())
            print(f"\n{bench}, {rates}, {len(rows)} priors: correlation with the true PSNR of {said}")


def rerun_tiny(results):
    """The smallest row again; it must come out as committed."""
    with tempfile.TemporaryDirectory() as folder:
        ((key, row),) = run(argparse.Namespace(**TINY, work=folder, test_rates=[4]))
    before, now = (np.mean(r["rates"]["4"]["psnr_mean"]) for r in (results[key], row))
    print(f"{key}: {now:.2f} dB again, {before:.2f} committed")
    return abs(now - before) < 0.3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="also rerun one small row")
    parser.add_argument("--run", dest="arm", choices=ARMS, help="train and measure this arm")
    parser.add_argument("--bench", choices=SIZE, default="phantom")
    parser.add_argument("--rates", type=int, nargs="+", default=[4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", help="folder for scans and priors")
    parser.add_argument("--scans", type=int, help=f"of the archive, {SCANS}")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--round-steps", type=int, default=500)
    parser.add_argument("--round-levels", type=int, default=20)
    parser.add_argument("--round-scans", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--decay", type=float, default=0.2)
    parser.add_argument("--log-sigma", type=float, nargs=2, default=[-2.5, 1.5], help="as of `mrigsure train`")
    parser.add_argument("--last-rounds", type=int, default=8, help="of each stage that follows, longer ones")
    parser.add_argument(
        "--last-steps", type=int, nargs="*", default=[1600], help="updates of each round, one number a stage"
    )
    parser.add_argument("--last-scans", type=int, default=240)
    parser.add_argument("--last-memory", type=int, default=1, help="long rounds whose draws teach")
    parser.add_argument("--last-batch-size", type=int, default=16)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="run the network through torch.compile")
    parser.add_argument(
        "--measure", type=int, nargs="+", default=[0, 1, 3, 8], help="rounds to measure beside the last"
    )
    parser.add_argument("--slices", type=int, default=32)
    options = parser.parse_args()
    options.test_rates, options.scans = list(RATES), options.scans or SCANS[options.bench]
    if options.arm:
        for key, row in run(options):
            committed.record(BENCH, key, row)
            say(f"{key} recorded")
        return 0
    excess = show({key: row for key, row in committed.rows(BENCH).items() if not key.startswith("tiny")})
    same = rerun_tiny(committed.rows(BENCH)) if options.quick else True
    met = same and excess <= 0
    print(f"prior_parity_excess_dB {excess:.2f} 0.00 {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
