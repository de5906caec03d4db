"""The embedded data source: MR slices of real heads in random contrasts, with random phase, coils, sampling and noise.

A plane is cut through a head (anatomy.py), warped, and given a contrast: the brain's intensities pass through a
random curve, not always monotone, so that T1-, PD-, T2- and FLAIR-like looks all occur; tissue maps and co-registered
contrasts are mixed where the head has them; scalp and skull follow a curve of their own. Then come a bias field and a
phase, smooth or locally steep. Images have standard deviation 1 per real part inside the head,
sqrt(mean |x|^2 / 2) = 1; air is 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from scipy import ndimage
from scipy.interpolate import PchipInterpolator

from mrigsure.anatomy import TEST_HEADS, TRAIN_HEADS, Head, draw_cut, load_anatomy
from mrigsure.fourier import fft2c
from mrigsure.masks import make_mask, sampling_density
from mrigsure.scan import SIGMA_DATA, Scan

__all__ = [
    "TEST_HEADS",
    "TRAIN_HEADS",
    "Phantom",
    "body",
    "coil_maps",
    "complex_normal",
    "load_anatomy",
    "random_scan",
    "random_slice",
    "random_volume",
]

_KNOTS = (0.15, 0.62, 0.95, 1.5)  # T1 intensity relative to white matter's: fluid, grey and white matter, vessels
_ORDERS = ((0, 1, 2), (2, 1, 0), (0, 2, 1))  # ranks of fluid, grey, white matter: T1-, T2- (or PD-) and FLAIR-like
_ORDER_SHARES = (0.4, 0.35, 0.25)
_AVERAGE_TEXTURE = 0.1  # of the average head, which has no fine detail of its own
_SKULL_MARGIN_MM = 12.0  # kept free round a stripped brain that is given a skull
_CLOSING_MM = 40.0  # radius over which that skull bridges the brain's outline
_OVERSAMPLE_ABOVE_MM = 1.3  # coarser pixels are means of 2 x 2 points: the heads have detail down to 1.15 mm


@dataclass(frozen=True)
class Phantom:
    """Neighbouring slices of one simulated acquisition, without coils, sampling and noise.

    images    complex64 (slices, H, W), standard deviation 1 per real part inside the head, 0 in air
    voxel_mm  size along H, W, and the distance of the slices
    """

    images: np.ndarray
    head: str
    orientation: str
    voxel_mm: tuple[float, float, float]


def random_volume(
    rng: np.random.Generator, shape: tuple[int, int], slices: int = 1, heads: Sequence[str] = TRAIN_HEADS
) -> Phantom:
    """Slices that share head, contrast, orientation, warp and phase. `shape` is (H, W)."""
    head = load_anatomy(str(rng.choice(list(heads))))
    transposed = rng.random() < 0.3
    plane = shape[::-1] if transposed else shape
    skull = head.stripped and rng.random() < 0.6
    cut = draw_cut(rng, head, plane, slices, _SKULL_MARGIN_MM if skull else 0.0)

    factor = 2 if max(cut.spacing_mm[:2]) > _OVERSAMPLE_ABOVE_MM else 1
    fine = cut.refined(factor)
    fine_shape = (plane[0] * factor, plane[1] * factor)
    warp_mm = np.stack([_smooth_field(rng, fine_shape, 4) * rng.uniform(0, 4) for _ in range(2)])
    tissue = _contrast(rng, head, fine.sample(head, fine_shape, warp_mm), skull, fine.spacing_mm[:2])
    magnitude = tissue.reshape(slices, plane[0], factor, plane[1], factor).mean((2, 4))
    magnitude = _sharpen(magnitude, rng.uniform(0, 0.8))

    bias = np.exp(_smooth_field(rng, plane, 3) * rng.uniform(0, 0.3))
    phase = _phase(rng, plane) + rng.uniform(-np.pi, np.pi, size=(slices, 1, 1))
    images = magnitude * bias * np.exp(1j * phase)
    for axis in (1, 2):
        images = np.flip(images, axis) if rng.random() < 0.5 else images
    voxel_mm = cut.spacing_mm
    if transposed:
        images, voxel_mm = images.swapaxes(1, 2), (voxel_mm[1], voxel_mm[0], voxel_mm[2])
    images = images / np.sqrt((np.abs(images[body(images)]) ** 2).mean() / 2)
    return Phantom(np.ascontiguousarray(images, np.complex64), head.name, cut.orientation, voxel_mm)


def random_slice(rng: np.random.Generator, shape: tuple[int, int], heads: Sequence[str] = TRAIN_HEADS) -> np.ndarray:
    """One slice of `random_volume`, complex64 (H, W)."""
    return random_volume(rng, shape, 1, heads).images[0]


def body(images: np.ndarray) -> np.ndarray:
    """Inside the head: above 15% of the 99th percentile of the magnitude, which is how `prepare` finds it too."""
    magnitude = np.abs(images)
    return magnitude > 0.15 * np.percentile(magnitude, 99)


def coil_maps(rng: np.random.Generator, coils: int, shape: tuple[int, int]) -> np.ndarray:
    """Sensitivities of a ring of loops round the field of view, complex64 (coils, H, W), sum |S|^2 = 1 at every pixel.

    Each loop's field is that of its two conductors, antiparallel line currents at w1 and w2 across the plane
    w = x + iy: conj(w - w1) / |w - w1|^2 minus the same for w2, a smooth complex function. A small distance is added to
    |w - w1|^2, because conductors pass above and below the plane.
    """
    y, x = (np.linspace(-1, 1, n) for n in shape)
    w = x[None, :] + 1j * y[:, None]
    angle = rng.uniform(0, 2 * np.pi) + 2 * np.pi * (np.arange(coils) + rng.uniform(-0.2, 0.2, coils)) / coils
    radii = rng.uniform(1.1, 1.5, size=2)
    half_width = np.clip(np.pi / coils * rng.uniform(1.0, 1.5), 0.25, 0.8)
    maps = np.zeros((coils, *shape), np.complex128)
    for sign in (-1, 1):
        ends = angle + sign * half_width
        conductor = radii[0] * np.cos(ends) + 1j * radii[1] * np.sin(ends)
        distance = w - conductor[:, None, None]
        off_plane = rng.uniform(0.2, 0.5, size=(coils, 1, 1)) ** 2
        maps += sign * distance.conj() / (np.abs(distance) ** 2 + off_plane)
    gain = rng.uniform(0.7, 1.3, coils) * np.exp(1j * rng.uniform(0, 2 * np.pi, coils))
    maps *= gain[:, None, None]
    return (maps / np.sqrt((np.abs(maps) ** 2).sum(0))).astype(np.complex64)


def random_scan(
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
    coils: int = 8,
    acceleration: float = 4.0,
    pattern: str = "random",
    center_fraction: float = 0.1,
    noise: float = 0.08,
    heads: Sequence[str] = TRAIN_HEADS,
) -> Scan:
    """A prepared scan of one random slice with its TRUE maps, density, noise level and target; no file involved.

    noise  standard deviation per real part, relative to the image's inside the head; noise_std = noise * SIGMA_DATA
    """
    target = torch.from_numpy(SIGMA_DATA * random_slice(rng, shape, heads))
    sens_maps = torch.from_numpy(coil_maps(rng, coils, shape))
    seed = int(rng.integers(2**31))
    mask, density = (
        torch.from_numpy(np.broadcast_to(np.asarray(plane, np.float32), shape).copy())
        for plane in (
            make_mask(pattern, shape, acceleration, center_fraction, seed),
            _density(pattern, shape, acceleration, center_fraction),
        )
    )
    noise_std = noise * SIGMA_DATA
    kspace = fft2c(sens_maps * target) + torch.from_numpy(noise_std * complex_normal(rng, sens_maps.shape))
    return Scan(mask * kspace, mask, sens_maps, density, noise_std, name="phantom", target=target)


def complex_normal(rng: np.random.Generator, shape) -> np.ndarray:
    """Complex white Gaussian, variance 1 in each real part, complex64."""
    return rng.standard_normal((*shape, 2), np.float32).view(np.complex64)[..., 0]


_density = lru_cache(sampling_density)


def _contrast(rng, head: Head, planes, skull: bool, spacing_mm):
    """Magnitudes (slices, H, W) of the sampled channels."""
    brain, t1 = planes["brain"], planes["t1"] / _bright(head.name, "t1")
    if skull:
        around = _skull(rng, brain > 0.5, spacing_mm)
    else:
        around = 0.0 if head.stripped else rng.uniform(0.2, 1.0) * np.minimum(t1, 2) ** rng.uniform(0.6, 1.3)
    return (brain * _brain_values(rng, head, t1, planes) + (1 - brain) * around) * planes["inside"]


def _brain_values(rng, head, t1, planes):
    """The brain through a curve, mixed with its tissue maps and its other contrasts where the head has them."""
    fluid, grey, white = _levels(rng)
    curve = PchipInterpolator(_KNOTS, [fluid, grey, white, rng.uniform(0.1, 1)])
    values = curve(np.clip(t1, _KNOTS[0], _KNOTS[-1])).astype(np.float32)
    if "gm" in planes:
        maps = np.stack([np.clip(1 - planes["gm"] - planes["wm"], 0, 1), planes["gm"], planes["wm"]])
        by_tissue = np.tensordot(np.asarray(_levels(rng), np.float32), maps, 1)
        texture = ndimage.gaussian_filter(rng.standard_normal(values.shape, np.float32), (0, 1, 1))
        values += rng.choice([0.5, 1.0]) * (by_tissue - values)
        values *= 1 + _AVERAGE_TEXTURE * texture
    others = [name for name in ("t2", "flair") if name in planes]
    if others:
        parts = [values] + [(planes[key] / _bright(head.name, key)) ** rng.uniform(0.6, 1.4) for key in others]
        values = np.tensordot(rng.dirichlet([0.4] * len(parts)).astype(np.float32), np.stack(parts), 1)
    return values


def _levels(rng):
    """Random intensities of fluid, grey and white matter; their order decides the look."""
    order = rng.choice(_ORDERS, p=_ORDER_SHARES) if rng.random() < 0.85 else rng.permutation(3)
    return 0.05 + 0.95 * (order + rng.random(3)) / 3


@cache
def _bright(name, channel):
    """A bright level of a channel inside the brain, as a share of its range: white matter's in T1."""
    channels = load_anatomy(name).channels
    inside = channels[channel][channels["brain"] > 127]
    return float(np.percentile(inside[::7], 85 if channel == "t1" else 97)) / 255


