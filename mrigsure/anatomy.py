"""The heads that ship with mrigsure, and oblique planes cut through them.

Volumes have axes (superior -> inferior, anterior -> posterior, right -> left); made by examples/build_anatomy.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

TRAIN_HEADS = ("colin27", "lesion", "stroke", "mni152")
TEST_HEADS = ("child",)
ORIENTATIONS = ("axial", "coronal", "sagittal")
_FADE_MM = 25.0  # over which tissue fades towards the lower face of the volume, where the source was cut
_LEAST_BRAIN = 0.25  # of the largest plane's: planes with less brain are not drawn
_LEAST_EXTENT_MM = 110.0  # a small slice is not magnified beyond this field of view
_TILT_REACH_MM = 8.0  # how far an oblique plane leaves the upright one, roughly
_AIR = 8  # of 255: below this a voxel counts as empty


@dataclass(frozen=True)
class Head:
    """One person's head (or an average one).

    channels   co-registered uint8 volumes of one shape: `t1`, `t2`, `flair`; `gm`, `wm` tissue maps; `brain`, the
               mask of the brain and the fluid around it
    stripped   the skull and scalp are missing
    """

    name: str
    channels: Mapping[str, np.ndarray]
    voxel_mm: float
    stripped: bool
    source: str
    licence: str


@cache
def load_anatomy(name: str) -> Head:
    """A head by its name, kept in memory. Raises ValueError for an unknown one."""
    if name not in TRAIN_HEADS + TEST_HEADS:
        raise ValueError(f"unknown head {name!r}; expected one of {', '.join(TRAIN_HEADS + TEST_HEADS)}")
    with resources.files("mrigsure").joinpath("data", "anatomy", f"{name}.npz").open("rb") as file:
        content = dict(np.load(file))
    about = json.loads(str(content.pop("about")))
    return Head(name, content, **about)


@dataclass(frozen=True)
class Cut:
    """Parallel oblique planes through a head, each sampled at H x W points.

    orientation  the axis most nearly normal to the planes, one of ORIENTATIONS
    origin_mm    (slices, 3), middle of each plane from the volume's centre, along the volume's axes
    axes         (2, 3), unit vectors along rows and columns
    spacing_mm   distance of the points along rows and columns, and of the planes
    """

    orientation: str
    origin_mm: np.ndarray
    axes: np.ndarray
    spacing_mm: tuple[float, float, float]

    def refined(self, factor: int) -> "Cut":
        """The same planes with `factor` times as many points along rows and columns."""
        rows, cols, slices = self.spacing_mm
        return replace(self, spacing_mm=(rows / factor, cols / factor, slices))

    def sample(self, head: Head, shape: tuple[int, int], warp_mm: np.ndarray) -> dict[str, np.ndarray]:
        """The head's channels on the planes, float32 in 0..1: name -> (slices, H, W).

        One more channel, `inside`, falls to 0 towards the lower face of a volume that was cut there.
        warp_mm  (2, H, W), displacement along rows and columns
        """
        rows, cols = ((np.arange(n) - (n - 1) / 2) * d for n, d in zip(shape, self.spacing_mm, strict=False))
        offset = np.stack([rows[:, None] + warp_mm[0], cols[None, :] + warp_mm[1]])
        points = self.origin_mm.T[:, :, None, None] + np.einsum("ax,ahw->xhw", self.axes, offset)[:, None]
        sizes = head.channels["t1"].shape
        index = [axis / head.voxel_mm + (size - 1) / 2 for axis, size in zip(points, sizes, strict=True)]
        planes = {
            name: ndimage.map_coordinates(volume, index, np.float32, order=1) / np.float32(255)
            for name, volume in head.channels.items()
        }
        return planes | {"inside": _fade(head, sizes[0] - 1 - index[0])}


def draw_cut(
    rng: np.random.Generator, head: Head, shape: tuple[int, int], slices: int = 1, margin_mm: float = 0.0
) -> Cut:
    """Neighbouring planes at a random place and angle, of which the head fills 60 to 95% of the larger side.

    margin_mm  kept free on every side of the head
    """
    normal = int(rng.integers(3))
    brain, boxes = _planes(head.name, normal)
    usable = np.flatnonzero(brain > _LEAST_BRAIN * brain.max())
    gap = min(rng.uniform(2.0, 5.0), np.ptp(usable) * head.voxel_mm / max(slices, 1))
    reach = gap * (slices - 1) / head.voxel_mm
    first = rng.uniform(usable[0], usable[-1] - reach)
    positions = first + np.arange(slices) * gap / head.voxel_mm

    tilted = int(np.ceil(_TILT_REACH_MM / head.voxel_mm))
    touched = boxes[max(int(first) - tilted, 0) : int(positions[-1]) + tilted]
    low, high = touched[:, 0].min(0) * head.voxel_mm, touched[:, 1].max(0) * head.voxel_mm
    extent = np.maximum(high - low + 2 * margin_mm, _LEAST_EXTENT_MM)
    spacing = (extent / shape).max() / rng.uniform(0.6, 0.95) * np.exp(rng.uniform(-0.1, 0.1, size=2))
    spacing = np.maximum(spacing, extent / shape / 0.97)
    room = np.maximum(spacing * shape - extent, 0) / 2

    sizes = np.array(head.channels["t1"].shape)
    in_plane = [axis for axis in range(3) if axis != normal]
    middle = np.zeros(3)
    middle[in_plane] = (low + high) / 2 + rng.uniform(-0.8, 0.8, size=2) * room
    middle[normal] = positions.mean() * head.voxel_mm
    middle -= (sizes - 1) / 2 * head.voxel_mm
    angles = np.clip(rng.normal(size=3) * np.where(np.arange(3) == normal, 8, 4), -20, 20)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    steps = (np.arange(slices) - (slices - 1) / 2) * gap
    return Cut(
        orientation=ORIENTATIONS[normal],
        origin_mm=middle + steps[:, None] * rotation[:, normal],
        axes=rotation[:, in_plane].T,
        spacing_mm=(*map(float, spacing), float(gap)),
    )


def _fade(head, above_lower_face):
    """1, falling to 0 towards the lower face of a volume that was cut there. In voxels above that face."""
    if head.stripped:
        return np.ones(np.shape(above_lower_face), np.float32)
    return np.clip(above_lower_face * (head.voxel_mm / _FADE_MM), 0, 1).astype(np.float32)


@cache
def _planes(name, normal):
    """Of every plane across `normal`: area of brain (n,), and box of the head (n, 2, 2), (first, last) x (row, col)."""
    head = load_anatomy(name)
    brain = np.moveaxis(head.channels["brain"] > 127, normal, 0)
    planes = np.moveaxis(head.channels["t1"] > _AIR, normal, 0) | brain
    boxes = np.full((len(planes), 2, 2), planes.shape[1:]) / 2
    for number, plane in enumerate(planes):
        for axis in range(2):
            lines = np.flatnonzero(plane.any(1 - axis))
            if len(lines):
                boxes[number, :, axis] = lines[0], lines[-1]
    return brain.sum((1, 2)), boxes
