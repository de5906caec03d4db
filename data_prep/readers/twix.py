"""Siemens twix .dat files (VB, VD, VE and XA), through twixtools: Cartesian scans, 2-D and 3-D, GRAPPA, averages.

The imaging scan is the last measurement of the file. Nothing about the patient is taken from the headers but the
identifier, which stays in memory (RawScan.patient).
"""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np

from data_prep.readers import twix_lines
from data_prep.readers.orientation import is_pulseq, place_slices
from data_prep.readers.raw import RawScan, public_text
from data_prep.readers.volume import Cut, cut_volume, plan_cut
from data_prep.readout import outside_samples
from mrigsure.errors import InputError, ScanWarning
from mrigsure.fastmri_files import make_header
from mrigsure.fourier import center_crop
from mrigsure.geometry import Geometry
from mrigsure.masks import calibration_region

_ONE_EACH = {"cEco": "echoes", "cPhs": "phases", "cSet": "sets"}
_NO_IMAGE = (
    "ACQEND",
    "SYNCDATA",
    "NOISEADJSCAN",
    "PHASCOR",
    "PHASESTABSCAN",
    "REFPHASESTABSCAN",
    "RTFEEDBACK",
    "HPFEEDBACK",
    "RETRO_DUMMYSCAN",
    "SLICE_ACCEL_REFSCAN",
    "SLICE_ACCEL_PHASCOR",
    "noname60",  # navigators
)
_INTEGRATED_REFERENCE = 2  # sPat.ucRefScanMode: calibration lines taken within the imaging scan
_CARTESIAN = 1  # sKSpace.ucTrajectory
_ADJUSTMENT_DWELL = {"AdjCoilSens": 5000, "AdjQuietCoilSens": 4000}  # ns, of noise scans in a measurement of their own
_IDENTIFIERS = ("tPatientName", "PatientName", "PatientsName", "PatientID", "PatientBirthDay", "AccessionNumber")
_LACKING = 0.02  # share of the samples that one slice may lack


def read_twix(path, repetitions: str = "separate") -> RawScan:
    """Read the imaging scan: readout along H without its oversampling, phase encoding along W, averages averaged.

    Slices are in spatial order, repetitions further slices or averaged too. 3-D scans are cut into planes along the
    axis that is fully sampled (see volume.py). The mask comes from the lines' own counters. Noise scans, of the
    imaging measurement or of one before it, become `noise`, scaled to the imaging scan's bandwidth and averages;
    calibration lines of a separate reference scan become `reference`, those within the imaging scan part of k-space.
    Raises InputError for truncated and foreign files, for EPI, non-Cartesian, multi-band and multi-contrast scans.
    """
    path = Path(path)
    measurements = _parse(path)
    header = measurements[-1]["hdr"]
    protocol = header["MeasYaps"]
    imaging, calibration = _lines(measurements[-1]["mdb"], protocol, path)
    oversampling = float(header.get("Dicom", {}).get("flReadoutOSFactor", 1))
    kspace, count, rows, outside = _placed(imaging, repetitions, oversampling)
    cut = plan_cut(_box(rows, _common_sampling(count, path)), path)
    keep = _slab(cut, protocol)
    planes = cut_volume(kspace, cut, keep)
    voxel = _voxel(protocol, kspace.shape[2:], cut)
    return RawScan(
        kspace=planes,
        source=path,
        mask=cut.mask,
        noise=_noise(measurements, count),
        reference=_reference(calibration, planes.shape, oversampling, cut, keep, path) if calibration else None,
        outside=outside,
        header=None if voxel is None else _header(header, planes, voxel),
        geometry=None if voxel is None else _geometry(imaging, repetitions, voxel, cut, keep, protocol),
        acquisition=public_text(str(protocol.get("tProtocolName", "")), _identifiers(header)),
        patient=_patient(header),
    )


def twix_patient(path) -> str:
    """The patient's identifier, "" where there is none or it was blanked; reads the headers only."""
    return _patient(_parse(Path(path), data=False)[-1]["hdr"])


def _parse(path, data=True):
    import twixtools

    options = {"parse_pmu": False, "parse_geometry": False, "keep_syncdata": False, "keep_acqend": True}
    try:
        with contextlib.redirect_stdout(io.StringIO()) as messages:  # twixtools prints its warnings
            measurements = twixtools.read_twix(str(path), parse_data=data, verbose=False, **options)
    except Exception as error:  # twixtools trusts its input: a foreign file can fail anywhere in it
        raise InputError(
            path, f"a foreign or truncated file ({type(error).__name__})", "a Siemens twix file"
        ) from error
    last = measurements[-1]["mdb"] if measurements else []
    complete = bool(last) and last[-1].is_flag_set("ACQEND") and "Mdb parsing encountered" not in messages.getvalue()
    if not measurements or (data and not complete):
        raise InputError(path, "no end-of-acquisition mark (a truncated file)", "a complete Siemens twix file")
    if "MeasYaps" not in measurements[-1]["hdr"]:
        raise InputError(path, "no protocol in the header (MeasYaps)", "a Siemens twix file")
    return measurements


