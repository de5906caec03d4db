"""RawScan, what every reader returns, and the two checks that every reader makes."""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrigsure.errors import InputError

_ISMRMRD = "http://www.ismrm.org/ISMRMRD"
_KEPT_SECTIONS = ("acquisitionSystemInformation", "experimentalConditions", "encoding", "sequenceParameters")
_KEPT_SYSTEM = (
    "systemVendor",
    "systemModel",
    "systemFieldStrength_T",
    "receiverChannels",
    "relativeReceiverNoiseBandwidth",
)


@dataclass(frozen=True)
class RawScan:
    """One acquisition as the file has it: Cartesian k-space, readout along H, phase encoding along W, k = 0 at n // 2.

    kspace       complex64 (slices, coils, H, W), finite, 0 where not sampled
    source       the file
    mask         bool (W,) or (H, W) where the file or a mask file states the sampling, else None
    support      bool (W,) where the file states which lines were never candidates (zero-padding), else None
    noise        complex64 (coils, samples) acquired without signal, in the units of kspace, or None
    reference    complex64 (slices, coils, h, w), fully sampled, of a separate reference scan over the same field of view,
                 k = 0 at n // 2, from which maps may be made; or None
    header       ISMRMRD XML without anything about the patient, the study or the site, or None
    voxel_mm     height, width, slice; or None
    acquisition  the protocol's name, or ""

    Nothing that identifies a patient is ever read.
    Raises InputError for shapes that do not fit and for NaN or infinity.
    """

    kspace: np.ndarray
    source: Path
    mask: np.ndarray | None = None
    support: np.ndarray | None = None
    noise: np.ndarray | None = None
    reference: np.ndarray | None = None
    header: str | None = None
    voxel_mm: tuple[float, float, float] | None = None
    acquisition: str = ""

    def __post_init__(self):
        if self.kspace.ndim != 4 or 0 in self.kspace.shape:
            raise InputError(self.source, f"k-space of shape {self.kspace.shape}", "(slices, coils, H, W)")
        height, width = self.kspace.shape[-2:]
        if self.mask is not None and self.mask.shape not in ((width,), (height, width)):
            raise InputError(
                self.source,
                f"a mask of shape {self.mask.shape} for k-space {self.kspace.shape}",
                f"a mask of shape {(width,)} or {(height, width)}",
            )
        for name in ("kspace", "noise", "reference"):
            array = getattr(self, name)
            if array is not None and not np.isfinite(array.view(np.float32)).all():
                bad = int((~np.isfinite(array)).sum())
                raise InputError(self.source, f"NaN or infinity in {bad} samples of {name}", "finite numbers")


def public_header(xml: str, source) -> str:
    """The parts of an ISMRMRD header that describe the scan, without subject, study, dates, site or serial numbers."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise InputError(source, f"a header that is not XML ({error})", "an ISMRMRD header") from error
    removed = _keep(root, _KEPT_SECTIONS)
    system = root.find(f"{{{_ISMRMRD}}}acquisitionSystemInformation")
    if system is not None:
        removed |= _keep(system, _KEPT_SYSTEM)
    if not removed:
        return xml
    ElementTree.register_namespace("", _ISMRMRD)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def header_space(xml: str, space: str) -> tuple[tuple[int, ...], tuple[float, ...]] | None:
    """Matrix and field of view in mm, each (x, y, z), of `encodedSpace` or `reconSpace`; None where not stated."""
    found = ElementTree.fromstring(xml).find(f".//{{{_ISMRMRD}}}{space}")
    if found is None:
        return None
    values = [
        [float(found.findtext(f"{{{_ISMRMRD}}}{part}/{{{_ISMRMRD}}}{axis}", "nan")) for axis in "xyz"]
        for part in ("matrixSize", "fieldOfView_mm")
    ]
    if not np.isfinite(values).all() or min(values[0]) < 1:
        return None
    return tuple(int(n) for n in values[0]), tuple(values[1])


def header_voxel(xml: str) -> tuple[float, float, float] | None:
    """Voxel size in mm from the encoded space, or None."""
    space = header_space(xml, "encodedSpace")
    return None if space is None else tuple(length / count for count, length in zip(*space, strict=True))


def _keep(element, names) -> bool:
    others = [child for child in element if child.tag.rpartition("}")[2] not in names]
    for child in others:
        element.remove(child)
    return bool(others)
