"""ISMRMRD files (MRD version 1), .h5 and .mrd: Cartesian 2-D and 3-D scans, placed line by line by their own counters.

    averages       averaged; the noise scan is scaled to the noise that is left
    repetitions    separate: more slices, all of the first repetition and then all of the next; or averaged too
    encodings      the Cartesian one that holds imaging lines; where several do, the caller must choose
    calibration    lines for it alone become the reference; lines that are for imaging too serve both, and so do those
                   that the header calls embedded, which differ from the imaging lines in nothing
    3-D            cut into slices (volume.py); slices outside the field of view of reconSpace are left out

What was never acquired stays zero and out of the mask: an asymmetric echo thus has a mask (H, W). Lines outside
encodingLimits (partial Fourier, zero-padding) are outside the support too. Only headers decide about the mask.
Format: Inati et al., Magn Reson Med 77:411 (2017), doi 10.1002/mrm.26089.
"""

import warnings
from pathlib import Path

import numpy as np

from data_prep.readers.acquisitions import (
    Lines,
    check_lines,
    has_flag,
    is_calibration,
    is_calibration_only,
    is_imaging,
    make_grid,
)
from data_prep.readers.layout import lengths_mm, plan_layout
from data_prep.readers.raw import RawScan, header_text, identifiers, patient_id, public_text
from data_prep.readers.volume import cut_reference, cut_volume
from mrigsure.errors import InputError, ScanWarning
from mrigsure.scan import open_hdf5


def read_ismrmrd(path, encoding: int | None = None, repetitions: str = "separate") -> RawScan:
    """Read the imaging scan, its noise scan and its calibration scan; of the patient the identifier alone.

    encoding     which of several encodings that hold imaging lines
    repetitions  "separate" or "average"
    Raises InputError for truncated and foreign files, for EPI and non-Cartesian scans, and for more than one image a
    slice and repetition (echoes, cardiac phases, sets).
    """
    path = Path(path)
    with open_hdf5(path) as file:
        xml, lines = _open(file, path)
        scan = plan_layout(xml, lines, encoding, repetitions)
        volume, count = lines.place(scan.rows, scan.volume_of, scan.volumes, scan.grid)
        kspace = cut_volume(volume, scan.cut, scan.depth)
        del volume
        noise, reference = _noise(lines, scan, _share_of_noise(count, path)), _reference(lines, scan)
    return RawScan(
        kspace=kspace,
        source=path,
        mask=scan.cut.mask,
        support=scan.support,
        noise=noise,
        reference=reference,
        header=scan.header(*kspace.shape[:2]),
        geometry=scan.geometry(lines.heads, header_text(xml, "measurementInformation", "sequenceName")),
        acquisition=public_text(header_text(xml, "measurementInformation", "protocolName"), identifiers(xml)),
        patient=patient_id(xml),
    )


def ismrmrd_sampling(path, encoding: int | None = None, repetitions: str = "separate"):
    """The mask, (W,) or (H, W), and (H, W), from the lines' headers alone."""
    path = Path(path)
    with open_hdf5(path) as file:
        scan = plan_layout(*_open(file, path), encoding, repetitions)
    return scan.cut.mask, scan.plane


def ismrmrd_patient(path) -> str:
    """The patient's identifier, "" where there is none."""
    with open_hdf5(path) as file:
        return patient_id(_open(file, Path(path))[0])


def is_ismrmrd(path) -> bool:
    """Whether an HDF5 file holds acquisitions rather than an array of k-space."""
    with open_hdf5(path) as file:
        return bool(_groups(file))


def _groups(file):
    return [name for name in file if {"xml", "data"} <= set(getattr(file[name], "keys", tuple)())]


def _open(file, path):
    """The header and the lines of the group with imaging lines; files of one measurement call it `dataset`."""
    found = {}
    for name in _groups(file):
        try:
            xml, heads = file[name]["xml"][0], file[name]["data"].fields("head")[()]
        except (OSError, ValueError, TypeError) as error:
            raise InputError(path, f"acquisitions that cannot be read ({error})", "a complete ISMRMRD file") from error
        if is_imaging(heads).any():
            text = xml.decode() if isinstance(xml, bytes) else str(xml)
            found[name] = text, Lines(file[name]["data"], heads, path)
    if len(found) != 1:
        what = f"imaging lines in the groups {', '.join(found)}" if found else "no imaging lines"
        raise InputError(path, what, "an ISMRMRD file with one group of imaging lines, `xml` and `data`")
    return next(iter(found.values()))


def _share_of_noise(count, path):
    """Variance of the noise where lines were averaged `count` times, over that of a single line."""
    count = count[count > 0]
    if count.min() < count.max():
        warnings.warn(
            f"{path}: lines averaged {count.min()} to {count.max()} times, so that their noise differs; "
            f"one level, that of its mean variance, stands for all",
            ScanWarning,
            stacklevel=3,
        )
    return float((1 / count).mean())


def _noise(lines, scan, share):
    """Noise samples (coils, n), scaled to the noise in k-space; None without a noise scan.

    The variance is proportional to the bandwidth, 1 / dwell time; the noise scan's effective one is
    relativeReceiverNoiseBandwidth of that. Kellman and McVeigh, Magn Reson Med 54:1439 (2005).
    """
    rows = np.flatnonzero(has_flag(lines.heads, "IS_NOISE_MEASUREMENT"))
    if not rows.size:
        return None
    imaging, noise = lines.heads[scan.rows[0]], lines.heads[rows]
    if (noise["active_channels"] != imaging["active_channels"]).any():
        warnings.warn(f"{lines.path}: the noise scan has other coils; left out", ScanWarning, stacklevel=3)
        return None
    dwell = float(noise["sample_time_us"][0]), float(imaging["sample_time_us"])
    if min(dwell) > 0:
        share *= dwell[0] / dwell[1]
    system = scan.document.acquisitionSystemInformation
    share /= (system and system.relativeReceiverNoiseBandwidth) or 1
    return np.concatenate(list(lines.read(rows)), axis=1) * np.float32(np.sqrt(share))


def _reference(lines, scan):
    """The fully sampled centre of the calibration lines, cut as the scan is: (slices, coils, h, w); None without."""
    alone = is_calibration_only(lines.heads)
    chosen = is_calibration(lines.heads)
    if not chosen.any():
        return None
    number = lines.heads["encoding_space_ref"][alone if alone.any() else chosen][0]
    rows = np.flatnonzero(chosen & (lines.heads["encoding_space_ref"] == number))
    heads = lines.heads[rows]
    check_lines(heads, lines.path)
    encoding = scan.document.encoding[number]
    fields = [lengths_mm(one.encodedSpace) for one in (encoding, scan.encoding)]
    reference = None
    if np.allclose(*fields, rtol=0.01) and np.array_equal(np.unique(heads["idx"]["slice"]), np.sort(scan.slices)):
        grid = make_grid(encoding, heads, lines.path)
        place = {number: index for index, number in enumerate(scan.slices)}
        volume_of = [place[number] for number in heads["idx"]["slice"]]
        volume, _ = lines.place(rows, volume_of, len(scan.slices), grid)
        reference = cut_reference(volume, grid.sampled(heads), scan.cut, scan.depth)
    if reference is None:
        warnings.warn(
            f"{lines.path}: calibration lines left out, which have no whole centre or another field of view or slices "
            "than the scan",
            ScanWarning,
            stacklevel=3,
        )
        return None
    return np.tile(reference, (len(scan.repetitions), 1, 1, 1))
