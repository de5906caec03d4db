"""The options of every subcommand, as plain dataclasses: what --help, YAML files and recorded parameters are made of.

Free of torch, so that `mrigsure --help` is quick. The first sentence of each docstring is the subcommand's help, and
each `Args` line is its option's help. A value out of its range is an InputError as soon as the settings are made.
"""

import math
from dataclasses import dataclass
from typing import Literal

from mrigsure.errors import InputError

Pattern = Literal["full", "random", "equispaced", "magic", "gaussian", "poisson"]


@dataclass(frozen=True)
class SimulateSettings:
    """Write simulated raw scans: real anatomy, random contrast, coils, phase, sampling and noise, as fastMRI files.

    Args:
        out: folder for the fastMRI .h5 files
        volumes: number of files
        slices: slices in a file; they share head, contrast, coils and mask
        matrix: matrix size, or height and width
        coils: least and largest number of coils, drawn per file
        acceleration: accelerations, drawn per file
        pattern: sampling patterns, drawn per file
        center_fraction: fully sampled share of the phase-encoding lines (poisson: of each axis)
        noise: least and largest noise level, per real part, relative to the image's standard deviation inside the head
        split: train draws every head but the one set aside; test draws only that one
        truth: folder for the clean complex images; without it no clean image exists on disk
        seed: every random choice derives from it
    """

    out: str
    volumes: int = 100
    slices: int = 4
    matrix: tuple[int, int] | int = 128
    coils: tuple[int, int] = (4, 16)
    acceleration: tuple[float, ...] = (4.0,)
    pattern: tuple[Pattern, ...] = ("random",)
    center_fraction: float = 0.1
    noise: tuple[float, float] = (0.04, 0.12)
    split: Literal["train", "test"] = "train"
    truth: str | None = None
    seed: int = 0

    def __post_init__(self):
        _within(self, 1, "volumes", "slices", "coils", "acceleration")
        _within(self, 8, "matrix")
        _within(self, 0, "center_fraction", most=1)
        _within(self, 0, "noise", "seed")
        _rising(self, "coils", "noise")


@dataclass(frozen=True)
class PrepareSettings:
    """Turn raw k-space files into prepared scans: mask, noise level, whitened coils, sensitivity maps, scale.

    Args:
        raw: raw files or folders: fastMRI .h5, ISMRMRD .h5 and .mrd, Siemens twix .dat, BART .cfl/.hdr, .npy, .npz,
            .mat
        out: folder for the prepared .h5 files, one a raw file
        mask: .npy file with the mask of .npy, .npz, .mat and BART raw data that were acquired undersampled
        encoding: number of the encoding to read from ISMRMRD files where several hold imaging lines
        repetitions: of ISMRMRD and twix files: separate, as more slices, one repetition after the other; or average
        pattern: mask to apply to fully sampled raw data; without it the sampled points are found from the zeros
        acceleration: acceleration of the mask to apply
        center_fraction: fully sampled share of the phase-encoding lines (poisson: of each axis)
        partial_fourier: share of the phase-encoding lines that the mask to apply may hold; the last ones are left out
        apply_mask: .npy file of a mask, (W,) or (H, W), or of several along a first axis, to apply instead of a pattern
        calibration: height and width of the calibration region in samples; found from the mask if not given
        map_sets: sets of sensitivity maps; 2 where the field of view is smaller than the body and folds over
        compress: number of virtual coils to compress to, after whitening; all coils if not given
        compression: svd, one matrix a slice, for any sampling; gcc, one for every position along the readout, for lines
        seed: seed of the mask, together with the file's name
        add_noise: add white noise until the prepared scan has this SNR: 20 log10 of the signal's standard deviation
            inside the body over the noise's; for controlled studies
        keep_target: store the SENSE image of a fully sampled raw scan as `target`, for evaluation
        overwrite: prepare again what the folder already holds
        previews: draw a page for every volume: images, maps, mask, noise and g-factor, as OUT/previews/NAME.png
        device: where the sensitivity maps are computed: cpu, cuda, or auto; a GPU's are not the same to the bit
        dry_run: say what would be done and how long it takes, and write nothing
        workers: processes on this machine, one thread each; the result is the same
        scheduler: address of a Dask scheduler whose workers see the same folders, instead of local processes
        tls_ca: certificate of the authority that signed the scheduler's
        tls_cert: certificate of this client
        tls_key: private key of this client
    """

    raw: list[str]
    out: str
    mask: str | None = None
    encoding: int | None = None
    repetitions: Literal["separate", "average"] = "separate"
    pattern: Pattern | None = None
    acceleration: float = 4.0
    center_fraction: float = 0.08
    partial_fourier: float = 1.0
    apply_mask: str | None = None
    calibration: tuple[int, int] | None = None
    map_sets: int = 1
    compress: int | None = None
    compression: Literal["svd", "gcc"] = "svd"
    seed: int = 0
    add_noise: float | None = None
    keep_target: bool = False
    overwrite: bool = False
    previews: bool = False
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    dry_run: bool = False
    workers: int = 1
    scheduler: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    def __post_init__(self):
        _within(self, 1, "acceleration", "calibration", "map_sets", "compress", "workers")
        _within(self, 0, "center_fraction", most=1)
        _within(self, 0.5, "partial_fourier", most=1)
        _within(self, 0, "seed", "encoding")
        if self.pattern and self.apply_mask:
            raise InputError("--apply-mask", f"--pattern {self.pattern} too", "one of the two")


