"""What tells whether a volume was prepared well: figures and pictures of its middle slice, from the prepared file.

- reconstructions by regularised SENSE, a few slices
- what the maps leave unexplained of the calibration samples: the residual of a SENSE fit to them alone
- the power of k-space against the stated noise level: it must come down to it
- the noise's correlation between the coils, as the slice itself tells it: none, after whitening
- the g-factor
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import binary_closing, binary_fill_holes, binary_opening, gaussian_filter

from data_prep.calibration import CALIBRATION_WIDTH
from data_prep.gfactor import g_factor
from data_prep.noise import quiet_noise
from mrigsure.fourier import center_crop, ifft2c, radius
from mrigsure.masks import calibration_region
from mrigsure.operators import SenseOperator, conjugate_gradients
from mrigsure.scan import SIGMA_DATA, PreparedVolume, read_prepared, volume_facts

_SLICES = (0.25, 0.5, 0.75)  # of the volume, that are shown
_ITERATIONS = 12
_BODY = 0.12  # of the 99th percentile of the smoothed image
_FAINT = 0.1  # of the body's mean energy
_ABOVE_NOISE, _CERTAIN = 3.0, 0.2  # times the background's power; share of the brightest that is body in any case
_BINS = 48


@dataclass(frozen=True)
class Quality:
    """Pictures and figures of one prepared volume; (H, W) unless said otherwise.

    volume       the middle slice as it stands in the file
    slices       number of slices in the file
    images       slice number -> complex SENSE image
    zero_filled  complex S^H F^H y of the middle slice
    body         bool
    unexplained  share of every pixel's low-resolution energy that a SENSE fit leaves, nan outside the body
    explained    share of the calibration samples' energy that it explains
    g            g-factor, nan outside the body; g_how: how it was computed
    power        (2, n): distance from the centre of k-space, 0 to 1; mean power there over the stated noise's
    correlation  (coils, coils): magnitude of the noise's covariance, found in the slice alone, over the stated variance
    quiet        where it was found, in words
    """

    volume: PreparedVolume
    slices: int
    images: Mapping[int, np.ndarray]
    zero_filled: np.ndarray
    body: np.ndarray
    unexplained: np.ndarray
    explained: float
    g: np.ndarray
    g_how: str
    power: np.ndarray
    correlation: np.ndarray
    quiet: str

    @property
    def shape(self) -> tuple[int, int]:
        return self.volume.kspace.shape[-2:]

    @property
    def acceleration(self) -> float:
        return 1 / float(self.volume.mask.mean())

    @property
    def snr(self) -> float:
        """Signal inside the body over the noise, standard deviations."""
        return SIGMA_DATA / self.volume.noise_std

    @property
    def noise_level(self) -> float:
        """The noise's variance in the slice over the stated one: 1 where the stated level is right."""
        return float(np.diag(self.correlation).mean())


def measure_quality(path) -> Quality:
    """Look at a prepared file; no more than a slice is in memory at a time."""
    slices = volume_facts(path).kspace_shape[0]
    middle = slices // 2
    volume = read_prepared(path, slice(middle, middle + 1))
    chosen = sorted({min(int(share * slices), slices - 1) for share in _SLICES})
    images = {number: _sense_image(read_prepared(path, slice(number, number + 1))) for number in chosen}
    region = calibration_region(volume.mask, volume.kspace.shape[-2:])
    block = tuple(min(max(size, 8), CALIBRATION_WIDTH) for size in region)
    scan = volume.scan(0)
    body = _body(images[middle] if middle in images else _sense_image(volume))
    unexplained, explained = _fit(scan, block, body)
    maps = scan.sens_maps[0] if scan.sens_maps.ndim == 4 else scan.sens_maps
    g, how = g_factor(maps, scan.mask, torch.from_numpy(body), (volume.noise_std / SIGMA_DATA) ** 2)
    mask = scan.mask.numpy() > 0
    noise = quiet_noise(volume.kspace, mask, path)
    return Quality(
        volume=volume,
        slices=slices,
        images=images,
        zero_filled=_first_set(scan.batch().operator.adjoint(torch.from_numpy(volume.kspace))[0].numpy()),
        body=body,
        unexplained=np.where(body, unexplained, np.nan),
        explained=explained,
        g=g.numpy(),
        g_how=how,
        power=_power(volume.kspace[0], mask, volume.noise_std),
        correlation=np.abs(noise.covariance) / volume.noise_std**2,
        quiet=noise.origin,
    )


def _sense(operator, kspace, noise_std):
    """(T + (noise / signal)^2)^-1 A^H y of a batch."""
    shift = (noise_std / SIGMA_DATA) ** 2
    return conjugate_gradients(
        lambda x: operator.normal(x) + shift * x,
        operator.adjoint(kspace),
        tolerance=1e-3,
        max_iterations=_ITERATIONS,
        strict=False,
    )


def _sense_image(volume):
    """Of one slice; the first set's image where there are several."""
    batch = volume.scan(0).batch()
    return _first_set(_sense(batch.operator, batch.kspace, volume.noise_std)[0].numpy())


def _first_set(image):
    return image if image.ndim == 2 else image[0]


def _fit(scan, block, body):
    """Per pixel and in all: the energy that a SENSE fit to the central block leaves, and the share that it explains."""
    mask = torch.zeros_like(scan.mask)
    center_crop(mask, block)[...] = center_crop(scan.mask, block)
    operator, kspace = SenseOperator(mask[None, None], scan.sens_maps[None]), (mask * scan.kspace)[None]
    left = kspace - operator.forward(_sense(operator, kspace, scan.noise_std))
    share = float(left.abs().square().sum() / kspace.abs().square().sum())
    energy, rest = (ifft2c(part)[0].abs().square().sum(0).numpy() for part in (kspace, left))
    floor = _FAINT * energy[body].mean() if body.any() else energy.max()  # where there is next to no signal
    return rest / (energy + floor), 1 - share


def _body(image):
    """Where there is signal above the noise: filled shapes, without specks."""
    size = max(1, min(image.shape) // 64)
    power = gaussian_filter(np.abs(image) ** 2, 2 * size)
    bright = np.percentile(power, 99)
    body = power > max(_BODY**2 * bright, min(_ABOVE_NOISE * np.percentile(power, 10), _CERTAIN * bright))
    return binary_fill_holes(binary_opening(binary_closing(body, iterations=size), iterations=size))


def _power(kspace, mask, noise_std):
    """(2, n): distance from the centre, and the mean power of the samples there over the noise's."""
    distance = radius(mask.shape).numpy()[mask]
    power = (np.abs(kspace[:, mask]) ** 2).mean(axis=0) / (2 * noise_std**2)
    place = (distance / distance.max() * (_BINS - 1e-6)).astype(int)
    count = np.maximum(np.bincount(place, minlength=_BINS), 1)
    curve = [np.bincount(place, values, minlength=_BINS) / count for values in (distance, power)]
    return np.stack(curve)[:, np.bincount(place, minlength=_BINS) > 0]