def _lines(blocks, protocol, path):
    """The imaging lines, and the calibration lines where they were acquired apart from these."""
    blocks = [block for block in blocks if not any(block.is_flag_set(flag) for flag in _NO_IMAGE)]
    calibration = [block for block in blocks if _is_calibration(block) or block.is_flag_set("PATREFANDIMASCAN")]
    integrated = protocol.get("sPat", {}).get("ucRefScanMode") == _INTEGRATED_REFERENCE
    imaging = blocks if integrated else [block for block in blocks if not _is_calibration(block)]
    if not imaging:
        raise InputError(path, "no imaging lines in the last measurement", "a Cartesian imaging scan")
    for counter, name in _ONE_EACH.items():
        number = len({getattr(block, counter) for block in imaging})
        if number > 1:
            raise InputError(path, f"{number} {name}", "a scan with one image a slice")
    if protocol.get("sKSpace", {}).get("ucTrajectory", _CARTESIAN) != _CARTESIAN:
        raise InputError(path, "a trajectory that is not Cartesian", "Cartesian lines")
    bands = protocol.get("sSliceAcceleration", {}).get("lMultiBandFactor", 1)
    if bands > 1:
        raise InputError(path, f"{bands} slices excited at once (multi-band)", "slices excited one by one")
    twix_lines.check_shapes(imaging, path)
    if integrated or not any(map(_is_calibration, calibration)):
        return imaging, []
    twix_lines.check_shapes(calibration, path)
    return imaging, calibration


def _is_calibration(block):
    return block.is_flag_set("PATREFSCAN") and not block.is_flag_set("PATREFANDIMASCAN")


def _placed(blocks, repetitions, oversampling):
    """k-space (volumes, coils, H, W, partitions) without oversampling, the lines' number, the measured rows, and what
    of the oversampling holds noise alone."""
    grid = twix_lines.make_grid(blocks, repetitions)
    kspace, count = twix_lines.place(blocks, grid)
    rows = twix_lines.sampled_rows(blocks[0], grid)
    outside = None
    if oversampling > 1:
        height = round(len(rows) / oversampling)
        if rows.all():
            planes = kspace.reshape(-1, *kspace.shape[2:])
            outside = outside_samples(planes, count.reshape(len(planes), -1) > 0, height)
        kspace, rows = twix_lines.without_oversampling(kspace, rows, height)
    return kspace.transpose(0, 2, 3, 4, 1), count, rows, outside


def _box(rows, lines):
    """bool (H,) and (partitions, W) -> bool (H, W, partitions)."""
    return rows[:, None, None] & lines.T


def _common_sampling(count, path):
    """The lines that were measured, bool (partitions, W), the same in every slice."""
    sampled = (count > 0).any(axis=0)
    for number, one in enumerate(count > 0):
        lacking = int((sampled & ~one).sum())
        if lacking > _LACKING * sampled.sum():
            raise InputError(
                path,
                f"slice {number} lacks {lacking} lines that other slices have",
                "the same sampling in every slice",
            )
    numbers = count[count > 0]
    if numbers.min() < numbers.max():
        warnings.warn(
            f"{path}: lines averaged {numbers.min()} to {numbers.max()} times; their noise counts as alike",
            ScanWarning,
            stacklevel=3,
        )
    return sampled