@dataclass(frozen=True)
class FeasibilitySettings:
    """Say whether prepared scans can teach a prior, what is blind to them, and the smallest change that cures it.

    Args:
        prepared: prepared files or folders
        out: file name without suffix, for a .json with every figure and a .png
        delta: share of lines that training would hold out of its input
        seed: every random choice derives from it
    """

    prepared: list[str]
    out: str = "feasibility"
    delta: float = 0.5
    seed: int = 0

    def __post_init__(self):
        _within(self, 0, "delta", most=0.95)
        _within(self, 0, "seed")


@dataclass(frozen=True)
class TrainSettings:
    """Train a diffusion prior on prepared, undersampled, noisy scans; it never sees a clean image.

    Args:
        prepared: prepared files or folders
        out: folder of the prior
        objective: of the first stage. heldout: split GSURE with held-out lines; split: without; gsure: by Hutchinson's
            divergence (Kawar et al.); denoised: GSURE-denoise fully sampled noisy scans, then learn from those images;
            tweedie: of such scans too, by consistency below their noise instead of refinement (Daras et al.);
            supervised: learn from the clean targets in the prepared files, for studies
        input: of the first stage. solve: perturb-and-solve; adjoint: the zero-filled image, which denoised always takes
        start: network, or gaussian to skip the first stage: the first draws come from a Gaussian fitted by
            expectation-maximisation
        steps: updates of the first stage; may be 0 with --init-from or --start gaussian
        rounds: refinement rounds (expectation-maximisation) after the first stage
        estimate_rounds: rounds at the start whose targets are point estimates, sharp and with too little spread
        round_steps: updates in each round
        round_scans: scans drawn anew in each round, in turn; 0 means all
        round_memory: rounds whose draws teach, this one and those before it, where scans do, for long rounds of few
            scans, which are learned by heart; the latest draws of a scan count
        round_samples: draws kept of each scan; in pairs where scans teach, two pairs or more
        round_levels: levels of each draw in a round; sweeps take the place of the lowest where scans teach
        refine: of rounds whose draws complete scans. rough: of a prior that a few rounds have refined, by sweeps of 3
            steps; fine: of a better one, by sweeps of 8
        bootstrap: where draws alone teach, how far to go beyond them, away from the draws of scans simulated from them,
            which have lost once more what those lost (docs/method.md, 6); 0 means not at all
        anchor: share of the rounds' updates that keep to the first stage's objective on the scans
        targets: of the other rounds. scans: what was measured, where draws only complete the input, and draws below
            three times the data's noise; draws: draws alone, as expectation-maximisation has it
        measured: of what draws teach, the share that falls on the lines that their scan measured, weighted by their
            density; the rest falls on the whole image, most of which is imputed
        patience: stop when so many rounds in a row have not bettered the energy score; 0 means never
        batch_size: scans in an update
        accumulate: batches whose gradients make one update, in each process
        learning_rate: peak learning rate, of Muon and Adam
        decay: share of all updates at the end over which the learning rate falls to a twentieth
        channels: network width at each resolution, multiples of 8
        ema: decay of the averaged weights
        delta: largest share of lines held out of the input at low and at high sigma; each scan's is drawn uniformly
        weights: 1/p weighs every sampled line by its density; 1/q is the uniform full-image loss
        sigma_max: largest diffusion level, per real part, in units where the body's standard deviation is 0.5
        log_sigma: mean and standard deviation of ln sigma, of the levels that updates take
        keep_rounds: keep the prior of every round, in round_0, round_1, ... inside the prior's folder
        crop: side of random crops that the rounds train on; 0 means whole images
        validation: share of the files held apart for the truth-free figures
        validation_scans: scans on which the spread of draws is calibrated; of 4 it was off by up to a factor of 5 in a
            band. The figures are of three times as many, if so many are held apart
        checkpoint_minutes: minutes between checkpoints
        seconds: stop after this wall-clock time and finish cleanly; 0 means no limit
        resume: go on from the checkpoint in the prior's folder
        init_from: prior to start from
        device: auto, cpu or cuda
        threads: CPU threads; 0 leaves torch's choice
        precision: autocast of the network only
        compile: run the network through torch.compile, with gsure and denoised in the rounds alone; a training may take
            it up when it resumes
        tensorboard: write losses, figures and pictures for TensorBoard into the prior's folder
        seed: every random choice derives from it
    """

    prepared: list[str]
    out: str
    objective: Literal["heldout", "split", "gsure", "denoised", "tweedie", "supervised"] = "heldout"
    input: Literal["solve", "adjoint"] = "solve"
    start: Literal["network", "gaussian"] = "network"
    steps: int = 3000
    rounds: int = 6
    estimate_rounds: int = 1
    round_steps: int = 500
    round_scans: int = 0
    round_memory: int = 1
    round_samples: int = 4
    round_levels: int = 20
    refine: Literal["rough", "fine"] = "rough"
    bootstrap: float = 3.0
    anchor: float = 0.0
    targets: Literal["scans", "draws"] = "scans"
    measured: float = 0.75
    patience: int = 0
    keep_rounds: bool = False
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 1.5e-3
    decay: float = 0.2
    channels: tuple[int, ...] = (24, 48, 64, 64)
    ema: float = 0.995
    delta: tuple[float, float] = (0.2, 0.5)
    weights: Literal["1/p", "1/q"] = "1/p"
    sigma_max: float = 20.0
    log_sigma: tuple[float, float] = (-1.5, 1.5)
    crop: int = 0
    validation: float = 0.1
    validation_scans: int = 16
    checkpoint_minutes: float = 5.0
    seconds: float = 0.0
    resume: bool = False
    init_from: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    precision: Literal["no", "bf16"] = "bf16"
    compile: bool = False
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self):
        least_steps = 0 if self.init_from or self.start == "gaussian" else 1
        _within(self, least_steps, "steps")
        _within(self, 1, "round_steps", "round_memory", "round_samples", "validation_scans")
        _within(self, 1, "batch_size", "accumulate", "channels")
        _within(self, 2, "round_levels")
        _within(self, 0, "rounds", "estimate_rounds", "round_scans", "patience", "crop", "seed")
        _within(self, 0, "checkpoint_minutes", "seconds", "threads")
        _within(self, 0, "bootstrap", most=5)  # a round is stable up to 5.8
        _within(self, 0, "learning_rate", "ema", "decay", "anchor", "measured", most=1)
        _within(self, 0, "delta", most=0.95)
        _within(self, 0, "validation", most=0.9)
        _within(self, 1, "sigma_max")
        if self.log_sigma[1] <= 0:
            raise InputError("--log-sigma", f"a standard deviation of {self.log_sigma[1]:g}", "one above 0")
        if self.objective in ("supervised", "tweedie") and self.rounds:
            raise InputError("--rounds", str(self.rounds), f"0 with --objective {self.objective}, which needs no draws")
        paired = self.round_samples >= 4 and self.round_samples % 2 == 0
        if not paired and any(map(self.taught_by_scans, range(1, self.rounds + 1))):
            raise InputError("--round-samples", str(self.round_samples), "an even number from 4 on, or --targets draws")
        if self.compile and not self.compiled(0) and (self.anchor or not self.rounds):
            raise InputError(
                "--compile",
                f"--objective {self.objective}" + (f" and --anchor {self.anchor:g}" if self.rounds else ""),
                "another objective: Hutchinson's divergence is differentiated twice, which torch.compile cannot do",
            )
        if any(width % 8 for width in self.channels):
            raise InputError("--channels", " ".join(map(str, self.channels)), "multiples of 8")

    def compiled(self, round_number: int) -> bool:
        """Whether a round's network is compiled: not where the first stage differentiates it twice."""
        return self.compile and (round_number > 0 or self.objective not in ("gsure", "denoised"))

    def estimates(self, round_number: int) -> bool:
        """Whether a round learns from point estimates: the first ones after a network's first stage."""
        return 0 < round_number <= self.estimate_rounds and self.start == "network"

    def taught_by_scans(self, round_number: int) -> bool:
        """Whether a round learns from the scans, which draws complete. Estimates are too far off to complete any, and
        images that were denoised once know the scans whole."""
        return self.targets == "scans" and self.objective != "denoised" and not self.estimates(round_number)


