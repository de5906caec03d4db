"""`mrigsure simulate`: random phantoms as raw files in fastMRI's layout, so that `prepare` takes the road of real data.

    kspace = mask (F S x + noise),  in units of a random gain, because no real scanner's are known

File number i depends on (settings, i) alone: a resumed run writes the same bytes as an uninterrupted one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from mrigsure.errors import InputError
from mrigsure.fastmri_files import make_header, write_fastmri
from mrigsure.files import atomic
from mrigsure.fourier import fft2c, ifft2c
from mrigsure.masks import make_mask
from mrigsure.phantoms import TEST_HEADS, TRAIN_HEADS, coil_maps, complex_normal, random_volume
from mrigsure.progress import track
from mrigsure.scan import open_hdf5
from mrigsure.settings import SimulateSettings

_GAIN = (1e-5, 1e3)
_RSS_SOURCE = "root sum of squares of the zero-filled coil images of the recorded, noisy and undersampled k-space"


def simulate(settings: SimulateSettings) -> list[Path]:
    """Write files sim_00000.h5, ... and, only where asked for, their clean images; return the paths of the raw files.

    Complete files that an earlier run with the same settings left are kept. The raw file holds nothing clean: its
    reconstruction_rss is made of what was recorded. A truth file holds `target`, complex64 (slices, H, W) in the units
    of the raw k-space, and `reconstruction_rss` = |target|.
    Raises InputError for impossible settings, or where the folder holds files of other settings.
    """
    _validate(settings)
    recipe = _recipe(settings)
    paths = [Path(settings.out) / f"sim_{index:05d}.h5" for index in range(settings.volumes)]
    for index, path in enumerate(track(paths, "simulating")):
        truth = Path(settings.truth) / path.name if settings.truth else None
        if all(_is_done(file, recipe) for file in (path, truth) if file):
            continue
        acquisition = _acquire(settings, index)
        attributes = acquisition.attributes | {"settings": recipe}
        if truth:
            _write_truth(truth, acquisition.target, attributes)
        _write_raw(path, acquisition, attributes)
    return paths


@dataclass(frozen=True)
class _Acquisition:
    """kspace (slices, coils, H, W) and target (slices, H, W), complex64, both in raw units; mask (W,) or (H, W)."""

    kspace: np.ndarray
    mask: np.ndarray
    target: np.ndarray
    voxel_mm: tuple[float, float, float]
    attributes: Mapping


def _acquire(settings, index):
    rng = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(index,)))
    shape = _shape(settings.matrix)
    coils = int(rng.integers(settings.coils[0], settings.coils[1] + 1))
    acceleration = float(rng.choice(settings.acceleration))
    pattern = str(rng.choice(settings.pattern))
    noise, gain = (float(np.exp(rng.uniform(*np.log(limits)))) for limits in (settings.noise, _GAIN))
    mask = make_mask(pattern, shape, acceleration, settings.center_fraction, seed=int(rng.integers(2**31)))
    heads = TRAIN_HEADS if settings.split == "train" else TEST_HEADS
    phantom = random_volume(rng, shape, settings.slices, heads)
    sens_maps = coil_maps(rng, coils, shape)

    coil_images = torch.from_numpy(sens_maps * phantom.images[:, None])
    kspace = fft2c(coil_images).numpy() + np.float32(noise) * complex_normal(rng, coil_images.shape)
    return _Acquisition(
        kspace=np.where(mask, np.float32(gain) * kspace, 0),
        mask=mask,
        target=np.float32(gain) * phantom.images,
        voxel_mm=phantom.voxel_mm,
        attributes={
            "acquisition": "SIMULATED",
            "patient_id": f"phantom-{phantom.head}",
            "head": phantom.head,
            "orientation": phantom.orientation,
            "pattern": pattern,
            "acceleration": acceleration if pattern != "full" else 1.0,
            "center_fraction": settings.center_fraction if pattern != "full" else 1.0,
            "noise_std": gain * noise,
            "seed": settings.seed,
            "index": index,
        },
    )


def _write_raw(path, acquisition, attributes):
    images = ifft2c(torch.from_numpy(acquisition.kspace)).numpy()
    slices, coils, *shape = acquisition.kspace.shape
    write_fastmri(
        path,
        acquisition.kspace,
        mask=None if acquisition.mask.all() else acquisition.mask,
        header=make_header(tuple(shape), acquisition.voxel_mm, coils=coils, slices=slices),
        reconstruction_rss=np.sqrt((np.abs(images) ** 2).sum(1)),
        attributes=attributes | {"reconstruction_rss_source": _RSS_SOURCE},
    )


def _write_truth(path, target, attributes):
    with atomic(path) as partial, h5py.File(partial, "w") as file:
        file.create_dataset("target", data=target, chunks=(1, *target.shape[1:]), compression="gzip")
        file["reconstruction_rss"] = np.abs(target)
        for key, value in attributes.items():
            file.attrs[key] = value


def _recipe(settings):
    """What determines a file's content besides its number, as JSON."""
    fields = asdict(settings)
    for key in ("out", "volumes", "truth"):
        del fields[key]
    return json.dumps(fields | {"matrix": _shape(settings.matrix)}, sort_keys=True)


def _is_done(path, recipe):
    if not path.exists():
        return False
    with open_hdf5(path) as file:
        if file.attrs.get("settings") != recipe:
            raise InputError(path, "a file made with other settings", "an empty folder, or the same settings again")
    return True


def _shape(matrix):
    return (matrix, matrix) if isinstance(matrix, int) else tuple(matrix)


def _validate(settings):
    """What the settings cannot check field by field."""
    shape = _shape(settings.matrix)
    checks = [
        ("matrix", min(shape) >= 16, "at least 16 in each direction"),
        ("noise", settings.noise[0] > 0, "levels above 0: the method learns from the noise"),
        ("acceleration", len(settings.acceleration) > 0, "one or more"),
        ("pattern", len(settings.pattern) > 0, "one or more"),
        ("center_fraction", 0 < settings.center_fraction < 1, "a share between 0 and 1"),
    ]
    for name, holds, expected in checks:
        if not holds:
            raise InputError(f"simulate: {name}", str(getattr(settings, name)), expected)
    if settings.truth and Path(settings.truth).resolve() == Path(settings.out).resolve():
        raise InputError("simulate: truth", f"the same folder as out, {settings.out}", "a folder of its own")
    for pattern in settings.pattern:
        for acceleration in settings.acceleration:
            try:
                make_mask(pattern, shape, acceleration, settings.center_fraction, seed=0)
            except ValueError as error:
                where = f"simulate: pattern {pattern}, acceleration {acceleration:g}"
                raise InputError(where, str(error), "a pattern that can be drawn") from error
