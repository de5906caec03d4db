"""`mrigsure inspect`: what is in a file that mrigsure reads or writes, on one screen, and nothing about the patient."""

import json
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from data_prep.prepare import prepare_volume
from data_prep.readers import RAW_SUFFIXES, RawScan, read_raw
from data_prep.readers.ismrmrd import is_ismrmrd
from data_prep.readers.npy import read_mask
from data_prep.readers.raw import header_space
from data_prep.undersample import acquired_samples
from mrigsure.errors import InputError
from mrigsure.masks import acquired_support, calibration_region
from mrigsure.progress import status_table
from mrigsure.scan import SIGMA_DATA, open_hdf5, read_prepared
from mrigsure.settings import InspectSettings, PrepareSettings

_RAW_ATTRIBUTES = ("max", "norm", "padding_left", "padding_right", "reconstruction_rss_source")
_FORMATS = {
    ".h5": "ISMRMRD",
    ".mrd": "ISMRMRD",
    ".dat": "Siemens twix",
    ".cfl": "BART",
    ".hdr": "BART",
    ".npy": "NumPy",
    ".npz": "NumPy",
    ".mat": "MATLAB",
}
_PLAIN = (str, int, float, bool)
_MOST = 90  # characters of one value


def inspect(settings: InspectSettings) -> None:
    """Print a table about `settings.file`. Raises InputError for what mrigsure neither reads nor writes."""
    path = Path(settings.file)
    if path.is_dir():
        kind, rows = "prior", _prior(path)
    elif not path.is_file():
        raise InputError(path, "no such file or folder", "a raw file, prepared scan, reconstruction or prior")
    elif path.suffix.lower() == ".h5" and not is_ismrmrd(path):
        kind, rows = _hdf5(path)
    elif path.suffix.lower() in (*RAW_SUFFIXES, ".hdr"):
        kind, rows = _raw_or_mask(path, settings.encoding)
    else:
        raise InputError(
            path, f"suffix {path.suffix or 'none'!r}", f"one of {', '.join(RAW_SUFFIXES)}, or the folder of a prior"
        )
    status_table([(name, _short(value)) for name, value in rows], title=f"{path.name}: {kind}")


def describe_sampling(mask: np.ndarray, shape: tuple[int, int]) -> list[tuple[str, str]]:
    """Rows on a mask, (W,) or (H, W): the kind of pattern it looks like, its rate, its fully sampled centre."""
    plane = np.broadcast_to(np.asarray(mask, bool), shape)
    rows, cols = calibration_region(plane, shape)
    return [
        ("sampling", _pattern(plane, cols)),
        ("acceleration", f"{plane.size / max(plane.sum(), 1):.2f} ({plane.sum()} of {plane.size} samples)"),
        ("calibration region", f"{rows} x {cols}" if rows else "none: the centre of k-space is not fully sampled"),
    ]


def _pattern(plane, center):
    if plane.all():
        return "fully sampled"
    lines = plane.any(axis=0)
    if not (plane == lines).all():
        covered = plane.sum() / acquired_support(plane).sum()
        return "points along both axes" if covered < 0.98 else "full inside a support smaller than the matrix"
    sampled = np.flatnonzero(lines)
    width = len(lines)
    one_sided = abs(sampled[0] - (width - 1 - sampled[-1])) > 0.15 * width
    side = ", partial Fourier" if one_sided else ""
    if lines[sampled[0] : sampled[-1] + 1].all():
        return f"all lines from {sampled[0]} to {sampled[-1]}{side}"
    start = width // 2 - center // 2
    gaps = np.concatenate([np.diff(sampled[sampled < start]), np.diff(sampled[sampled >= start + center])])
    if len(gaps) > 2 and np.ptp(gaps) <= 1:
        return f"lines evenly spaced, one in {gaps.mean():.3g}{side}"
    return f"lines at irregular distances{side}"


def _hdf5(path):
    with open_hdf5(path) as file:
        names = set(file)
        arrays = [(name, _array(file[name])) for name in sorted(names) if isinstance(file[name], h5py.Dataset)]
        attributes = dict(file.attrs)
    if {"kspace", "sens_maps"} <= names:
        return "prepared scan", _prepared(path, arrays, attributes)
    if "kspace" in names:
        rows = [(key, attributes[key]) for key in _RAW_ATTRIBUTES if attributes.get(key, "") != ""]
        return "raw k-space (fastMRI)", arrays + _raw(read_raw(path)) + rows
    if "samples" in names and "reconstruction" not in names:
        return "samples of a prior", arrays + _attributes(attributes)
    if "reconstruction" in names:
        return "reconstruction", arrays + _attributes(attributes)
    if "target" in names:
        return "truth of a simulated scan", arrays + _attributes(attributes)
    raise InputError(path, f"datasets {', '.join(sorted(names)) or 'none'}", "kspace, reconstruction or target")