@dataclass(frozen=True)
class SampleSettings:
    """Draw images from a prior, without any measurement, and write them as .h5 and .png.

    Args:
        prior: folder of the prior, or "shipped"
        out: file name without suffix
        count: number of images
        matrix: matrix size, or height and width
        levels: network evaluations
        device: auto, cpu or cuda
        seed: every random choice derives from it
    """

    prior: str = "shipped"
    out: str = "samples"
    count: int = 8
    matrix: tuple[int, int] | int = 128
    levels: int = 40
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    def __post_init__(self):
        _within(self, 1, "count")
        _within(self, 4, "levels")
        _within(self, 8, "matrix")
        _within(self, 0, "seed")


@dataclass(frozen=True)
class TrainUnrolledSettings:
    """Train an unrolled network (MoDL) on prepared, undersampled scans by SSDU, to compare a prior with.

    Args:
        prepared: prepared files or folders
        out: folder of the network
        steps: updates
        batch_size: scans in an update
        learning_rate: of Adam; falls to a twentieth along half a cosine
        channels: width of the U-Net at each resolution, multiples of 8
        unrolls: steps of network and data consistency
        delta: share of a scan's lines that the network is not given and its image is judged on
        validation: share of the files held apart to choose the weights
        every: updates after which it is judged on those, and a checkpoint is written
        resume: go on from the checkpoint in the network's folder
        device: auto, cpu or cuda
        seed: every random choice derives from it
    """

    prepared: list[str]
    out: str
    steps: int = 2000
    batch_size: int = 4
    learning_rate: float = 1e-3
    channels: tuple[int, ...] = (16, 32, 32)
    unrolls: int = 6
    delta: float = 0.4
    validation: float = 0.1
    every: int = 100
    resume: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    def __post_init__(self):
        _within(self, 1, "steps", "batch_size", "unrolls", "channels", "every")
        _within(self, 0, "learning_rate", most=1)
        _within(self, 0.05, "delta", most=0.95)
        _within(self, 0, "validation", most=0.9)
        _within(self, 0, "seed")
        if any(width % 8 for width in self.channels):
            raise InputError("--channels", " ".join(map(str, self.channels)), "multiples of 8")


