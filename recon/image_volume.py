"""One kind of image of a reconstruction, with all that a file of any format says about it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

import mrigsure
from mrigsure.errors import InputError
from mrigsure.files import sha256
from mrigsure.geometry import Geometry
from recon.reconstruction import read_reconstruction

NOTICE = "NOT FOR DIAGNOSIS"
WHITE = 99.5  # percentile that is shown white


@dataclass(frozen=True)
class ImageVolume:
    """The magnitude, phase or standard deviation of a reconstruction.

    values         float32 (slices, H, W), finite; raw units, the phase in radians from -pi to pi
    kind           "magnitude", "phase" or "std"
    geometry       where the slices lie, or None
    title          method, prior and acceleration
    patient        the keyed hash of the patient's identifier, or ""
    sha256         of the reconstruction's file
    scan_sha256    of the prepared scan, which reconstructions of one scan share
    """

    values: np.ndarray
    kind: str
    geometry: Geometry | None = None
    title: str = ""
    patient: str = ""
    sha256: str = ""
    scan_sha256: str = ""

    @property
    def is_oriented(self) -> bool:
        return self.geometry is not None and self.geometry.is_oriented

    @property
    def unknown(self) -> str:
        """What the source does not state, for people; "" where it states all."""
        if self.geometry is None:
            return "neither voxel sizes nor orientation"
        return "" if self.geometry.is_oriented else "no orientation"

    @cached_property
    def window(self) -> tuple[float, float]:
        """The values shown black and white: 0 and the 99.5th percentile of the volume; of the phase its range."""
        return (-np.pi, np.pi) if self.kind == "phase" else (0.0, float(np.percentile(self.values, WHITE)))

    @property
    def description(self) -> str:
        """What it is and how it was made, for a header."""
        made = f"{self.kind}, {self.title}, mrigsure {mrigsure.__version__}, reconstruction SHA-256 {self.sha256}"
        return f"{NOTICE}: {made}" + (f"; the source states {self.unknown}" if self.unknown else "")


def read_image(path, kind: str) -> ImageVolume:
    """Read one kind of image of a reconstruction's file.

    Raises InputError where the file is no reconstruction, holds no `std`, or holds NaN or infinity.
    """
    reconstruction = read_reconstruction(path)
    if kind == "std" and reconstruction.std is None:
        raise InputError(path, "no std", "a reconstruction of two posterior draws or more (`reconstruct --samples`)")
    images = {
        "magnitude": lambda: reconstruction.magnitude,
        "phase": lambda: np.angle(reconstruction.image).astype(np.float32),
        "std": lambda: reconstruction.std.astype(np.float32),
    }
    values = images[kind]()
    if not np.isfinite(values).all():
        raise InputError(path, f"NaN or infinity in its {kind}", "finite numbers")
    digest, record = sha256(path), reconstruction.record
    return ImageVolume(
        values=values,
        kind=kind,
        geometry=reconstruction.geometry,
        title=reconstruction.title,
        patient=str(record.get("patient_hash", "")),
        sha256=digest,
        scan_sha256=str(record.get("scan_sha256", digest)),
    )
