"""The scans of a training: their split by file, what is known of them, and whether they can teach a prior at all."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from mrigsure.errors import InputError, ScanWarning
from mrigsure.identifiability import ensemble_spectrum, refuse_unidentifiable
from mrigsure.scan import ScanSet

_SPECTRUM_SCANS = 24


@dataclass(frozen=True)
class Archive:
    """Indices into `scans` for training and for the truth-free figures, and a record for training.json."""

    scans: ScanSet
    training: list[int]
    validation: list[int]
    record: dict


def open_archive(paths: Sequence, validation: float, seed: int) -> Archive:
    """Open prepared files and set a share of them apart, by a hash of their names.

    Raises InputError for fewer than two files, or where nothing could be learned (identifiability.py); warns with
    ScanWarning of blind modes.
    """
    scans = ScanSet(paths)
    files = sorted({volume.path for volume in scans.volumes}, key=lambda path: _rank(seed, path.stem))
    if len(files) < 2:
        raise InputError(files[0], "one file", "at least two: one of them is held apart for the truth-free figures")
    refuse_unidentifiable(scans.volumes, files[0].parent)
    apart = set(files[: min(max(1, round(validation * len(files))), len(files) - 1)])
    held, training = [], []
    for index in range(len(scans)):
        (held if scans.file_of(index) in apart else training).append(index)
    size = max(set(scans.shapes), key=scans.shapes.count)
    alike = [index for index in training if scans.shapes[index] == size]
    spread = alike[:: max(1, len(alike) // _SPECTRUM_SCANS)][:_SPECTRUM_SCANS]
    spectrum = ensemble_spectrum([scans[index] for index in spread], seed)
    if spectrum.blind_share > 0.001:
        warnings.warn(
            f"{spectrum.blind_share:.1%} of the modes are blind to this archive (eigenvalues of E[A^H A] below 0.01); "
            "expected none: vary the mask from scan to scan",
            ScanWarning,
            stacklevel=3,
        )
    facts = scans.volumes
    record = {
        "scans": len(training),
        "validation_scans": len(held),
        "files": len(files),
        "noise_std": _range(v.noise_std for v in facts),
        "acceleration": _range(v.acceleration for v in facts),
        "coils": _range(v.kspace_shape[1] for v in facts),
        "matrix": sorted([list(shape) for shape in set(scans.shapes)]),
        "blind_share": round(spectrum.blind_share, 5),
        "smallest_eigenvalue": round(spectrum.smallest, 5),
    }
    return Archive(scans, training, held, record)


def _rank(seed, name):
    return hashlib.blake2b(f"{seed} {name}".encode()).hexdigest()


def _range(values):
    values = list(values)
    return [min(values), max(values)]