@dataclass(frozen=True)
class ReconstructSettings:
    """Reconstruct prepared scans: draws from the posterior under a prior, or a classical baseline.

    Args:
        scans: prepared files or folders
        out: folder for the reconstructions, one .h5 and one .png a file
        prior: folder of the prior, or "shipped"
        method: posterior draws; a baseline whose regularisation is chosen on held-out lines (tv is total variation); or
            an unrolled network
        unrolled: folder of the unrolled network, made by `mrigsure train-unrolled`
        samples: posterior draws; their mean and standard deviation are written
        sampler: default, the project's own, or one of the published ones
        nfe: network evaluations a draw; the default sampler takes three for two noise levels
        stack_noise: independent, or shared: the same noise in all slices of a draw, so that neighbours fit together
        precision: of the network; bf16 takes about half the time, and auto chooses it where the hardware has it
        interval: probability with which the magnitude lies between the maps lower and upper
        calibrate_scan: fit the spread to the scan's own held-out lines and judge it by them, at 4 more draws of up to
            three slices, 12 where the prior's spread is too narrow; --calibrate-scan=false leaves it out
        keep_samples: write the single draws too
        batch: draws computed at once, or auto: as many as memory allows; the result is the same but for rounding
        overwrite: reconstruct again what the folder already holds
        device: auto, cpu or cuda
        seed: every random choice derives from it
        workers: processes on this machine, one thread each; the result is the same
        scheduler: address of a Dask scheduler whose workers see the same folders, instead of local processes
        tls_ca: certificate of the authority that signed the scheduler's
        tls_cert: certificate of this client
        tls_key: private key of this client
    """

    scans: list[str]
    out: str
    prior: str = "shipped"
    method: Literal["posterior", "zero-filled", "cg-sense", "l1-wavelet", "tv", "unrolled"] = "posterior"
    unrolled: str | None = None
    samples: int = 8
    sampler: Literal["default", "ald", "daps", "dds", "diffpir", "dps", "mmps", "pigdm", "ula"] = "default"
    nfe: int = 30
    stack_noise: Literal["independent", "shared"] = "independent"
    precision: Literal["auto", "no", "bf16"] = "auto"
    interval: float = 0.9
    calibrate_scan: bool = True
    keep_samples: bool = False
    batch: int | Literal["auto"] = "auto"
    overwrite: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    workers: int = 1
    scheduler: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    def __post_init__(self):
        _within(self, 1, "samples", "workers")
        if self.batch != "auto":
            _within(self, 1, "batch")
        if (self.method == "unrolled") != (self.unrolled is not None):
            raise InputError("--unrolled", str(self.unrolled), "a folder with --method unrolled, and with it alone")
        _within(self, 0.01, "interval", most=0.999)
        _within(self, 6, "nfe")  # two levels of the sampler that takes most evaluations in each
        _within(self, 0, "seed")


