"""`mrigsure prepare`: raw k-space files into prepared scans, one file a volume, on one or many workers.

A file that is already there, made from the same bytes with the same parameters, is kept; files are whole or absent, so
that a killed run is resumed by repeating it. A file that cannot be prepared is reported and stops no other.
"""

import json
import warnings
from pathlib import Path

import numpy as np

import mrigsure
from data_prep.ensemble import blind_modes, ensemble_densities, reading_options
from data_prep.forecast import forecast
from data_prep.manifest import done_entry
from data_prep.patient import patient_hash, read_patient
from data_prep.pipeline import Pipeline, fingerprint, parameters, prepare_volume
from data_prep.readers import raw_files, read_raw
from mrigsure.devices import pick_device
from mrigsure.errors import InputError, PartialFailure, ScanWarning
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
from mrigsure.progress import say, track
from mrigsure.scan import SCHEMA_VERSION, open_hdf5, prepared_writer
from mrigsure.settings import PrepareSettings
from mrigsure.workers import crew

__all__ = ["prepare", "prepare_file", "prepare_volume"]

PREVIEWS = "previews"  # folder of the pages, inside the output folder
_BLIND = 0.001  # share of modes that nobody need be told of


def prepare(settings: PrepareSettings) -> list[Path]:
    """Prepare every raw file of `settings` and return the prepared files, in the same order; writes manifest.json.

    Raises PartialFailure at the end where files could not be prepared: each is named in a ScanWarning and in the
    manifest. Where there was one file only, its error is the InputError.
    """
    raw, folder = raw_files(settings.raw), Path(settings.out)
    outputs = output_files(raw, folder, "raw file")
    if settings.scheduler is None:
        pick_device(settings.device)  # now, rather than file by file
    if settings.dry_run:
        forecast(raw, [_is_done(*pair, settings) for pair in zip(outputs, raw, strict=True)], settings)
        return outputs
    entries, errors, kept = _prepare_all(raw, outputs, settings)
    prepared = [output for number, output in enumerate(outputs) if number not in errors]
    ensembles = blind_modes(prepared, settings.seed) if prepared else []
    write_manifest(folder, entries, parameters(settings, None), ensembles=ensembles)
    if prepared:
        say(f"{len(prepared) - kept} prepared in {settings.out}" + (f", {kept} were already there" if kept else ""))
    for ensemble in ensembles:
        _say_blind(ensemble)
    if errors:
        raise PartialFailure(f"{len(errors)} of {len(raw)} files could not be prepared; see {folder / NAME}")
    return outputs


def prepare_file(settings: PrepareSettings, raw_path: str, output_path: str, density_path: str | None):
    """A worker's task: prepare one file unless it is there; its entry in the manifest, and whether it was there."""
    path, output = Path(raw_path), Path(output_path)
    density = None if density_path is None else np.load(density_path)
    digest = fingerprint(path)
    kept = not settings.overwrite and _is_done(output, path, settings, digest, density)
    if not kept:
        with heard() as warned:
            pipeline = Pipeline(read_raw(path, **reading_options(settings)), settings, density)
            with prepared_writer(output, pipeline.slices, pipeline.sampling.mask) as writer:
                facts = pipeline.run(writer.put)
                texts = [without_folders(text, path, output) for text in warned()]
                writer.finish(facts | {"source_sha256": digest, "warnings": texts})
    if settings.previews:
        from data_prep.preview import preview

        page = output.parent / PREVIEWS / f"{output.stem}.png"
        if not kept or not page.is_file():
            preview(page, output)
    return done_entry(output), kept


def _prepare_all(raw, outputs, settings):
    """The manifest's entries, errors by number, and how many files were there already."""
    entries: list = [None] * len(raw)
    kept = 0
    with crew(settings) as run:
        densities, errors = [None] * len(raw), {}
        if not (settings.pattern or settings.apply_mask):
            densities, errors = ensemble_densities(raw, settings, run)
        todo = [number for number in range(len(raw)) if number not in errors]
        jobs = [(settings, *map(whole_path, (raw[number], outputs[number], densities[number]))) for number in todo]
        for place, outcome in track(run(prepare_file, jobs), "preparing", len(jobs)):
            number = todo[place]
            for text in outcome.warnings:
                warnings.warn(as_given(text, raw[number]), ScanWarning, stacklevel=2)
            if outcome.error:
                errors[number] = outcome.error
            else:
                entries[number], was_there = outcome.value
                kept += was_there
    report_failures(raw, outputs, entries, errors)
    return entries, errors, kept


def _say_blind(ensemble):
    """What share of the modes this matrix size cannot teach, where it was computed."""
    if ensemble.get("blind_share") is None:
        return
    height, width = ensemble["matrix"]
    text = f"{height} x {width}, {ensemble['files']} files: smallest eigenvalue of E[A^H A] {ensemble['smallest']:.3g}"
    if ensemble["blind_share"] > _BLIND:
        text += f"; {ensemble['blind_share']:.1%} of the modes are seen by no scan (`mrigsure feasibility` says more)"
    say(text)


def _is_done(output, source, settings, digest=None, density=None):
    """The output was made with the same parameters and, where given, from the same bytes in the same ensemble."""
    if not output.is_file():
        return False
    with open_hdf5(output) as file:
        if "schema_version" not in file.attrs:
            raise InputError(output, "a file that is no prepared scan", "a folder of its own for prepared scans")
        wanted = parameters(settings, density)
        recorded = json.loads(file.attrs.get("parameters", "{}"))
        if digest is None:
            recorded.pop("ensemble_sha256", None)
        expected = {
            "schema_version": SCHEMA_VERSION,
            "version": mrigsure.__version__,
            "patient_hash": patient_hash(read_patient(source)),
        }
        expected |= {} if digest is None else {"source_sha256": digest}
        same = all(file.attrs.get(key) == value for key, value in expected.items())
        return same and recorded == json.loads(json.dumps(wanted))
