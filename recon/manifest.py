"""What manifest.json says of a reconstruction, for machines; nothing about the patient (mrigsure/manifest.py)."""

import json
from pathlib import Path

from mrigsure.scan import open_hdf5

_SAID = (
    *("method", "acceleration", "prior", "prior_sha256", "sampler", "samples", "nfe", "interval", "spread_scale"),
    *("lambda", "lambda_chosen_by", "unrolled", "unrolled_sha256"),
)


def done_entry(output: Path) -> dict:
    """The entry of a reconstruction, read from its file."""
    with open_hdf5(output) as file:
        attributes = {key: value.item() if hasattr(value, "item") else value for key, value in file.attrs.items()}
        slices, height, width = file["reconstruction_complex"].shape
    return {
        "source": attributes["scan"],
        "sha256": attributes["scan_sha256"],
        "output": output.name,
        "status": "done",
        "error": "",
        "warnings": json.loads(attributes["warnings"]),
        "slices": slices,
        "matrix": [height, width],
        **{key: attributes[key] for key in _SAID if key in attributes},
    }