@dataclass(frozen=True)
class ExportSettings:
    """Write reconstructions for other programs: NIfTI, DICOM or PNG, in raw units, not for diagnosis.

    Args:
        reconstructions: reconstruction files or folders
        out: folder for the exports
        format: nifti, one .nii.gz a file; dicom, a folder with one .dcm a slice; png, a sheet of all slices
        image: magnitude, phase, or std, the standard deviation of posterior draws
    """

    reconstructions: list[str]
    out: str
    format: tuple[Literal["nifti", "dicom", "png"], ...]
    image: tuple[Literal["magnitude", "phase", "std"], ...] = ("magnitude",)


@dataclass(frozen=True)
class EvaluateSettings:
    """Compare reconstructions with the truth: PSNR, SSIM and NMSE a slice, and how well the uncertainty fits.

    Args:
        reconstructions: reconstruction files or folders
        truth: folder or file of the truth, matched by name: files of simulate --truth, or prepared ones with a target
        out: JSON file for the figures; without it they are only printed
    """

    reconstructions: list[str]
    truth: str
    out: str | None = None


@dataclass(frozen=True)
class AuditSettings:
    """Say whether a prior remembers its training scans: samples too near to them, withheld lines that it knows.

    Args:
        prior: folder of the prior, or "shipped"
        scans: the prepared files or folders that it was trained on; those it held apart are found by training.json
        against: folder of another prior of the same scans, to compare with
        unseen: prepared file or folder that training never saw; then all of SCAN are training scans
        out: JSON file for the figures
        samples: images generated
        count: files of either kind of which a scan is reconstructed from a few lines
        draws: posterior draws of each
        levels: noise levels of a sample or draw
        device: auto, cpu or cuda
        seed: every random choice derives from it
    """

    prior: str
    scans: list[str]
    against: str | None = None
    unseen: str | None = None
    out: str = "audit.json"
    samples: int = 16
    count: int = 16
    draws: int = 4
    levels: int = 16
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    def __post_init__(self):
        _within(self, 1, "samples", "count", "draws")
        _within(self, 4, "levels")
        _within(self, 0, "seed")


@dataclass(frozen=True)
class InspectSettings:
    """Say what is in a file that mrigsure reads or writes, on one screen.

    Args:
        file: raw file, prepared scan, reconstruction, or folder of a prior
        encoding: number of the encoding to read from an ISMRMRD file where several hold imaging lines
    """

    file: str
    encoding: int | None = None

    def __post_init__(self):
        _within(self, 0, "encoding")


@dataclass(frozen=True)
class DemoSettings:
    """Show the whole path in under five minutes: train on simulated undersampled scans, reconstruct real ones.

    Args:
        out: folder for what the demo makes
        smallest: a few seconds of training and two draws, to check an installation
        seed: every random choice derives from it
    """

    out: str = "demo"
    smallest: bool = False
    seed: int = 0

    def __post_init__(self):
        _within(self, 0, "seed")


def _within(settings, least: float, *names: str, most: float = math.inf) -> None:
    """Every number of these fields lies in [least, most]."""
    for name in names:
        value = getattr(settings, name)
        numbers = value if isinstance(value, tuple | list) else [] if value is None else [value]
        if not all(least <= number <= most for number in numbers):
            span = f"at least {least}" if most == math.inf else f"{least} to {most}"
            raise InputError(_option(name), " ".join(map(str, numbers)), span)


def _rising(settings, *names: str) -> None:
    """The pair of each of these fields is (least, largest)."""
    for name in names:
        low, high = getattr(settings, name)
        if low > high:
            raise InputError(_option(name), f"{low} {high}", "the least and then the largest")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
