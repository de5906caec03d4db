"""The lines of an ISMRMRD file: what each is for, where each lies in k-space, and their samples, read in blocks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mrigsure.errors import InputError

STEPS = ("kspace_encode_step_1", "kspace_encode_step_2")
_BLOCK = 256  # lines read at once
_ONE_EACH = {"contrast": "echoes", "phase": "cardiac phases", "set": "sets"}
_READOUT = ("number_of_samples", "center_sample", "discard_pre", "discard_post", "active_channels")
_NO_IMAGE = (
    "IS_NOISE_MEASUREMENT",
    "IS_NAVIGATION_DATA",
    "IS_PHASECORR_DATA",
    "IS_HPFEEDBACK_DATA",
    "IS_DUMMYSCAN_DATA",
    "IS_RTFEEDBACK_DATA",
    "IS_SURFACECOILCORRECTIONSCAN_DATA",
    "IS_PHASE_STABILIZATION_REFERENCE",
    "IS_PHASE_STABILIZATION",
)
_CALIBRATION, _BOTH = "IS_PARALLEL_CALIBRATION", "IS_PARALLEL_CALIBRATION_AND_IMAGING"


def has_flag(heads: np.ndarray, *names: str) -> np.ndarray:
    """Which lines carry one of these flags, named without their ACQ_: bool, one a line."""
    import ismrmrd

    bits = sum(1 << (getattr(ismrmrd, f"ACQ_{name}") - 1) for name in names)
    return (heads["flags"] & np.uint64(bits)) != 0


def is_imaging(heads: np.ndarray) -> np.ndarray:
    """Lines for the image, those that serve calibration too among them."""
    return ~has_flag(heads, *_NO_IMAGE) & (~has_flag(heads, _CALIBRATION) | has_flag(heads, _BOTH))


def is_calibration(heads: np.ndarray) -> np.ndarray:
    """Lines for parallel imaging's calibration, those that serve the image too among them."""
    return ~has_flag(heads, *_NO_IMAGE) & has_flag(heads, _CALIBRATION, _BOTH)


def is_calibration_only(heads: np.ndarray) -> np.ndarray:
    """Lines for parallel imaging's calibration alone."""
    return is_calibration(heads) & ~has_flag(heads, _BOTH)


def check_lines(heads: np.ndarray, path) -> None:
    """Raises InputError for lines that do not make one Cartesian image a slice."""
    if has_flag(heads, "IS_REVERSE").any():
        raise InputError(path, "readouts in both directions (EPI)", "Cartesian lines read in one direction")
    for counter, name in _ONE_EACH.items():
        count = len(np.unique(heads["idx"][counter]))
        if count > 1:
            raise InputError(path, f"{count} {name}", "one image a slice and repetition")
    kinds = np.unique(np.stack([heads[name] for name in _READOUT], axis=1), axis=0)
    if len(kinds) > 1:
        found = " and ".join(str(tuple(kind.tolist())) for kind in kinds)
        raise InputError(path, f"readouts of several kinds, {found}", f"the same {', '.join(_READOUT)} in every line")


