"""One raw scan into a prepared one: read -> mask -> noise -> whiten -> compress -> sensitivity maps -> scale, slice by
slice."""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property

import numpy as np
import torch

from data_prep.calibration import CALIBRATION_WIDTH, KERNEL_WIDTH, low_resolution, sensitivity_maps
from data_prep.coils import coil_matrices, virtual_coils
from data_prep.noise import add_noise, estimate_noise, noise_for_snr, whiten
from data_prep.patient import patient_hash
from data_prep.readers import RawScan
from data_prep.readers.raw import header_space
from data_prep.readout import crop_readout, outside_samples
from data_prep.undersample import acquired_samples, apply_mask, found_sampling, mask_seed, stated_or_found_mask
from mrigsure.devices import pick_device
from mrigsure.errors import InputError, ScanWarning
from mrigsure.files import sha256
from mrigsure.fourier import center_crop, ifft2c
from mrigsure.masks import calibration_region, ensemble_density
from mrigsure.scan import SIGMA_DATA, PreparedVolume
from mrigsure.settings import PrepareSettings

_ELSEWHERE = ("raw", "out", "mask", "apply_mask", "overwrite", "previews", "dry_run")
_ELSEWHERE += ("workers", "scheduler", "tls_ca", "tls_cert", "tls_key")  # settings that do not shape what is written
_SAMPLED = 96  # pixels along an axis that are enough to measure the low-resolution image
_BODY = 0.15  # of the 99th percentile of the low-resolution magnitude
_NOISE_SAMPLES = 2**18  # a coil: as many slices are looked at, and no more, to estimate the noise


def prepare_volume(
    raw: RawScan, settings: PrepareSettings, density: np.ndarray | None = None, source_sha256: str = ""
) -> PreparedVolume:
    """Prepare one scan in memory.

    density  sampling density of the ensemble the scan belongs to, (W,) or (H, W), where no mask is applied;
             without it the scan stands for its ensemble
    """
    pipeline = Pipeline(raw, settings, density)
    arrays: dict = {}

    def put(index, **parts):
        for key, part in parts.items():
            if part is not None:
                arrays.setdefault(key, [None] * pipeline.slices)[index] = part

    facts = pipeline.run(put) | {"source_sha256": source_sha256}
    return PreparedVolume(**facts, **{key: np.stack(parts) for key, parts in arrays.items()})


