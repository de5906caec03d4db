"""Siemens twix .dat files (VD, VE and XA), through twixtools: 2-D Cartesian scans, several slices, averages, GRAPPA.

The imaging scan is the last measurement of the file. Lines are placed by their own counters, so that what was never
acquired stays zero: twixtools' mapped arrays fill and average without saying where. The patient's name, which twix
headers hold, is not taken from them.
"""

import contextlib
import io
from pathlib import Path

import numpy as np

from data_prep.readers.raw import RawScan
from data_prep.readout import crop_readout
from mrigsure.errors import InputError
from mrigsure.fastmri_files import make_header

_ONE_EACH = {"cPar": "partitions", "cEco": "echoes", "cPhs": "phases", "cRep": "repetitions", "cSet": "sets"}
_NO_IMAGE = (
    "ACQEND",
    "SYNCDATA",
    "NOISEADJSCAN",
    "PHASCOR",
    "PHASESTABSCAN",
    "REFPHASESTABSCAN",
    "RTFEEDBACK",
    "HPFEEDBACK",
)
_INTEGRATED_REFERENCE = 2  # sPat.ucRefScanMode: calibration lines taken within the imaging scan


def read_twix(path) -> RawScan:
    """Read the imaging scan: readout along H without its oversampling, phase encoding along W, averages averaged.

    Noise scans, of the imaging measurement or of one before it, become `noise`, scaled to the imaging scan's
    bandwidth and averages. Raises InputError for truncated and foreign files, and for 3-D, EPI and dynamic scans.
    """
    path = Path(path)
    measurements = _parse(path)
    header = measurements[-1]["hdr"]
    protocol = header["MeasYaps"]
    reference = protocol.get("sPat", {}).get("ucRefScanMode") == _INTEGRATED_REFERENCE
    blocks = [block for block in measurements[-1]["mdb"] if _is_imaging(block, reference)]
    if not blocks:
        raise InputError(path, "no imaging lines in the last measurement", "a Cartesian imaging scan")
    _check(blocks, path)
    kspace, averages = _place(blocks)
    oversampling = float(header.get("Dicom", {}).get("flReadoutOSFactor", 1))
    if oversampling > 1:
        kspace = crop_readout(kspace, round(kspace.shape[-2] / oversampling))
    voxel = _voxel(protocol, kspace.shape[-2:])
    return RawScan(
        kspace=kspace,
        source=path,
        noise=_noise(measurements, averages),
        header=None if voxel is None else _header(header, kspace, voxel),
        voxel_mm=voxel,
        acquisition=str(protocol.get("tProtocolName", "")),
    )


def _parse(path):
    import twixtools

    try:
        with contextlib.redirect_stdout(io.StringIO()) as messages:  # twixtools prints its warnings
            measurements = twixtools.read_twix(
                str(path), parse_pmu=False, parse_geometry=False, keep_syncdata=False, keep_acqend=True, verbose=False
            )
    except Exception as error:  # twixtools trusts its input: a foreign file can fail anywhere in it
        raise InputError(
            path, f"a foreign or truncated file ({type(error).__name__})", "a Siemens twix file"
        ) from error
    last = measurements[-1]["mdb"] if measurements else []
    if not last or not last[-1].is_flag_set("ACQEND") or "Mdb parsing encountered" in messages.getvalue():
        raise InputError(path, "no end-of-acquisition mark (a truncated file)", "a complete Siemens twix file")
    return measurements


def _is_imaging(block, reference):
    """An imaging line, or, with `reference`, a calibration line taken beside the imaging lines."""
    if any(block.is_flag_set(flag) for flag in _NO_IMAGE):
        return False
    return reference or not block.is_flag_set("PATREFSCAN") or block.is_flag_set("PATREFANDIMASCAN")


def _check(blocks, path):
    for counter, name in _ONE_EACH.items():
        count = len({getattr(block, counter) for block in blocks})
        if count > 1:
            raise InputError(path, f"{count} {name}", "a 2-D scan with one image a slice")
    if any(block.is_flag_set("REFLECT") for block in blocks):
        raise InputError(path, "readouts in both directions (EPI)", "Cartesian lines read in one direction")
    shapes = {block.data.shape for block in blocks}
    if len(shapes) > 1:
        raise InputError(path, f"lines of shapes {sorted(shapes)}", "the same coils and samples in every line")


def _place(blocks):
    """Lines into k-space by their counters, k = 0 at n // 2: (slices, coils, H, W), and the mean number of averages."""
    coils, columns = blocks[0].data.shape
    height, row = _extent(blocks[0].mdh.CenterCol, columns)
    width, offset = _extent(blocks[0].mdh.CenterLin, 1 + max(block.cLin for block in blocks))
    slices = 1 + max(block.cSlc for block in blocks)
    total = np.zeros((slices, width, coils, height), np.complex128)
    count = np.zeros((slices, width), int)
    for block in blocks:
        total[block.cSlc, offset + block.cLin, :, row : row + columns] += block.data
        count[block.cSlc, offset + block.cLin] += 1
    total /= np.maximum(count, 1)[:, :, None, None]
    return np.ascontiguousarray(total.transpose(0, 2, 3, 1), np.complex64), count[count > 0].mean()


def _extent(center, count):
    """Size of an axis whose sample `center` is k = 0, and where sample 0 then lies. Pulseq leaves `center` at 0."""
    center = int(center) or count // 2
    size = max(count, 2 * center, 2 * (count - center) - count % 2)
    return size, size // 2 - center


def _noise(measurements, averages):
    """Noise samples (coils, n), scaled to the imaging scan's bandwidth and averages; None without a noise scan."""
    for measurement in reversed(measurements):
        lines = [block.data for block in measurement["mdb"] if block.is_flag_set("NOISEADJSCAN")]
        if lines:
            samples = np.concatenate(lines, axis=1)
            ratio = _dwell(measurement["hdr"]) / _dwell(measurements[-1]["hdr"])
            return (samples * np.sqrt(ratio / averages)).astype(np.complex64)
    return None


def _dwell(header):
    """Nanoseconds a sample; the noise's variance is proportional to its inverse."""
    return float(header["MeasYaps"]["sRXSPEC"]["alDwellTime"][0])


def _voxel(protocol, matrix):
    try:
        position = protocol["sSliceArray"]["asSlice"][0]
        oversampling = 1 + float(protocol["sKSpace"].get("dPhaseOversamplingForDialog", 0))
        readout, phase = float(position["dReadoutFOV"]), float(position["dPhaseFOV"]) * oversampling
        return readout / matrix[0], phase / matrix[1], float(position["dThickness"])
    except (KeyError, IndexError, TypeError):
        return None


def _header(header, kspace, voxel):
    slices, coils, height, width = kspace.shape
    field = header.get("Dicom", {}).get("flMagneticFieldStrength")
    strength = None if field is None else float(field)
    return make_header((height, width), voxel, coils=coils, slices=slices, field_strength_t=strength)