def _skull(rng, brain, spacing_mm):
    """Fluid, bone and scalp round a stripped brain, as shells of smoothly varying thickness."""
    distance = np.stack([_distance_to_closed(plane, spacing_mm) for plane in brain])
    distance *= np.exp(0.2 * _smooth_field(rng, brain.shape[1:], 4))
    thickness = [rng.uniform(0.5, 3), rng.uniform(2, 5), rng.uniform(2, 6)]
    fluid, bone, scalp = rng.uniform(0.05, 1), rng.uniform(0, 0.15), rng.uniform(0.2, 1.3)
    edges = np.repeat(np.cumsum(thickness), 2) + np.tile([-0.4, 0.4], 3)  # mm
    shells = np.interp(distance, edges, [fluid, bone, bone, scalp, scalp, 0])
    return shells * np.exp(0.2 * _smooth_field(rng, brain.shape[1:], 6))


def _distance_to_closed(mask, spacing_mm):
    """Distance in mm from the closing of a mask by a large disc, worked out on every second point."""
    coarse, spacing_mm = mask[::2, ::2], 2 * np.asarray(spacing_mm)
    pad = np.ceil(_CLOSING_MM / spacing_mm).astype(int) + 1
    padded = np.pad(coarse, [(n, n) for n in pad])
    near = ndimage.distance_transform_edt(~padded, sampling=spacing_mm) < _CLOSING_MM
    closed = ndimage.distance_transform_edt(near, sampling=spacing_mm) > _CLOSING_MM
    distance = ndimage.distance_transform_edt(~(closed | padded), sampling=spacing_mm)
    index = np.indices(mask.shape) / 2 + pad[:, None, None]
    return ndimage.map_coordinates(distance, index, order=1)