class Pipeline:
    """One scan on its way: what holds for all its slices is found first, then every slice passes.

    Nothing but the raw volume is in memory for long: slices are whitened anew in each pass, which costs little.
    """

    def __init__(self, raw: RawScan, settings: PrepareSettings, density: np.ndarray | None):
        self.raw, self.settings, self.density = _without_oversampling(raw), settings, density
        self.slices = len(raw.kspace)
        self.acquired = acquired_samples(self.raw)
        if settings.pattern or settings.apply_mask:
            self.sampling = apply_mask(self.raw, settings, self.acquired)
        else:
            if density is None:
                density = ensemble_density(stated_or_found_mask(self.raw)[None])
            self.sampling = found_sampling(self.acquired, density)
        self._added = 0.0  # standard deviation per real part of noise to add, in raw units
        self._targets: dict[int, np.ndarray] = {}
        self._matrices: dict[int, np.ndarray | None] = {}  # of coil compression
        reference = self.raw.reference
        if reference is not None and reference.shape[:2] != self.raw.kspace.shape[:2]:
            raise InputError(
                raw.source,
                "a reference scan of {} slices and {} coils".format(*reference.shape[:2]),
                "{} slices and {} coils, as the scan has".format(*self.raw.kspace.shape[:2]),
            )

    def run(self, put: Callable) -> dict:
        """Hand every slice's `kspace`, `sens_maps` and `target` to `put`; the other fields of PreparedVolume."""
        settings, source = self.settings, self.raw.source
        record, noise_std = self.noise.record(), self.noise.noise_std
        scale = _scale([self._calibrate(index, put) for index in range(self.slices)], source)
        if settings.add_noise is not None:
            self._added = noise_for_snr(settings.add_noise, SIGMA_DATA / scale, noise_std, source)
            noise_std = float(np.hypot(noise_std, self._added))
            record |= {"added_std": float(scale * self._added), "added_seed": mask_seed(settings.seed, source)}
            for index in range(self.slices):  # maps again, as a scan of so much noise would have them
                self._calibrate(index, put)
        if scale * noise_std > SIGMA_DATA:
            found = f"noise {noise_std:.3g} above the signal {SIGMA_DATA / scale:.3g} (standard deviations)"
            warnings.warn(f"{source}: {found}", ScanWarning, stacklevel=2)
        if settings.keep_target and not self.acquired.is_full:
            warnings.warn(f"{source}: acquired undersampled, so there is no target to keep", ScanWarning, stacklevel=2)
        for index in range(self.slices):
            target = self._targets.get(index)
            put(index, kspace=scale * self._sampled(index), target=None if target is None else scale * target)
        return {
            "mask": self.sampling.mask,
            "sampling_density": self.sampling.density,
            "noise_std": float(scale * noise_std),
            "scale": float(scale),
            "acquisition": self.raw.acquisition,
            "patient_hash": patient_hash(self.raw.patient),
            "source": source.name,
            "seed": settings.seed,
            "parameters": parameters(settings, self.density),
            "noise": record,
            "ismrmrd_header": self.raw.header,
            "geometry": self.raw.geometry,
        }

    @cached_property
    def noise(self):
        """Of what is sampled, like all that follows; from as many slices, evenly spread, as are needed."""
        sampled = int(np.broadcast_to(self.sampling.mask, self.raw.kspace.shape[-2:]).sum())
        count = min(self.slices, -(-_NOISE_SAMPLES // sampled))
        return estimate_noise(self.raw.part(slice(None, None, self.slices // count)), self.sampling.mask)

    @cached_property
    def region(self) -> tuple[int, int]:
        """Height and width of the calibration region."""
        found = calibration_region(self.sampling.mask, self.raw.kspace.shape[-2:])
        return found if self.raw.reference is not None else self._asked_or(found)

    def _asked_or(self, found):
        """The calibration region that the settings ask for, which must be there, or else all that is there."""
        asked = self.settings.calibration
        if asked is not None and any(one > size for one, size in zip(asked, found, strict=True)):
            raise InputError(
                self.raw.source,
                f"a fully sampled centre of {found[0]} x {found[1]}",
                "at least the calibration asked for",
            )
        return asked or found

    def _full(self, index):
        """One slice, white and compressed, all that was acquired: (1, coils, H, W)."""
        white = whiten(self.raw.kspace[index : index + 1] * self.acquired.mask, self.noise.covariance)[0]
        if self.settings.compress is not None and index not in self._matrices:
            source, region = white * self.sampling.mask, self.region
            if self.raw.reference is not None:
                source, region = self._reference(index)
            how = (self.settings.compress, self.settings.compression, self.sampling.mask)
            self._matrices[index] = coil_matrices(source[0], *how, region, self.raw.source.name)
        return self._compressed(index, white)

    def _compressed(self, index, white):
        matrices = self._matrices.get(index)
        return white if matrices is None else virtual_coils(white[0], matrices)[None]

    def _reference(self, index):
        """One slice of the separate reference scan, white, on the scan's matrix, (1, coils, H, W), and its region."""
        reference = whiten(self.raw.reference[index : index + 1], self.noise.covariance)[0]
        shape = self.raw.kspace.shape[-2:]
        block = tuple(min(sizes) for sizes in zip(reference.shape[-2:], shape, strict=True))
        fitted = np.zeros((*reference.shape[:2], *shape), np.complex64)
        center_crop(fitted, block)[...] = center_crop(reference, block)
        return fitted, self._asked_or(block)

    def _sampled(self, index):
        """One slice as it will be written, but for the scale: (coils, H, W)."""
        return self._masked(index, self._full(index))[0]

    def _masked(self, index, full):
        kspace = full * self.sampling.mask
        if not self._added:
            return kspace
        seed = (mask_seed(self.settings.seed, self.raw.source), index)
        return add_noise(kspace, self.sampling.mask, self._added, seed)

    def _calibrate(self, index, put):
        """Hand over one slice's maps; returns its low-resolution magnitude, (H, W)."""
        full = self._full(index)
        kspace = self._masked(index, full)
        source, region = kspace, self.region
        if self.raw.reference is not None:
            source, region = self._reference(index)
            source = self._compressed(index, source)
        device = pick_device(self.settings.device)
        maps = sensitivity_maps(source, region, self.raw.source.name, sets=self.settings.map_sets, device=device)
        put(index, sens_maps=maps[0])
        maps = maps if self.settings.map_sets == 1 else maps[:, 0]  # scale and target are the first set's
        if self.settings.keep_target and self.acquired.is_full:
            self._targets[index] = (maps[0].conj() * ifft2c(torch.from_numpy(full[0])).numpy()).sum(axis=0)
        block = tuple(int(np.clip(size, KERNEL_WIDTH, CALIBRATION_WIDTH)) for size in self.region)
        return _low_resolution_magnitude(kspace[0], maps[0], block)


def fingerprint(path) -> str:
    """SHA-256 of a raw file; of a BART pair, of both halves."""
    if path.suffix != ".cfl":
        return sha256(path)
    return hashlib.sha256((sha256(path) + sha256(path.with_suffix(".hdr"))).encode()).hexdigest()


def parameters(settings: PrepareSettings, density: np.ndarray | None) -> dict:
    """What is recorded: every setting that shapes the output, and the fingerprint of the ensemble's density."""
    chosen = {key: value for key, value in asdict(settings).items() if key not in _ELSEWHERE}
    if settings.apply_mask:
        chosen["apply_mask_sha256"] = sha256(settings.apply_mask)
    if density is not None:
        chosen["ensemble_sha256"] = hashlib.sha256(density.tobytes()).hexdigest()
    return chosen


def _without_oversampling(raw):
    """The readout cropped to the matrix of the image, where the header states a smaller one and lines are whole."""
    spaces = [None if raw.header is None else header_space(raw.header, name) for name in ("encodedSpace", "reconSpace")]
    height = raw.kspace.shape[-2]
    if None in spaces or spaces[0][0][0] != height or stated_or_found_mask(raw).ndim == 2:
        return raw
    wanted = spaces[1][0][0]
    same_voxel = np.isclose(spaces[0][1][0] / height, spaces[1][1][0] / wanted, rtol=0.01)
    if wanted >= height or not same_voxel:
        return raw
    lines = np.broadcast_to(stated_or_found_mask(raw), (len(raw.kspace), raw.kspace.shape[-1]))
    outside = outside_samples(raw.kspace, lines, wanted)
    cropped = np.stack([crop_readout(one, wanted) for one in raw.kspace])
    reference = raw.reference  # over the same field of view, oversampled alike
    if reference is not None:
        reference = crop_readout(reference, round(reference.shape[-2] * wanted / height))
    return replace(raw, kspace=cropped, outside=outside, reference=reference)


def _low_resolution_magnitude(kspace, maps, block):
    """|S^H F^H| of the central block, untapered, which is nearest in energy; every few pixels of a large matrix."""
    steps = [_step(size) for size in maps.shape[1:]]
    small = tuple(size // step for size, step in zip(maps.shape[1:], steps, strict=True))
    first = [size // 2 - few // 2 * step for size, few, step in zip(maps.shape[1:], small, steps, strict=True)]
    few_maps = maps[:, first[0] :: steps[0], first[1] :: steps[1]]
    image = (few_maps.conj() * low_resolution(center_crop(kspace, small), block, np.ones)).sum(axis=0)
    return np.abs(image) / np.sqrt(np.prod(steps, dtype=np.float32))  # orthonormal on either grid


def _step(size):
    """The largest divisor of an axis that leaves enough pixels."""
    return max(step for step in range(1, size + 1) if step == 1 or (size % step == 0 and size // step >= _SAMPLED))


def _scale(magnitudes, source):
    """SIGMA_DATA over the standard deviation per real part inside the body of the low-resolution SENSE images."""
    magnitude = np.stack(magnitudes)
    body = magnitude > _BODY * np.percentile(magnitude, 99)
    if not body.any():
        raise InputError(source, "no signal in the centre of k-space", "k = 0 at index n // 2 of both axes")
    return float(SIGMA_DATA / np.sqrt((magnitude[body] ** 2).mean() / 2))
