"""What the files of an archive are together: their sampling density, and the modes that none of them sees.

Masks are counted file by file, so that the memory does not grow with the archive, and no k-space is read for them but
one slice of files that state no mask.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_prep.readers import read_middle_slice, read_sampling
from data_prep.undersample import stated_or_found_mask
from mrigsure.files import atomic
from mrigsure.identifiability import archive_ensemble
from mrigsure.masks import counted_density
from mrigsure.progress import track
from mrigsure.scan import ScanSet

_FOLDER = "density"
_SCANS, _ROWS = 32, 16  # whose coil maps, and rows of the image, stand for all: shares within a percent or so
_POINT_WORK = 1.5e6  # samples x coils x scans, beyond which the blind modes of point masks would take minutes


def ensemble_densities(raw: Sequence[Path], settings, run: Callable) -> tuple[list[Path | None], dict[int, str]]:
    """Every file's density, that of all files with the same matrix and kind of mask, as a .npy file in OUT/density.

    Returns the paths, None for files whose sampling could not be read, and what was wrong with these, by number.
    """
    kinds: list = [None] * len(raw)
    counts, scans, errors = {}, {}, {}
    jobs = [(str(path), settings) for path in raw]
    for number, outcome in track(run(sampling_of, jobs), "reading masks", len(jobs)):
        if outcome.error:
            errors[number] = outcome.error
            continue
        matrix, shape, packed = outcome.value
        kinds[number] = kind = (tuple(matrix), tuple(shape))
        mask = np.unpackbits(np.frombuffer(packed, np.uint8), count=int(np.prod(shape))).reshape(shape)
        counts[kind] = counts.get(kind, 0) + mask.astype(np.int32)
        scans[kind] = scans.get(kind, 0) + 1
    paths = {kind: _stored(counted_density(counts[kind], scans[kind]), Path(settings.out)) for kind in counts}
    return [None if kind is None else paths[kind] for kind in kinds], errors


def sampling_of(path: str, settings) -> tuple:
    """(H, W), the mask's shape and its bits, of one raw file: what a worker sends back."""
    options = reading_options(settings)
    mask, matrix = read_sampling(path, **options)
    if mask is None:
        mask = stated_or_found_mask(read_middle_slice(path, **options))
    return matrix, mask.shape, np.packbits(mask).tobytes()


def reading_options(settings) -> dict:
    """What `read_raw` and `read_sampling` take from the settings."""
    return {"mask_path": settings.mask, "encoding": settings.encoding, "repetitions": settings.repetitions}


def blind_modes(outputs: Sequence[Path], seed: int) -> list[dict]:
    """For every matrix size: its files, and what share of the image's modes none of them sees (identifiability.py).

    Left out for a single file and for fully sampled scans, and, as None, for large point masks, where it takes long.
    """
    scans = ScanSet(outputs)
    report = []
    for shape in sorted(set(scans.shapes)):
        volumes = [volume for volume in scans.volumes if volume.kspace_shape[-2:] == shape]
        entry = {"matrix": list(shape), "files": len(volumes)}
        points = any(volume.mask.ndim == 2 for volume in volumes)
        work = np.prod(volumes[0].kspace_shape[1:]) * min(len(volumes), 16)
        if len(volumes) > 1 and points and work > _POINT_WORK:
            entry |= {"blind_share": None, "smallest": None}
        elif len(volumes) > 1 and not all(volume.mask.all() for volume in volumes):
            indices = [index for index, of in enumerate(scans.shapes) if of == shape]
            spectrum = archive_ensemble(scans, indices, seed, most=_SCANS, rows=_ROWS).spectrum()
            entry |= {"blind_share": round(spectrum.blind_share, 4), "smallest": round(spectrum.smallest, 4)}
        report.append(entry)
    return report


def _stored(density, folder):
    """The density's .npy file, named after its content: tasks carry its path."""
    digest = hashlib.sha256(density.tobytes()).hexdigest()
    path = folder / _FOLDER / f"{'x'.join(map(str, density.shape))}_{digest[:12]}.npy"
    if not path.is_file():
        with atomic(path) as partial:
            np.save(partial, density)
    return path
