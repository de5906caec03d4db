"""What of an ISMRMRD file goes where, known from its headers before any sample is read."""

from dataclasses import dataclass

import numpy as np

from data_prep.readers.acquisitions import Grid, Lines, check_lines, is_calibration, is_imaging, make_grid
from data_prep.readers.orientation import is_pulseq, place_slices
from data_prep.readers.raw import encoding_header, public_header
from data_prep.readers.volume import Cut, plan_cut
from mrigsure.errors import InputError
from mrigsure.fastmri_files import make_header
from mrigsure.geometry import Geometry

_DIRECTIONS = ("read_dir", "phase_dir", "slice_dir")


@dataclass(frozen=True)
class Layout:
    """Which lines are for the image, and where they go.

    xml          the header, without anything about the patient
    document     the same, parsed by ismrmrd
    number       of the encoding that is read
    rows         of the imaging lines
    slices       slice counters, in spatial order
    repetitions  those that are kept apart
    volume_of    the volume of each row: repetition by repetition, slice by slice
    """

    xml: str
    document: object
    number: int
    rows: np.ndarray
    slices: np.ndarray
    repetitions: np.ndarray
    volume_of: np.ndarray
    grid: Grid
    cut: Cut

    @property
    def encoding(self):
        """The header's encoding that is read."""
        return self.document.encoding[self.number]

    @property
    def volumes(self) -> int:
        """Of 2-D scans each is a slice."""
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
        """bool (W,): the lines that the header says could have been acquired; None if all."""
        lines = self.grid.candidates[self.cut.plane[1] - 1]
        return None if lines.all() else lines

    @property
    def voxel(self) -> tuple[float, float, float] | None:
        """Height, width, slice in mm; None where the header states no field of view."""
        lengths = lengths_mm(self.encoding.encodedSpace)
        axes, counts = (*self.cut.plane, self.cut.axis), (*self.plane, self.cut.depth)
        found = tuple(lengths[axis] / count for axis, count in zip(axes, counts, strict=True))
        return found if min(found) > 0 else None

    def geometry(self, heads: np.ndarray, sequence: str) -> Geometry | None:
        """Voxel sizes, and positions and directions where the headers of the file's lines, `heads`, state them.

        sequence  the sequence's name
        """
        if self.voxel is None:
            return None
        if is_pulseq(sequence):
            return Geometry(self.voxel)
        first = heads[self.rows[np.unique(self.volume_of, return_index=True)[1]]]
        system = self.document.acquisitionSystemInformation
        siemens = system is not None and "siemens" in (system.systemVendor or "").lower()
        axes = np.stack([first[name] for name in _DIRECTIONS], axis=1).astype(np.float64)
        axes = -axes if siemens else axes
        return place_slices(self.voxel, self.cut, self.depth, first["position"], axes, len(self.slices))

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
        whole, part = (lengths_mm(space)[axis] for space in (self.encoding.encodedSpace, self.encoding.reconSpace))
        return int(np.clip(round(count * part / whole), 1, count)) if min(whole, part) > 0 else count


def plan_layout(xml: str, lines: Lines, encoding: int | None, repetitions: str) -> Layout:
    """Decide from the file's header, as it stands there, and from those of its lines.

    encoding     which of several encodings that hold imaging lines
    repetitions  "separate" or "average"
    Raises InputError where the lines make no stack of Cartesian images, each sampled like the others.
    """
    heads, path = lines.heads, lines.path
    xml = public_header(xml, path)
    document = _parse(xml, path)
    number = _choose(document.encoding, heads, path, encoding)
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
    return Layout(xml, document, number, rows, slices, times, volume_of, grid, cut)


def lengths_mm(space) -> tuple[float, float, float]:
    """The field of view along x, y, z of an encodedSpace or reconSpace."""
    return space.fieldOfView_mm.x, space.fieldOfView_mm.y, space.fieldOfView_mm.z


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
        f"{number} ({count} lines, {kind[number]}, matrix {_matrix(encodings[number])})"
        for number, count in held.items()
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
