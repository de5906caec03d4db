"""`mrigsure evaluate`: reconstructions against the truth, slice by slice, in the raw files' units.

Figures are fastMRI's (metrics.py), on magnitudes. The uncertainty is judged by z^2, 1 where it is right: of the complex
error where the truth is the target of the very scan that was reconstructed, of the magnitude's elsewhere, because
the phase of an image is that of its sensitivity maps, which another preparation may choose differently.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrigsure.errors import InputError
from mrigsure.files import atomic, sha256
from mrigsure.progress import say, status_table
from mrigsure.scan import open_hdf5, prepared_files
from mrigsure.settings import EvaluateSettings
from recon.metrics import body_mask, coverage, nmse, psnr, ssim, z_squared
from recon.reconstruction import Reconstruction, read_reconstruction

FIGURES = ("psnr", "ssim", "nmse", "z2", "coverage")


@dataclass(frozen=True)
class Truth:
    """What a file knows of the clean images, in raw units.

    image    (slices, H, W), complex, or real where only a root-sum-of-squares image is known
    of_scan  SHA-256 of the prepared file whose target this is, else ""
    """

    image: np.ndarray
    of_scan: str = ""


def evaluate(settings: EvaluateSettings) -> dict:
    """Print and return the figures, and write them as JSON where `settings.out` says so.

    Returns {"files": [...], "summary": [...]}: for every file the figures of its slices and their means, and for every
    method the mean and standard deviation over all slices. What is infinite or unknown is None.
    Raises InputError for a missing truth or one of another shape.
    """
    rows = []
    for path in prepared_files(settings.reconstructions):
        reconstruction = read_reconstruction(path)
        truth = read_truth(_truth_of(path, Path(settings.truth)))
        slices = compare(reconstruction, truth, path)
        rows.append({"file": path.name, **_identity(reconstruction), **_means(slices), "slices": slices})
    report = {"files": rows, "summary": _summary(rows)}
    _print(report)
    if settings.out:
        with atomic(settings.out) as partial:
            partial.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def compare(reconstruction: Reconstruction, truth: Truth, name="reconstruction") -> list[dict]:
    """The figures of every slice: psnr (None where infinite), ssim, nmse, and where there is an uncertainty z2 and
    coverage, the share of the body in which the magnitude's interval holds the truth."""
    if reconstruction.image.shape != truth.image.shape:
        raise InputError(name, f"images of {reconstruction.image.shape}", f"the truth's shape {truth.image.shape}")
    same_phase = bool(truth.of_scan) and truth.of_scan == reconstruction.record.get("scan_sha256")
    slices = []
    for index, target in enumerate(truth.image):
        image, clean = reconstruction.magnitude[index], np.abs(target).astype(np.float32)
        figures = {"psnr": _finite(psnr(image, clean)), "ssim": ssim(image, clean), "nmse": nmse(image, clean)}
        if reconstruction.std is not None:
            pair = (reconstruction.image[index], target) if same_phase else (image, clean)
            figures["z2"] = _finite(z_squared(*pair, reconstruction.std[index], _scatter(reconstruction.record)))
            figures["z2_of"] = "complex" if same_phase else "magnitude"
        if reconstruction.lower is not None:
            lower, upper = reconstruction.lower[index], reconstruction.upper[index]
            figures["coverage"] = coverage(lower, upper, clean, body_mask(clean))
        slices.append(figures)
    return slices


def read_truth(path) -> Truth:
    """The truth in a prepared file (its target, scale undone), or in any .h5 with `target` or `reconstruction_rss`."""
    with open_hdf5(path) as file:
        if "target" in file:
            prepared = "sens_maps" in file
            scale = float(file.attrs["scale"]) if prepared else 1.0
            return Truth(file["target"][()] / np.float32(scale), sha256(path) if prepared else "")
        if "reconstruction_rss" in file:
            return Truth(file["reconstruction_rss"][()])
    raise InputError(path, "no target and no reconstruction_rss", "a file that holds the truth")


