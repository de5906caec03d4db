"""Reconstruction, the images of one prepared file in the raw file's units, and the file that holds them.

reconstruction           float32 (slices, H, W), magnitude; the name that fastMRI's evaluation reads
reconstruction_complex   complex64 (slices, H, W); its phase is that of the sensitivity maps
std                      float32 (slices, H, W), posterior draws only
lower, upper             float32 (slices, H, W), posterior draws only: the magnitude lies between them with the
                         probability `interval` (recon/uncertainty.py)
samples                  complex64 (slices, samples, H, W), on request
voxel_mm, positions_mm, directions
                         where the slices lie, as far as the source states it (mrigsure/geometry.py)
attributes               method, acceleration, seed, scan, scan_sha256, patient_hash, version, parameters (JSON)
                         warnings (JSON): what was said while the file was made
  of posterior draws     prior, prior_sha256, samples, sampler, stack_noise, nfe (network evaluations a draw, at most),
                         pairs (whether draws 2i and 2i + 1 are antithetic), scatter (variance of the mean over that
                         of a draw, in the body; recon/uncertainty.py),
                         interval, spread_scale and spread_scale_error (recon/spread_scale.py; std, lower and upper have
                         it, samples have not), spread_widened (JSON, factor on R per radial band; samples have
                         it), scorecard (JSON, recon/scorecard.py)
  of baselines           lambda, lambda_chosen_by, lambda_search (JSON)
  of unrolled networks   unrolled, unrolled_sha256
"""

import json
from dataclasses import dataclass, field

import h5py
import numpy as np

import mrigsure
from mrigsure.errors import InputError
from mrigsure.files import atomic
from mrigsure.geometry import Geometry, read_geometry, write_geometry
from mrigsure.scan import open_hdf5


@dataclass(frozen=True)
class Reconstruction:
    """Images of one file. Raw units: the scale of the prepared scan is undone.

    image     complex64 (slices, H, W); the mean of the draws, or the baseline's image
    std       float32 (slices, H, W) or None: root of a draw's variance (recon/uncertainty.py) times the scan's
              spread_scale, of the complex value; the real part alone has std / sqrt(2)
    samples   complex64 (slices, K, H, W) or None
    record    how it was made: plain values, the attributes of the file
    geometry  where the slices lie, or None
    lower, upper  float32 (slices, H, W) or None: ends of the magnitude's intervals
    """

    image: np.ndarray
    std: np.ndarray | None = None
    samples: np.ndarray | None = None
    record: dict = field(default_factory=dict)
    geometry: Geometry | None = None
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None

    def __post_init__(self):
        if self.geometry is not None and not self.geometry.fits(len(self.image)):
            raise ValueError(f"positions of {len(self.geometry.positions)} slices for image {self.image.shape}")
        for key in ("std", "samples", "lower", "upper"):
            array = getattr(self, key)
            if array is not None and (len(array), *array.shape[-2:]) != self.image.shape:
                raise ValueError(f"{key} has shape {array.shape}, which does not fit image {self.image.shape}")

    @property
    def magnitude(self) -> np.ndarray:
        """float32 (slices, H, W)."""
        return np.abs(self.image).astype(np.float32)

    @property
    def title(self) -> str:
        """Method, prior and acceleration, for people."""
        method = self.record.get("method", "reconstruction")
        if "samples" in self.record:
            count = self.record["samples"]
            method = f"mean of {count} draws" if count > 1 else "one draw"
            method += f", prior {self.record.get('prior', '')}"
        rate = self.record.get("acceleration")
        return method + (f", R = {rate:.2g}" if rate else "")


def write_reconstruction(path, reconstruction: Reconstruction) -> None:
    """Write the file, whole or not at all; the same reconstruction gives the same bytes."""
    with atomic(path) as partial, h5py.File(partial, "w") as file:
        file["reconstruction"] = reconstruction.magnitude
        file["reconstruction_complex"] = reconstruction.image.astype(np.complex64)
        for key in ("std", "lower", "upper"):
            if (array := getattr(reconstruction, key)) is not None:
                file[key] = array.astype(np.float32)
        if reconstruction.samples is not None:
            file["samples"] = reconstruction.samples.astype(np.complex64)
        write_geometry(file, reconstruction.geometry)
        for key, value in reconstruction.record.items():
            file.attrs[key] = json.dumps(value, sort_keys=True) if isinstance(value, dict) else value
        file.attrs["version"] = mrigsure.__version__


def read_reconstruction(path) -> Reconstruction:
    """Read a file of `write_reconstruction`. InputError where it is none."""
    with open_hdf5(path) as file:
        if "reconstruction_complex" not in file or "method" not in file.attrs:
            raise InputError(
                path, "no reconstruction_complex and method", "a reconstruction made by `mrigsure reconstruct`"
            )
        return Reconstruction(
            image=file["reconstruction_complex"][()],
            **{key: file[key][()] for key in ("std", "samples", "lower", "upper") if key in file},
            record={key: value.item() if hasattr(value, "item") else value for key, value in file.attrs.items()},
            geometry=read_geometry(file),
        )