@dataclass(frozen=True)
class Grid:
    """Where lines lie in k-space, axes x (readout), y, z.

    shape       of k-space, k = 0 at n // 2
    start       where sample 0, line 0 and partition 0 would lie
    columns     the samples of a readout that count
    candidates  of y and of z: bool, the positions that the header says could have been acquired
    """

    shape: tuple[int, int, int]
    start: tuple[int, int, int]
    columns: slice
    candidates: tuple[np.ndarray, np.ndarray]

    @property
    def readout(self) -> slice:
        """Where the samples that count lie along x."""
        return slice(self.start[0] + self.columns.start, self.start[0] + self.columns.stop)

    def positions(self, heads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """y and z of every line."""
        y, z = (start + heads["idx"][step].astype(int) for start, step in zip(self.start[1:], STEPS, strict=True))
        return y, z

    def sampled(self, heads: np.ndarray) -> np.ndarray:
        """bool (x, y, z): the samples that these lines acquired."""
        sampled = np.zeros(self.shape, bool)
        lines = np.zeros(self.shape[1:], bool)
        lines[self.positions(heads)] = True
        sampled[self.readout] = lines
        return sampled


def make_grid(encoding, heads: np.ndarray, path) -> Grid:
    """The grid of lines of one encoding of the header: as large as its encodedSpace, or as the lines need.

    The centre of encodingLimits is k = 0, and so is center_sample; one that is 0 counts as not stated, and the middle
    is taken. Lines that all have one partition number are 2-D.
    """
    samples, center, before, after = (int(heads[name][0]) for name in _READOUT[:4])
    if before + after >= samples:
        raise InputError(path, f"{samples} samples a line, {before + after} of them to discard", "samples that count")
    matrix = encoding.encodedSpace.matrixSize
    axes = [_axis(matrix.x, center or samples // 2, samples)]
    candidates = []
    for step, stated in zip(STEPS, (matrix.y, matrix.z), strict=True):
        numbers = heads["idx"][step].astype(int)
        first, last = int(numbers.min()), int(numbers.max())
        if step == STEPS[1] and first == last:
            axes.append((1, -first))
            candidates.append(np.ones(1, bool))
            continue
        limit = getattr(encoding.encodingLimits, step.replace("encode", "encoding"))
        limit = limit if limit is not None and limit.maximum else None
        middle = stated // 2 if limit is None else limit.center or (limit.maximum + 1) // 2
        size, start = _axis(stated, middle, last + 1)
        number = np.arange(size) - start
        axes.append((size, start))
        candidates.append(
            np.ones(size, bool)
            if limit is None
            else (number >= min(limit.minimum, first)) & (number <= max(limit.maximum, last))
        )
    shape, start = zip(*axes, strict=True)
    return Grid(shape, start, slice(before, samples - after), tuple(candidates))


class Lines:
    """The acquisitions of an open file. heads: the headers of all, as the file has them."""

    def __init__(self, table, heads: np.ndarray, path):
        self.heads, self.path, self._table = heads, path, table

    def read(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The samples of every row, complex64 (coils, samples); rows ascending."""
        for block in np.split(rows, range(_BLOCK, len(rows), _BLOCK)):
            try:
                samples = self._table.fields("data")[block[0] : block[-1] + 1]
            except OSError as error:
                raise InputError(self.path, "lines that cannot be read (truncated)", "a complete file") from error
            for row in block:
                yield self._complex(row, samples[row - block[0]])

    def place(self, rows, volume_of, volumes: int, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """The mean of the lines at every position, complex64 (volumes, coils, x, y, z); their number (volumes, y, z).

        volume_of  the volume of each row, 0 to volumes - 1
        """
        coils = int(self.heads["active_channels"][rows[0]])
        total = np.zeros((volumes, coils, *grid.shape), np.complex64)
        count = np.zeros((volumes, *grid.shape[1:]), int)
        where = zip(volume_of, *grid.positions(self.heads[rows]), strict=True)
        for (volume, y, z), line in zip(where, self.read(rows), strict=True):
            total[volume, :, grid.readout, y, z] += line[:, grid.columns]
            count[volume, y, z] += 1
        for volume, y, z in zip(*np.nonzero(count > 1), strict=True):
            total[volume, ..., y, z] /= count[volume, y, z]
        return total, count

    def _complex(self, row, numbers):
        shape = int(self.heads["active_channels"][row]), int(self.heads["number_of_samples"][row])
        if numbers.size != 2 * shape[0] * shape[1]:
            expected = f"{shape[0]} coils of {shape[1]} complex samples, not compressed"
            raise InputError(self.path, f"{numbers.size} numbers in acquisition {row}", expected)
        return numbers.astype(np.float32, copy=False).view(np.complex64).reshape(shape)


def _axis(stated, center, count):
    """Size of an axis, as stated if all fits, with sample `center` of `count` at n // 2; and where sample 0 lies."""
    size = int(stated)
    while size // 2 < center or size - size // 2 < count - center:
        size += 1
    return size, size // 2 - center
