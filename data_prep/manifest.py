"""manifest.json: what became of every file of a preparation, for machines; nothing about the patient, no folder.

The same bytes come out however often a run was stopped and repeated, and on however many workers: no times, and every
entry is read from the prepared file itself.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import mrigsure
from mrigsure.files import atomic
from mrigsure.masks import partial_fourier_share
from mrigsure.scan import open_hdf5

NAME = "manifest.json"
SCHEMA_VERSION = 1


def done_entry(output: Path) -> dict:
    """The entry of a prepared file, without reading its k-space."""
    with open_hdf5(output) as file:
        slices, coils, height, width = file["kspace"].shape
        mask, attributes = file["mask"][()] > 0, dict(file.attrs)
        sets = file["sens_maps"].shape[1] if file["sens_maps"].ndim == 5 else 1
        target = "target" in file
    return {
        "source": str(attributes["source"]),
        "sha256": str(attributes["source_sha256"]),
        "output": output.name,
        "status": "done",
        "error": "",
        "warnings": json.loads(attributes["warnings"]),
        "slices": slices,
        "coils": coils,
        "map_sets": sets,
        "matrix": [height, width],
        "noise_std": float(attributes["noise_std"]),
        "noise": json.loads(attributes["noise"]),
        "scale": float(attributes["scale"]),
        "acceleration": round(1 / float(mask.mean()), 4),
        "partial_fourier": [round(share, 4) for share in partial_fourier_share(mask)],
        "target": target,
    }


def failed_entry(path: Path, output: Path, error: str) -> dict:
    """The entry of a file that could not be prepared."""
    source = path.name
    return {"source": source, "output": output.name, "status": "failed", "error": without_folders(error, path, output)}


def write_manifest(folder: Path, entries: Sequence[dict], parameters: dict, ensembles: Sequence[dict]) -> Path:
    """Write manifest.json into the folder, whole or not at all."""
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "version": mrigsure.__version__,
        "parameters": parameters,
        "done": sum(entry["status"] == "done" for entry in entries),
        "failed": sum(entry["status"] == "failed" for entry in entries),
        "ensembles": list(ensembles),
        "files": list(entries),
    }
    path = Path(folder) / NAME
    with atomic(path) as partial:
        partial.write_text(json.dumps(manifest, indent=1, sort_keys=True, default=_plain) + "\n")
    return path


def without_folders(text: str, *paths: Path) -> str:
    """A message with file names instead of paths: folders may be named after patients."""
    for path in paths:
        for whole in (str(path.resolve()), str(path)):
            text = text.replace(whole, path.name)
    return text


def _plain(value):
    return value.item() if isinstance(value, np.generic) else str(value)
