"""DICOM, one file a slice: MR Image Storage where the source states the geometry, Secondary Capture where it does not.

Pixels are 16-bit; value = RescaleSlope * pixel + RescaleIntercept, the same for all slices, in the raw file's units.
(MR Image Storage has no rescale of its own: a standard extension that scanners use too.) UIDs are made from hashes
of the content, so that the same reconstruction gives the same bytes; reconstructions of one scan share a study. The
patient is the keyed hash of the identifier, or ANONYMOUS; no dates. The attributes are those of DICOM PS3.3, A.4, A.8.
"""

import re
from pathlib import Path

import numpy as np

import mrigsure
from mrigsure.errors import InputError
from mrigsure.files import atomic_folder
from recon.image_volume import NOTICE, ImageVolume

_LARGEST = 2**16 - 1
_KINDS = {"magnitude": (1, "OTHER"), "phase": (2, "PHASE MAP"), "std": (3, "OTHER")}  # series number, image type
_LONGEST = 1024  # characters of a short text


def write_dicom(folder, volume: ImageVolume) -> None:
    """Write 0001.dcm, 0002.dcm, ... in the order of the slices, all or none; an earlier series there is replaced.

    Raises InputError where the folder holds anything else.
    """
    folder = Path(folder)
    others = [p.name for p in folder.iterdir() if not re.fullmatch(r"\d+\.dcm", p.name)] if folder.is_dir() else []
    if others:
        raise InputError(folder, f"{others[0]} where a DICOM series would go", "a folder of its own")
    slope, intercept = _rescale(volume)
    levels = np.rint((volume.values.astype(np.float64) - float(intercept)) / float(slope))
    pixels = np.clip(levels, 0, _LARGEST).astype("<u2")
    with atomic_folder(folder) as partial:
        for index in range(len(pixels)):
            data = _dataset(volume, index, pixels[index])
            data.RescaleSlope, data.RescaleIntercept, data.RescaleType = slope, intercept, "US"
            data.save_as(partial / f"{index + 1:04d}.dcm", enforce_file_format=True)


def _rescale(volume):
    """Slope and intercept, as the decimal strings that the file holds."""
    low, high = (-np.pi, np.pi) if volume.kind == "phase" else (0.0, float(volume.values.max()))
    return _number((high - low) / _LARGEST or 1.0), _number(low)


def _dataset(volume, index, pixels):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, SecondaryCaptureImageStorage

    number, map_type = _KINDS[volume.kind]
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = MRImageStorage if volume.is_oriented else SecondaryCaptureImageStorage
    data.SOPInstanceUID = _uid("image", volume.sha256, volume.kind, str(index))
    data.StudyInstanceUID = _uid("study", volume.scan_sha256)
    data.SeriesInstanceUID = _uid("series", volume.sha256, volume.kind)
    data.PatientName = data.PatientID = volume.patient or "ANONYMOUS"
    data.PatientIdentityRemoved, data.DeidentificationMethod = "YES", "identifier hashed with a secret key, or left out"
    for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
        setattr(data, name, "")  # must be there, and may be empty
    data.ReferringPhysicianName = data.Laterality = ""
    data.Modality, data.SeriesNumber, data.InstanceNumber = "MR", number, index + 1
    data.Manufacturer, data.SoftwareVersions = "mrigsure", mrigsure.__version__
    data.SeriesDescription = f"mrigsure {volume.kind} {NOTICE}"
    data.ImageComments, data.DerivationDescription = volume.description, volume.description[:_LONGEST]
    data.ImageType = ["DERIVED", "SECONDARY", map_type]
    data.BurnedInAnnotation, data.LossyImageCompression = "NO", "00"
    if volume.geometry is not None:
        data.PixelSpacing = [_number(size) for size in volume.geometry.voxel_mm[:2]]
        data.SliceThickness = _number(volume.geometry.voxel_mm[2])
    if volume.is_oriented:
        _place(data, volume, index)
    else:
        data.ConversionType, data.PatientOrientation = "WSD", ""
    low, high = volume.window
    data.WindowCenter, data.WindowWidth = _number((low + high) / 2), _number(high - low or 1.0)
    data.VOILUTFunction = "LINEAR_EXACT"  # the plain one demands widths of 1 or more
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW"
    return data


def _place(data, volume, index):
    """The modules of MR Image Storage: image plane, frame of reference, and what of the sequence must be there."""
    place = volume.geometry.part([index])
    rows, columns, _ = place.directions[0]
    corner = place.corners(volume.values.shape[1:])[0]
    data.ImagePositionPatient = [_number(x) for x in corner]
    data.ImageOrientationPatient = [_number(x) for x in (*columns, *rows)]
    data.SliceLocation = _number(corner @ np.cross(columns, rows))
    data.FrameOfReferenceUID, data.PositionReferenceIndicator = _uid("frame", volume.scan_sha256), ""
    data.PatientPosition = ""
    data.ScanningSequence, data.SequenceVariant = "RM", "NONE"  # research mode: the sequence is not known here
    for name in ("ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength"):
        setattr(data, name, "")
    times = volume.geometry.repetitions()
    if times.any():
        data.TemporalPositionIdentifier, data.NumberOfTemporalPositions = int(times[index]) + 1, int(times.max()) + 1


def _uid(*sources):
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=["mrigsure", *sources])


def _number(value):
    """A decimal string of at most 16 characters."""
    from pydicom.valuerep import DSfloat

    return DSfloat(float(value), auto_format=True)