def _truth_of(path, truth):
    found = truth / f"{path.stem}.h5" if truth.is_dir() else truth
    if not found.is_file():
        raise InputError(found, "no such file", f"the truth of {path.name}")
    if found.stem != path.stem:
        raise InputError(found, f"the truth of {found.stem}", f"one named as the reconstruction, {path.stem}.h5")
    return found


def _scatter(record):
    """Variance of the mean over that of a draw; files from before there were pairs have independent draws."""
    return record["scatter"] if "scatter" in record else 1 / record["samples"]


def _identity(reconstruction):
    record = reconstruction.record
    known = {"method": record["method"], "acceleration": record.get("acceleration")}
    for key in ("prior", "sampler", "samples", "nfe", "interval", "spread_scale", "lambda", "lambda_chosen_by"):
        if key in record:
            known[key] = record[key]
    if "scorecard" in record:
        known["scorecard"] = json.loads(record["scorecard"])
    return known


def _means(slices):
    return {key: _mean([figures[key] for figures in slices]) for key in FIGURES if key in slices[0]}


def _summary(rows):
    """Mean and standard deviation over all slices of each method, prior and sampler."""
    groups = {}
    for row in rows:
        groups.setdefault((row["method"], row.get("prior"), row.get("sampler")), []).extend(row["slices"])
    summary = []
    for (method, prior, sampler), slices in groups.items():
        entry = {"method": method, "prior": prior, "sampler": sampler, "slices": len(slices)}
        for key in FIGURES:
            values = [figures[key] for figures in slices if key in figures]
            if values:
                std = None if None in values or len(values) < 2 else float(np.std(values, ddof=1))
                entry[key] = {"mean": _mean(values), "std": std}
        summary.append(entry)
    return summary


def _print(report):
    columns = ("file", "method", "R", "PSNR / dB", "SSIM", "NMSE", "z²", "coverage")
    rows = [
        (row["file"], _method(row), _text(row["acceleration"], ".3g"), *(_cell(row, key) for key in FIGURES))
        for row in report["files"]
    ]
    for entry in report["summary"]:
        cells = [_cell(entry, key) for key in FIGURES]
        rows.append((f"[bold]all slices ({entry['slices']})[/]", _method(entry), "", *cells))
    status_table(rows, columns, title=f"against the truth (z² of 1: the uncertainty is right{_stated(report)})")
    for row in report["files"]:
        if broken := [name for name, figure in row.get("scorecard", {}).items() if not figure["holds"]]:
            say(f"{row['file']}: its own data speak against its uncertainty ({', '.join(broken)})")


def _stated(report):
    levels = sorted({row["interval"] for row in report["files"] if "interval" in row})
    return f"; coverage of {' and '.join(f'{level:.0%}' for level in levels)} intervals" if levels else ""


_FORMATS = {"psnr": ".2f", "ssim": ".4f", "nmse": ".4f", "z2": ".2f", "coverage": ".1%"}


def _method(row):
    name = row["method"]
    if row.get("prior"):
        name += f", prior {row['prior']}"
    if row.get("sampler") not in (None, "default"):
        name += f", {row['sampler']}"
    if row.get("lambda_chosen_by", "no lambda") != "no lambda":
        name += f", lambda {row['lambda']:.2g} by {row['lambda_chosen_by']}"
    return name


def _cell(row, key):
    if key not in row:
        return "-"
    value = row[key]
    if not isinstance(value, dict):
        return _text(value, _FORMATS[key])
    text = _text(value["mean"], _FORMATS[key])
    return text if value["std"] is None else f"{text} ± {value['std']:{_FORMATS[key]}}"


def _text(value, form):
    return "inf" if value is None else f"{value:{form}}"


def _mean(values):
    return None if None in values else float(np.mean(values))


def _finite(value):
    return value if math.isfinite(value) else None
