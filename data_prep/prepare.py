"""`mrigsure prepare`: raw k-space files into prepared scans, one file a volume.

read -> mask -> noise -> whiten -> sensitivity maps -> scale -> write. A file that is already there, made from the same
bytes with the same parameters, is kept; files are whole or absent, so that a killed run is resumed by repeating it.
"""

import hashlib
import hmac
import json
import os
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

import mrigsure
from data_prep.calibration import CALIBRATION_WIDTH, KERNEL_WIDTH, low_resolution, sensitivity_maps
from data_prep.noise import estimate_noise, whiten
from data_prep.readers import RawScan, raw_files, read_raw, read_sampling
from data_prep.readers.raw import header_space
from data_prep.readout import crop_readout
from data_prep.undersample import acquired_samples, apply_mask, found_sampling, stated_or_found_mask
from mrigsure.errors import InputError, ScanWarning
from mrigsure.files import sha256
from mrigsure.fourier import ifft2c
from mrigsure.masks import calibration_region, ensemble_density
from mrigsure.progress import say, track
from mrigsure.scan import SCHEMA_VERSION, SIGMA_DATA, PreparedVolume, open_hdf5, write_prepared
from mrigsure.settings import PrepareSettings

SITE_KEY = "MRIGSURE_SITE_KEY"  # environment variable with the key of patient_hash
_PATHS = ("raw", "out", "mask", "overwrite")  # settings that do not shape what is written
_BODY = 0.15  # of the 99th percentile of the low-resolution magnitude


def prepare(settings: PrepareSettings) -> list[Path]:
    """Prepare every raw file of `settings` and return the prepared files, in the same order.

    Raises InputError for a file that cannot be prepared; the files before it are complete.
    """
    raw = raw_files(settings.raw)
    outputs = _outputs(raw, Path(settings.out))
    densities = None if settings.pattern else _ensemble_densities(raw, settings.mask)
    kept = 0
    for index, (path, output) in enumerate(track(list(zip(raw, outputs, strict=True)), "preparing")):
        density = None if densities is None else densities[index]
        fingerprint = _fingerprint(path)
        if not settings.overwrite and _is_done(output, fingerprint, settings, density):
            kept += 1
            continue
        volume = prepare_volume(read_raw(path, settings.mask), settings, density, fingerprint)
        write_prepared(output, volume)
    say(f"{len(raw) - kept} prepared in {settings.out}" + (f", {kept} were already there" if kept else ""))
    return outputs


def prepare_volume(
    raw: RawScan, settings: PrepareSettings, density: np.ndarray | None = None, source_sha256: str = ""
) -> PreparedVolume:
    """Prepare one scan in memory.

    density  sampling density of the ensemble the scan belongs to, (W,) or (H, W), where no pattern is applied;
             without it the scan stands for its ensemble
    """
    raw = _without_oversampling(raw)
    acquired = acquired_samples(raw)
    if settings.pattern:
        sampling = apply_mask(raw, settings, acquired)
    else:
        if density is None:
            density = ensemble_density(stated_or_found_mask(raw)[None])
        sampling = found_sampling(acquired, density)
    covariance = estimate_noise(raw, sampling.mask)  # of what is sampled, like all that follows
    full, noise_std = whiten(raw.kspace * acquired.mask, covariance)
    kspace = full * sampling.mask
    region = _calibration(raw, settings, sampling.mask)
    sens_maps = np.stack([sensitivity_maps(one, region, raw.source.name) for one in kspace])
    scale = _scale(kspace, sens_maps, region, raw.source)
    if scale * noise_std > SIGMA_DATA:
        warnings.warn(
            f"{raw.source}: noise {noise_std:.3g} above the signal {SIGMA_DATA / scale:.3g} (standard deviations)",
            ScanWarning,
            stacklevel=2,
        )
    target = None
    if settings.keep_target and acquired.is_full:
        target = scale * _combine(full, sens_maps)
    elif settings.keep_target:
        warnings.warn(f"{raw.source}: acquired undersampled, so there is no target to keep", ScanWarning, stacklevel=2)
    return PreparedVolume(
        kspace=scale * kspace,
        mask=sampling.mask,
        sens_maps=sens_maps,
        sampling_density=sampling.density,
        noise_std=float(scale * noise_std),
        scale=float(scale),
        acquisition=raw.acquisition,
        patient_hash=_patient_hash(raw.source.stem),
        source=raw.source.name,
        source_sha256=source_sha256,
        seed=settings.seed,
        parameters=_parameters(settings, density),
        ismrmrd_header=raw.header,
        target=target,
    )


