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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data_prep.readers.acquisitions import (
    Grid,
    Lines,
    check_lines,
    has_flag,
    is_calibration,
    is_calibration_only,
    is_imaging,
    make_grid,
)
from data_prep.readers.raw import RawScan, encoding_header, header_text, patient_id, public_header
from data_prep.readers.volume import Cut, cut_reference, cut_volume, plan_cut
from mrigsure.errors import InputError, ScanWarning
from mrigsure.fastmri_files import make_header
from mrigsure.scan import open_hdf5


def read_ismrmrd(path, encoding: int | None = None, repetitions: str = "separate") -> RawScan:
    """Read the imaging scan, its noise scan and its calibration scan; nothing about the patient.

    encoding     which of several encodings that hold imaging lines
    repetitions  "separate" or "average"
    Raises InputError for truncated and foreign files, for EPI and non-Cartesian scans, and for more than one image a
    slice and repetition (echoes, cardiac phases, sets).
    """
    path = Path(path)
    with open_hdf5(path) as file:
        xml, lines = _open(file, path)
        scan = _plan(xml, lines, encoding, repetitions)
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
        voxel_mm=scan.voxel,
        acquisition=header_text(xml, "measurementInformation", "protocolName"),
        patient=patient_id(xml),
    )


def ismrmrd_sampling(path, encoding: int | None = None, repetitions: str = "separate"):
    """The mask, (W,) or (H, W), and (H, W), from the lines' headers alone."""
    path = Path(path)
    with open_hdf5(path) as file:
        scan = _plan(*_open(file, path), encoding, repetitions)
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


@dataclass(frozen=True)
class _Scan:
    """What is to be placed where, known before any sample is read."""

    xml: str  # public
    document: object  # the same, parsed
    number: int  # of the encoding
    rows: np.ndarray  # of the imaging lines
    slices: np.ndarray  # slice counters, in spatial order
    repetitions: np.ndarray  # repetitions that are kept apart
    volume_of: np.ndarray  # each row's: repetition by repetition, slice by slice
    grid: Grid
    cut: Cut

    @property
    def encoding(self):
        return self.document.encoding[self.number]

    @property
    def volumes(self) -> int:
        return len(self.repetitions) * len(self.slices)

    @property
    def plane(self) -> tuple[int, int]:
        """H and W."""
        return tuple(self.grid.shape[axis] for axis in self.cut.plane)

    @property
    def depth(self) -> int:
        """Slices of a volume inside the field of view that was asked for."""
        return self._asked(self.cut.axis, self.cut.depth)

    @property
    def support(self) -> np.ndarray | None:
        lines = self.grid.candidates[self.cut.plane[1] - 1]
        return None if lines.all() else lines

    @cached_property
    def voxel(self) -> tuple[float, float, float] | None:
        lengths = _lengths(self.encoding.encodedSpace)
        counts = (*self.plane, self.cut.depth)
        found = tuple(lengths[axis] / count for axis, count in zip((*self.cut.plane, self.cut.axis), counts, strict=True))
        return found if min(found) > 0 else None

    def header(self, slices: int, coils: int) -> str | None:
        """The header with this encoding alone; in terms of H and W where they are not its own x and y."""
        stated = self.encoding.encodedSpace.matrixSize
        if self.grid.shape == (stated.x, stated.y, 1):
            return encoding_header(self.xml, self.number)
        if self.voxel is None:
            return None
        asked = self.plane  # (y, z) has no readout along H whose oversampling could be removed
        if self.cut.axis:
            asked = tuple(self._asked(axis, count) for axis, count in zip(self.cut.plane, self.plane, strict=True))
        other = make_header(asked, self.voxel, encoded_matrix=self.plane, coils=coils, slices=slices)
        return encoding_header(self.xml, self.number, other)

    def _asked(self, axis, count):
        whole, part = (_lengths(space)[axis] for space in (self.encoding.encodedSpace, self.encoding.reconSpace))
        return int(np.clip(round(count * part / whole), 1, count)) if min(whole, part) > 0 else count


