"""`mrigsure reconstruct`: prepared scans to images, by posterior draws under a prior, by a classical baseline or by an
unrolled network.

A file that is already there, made from the same scan with the same parameters, is kept; files are whole or absent,
so that a killed run is resumed by repeating it. A scan that cannot be reconstructed is reported and stops no other.
What comes out depends neither on the number of workers nor on how many draws are computed at once.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import mrigsure
from mrigsure.denoiser import SHIPPED, load_prior
from mrigsure.devices import pick_device, pick_precision
from mrigsure.errors import InputError, PartialFailure, ScanWarning
from mrigsure.files import sha256
from mrigsure.manifest import (
    NAME,
    as_given,
    heard,
    output_files,
    report_failures,
    whole_path,
    without_folders,
    write_manifest,
)
from mrigsure.progress import Meter, say
from mrigsure.scan import ScanSet, open_hdf5, prepared_files, volume_facts
from mrigsure.settings import ReconstructSettings
from mrigsure.workers import crew
from recon.manifest import done_entry
from recon.preview import preview
from recon.reconstruction import write_reconstruction
from recon.unrolled import load_unrolled
from recon.volume import reconstruct_scans

__all__ = ["reconstruct", "reconstruct_file", "reconstruct_scans"]

_LEARNED = ("posterior", "unrolled")
_DRAWN = ("samples", "nfe", "sampler", "stack_noise", "precision", "keep_samples", "interval", "calibrate_scan")


def reconstruct(settings: ReconstructSettings) -> list[Path]:
    """Reconstruct every prepared file of `settings`; returns the .h5 files, each with a .png beside it, and writes
    manifest.json.

    Raises InputError at once for what concerns all of them, such as a missing prior; and PartialFailure at the end
    where files could not be reconstructed: each is named in a ScanWarning and in the manifest. Where there was one file
    only, its error is the InputError.
    """
    paths, folder = prepared_files(settings.scans), Path(settings.out)
    outputs = output_files(paths, folder, "scan")
    digest = ""
    if settings.method in _LEARNED:
        # a scheduler's workers may have what this machine lacks
        device = torch.device("cpu") if settings.scheduler else pick_device(settings.device)
        settings = replace(settings, precision=pick_precision(settings.precision, device))
        digest = _load(settings, torch.device("cpu")).sha256
    entries, errors, kept = _reconstruct_all(paths, outputs, settings, digest)
    write_manifest(folder, entries, _parameters(settings, digest))
    done = len(paths) - len(errors) - kept
    if done or kept:
        say(f"{done} reconstructed in {settings.out}" + (f", {kept} were already there" if kept else ""))
    if errors:
        raise PartialFailure(f"{len(errors)} of {len(paths)} files could not be reconstructed; see {folder / NAME}")
    return outputs


def reconstruct_file(
    settings: ReconstructSettings,
    scan_path: str,
    output_path: str,
    model_sha256: str,
    threads: int,
    report: Callable[[float], None] = lambda share: None,
) -> tuple[dict, bool]:
    """A worker's task: reconstruct one file unless it is there; its entry in the manifest, and whether it was there.

    model_sha256  of the prior or unrolled network that `settings` name, "" for baselines
    threads       for the network: its images come out alike, bit by bit, on any number of them
    report        called with the share that is done
    """
    path, output = Path(scan_path), Path(output_path)
    parameters = json.dumps(_parameters(settings, model_sha256), sort_keys=True)
    record = {"scan": path.name, "scan_sha256": sha256(path), "parameters": parameters}
    kept = not settings.overwrite and _is_done(output, record)
    if not kept:
        with heard() as warned:
            volume = ScanSet([path])
            facts = volume.volumes[0]
            model = None
            if model_sha256:
                torch.set_num_threads(threads)
                model = _model(settings, pick_device(settings.device), model_sha256)
            result = reconstruct_scans(
                volume,
                settings.method,
                model,
                samples=settings.samples,
                nfe=settings.nfe,
                sampler=settings.sampler,
                stack_noise=settings.stack_noise,
                batch=settings.batch,
                workers=1 if settings.scheduler else settings.workers,
                seed=settings.seed,
                name=output.stem,
                interval=settings.interval,
                calibrate_scan=settings.calibrate_scan,
                keep_samples=settings.keep_samples,
                progress=report,
            )
            texts = [without_folders(text, path, output) for text in warned()]
        record |= {"patient_hash": facts.patient_hash, "warnings": json.dumps(texts)}
        result = replace(result, geometry=facts.geometry, record=result.record | record)
        preview(output.with_suffix(".png"), result)
        write_reconstruction(output, result)  # last: its presence says that all is there
    return done_entry(output), kept


def _reconstruct_all(paths, outputs, settings, digest):
    """The manifest's entries, errors by number, and how many files were there already."""
    entries: list = [None] * len(paths)
    errors, kept = {}, 0
    alone = settings.workers == 1 and not settings.scheduler
    threads = torch.get_num_threads() if alone else 1
    prior = SHIPPED if settings.prior == SHIPPED else whole_path(settings.prior)
    plain = replace(settings, prior=prior, unrolled=whole_path(settings.unrolled))
    jobs = [(plain, whole_path(p), whole_path(o), digest, threads) for p, o in zip(paths, outputs, strict=True)]
    work = settings.samples * settings.nfe if settings.method == "posterior" else 1  # of one slice
    with crew(settings) as run, _Shares(settings.method, [work * _slices(path) for path in paths]) as shares:
        for number, outcome in run(reconstruct_file, jobs, shares.update):
            shares.update(number, 1.0)
            for text in outcome.warnings:
                warnings.warn(as_given(text, paths[number]), ScanWarning, stacklevel=2)
            if outcome.error:
                errors[number] = outcome.error
            else:
                entries[number], was_there = outcome.value
                kept += was_there
    report_failures(paths, outputs, entries, errors)
    return entries, errors, kept