def _outputs(raw, folder):
    outputs = [folder / f"{path.stem}.h5" for path in raw]
    first = {}
    for path, output in zip(raw, outputs, strict=True):
        if output in first:
            raise InputError(
                path, f"the name of {first[output]} again", "raw files of different names: one output each"
            )
        if output.resolve() == path.resolve():
            raise InputError(folder, f"the raw file {path.name} where its output would go", "another output folder")
        first[output] = path
    return outputs


def _ensemble_densities(raw, mask_path):
    """Every file's density: that of all files with the same matrix and kind of mask. Reads masks only, where it can."""
    sampled, shapes = [], []
    for path in raw:
        mask, shape = read_sampling(path, mask_path)
        if mask is None:
            mask = stated_or_found_mask(read_raw(path, mask_path))
        sampled.append(mask)
        shapes.append((shape, mask.shape))
    density = {
        kind: ensemble_density(np.stack([mask for mask, of in zip(sampled, shapes, strict=True) if of == kind]))
        for kind in set(shapes)
    }
    return [density[kind] for kind in shapes]


def _fingerprint(path):
    """SHA-256 of a raw file; of a BART pair, of both halves."""
    if path.suffix != ".cfl":
        return sha256(path)
    return hashlib.sha256((sha256(path) + sha256(path.with_suffix(".hdr"))).encode()).hexdigest()


def _parameters(settings, density):
    """What is recorded: every setting that shapes the output, and the fingerprint of the ensemble's density."""
    parameters = {key: value for key, value in asdict(settings).items() if key not in _PATHS}
    if density is not None:
        parameters["ensemble_sha256"] = hashlib.sha256(density.tobytes()).hexdigest()
    return parameters


def _is_done(output, fingerprint, settings, density):
    """The output was made from the same bytes, with the same parameters, in the same ensemble."""
    if not output.is_file():
        return False
    with open_hdf5(output) as file:
        if "schema_version" not in file.attrs:
            raise InputError(output, "a file that is no prepared scan", "a folder of its own for prepared scans")
        expected = {
            "schema_version": SCHEMA_VERSION,
            "version": mrigsure.__version__,
            "source_sha256": fingerprint,
            "parameters": json.dumps(_parameters(settings, density), sort_keys=True),
            "patient_hash": _patient_hash(output.stem),
        }
        return all(file.attrs.get(key) == value for key, value in expected.items())


def _without_oversampling(raw):
    """The readout cropped to the matrix of the image, where the header states a smaller one and lines are whole."""
    spaces = [None if raw.header is None else header_space(raw.header, name) for name in ("encodedSpace", "reconSpace")]
    height = raw.kspace.shape[-2]
    if None in spaces or spaces[0][0][0] != height or stated_or_found_mask(raw).ndim == 2:
        return raw
    wanted = spaces[1][0][0]
    same_voxel = np.isclose(spaces[0][1][0] / height, spaces[1][1][0] / wanted, rtol=0.01)
    return replace(raw, kspace=crop_readout(raw.kspace, wanted)) if wanted < height and same_voxel else raw


def _calibration(raw, settings, mask):
    found = calibration_region(mask, raw.kspace.shape[-2:])
    if settings.calibration is None:
        return found
    if any(asked > size for asked, size in zip(settings.calibration, found, strict=True)):
        raise InputError(
            raw.source, f"a fully sampled centre of {found[0]} x {found[1]}", "at least the calibration asked for"
        )
    return settings.calibration


def _scale(kspace, sens_maps, region, source):
    """SIGMA_DATA over the standard deviation per real part inside the body of the low-resolution SENSE image."""
    block = tuple(int(np.clip(size, KERNEL_WIDTH, CALIBRATION_WIDTH)) for size in region)
    image = (sens_maps.conj() * low_resolution(kspace, block, np.ones)).sum(axis=1)  # untapered: nearest in energy
    magnitude = np.abs(image)
    body = magnitude > _BODY * np.percentile(magnitude, 99)
    if not body.any():
        raise InputError(source, "no signal in the centre of k-space", "k = 0 at index n // 2 of both axes")
    return float(SIGMA_DATA / np.sqrt((magnitude[body] ** 2).mean() / 2))


def _combine(kspace, sens_maps):
    """S^H F^H: (slices, coils, H, W) -> (slices, H, W)."""
    return (sens_maps.conj() * ifft2c(torch.from_numpy(kspace)).numpy()).sum(axis=1)


def _patient_hash(stem):
    key = os.environ.get(SITE_KEY, "")
    return hmac.new(key.encode(), stem.encode(), hashlib.sha256).hexdigest() if key else ""