def _plan(xml, lines, asked, repetitions) -> _Scan:
    heads, path = lines.heads, lines.path
    xml = public_header(xml, path)
    document = _parse(xml, path)
    number = _choose(document.encoding, heads, path, asked)
    chosen = is_imaging(heads)
    parallel = document.encoding[number].parallelImaging
    if parallel is not None and parallel.calibrationMode is not None and parallel.calibrationMode.value == "embedded":
        chosen |= is_calibration(heads)
    rows = np.flatnonzero(chosen & (heads["encoding_space_ref"] == number))
    heads = heads[rows]
    check_lines(heads, path)
    slices, slice_of = _slices(heads)
    times, time_of = np.unique(heads["idx"]["repetition"], return_inverse=True)
    if repetitions == "average":
        times, time_of = times[:1], np.zeros_like(time_of)
    volume_of = time_of * len(slices) + slice_of
    grid = make_grid(document.encoding[number], heads, path)
    cut = plan_cut(_same_sampling(heads, volume_of, slices, times, grid, path), path)
    return _Scan(xml, document, number, rows, slices, times, volume_of, grid, cut)


def _slices(heads):
    """The slice counters in spatial order, where positions tell it, and each line's place among them."""
    slices, first, slice_of = np.unique(heads["idx"]["slice"], return_index=True, return_inverse=True)
    along = (heads["position"][first] * heads["slice_dir"][first[0]]).sum(axis=1)
    order = np.argsort(along, kind="stable")
    return slices[order], np.argsort(order)[slice_of]


def _parse(xml, path):
    from ismrmrd.xsd import CreateFromDocument

    try:
        return CreateFromDocument(xml)
    except Exception as error:  # the parser's own errors, and TypeError where something mandatory is missing
        reason = str(error).splitlines()[0]
        raise InputError(path, f"a header outside the ISMRMRD schema ({reason})", "an ISMRMRD header") from error


def _choose(encodings, heads, path, asked):
    """The number of the encoding to read."""
    numbers = heads["encoding_space_ref"][is_imaging(heads)]
    held = {int(number): int((numbers == number).sum()) for number in np.unique(numbers)}
    if max(held) >= len(encodings):
        raise InputError(path, f"lines of encoding {max(held)}", f"one of the header's {len(encodings)} encodings")
    kind = {number: encodings[number].trajectory.value for number in held}
    described = ", ".join(
        f"{number} ({lines} lines, {kind[number]}, matrix {_matrix(encodings[number])})" for number, lines in held.items()
    )
    if asked is not None and asked not in held:
        raise InputError(path, f"no imaging lines in encoding {asked}", f"one of the encodings {described}")
    chosen = [number for number in held if (kind[number] == "cartesian" if asked is None else number == asked)]
    if not chosen or kind[chosen[0]] != "cartesian":
        found = kind[chosen[0] if chosen else min(held)]
        raise InputError(path, f"a trajectory of the kind {found}", "cartesian; neither EPI nor non-Cartesian scans")
    if len(chosen) > 1:
        options = " or ".join(f"--encoding {number}" for number in chosen)
        raise InputError(path, f"imaging lines in the encodings {described}", f"one of them, chosen with {options}")
    return chosen[0]


def _matrix(encoding):
    size = encoding.encodedSpace.matrixSize
    return f"{size.x} x {size.y} x {size.z}"


def _lengths(space):
    return space.fieldOfView_mm.x, space.fieldOfView_mm.y, space.fieldOfView_mm.z


def _same_sampling(heads, volume_of, slices, times, grid, path):
    """bool (x, y, z), which must be the same in every volume."""
    sampled = grid.sampled(heads)
    for number in range(len(slices) * len(times)):
        lacking = int((sampled & ~grid.sampled(heads[volume_of == number])).any(axis=0).sum())
        if lacking:
            time, place = divmod(number, len(slices))
            raise InputError(
                path,
                f"slice {slices[place]}, repetition {times[time]} without {lacking} lines that others have",
                "the same sampling in all" + ("; or --repetitions average" if len(times) > 1 else ""),
            )
    return sampled


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
    """The fully sampled centre of the calibration lines, cut as the scan is, (slices, coils, h, w); None without any."""
    alone = is_calibration_only(lines.heads)
    chosen = is_calibration(lines.heads)
    if not chosen.any():
        return None
    number = lines.heads["encoding_space_ref"][alone if alone.any() else chosen][0]
    rows = np.flatnonzero(chosen & (lines.heads["encoding_space_ref"] == number))
    heads = lines.heads[rows]
    check_lines(heads, lines.path)
    encoding = scan.document.encoding[number]
    fields = [_lengths(one.encodedSpace) for one in (encoding, scan.encoding)]
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