def _prepared(path, arrays, attributes):
    volume = read_prepared(path, slice(0, 1))
    rows = [*arrays, *describe_sampling(volume.mask, volume.kspace.shape[-2:])]
    rows += [
        ("noise", f"{volume.noise_std:.4g} per real part; signal {SIGMA_DATA}"),
        ("SNR", f"{SIGMA_DATA / volume.noise_std:.1f}"),
        ("scale", f"{volume.scale:.6g} (file = scale x raw)"),
        *_header(volume.ismrmrd_header),
        ("acquisition", volume.acquisition or "not stated"),
        ("patient_hash", "set" if volume.patient_hash else "not set"),
        ("source", f"{volume.source}  sha256 {volume.source_sha256[:12]}"),
    ]
    rows += [("parameters", json.dumps(volume.parameters))]
    return [*rows, *((key, attributes[key]) for key in ("seed", "schema_version", "version"))]


def _raw_or_mask(path, encoding):
    if path.suffix.lower() == ".npy":
        try:
            real = np.load(path, mmap_mode="r", allow_pickle=False).dtype.kind != "c"
        except (ValueError, OSError, EOFError):
            real = False  # the reader says what is wrong
        if real:
            mask = read_mask(path)
            shape = mask.shape if mask.ndim == 2 else (1, len(mask))
            return "sampling mask", [("mask", _array(mask)), *describe_sampling(mask, shape)]
    raw = read_raw(path, encoding=encoding)
    beside = [(name, _array(array)) for name in ("noise", "reference") if (array := getattr(raw, name)) is not None]
    return f"raw k-space ({_FORMATS[path.suffix.lower()]})", [("kspace", _array(raw.kspace)), *beside, *_raw(raw)]


def _raw(raw: RawScan):
    slices, coils, height, width = raw.kspace.shape
    middle = raw.part(slice(slices // 2, slices // 2 + 1))
    acquired = acquired_samples(middle)
    volume = prepare_volume(middle, PrepareSettings(raw=[], out=""))
    noise, filtered = volume.noise_std / volume.scale, int((~acquired.candidates).sum())
    return [
        ("slices, coils, H x W", f"{slices}, {coils}, {height} x {width}"),
        *describe_sampling(acquired.mask, (height, width)),
        ("filtered or padded edges", f"{filtered} samples" if filtered else "none"),
        (
            "noise",
            f"{noise:.4g} per real part (from {'noise samples' if raw.noise is not None else 'k-space'}); "
            f"signal {SIGMA_DATA / volume.scale:.4g}",
        ),
        ("SNR", f"{SIGMA_DATA / volume.noise_std:.1f}"),
        ("scale to be", f"{volume.scale:.6g}"),
        *_geometry(raw.geometry),
        *_header(raw.header),
        ("acquisition", raw.acquisition or "not stated"),
    ]


def _geometry(geometry):
    if geometry is None:
        return [("voxel", "not stated")]
    orientation = "stated" if geometry.is_oriented else "not stated"
    return [("voxel", " x ".join(f"{v:.3g}" for v in geometry.voxel_mm) + " mm"), ("orientation", orientation)]


def _header(xml):
    if xml is None:
        return [("header", "none")]
    rows = []
    for space in ("encodedSpace", "reconSpace"):
        found = header_space(xml, space)
        if found:
            matrix, lengths = (" x ".join(f"{value:g}" for value in values) for values in found)
            rows.append((f"header {space}", f"matrix {matrix}, field of view {lengths} mm"))
    return rows or [("header", "states no matrix")]


def _prior(path):
    rows = []
    for name in ("config.json", "training.json"):
        if not (path / name).is_file():
            raise InputError(path, f"a folder without {name}", "the folder of a prior")
        try:
            content = json.loads((path / name).read_text())
        except json.JSONDecodeError as error:
            raise InputError(path / name, "no JSON (a truncated file)", "a file of a prior") from error
        rows += [(f"{name[:-5]}: {key}", value) for key, value in content.items()]
    return [*rows, *((file.name, f"{file.stat().st_size:,} bytes") for file in sorted(path.iterdir()))]


def _attributes(attributes: Mapping):
    return [(key, value) for key, value in sorted(attributes.items()) if "patient" not in key and "subject" not in key]


def _array(array):
    return f"{array.dtype} {tuple(array.shape)}" if array.shape else "text"


def _short(value) -> str:
    """One value for a cell; rich's markup in it is escaped."""
    from rich.markup import escape

    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = str(value) if isinstance(value, _PLAIN) else json.dumps(value, default=str)
    return escape(text if len(text) <= _MOST else text[: _MOST - 1] + "…")
