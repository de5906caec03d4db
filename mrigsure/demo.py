"""`mrigsure demo`: the whole path once, on simulated scans for training and on real ones for reconstruction.

1. simulate undersampled scans, prepare them, train a small prior on them for a minute
2. prepare the real scans that ship: one fully sampled and masked at R = 4 and 8, one acquired undersampled
3. reconstruct each with the shipped prior and with the baselines
4. a table, a picture and the files

The scan without a truth is judged by samples that were held out of every method's input alike.
"""

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from mrigsure.denoiser import Prior, load_prior
from mrigsure.devices import pick_precision
from mrigsure.progress import say, status_table, track
from mrigsure.scan import Scan, ScanSet, read_prepared
from mrigsure.seeds import generator
from mrigsure.settings import DemoSettings, PrepareSettings, SimulateSettings, TrainSettings
from mrigsure.workers import keep_freed_memory

METHODS = {
    "zero-filled": "zero-filled",
    "cg-sense": "CG-SENSE",
    "l1-wavelet": "L1-wavelet",
    "tv": "total variation",
    "posterior": "mrigsure",
}
_FULL, _UNDERSAMPLED = "brain_16ch.h5", "brain_8ch_poisson.h5"
_CENTER_FRACTION = {4: 12 / 128, 8: 8 / 128}
_HELD_OUT = 0.15  # share of the free samples


@dataclass(frozen=True)
class Effort:
    """How much of everything the demo does.

    steps    updates of the small prior, at most `seconds` long
    rates    accelerations of the fully sampled scan
    real     whether the scan acquired undersampled is reconstructed too
    samples  posterior draws; half of them of the scan acquired undersampled, whose matrix is larger
    nfe      network evaluations of a draw
    """

    volumes: int
    steps: int
    seconds: float
    rates: tuple[int, ...]
    real: bool
    samples: int
    nfe: int


FULL = Effort(volumes=32, steps=400, seconds=60, rates=(4, 8), real=True, samples=8, nfe=30)
SMALLEST = Effort(volumes=12, steps=32, seconds=8, rates=(4,), real=False, samples=2, nfe=12)


@dataclass(frozen=True)
class Row:
    """One method on one scan; figures that need what the scan lacks are None. Images in raw units."""

    case: str
    method: str
    image: np.ndarray
    std: np.ndarray | None
    record: dict
    psnr: float | None = None
    ssim: float | None = None
    residual: float | None = None
    z_squared: float | None = None

    @property
    def merit(self) -> float:
        """Larger is better: PSNR, or the held-out residual where there is no truth."""
        return -self.residual if self.psnr is None else self.psnr


def demo(settings: DemoSettings) -> Path:
    """Run the demo and return its folder, with demo.png and the reconstructions."""
    started = time.monotonic()
    out, effort = Path(settings.out), SMALLEST if settings.smallest else FULL
    prior = load_prior(precision=pick_precision("auto", torch.device("cpu")))
    keep_freed_memory()
    with _one_thread():
        _train_small_prior(out / "training", effort, settings.seed)
        cases = _prepare_real_scans(out / "scans", effort, settings.seed)
        say(f"\n[bold]3/4  Reconstructing[/] with the shipped prior ({_fingerprint(prior)}) and the baselines")
        jobs = [(case, scan, method) for case, scan in cases.items() for method in METHODS]
        rows = [_row(*job, prior, effort, settings.seed) for job in track(jobs, "reconstructing")]
    say("\n[bold]4/4  The result[/]")
    _write(out, cases, rows)
    _print_table(rows)
    for case in cases:
        say(_verdict([row for row in rows if row.case == case]))
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    say(f"\n{minutes} min {seconds} s. Picture: [bold]{out / 'demo.png'}[/], files: {out / 'reconstructions'}")
    return out


