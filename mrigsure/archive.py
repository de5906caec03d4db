"""The scans of a training: their split by file, what is known of them, and whether they can teach a prior at all."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from mrigsure.errors import InputError, ScanWarning
from mrigsure.identifiability import archive_ensemble, refuse_unidentifiable
from mrigsure.processes import processes_here
from mrigsure.scan import Scan, ScanSet

_MEASURED_SCANS = 64
_KEPT_SHARE = 0.25  # of the free memory, for the scans once they are read


@dataclass(frozen=True)
class Archive:
    """Indices into `scans` for training and for the truth-free figures, and a record for training.json."""

    scans: ScanSet
    training: list[int]
    validation: list[int]
    record: dict

    def held_apart(self, most: int) -> list[Scan]:
        """Up to so many of the scans that training does not use, from all over the archive."""
        step = max(1, len(self.validation) // most)
        return [self.scans[index] for index in self.validation[::step][:most]]


def open_archive(paths: Sequence, validation: float, seed: int, targets: bool = False) -> Archive:
    """Open prepared files and set a share of them apart, by a hash of their names; `targets` are for an oracle only.

    Raises InputError for fewer than two files, or where nothing could be learned (identifiability.py); warns with
    ScanWarning of blind modes.
    """
    scans = ScanSet(paths, targets, _KEPT_SHARE * psutil.virtual_memory().available / processes_here())
    files = _ranked_files(scans, seed)
    if targets and scans[0].target is None:
        raise InputError(files[0], "no target", "files with the truth for --objective supervised")
    if len(files) < 2:
        raise InputError(files[0], "one file", "at least two: one of them is held apart for the truth-free figures")
    for volume in scans.volumes:
        if volume.map_sets > 1:
            raise InputError(volume.path, f"{volume.map_sets} sets of maps", "one for training: `prepare --map-sets 1`")
    refuse_unidentifiable(scans.volumes, files[0].parent)
    training, held = split_by_file(scans, validation, seed)
    size = max(set(scans.shapes), key=scans.shapes.count)
    alike = [index for index in training if scans.shapes[index] == size]
    spectrum = archive_ensemble(scans, alike, seed).spectrum()
    if spectrum.blind_share > 0.001:
        warnings.warn(
            f"{spectrum.blind_share:.1%} of the modes are blind to this archive (eigenvalues of E[A^H A] below 0.01); "
            "expected none; `mrigsure feasibility` says what would cure it",
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


def measured_sigma_data(archive: Archive) -> float:
    """Standard deviation per real part of the training images, air included, out of the undersampled measurements.

    E sum_k M (|y|^2 - 2 sigma0^2) / p = ||x||^2 where p > 0 wherever x has energy, since S^H S = 1 and F is unitary.
    """
    pool = archive.training
    power, count = 0.0, 0
    for index in pool[:: max(1, len(pool) // _MEASURED_SCANS)][:_MEASURED_SCANS]:
        scan = archive.scans[index]
        coils = (scan.sens_maps.abs().amax((-2, -1)) > 0).sum()
        energy = scan.kspace.abs().square().sum(0) - 2 * coils * scan.noise_std**2
        power += float((scan.mask * energy / scan.density.clamp_min(1e-3)).sum()) / 2
        count += scan.mask.numel()
    return round(max(power / count, 1e-4) ** 0.5, 4)


def split_by_file(scans: ScanSet, validation: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the scans for training and of those held apart: a share of the files, by a hash of their names."""
    files = _ranked_files(scans, seed)
    apart = set(files[: min(max(1, round(validation * len(files))), len(files) - 1)])
    held, training = [], []
    for index in range(len(scans)):
        (held if scans.file_of(index) in apart else training).append(index)
    return training, held


def _ranked_files(scans, seed):
    return sorted({volume.path for volume in scans.volumes}, key=lambda path: _rank(seed, path.stem))


def _rank(seed, name):
    return hashlib.blake2b(f"{seed} {name}".encode()).hexdigest()


def _range(values):
    values = list(values)
    return [min(values), max(values)]
