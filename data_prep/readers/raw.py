"""RawScan, what every reader returns, and the two checks that every reader makes."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mrigsure.errors import InputError
from mrigsure.geometry import Geometry

_ISMRMRD = "http://www.ismrm.org/ISMRMRD"
_KEPT_SECTIONS = ("acquisitionSystemInformation", "experimentalConditions", "encoding", "sequenceParameters")
_KEPT_ENCODING = ("encodedSpace", "reconSpace", "encodingLimits", "trajectory", "parallelImaging", "echoTrainLength")
_IDENTIFIERS = ("patientName", "patientID", "patientBirthdate")
_WORD = 3  # letters; a word of so few counts only where it stands alone
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
    reference    complex64 (slices, coils, h, w), fully sampled, of a separate reference scan over the same field of
                 view, k = 0 at n // 2, from which maps may be made; or None
    outside      complex64 (coils, samples), of image rows that oversampling put outside the field of view, in the units
                 of kspace (see readout.outside_samples); or None
    header       ISMRMRD XML without anything about the patient, the study or the site, or None
    geometry     voxel sizes and, where the file states them, positions and directions of the slices; or None
    acquisition  the protocol's name, or ""

    patient      the patient's identifier where the file has one, else ""; in memory only, for the keyed hash of it
                 (`patient_hash`): never written, printed or logged

    Nothing else that identifies a patient is ever read.
    Raises InputError for shapes that do not fit and for NaN or infinity.
    """

    kspace: np.ndarray
    source: Path
    mask: np.ndarray | None = None
    support: np.ndarray | None = None
    noise: np.ndarray | None = None
    reference: np.ndarray | None = None
    outside: np.ndarray | None = None
    header: str | None = None
    geometry: Geometry | None = None
    acquisition: str = ""
    patient: str = field(default="", repr=False)

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
        if self.geometry is not None and not self.geometry.fits(len(self.kspace)):
            raise ValueError(f"positions of {len(self.geometry.positions)} slices for k-space {self.kspace.shape}")
        for name in ("kspace", "noise", "reference", "outside"):
            array = getattr(self, name)
            if array is not None and not np.isfinite(array.view(np.float32)).all():
                bad = int((~np.isfinite(array)).sum())
                raise InputError(self.source, f"NaN or infinity in {bad} samples of {name}", "finite numbers")

    def part(self, slices: slice) -> "RawScan":
        """Some of the slices; a view, no copy."""
        return replace(
            self,
            kspace=self.kspace[slices],
            reference=None if self.reference is None else self.reference[slices],
            geometry=None if self.geometry is None else self.geometry.part(slices),
        )


def public_header(xml: str, source) -> str:
    """The parts of an ISMRMRD header that describe the scan, without subject, study, dates, site or serial numbers."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise InputError(source, f"a header that is not XML ({error})", "an ISMRMRD header") from error
    _keep(root, _KEPT_SECTIONS)
    for encoding in root.findall(f"{{{_ISMRMRD}}}encoding"):
        _keep(encoding, _KEPT_ENCODING)  # not trajectoryDescription, which has room for anything
    system = root.find(f"{{{_ISMRMRD}}}acquisitionSystemInformation")
    if system is not None:
        _keep(system, _KEPT_SYSTEM)
    for element in root.iter():
        element.attrib.clear()
    return _document(root)


def encoding_header(xml: str, number: int, other: str | None = None) -> str:
    """The header with encoding `number` alone, or with the first of the header `other` in its place."""
    root = ElementTree.fromstring(xml)
    encodings = root.findall(f"{{{_ISMRMRD}}}encoding")
    place = list(root).index(encodings[0])
    kept = encodings[number] if other is None else ElementTree.fromstring(other).find(f"{{{_ISMRMRD}}}encoding")
    for encoding in encodings:
        root.remove(encoding)
    root.insert(place, kept)
    return _document(root)


def header_text(xml: str, section: str, name: str) -> str:
    """The text of one element of a section of an ISMRMRD header, or "", as of what is no XML at all."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return ""
    return root.findtext(f"{{{_ISMRMRD}}}{section}/{{{_ISMRMRD}}}{name}", "")


def patient_id(xml: str) -> str:
    """The patient's identifier in an ISMRMRD header, or "": for the keyed hash of it, and never to be written."""
    return header_text(xml, "subjectInformation", "patientID").strip()


def identifiers(xml: str) -> list[str]:
    """Everything in an ISMRMRD header that names the patient, for `public_text`."""
    subject = [header_text(xml, "subjectInformation", name) for name in _IDENTIFIERS]
    return [*subject, header_text(xml, "studyInformation", "accessionNumber")]


def public_text(text: str, private: list[str]) -> str:
    """Free text of an operator, or "" where a word of the identifiers `private` stands in it."""
    words = {word for identifier in private for word in _words(identifier) if len(word) >= _WORD}
    named = any(word in text.lower() if len(word) > _WORD else word in _words(text) for word in words)
    return "" if named else text


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


def header_padding(xml: str, width: int) -> tuple[int, int] | None:
    """fastMRI's padding_left and padding_right: the lines that the encoding limits of the header place in a matrix of
    `width`; None where they are not stated, are for another matrix, or leave nothing out."""
    space = header_space(xml, "encodedSpace")
    limits = f".//{{{_ISMRMRD}}}kspace_encoding_step_1/{{{_ISMRMRD}}}"
    root = ElementTree.fromstring(xml)
    center, last = (root.findtext(limits + name) for name in ("center", "maximum"))
    if space is None or space[0][1] != width or center is None or last is None:
        return None
    left = width // 2 - int(center)
    right = left + int(last) + 1
    return (left, right) if 0 <= left < right <= width and right - left < width else None


def _document(root) -> str:
    ElementTree.register_namespace("", _ISMRMRD)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _words(text):
    return re.split(r"[\W_]+", text.lower())


def _keep(element, names) -> None:
    for child in [child for child in element if child.tag.rpartition("}")[2] not in names]:
        element.remove(child)