@contextmanager
def _one_thread():
    """On a machine that does something else too, two threads that wait for each other are slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train_small_prior(folder, effort, seed):
    """Simulate, prepare, train; says the truth-free figure at the start and at the end."""
    from data_prep.prepare import prepare
    from mrigsure.simulate import simulate
    from mrigsure.training import CHECKPOINT, train

    say(f"[bold]1/4  Training a small prior for {effort.seconds:g} s[/] on simulated scans, all undersampled and noisy")
    raw, prepared, prior = (str(folder / name) for name in ("raw", "prepared", "prior"))
    simulate(
        SimulateSettings(
            out=raw, volumes=effort.volumes, slices=1, matrix=64, coils=(4, 8), center_fraction=0.125, seed=seed
        )
    )
    prepare(PrepareSettings(raw=[raw], out=prepared, seed=seed))
    Path(prior, CHECKPOINT).unlink(missing_ok=True)  # of a demo run before in the same folder
    train(
        TrainSettings(
            prepared=[prepared],
            out=prior,
            steps=effort.steps,
            rounds=0,
            seconds=effort.seconds,
            channels=(8, 16, 32),
            batch_size=4,
            learning_rate=4e-3,
            ema=0.98,
            validation=0.25,
            validation_scans=3,
            seed=seed,
        )
    )
    history = json.loads(Path(prior, "training.json").read_text())["history"]
    alike = [entry for entry in history if "bands" not in entry]  # before the spread was calibrated
    if len(alike) < 2:
        say(f"This machine was too busy to show progress: {history[-1]['step']} updates in {effort.seconds:g} s.")
        return
    first, last = alike[0], alike[-1]
    say(
        f"Error on held-out lines, no truth needed: [bold]{first['residual']:.2f}[/] after {first['step']} updates, "
        f"[bold]{last['residual']:.2f}[/] after {last['step']}. No clean image was on disk."
    )


def _prepare_real_scans(folder, effort, seed) -> dict[str, Scan]:
    """Title -> scan, of the real scans that ship."""
    from data_prep.prepare import prepare

    say("\n[bold]2/4  Preparing real scans[/]: in-vivo brains, 3 T")
    shipped = files("mrigsure") / "data" / "scans"
    cases = {}
    for rate in effort.rates:
        options = {"pattern": "random", "acceleration": rate, "center_fraction": _CENTER_FRACTION[rate]}
        target = folder / f"masked_R{rate}"
        prepare(PrepareSettings(raw=[str(shipped / _FULL)], out=str(target), seed=seed, keep_target=True, **options))
        cases[f"16 coils, R = {rate}"] = read_prepared(target / _FULL, target=True).scan(0, Path(_FULL).stem)
    if effort.real:
        target = folder / "as_acquired"
        prepare(PrepareSettings(raw=[str(shipped / _UNDERSAMPLED)], out=str(target), seed=seed))
        scan = ScanSet([target / _UNDERSAMPLED])[0]
        cases[f"8 coils, acquired at R = {scan.acceleration:.0f}"] = scan
    return cases


def _row(case, scan, method, prior, effort, seed) -> Row:
    """Reconstruct, and judge by the truth or else by samples held out of the reconstruction."""
    from recon.metrics import psnr, ssim, z_squared
    from recon.reconstruct import reconstruct_scans

    kept, samples = scan, effort.samples
    if scan.target is None:
        kept, samples = scan.held_out(_HELD_OUT, generator(seed, "held out", case)), effort.samples // 2
    options = {"samples": samples, "nfe": effort.nfe, "seed": seed}
    made = reconstruct_scans([kept], method, prior, name=case, keep_samples=True, **options)
    image, std = made.image[0], None if made.std is None else made.std[0]
    if scan.target is None:
        return Row(case, method, image, std, made.record, **_held_out_figures(scan, kept, made))
    target = scan.target.numpy() / scan.scale
    figures = {"psnr": psnr(abs(image), abs(target)), "ssim": ssim(abs(image), abs(target))}
    if std is not None:
        figures["z_squared"] = z_squared(image, target, std, made.record["scatter"])
    return Row(case, method, image, std, made.record, **figures)


def _held_out_figures(scan, kept, made):
    """Relative error on the samples that are in `scan` and not in `kept`, noise taken off; with draws z^2 too."""
    from recon.uncertainty import moments

    operator = scan.batch().operator
    held = (scan.mask - kept.mask).bool().expand(scan.kspace.shape)

    def predict(image):
        return operator.coil_kspace(scan.scale * torch.from_numpy(image)[None])[0][held]

    measured, noise = scan.kspace[held], 2 * scan.noise_std**2 * int(held.sum())
    error = float((measured - predict(made.image[0])).abs().square().sum())
    figures = {"residual": (error - noise) / (float(measured.abs().square().sum()) - noise)}
    if made.samples is not None:
        draws = torch.stack([predict(image) for image in made.samples[0]])
        found = moments(draws.numpy(), paired=made.record["pairs"])
        figures["z_squared"] = error / (noise + float(found.variance.sum() + found.of_mean.sum()))
    return figures


def _write(out, cases, rows):
    """demo.png and a file a reconstruction."""
    from recon.figures import Case, comparison
    from recon.reconstruction import Reconstruction, write_reconstruction

    pictures = []
    for case, scan in cases.items():
        mine = [row for row in rows if row.case == case]
        for row in mine:
            name = f"{case} {row.method}".replace(",", "").replace(" = ", "").replace(" ", "_")
            std = None if row.std is None else row.std[None]
            made = Reconstruction(row.image[None], std, None, row.record)
            write_reconstruction(out / "reconstructions" / f"{name}.h5", made)
        truth = None if scan.target is None else scan.target.numpy() / scan.scale
        captions = {METHODS[r.method]: f"held-out error {r.residual:.3f}" for r in mine if r.residual is not None}
        images = {METHODS[row.method]: row.image for row in mine}
        pictures.append(Case(case, images, truth, mine[-1].std, captions))
    comparison(out / "demo.png", pictures)


def _print_table(rows):
    """A line a scan, under it one a method; a figure that no row has gets no column."""
    names = {"psnr": "PSNR dB", "ssim": "SSIM", "residual": "held-out error", "z_squared": "z\u00b2"}
    digits = {"psnr": 1, "ssim": 3, "residual": 3, "z_squared": 2}
    shown = [name for name in names if any(getattr(row, name) is not None for row in rows)]
    cells = []
    for case in dict.fromkeys(row.case for row in rows):
        mine = [row for row in rows if row.case == case]
        best = max(mine, key=lambda row: row.merit)
        cells.append([f"[dim]{case}[/]", *[""] * (2 + len(shown))])
        for row in mine:
            values = [getattr(row, name) for name in shown]
            figures = ["" if v is None else f"{v:.{digits[name]}f}" for name, v in zip(shown, values, strict=True)]
            line = [_label(row), *_origin(row.record), *figures]
            cells.append([f"[bold]{text}[/]" for text in line] if row is best else line)
    status_table(cells, ("method", "prior", "lambda", *(names[name] for name in shown)))
    say(
        "[dim]Bold: best of its scan, by PSNR or else by held-out error. PSNR and SSIM are against the SENSE image\n"
        "of all lines, whose own noise counts as error. held-out error: share of the signal's energy missed on\n"
        "samples kept from every method. z\u00b2: squared error over announced variance, 1 is right.[/]"
    )


def _label(row):
    samples = row.record.get("samples")
    return METHODS[row.method] + (f", mean of {samples}" if samples else "")


def _origin(record):
    """The prior, and the lambda and how it was chosen."""
    if "prior" in record:
        return f"{record['prior']} {record['prior_sha256'][:8]}", "none"
    if record["lambda_chosen_by"] == "no lambda":
        return "none", "none"
    return "none", f"{record['lambda']:.2g}, {record['lambda_chosen_by']}"


def _verdict(rows):
    """A sentence on how the prior did on one scan, whoever won."""
    ours = next(row for row in rows if row.method == "posterior")
    rival = max((row for row in rows if row is not ours), key=lambda row: row.merit)
    won = ours.merit > rival.merit
    if ours.psnr is not None:
        gap = f"by {abs(ours.psnr - rival.psnr):.1f} dB"
    else:
        gap = f"with {ours.residual:.3f} against {rival.residual:.3f} of the held-out energy missed"
    verb = "[green]wins over[/]" if won else "[yellow]loses to[/]"
    return f"{ours.case}: the shipped prior {verb} {METHODS[rival.method]}, the best without a prior, {gap}."


def _fingerprint(prior: Prior):
    return f"{prior.name} {prior.sha256[:8]}"
