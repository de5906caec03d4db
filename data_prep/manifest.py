"""What manifest.json says of a prepared file, for machines; nothing about the patient (mrigsure/manifest.py)."""

import json
from pathlib import Path

from mrigsure.masks import partial_fourier_share
from mrigsure.scan import open_hdf5


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