def _phase(rng, shape):
    """Radians: a slow field, a shift of the echo, and at times one or two steep places as near air cavities."""
    y, x = (np.linspace(-1, 1, n) for n in shape)
    y, x = y[:, None], x[None, :]
    phase = _smooth_field(rng, shape, 3) * rng.uniform(0, 1.2)
    phase = phase + np.pi * (rng.normal() * 0.4 * y + rng.normal() * 0.4 * x)
    for _ in range(rng.choice([0, 1, 2], p=[0.5, 0.3, 0.2])):
        radius, angle = rng.uniform(0.2, 0.7), rng.uniform(0, 2 * np.pi)
        dy, dx = y - radius * np.sin(angle), x - radius * np.cos(angle)
        turn, width = rng.uniform(0, 2 * np.pi), rng.uniform(0.08, 0.3)
        along = (dy * np.sin(turn) + dx * np.cos(turn)) / width
        squared = (dy**2 + dx**2) / width**2
        phase = phase + rng.uniform(2, 9) * (3 * along**2 / (1 + squared) - 1) / (1 + squared) ** 1.5
    return phase


def _smooth_field(rng, shape, order):
    """Random sum of the lowest `order` cosines along each axis, of unit variance; float64 (H, W)."""
    frequency = np.arange(order)
    weight = rng.normal(size=(order, order)) / (1 + frequency[:, None] ** 2 + frequency[None, :] ** 2)
    weight[0, 0] = 0
    rows, cols = (np.cos(np.pi * frequency * (np.arange(n)[:, None] + 0.5) / n) for n in shape)
    field = rows @ weight @ cols.T
    return field / field.std()


def _sharpen(magnitude, amount):
    blurred = ndimage.gaussian_filter(magnitude, (0, 0.8, 0.8))
    return np.where(magnitude > 0, np.maximum(magnitude + amount * (magnitude - blurred), 0), 0)