def _reference(blocks, shape, oversampling, cut, keep, path):
    """The fully sampled centre of the calibration lines, cut like the imaging scan: (slices, coils, h, w)."""
    kspace, count, rows, _ = _placed(blocks, "average", oversampling)
    plane = _box(rows, (count > 0).all(axis=0)).any(cut.axis)
    region = calibration_region(plane, plane.shape)
    same_depth = _resized(kspace, 2 + cut.axis, cut.depth)
    planes = cut_volume(same_depth, Cut(cut.axis, slice(0, cut.depth), plane), keep)
    if shape[0] % len(planes) or planes.shape[1] != shape[1] or not all(region):
        warnings.warn(
            f"{path}: reference scan of {len(planes)} slices, {planes.shape[1]} coils and a fully sampled centre of "
            f"{region[0]} x {region[1]} does not fit {shape[0]} slices and {shape[1]} coils; not used",
            ScanWarning,
            stacklevel=3,
        )
        return None
    return np.ascontiguousarray(np.tile(center_crop(planes, region), (shape[0] // len(planes), 1, 1, 1)))


def _resized(array, axis, size):
    """Centred along one axis: cut, or filled with zeros."""
    old = array.shape[axis]
    if size > old:
        before = size // 2 - old // 2
        return np.pad(array, [(before, size - old - before) if a == axis else (0, 0) for a in range(array.ndim)])
    start = old // 2 - size // 2
    return np.moveaxis(np.moveaxis(array, axis, 0)[start : start + size], 0, axis)


def _noise(measurements, count):
    """Noise samples (coils, n), scaled to the imaging scan's bandwidth and averages; None without a noise scan."""
    for measurement in reversed(measurements):
        blocks = [block for block in measurement["mdb"] if block.is_flag_set("NOISEADJSCAN")]
        if blocks:
            samples = np.concatenate([block.data for block in blocks], axis=1)
            ratio = _noise_dwell(measurement, blocks[0]) / _dwell(measurements[-1]["hdr"])
            return (samples * np.sqrt(ratio * (1 / count[count > 0]).mean())).astype(np.complex64)
    return None


def _noise_dwell(measurement, block):
    """Nanoseconds a sample of the noise scan.

    Its own protocol tells where it is a measurement of its own. Within the imaging measurement the protocol tells that
    of the image, while noise is taken for 7.68 ms, at 130 Hz a pixel on VB: as siemens_to_ismrmrd has it.
    """
    lines = [b for b in measurement["mdb"] if not b.is_flag_set("ACQEND")]
    if all(b.is_flag_set("NOISEADJSCAN") for b in lines):
        name = str(measurement["hdr"]["MeasYaps"].get("tProtocolName", ""))
        return _ADJUSTMENT_DWELL.get(name) or _dwell(measurement["hdr"])
    samples = block.mdh.SamplesInScan
    return 76800 // samples * 100 if block.version_is_ve else 1e9 / 130 / samples


def _dwell(header):
    """Nanoseconds a sample; the noise's variance is proportional to its inverse."""
    return float(header["MeasYaps"]["sRXSPEC"]["alDwellTime"][0])


def _slab(cut, protocol):
    """Slices that were asked for: those that slice oversampling added are cut off."""
    oversampling = float(protocol.get("sKSpace", {}).get("dSliceOversamplingForDialog", 0)) if cut.axis == 2 else 0
    return round(cut.depth / (1 + oversampling))


def _voxel(protocol, shape, cut):
    """mm along h, w and across the planes; shape (H, W, partitions)."""
    try:
        position, space = protocol["sSliceArray"]["asSlice"][0], protocol.get("sKSpace", {})
        lengths = (
            float(position["dReadoutFOV"]),
            float(position["dPhaseFOV"]) * (1 + float(space.get("dPhaseOversamplingForDialog", 0))),
            float(position["dThickness"]) * (1 + float(space.get("dSliceOversamplingForDialog", 0))),
        )
    except (KeyError, IndexError, TypeError):
        return None
    height, width = (lengths[axis] / shape[axis] for axis in cut.plane)
    return height, width, lengths[cut.axis] / cut.depth


def _geometry(blocks, repetitions, voxel, cut, keep, protocol):
    if is_pulseq(str(protocol.get("tSequenceFileName", ""))):
        return Geometry(voxel)
    centers, axes = twix_lines.slice_axes(blocks, twix_lines.make_grid(blocks, repetitions))
    return place_slices(voxel, cut, min(keep, cut.depth), centers, axes, len({block.cSlc for block in blocks}))


def _header(header, planes, voxel):
    slices, coils, height, width = planes.shape
    field = header.get("Dicom", {}).get("flMagneticFieldStrength")
    strength = None if field is None else float(field)
    return make_header((height, width), voxel, coils=coils, slices=slices, field_strength_t=strength)


def _patient(header):
    """The first identifier that was not blanked."""
    found = [text for text in _texts(header, ("PatientID",)) if text.strip(" xX")]
    return found[0].strip() if found else ""


def _identifiers(header):
    """Everything that names the patient; numbers, which twixtools makes of dates, as they were written."""
    return _texts(header, _IDENTIFIERS)


def _texts(header, keys):
    values = [header.get(part, {}).get(key, "") for part in ("Config", "Meas", "Dicom") for key in keys]
    return [f"{value:.0f}" if isinstance(value, float) else str(value) for value in values]