class _Shares:
    """A meter over the work of all files, fed with the share of each that is done."""

    def __init__(self, method, work):
        self._work, self._done = work, [0.0] * len(work)
        self._meter, self._sum = Meter(f"reconstructing ({method})", sum(work)), 0.0

    def __enter__(self):
        self._meter.__enter__()
        return self

    def __exit__(self, *reason):
        self._meter.__exit__(*reason)

    def update(self, number: int, share: float) -> None:
        self._sum += self._work[number] * (share - self._done[number])
        self._done[number] = share
        self._meter.update(round(self._sum))


def _load(settings, device):
    """The prior or unrolled network that the settings name."""
    if settings.method == "unrolled":
        return load_unrolled(settings.unrolled, device)
    return load_prior(settings.prior, device, settings.precision)


_read_models: dict = {}  # a worker's last one, by its content: it is read once for all files


def _model(settings, device, digest):
    key = (digest, device)
    if key not in _read_models:
        model = _load(settings, device)
        if model.sha256 != digest:
            expected = f"{digest}, as in the main process"
            raise InputError(settings.unrolled or settings.prior, f"a model of SHA-256 {model.sha256}", expected)
        _read_models.clear()
        _read_models[key] = model
    return _read_models[key]


def _slices(path):
    """Slices of a prepared file; 1 for one that is none, which is reported in its turn."""
    try:
        return volume_facts(path).kspace_shape[0]
    except InputError:
        return 1


def _parameters(settings, model_sha256):
    """What shapes the result; prior and network by their content, not their place."""
    parameters = {"method": settings.method, "seed": settings.seed}
    if settings.method == "posterior":
        return parameters | {key: getattr(settings, key) for key in _DRAWN} | {"prior_sha256": model_sha256}
    return parameters | ({"unrolled_sha256": model_sha256} if model_sha256 else {})


def _is_done(output, record):
    """The output was made by this version from the same scan with the same parameters."""
    if not output.is_file():
        return False
    with open_hdf5(output) as file:
        if "reconstruction_complex" not in file:
            raise InputError(output, "a file that is no reconstruction", "a folder of its own for reconstructions")
        expected = {**record, "version": mrigsure.__version__}
        return all(file.attrs.get(key) == value for key, value in expected.items())
