"""Scan, one slice as the mathematics sees it, and the prepared file that holds a volume of them.

A prepared file is a fastMRI file (`kspace`, `mask`, `ismrmrd_header`, `reconstruction_rss` where known) plus

    sens_maps          complex64 (slices, [sets,] coils, H, W), sum over coils |S|^2 = 1 at every pixel; several sets,
                       where the field of view folds over, are orthonormal to each other
    sampling_density   float32, of the mask's shape: p(k), 0 outside the acquired support
    target             complex64 (slices, H, W), only where the truth is known
    voxel_mm, positions_mm, directions
                       where the slices lie, as far as the raw file states it (geometry.py)
    attributes         schema_version, noise_std (per real part, in the file's units), scale (file = scale * raw),
                       acquisition, patient_hash, source, source_sha256, seed, parameters (JSON), version,
                       warnings (JSON): what was said while the file was made,
                       noise (JSON): where noise_std comes from, its relative standard error; what was added
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

import mrigsure
from mrigsure.devices import send
from mrigsure.errors import InputError
from mrigsure.files import atomic
from mrigsure.geometry import Geometry, read_geometry, write_geometry
from mrigsure.operators import SenseOperator

SCHEMA_VERSION = 1
_KEPT_BYTES = 2e9
SIGMA_DATA = 0.5  # standard deviation per real part inside the body of a prepared scan's low-resolution image


@dataclass(frozen=True)
class Scan:
    """One slice. CPU tensors.

    kspace     complex64 (coil, H, W), 0 where not sampled, noise white with `noise_std` in each real part
    mask       float32 (H, W), 0 or 1
    sens_maps  complex64 ([set,] coil, H, W), sum |S|^2 = 1; sets orthonormal to each other (docs/soft_sense.md)
    density    float32 (H, W), p(k)
    scale      prepared image = scale * raw image
    target     complex64 (H, W) or None: the clean image, known in simulations only and never read by training
    """

    kspace: Tensor
    mask: Tensor
    sens_maps: Tensor
    density: Tensor
    noise_std: float
    scale: float = 1.0
    name: str = ""
    target: Tensor | None = None

    def __post_init__(self):
        coils, height, width = self.kspace.shape
        expected = {
            "sens_maps": (*self.sens_maps.shape[:-3][:1], coils, height, width),
            "mask": (height, width),
            "density": (height, width),
        }
        for key, shape in expected.items():
            if tuple(getattr(self, key).shape) != shape:
                raise ValueError(f"{key} has shape {tuple(getattr(self, key).shape)}, expected {shape}")

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.kspace.shape[-2:])

    @property
    def acceleration(self) -> float:
        """Samples in the matrix over samples taken."""
        return self.mask.numel() / float(self.mask.sum())

    @property
    def by_lines(self) -> bool:
        """Whether whole columns are sampled, not points."""
        return bool((self.mask == self.mask[:1]).all())

    def held_out(self, fraction: float, generator: torch.Generator) -> "Scan":
        """The same scan without a random `fraction` of its lines (points, for point masks), at least one of them.

        Lines with p = 1 stay, but in a fully sampled scan, where every line outside the central tenth may go.
        """
        free = (self.mask > 0) & (self.density < 0.999)
        if not free.any():
            free = (self.mask > 0) & (_radius(self.shape) > 0.1)
        candidates = (free[0] if self.by_lines else free).flatten().nonzero()[:, 0]
        count = min(max(1, round(fraction * len(candidates))), len(candidates))
        dropped = candidates[torch.randperm(len(candidates), generator=generator)[:count]]
        keep = torch.ones(self.shape[1] if self.by_lines else self.mask.numel())
        keep[dropped] = 0
        mask = self.mask * (keep if self.by_lines else keep.view(self.shape))
        return replace(self, mask=mask, kspace=self.kspace * mask)

    def batch(self) -> "ScanBatch":
        return collate([self])


def _radius(shape):
    """Distance from the centre of k-space along the phase encoding, 1 at its edge, on every sample of the plane."""
    width = shape[1]
    return ((torch.arange(width) - width // 2).abs() / (width / 2)).expand(shape)


@dataclass(frozen=True)
class ScanBatch:
    """Scans of one matrix size, stacked: kspace (batch, coil, H, W); sens_maps (batch, [set,] coil, H, W); mask,
    density (batch, 1, H, W); sigma0 (batch,), each scan's noise_std. Scans of fewer coils are filled up with empty
    ones, whose maps are 0."""

    kspace: Tensor
    mask: Tensor
    sens_maps: Tensor
    density: Tensor
    sigma0: Tensor

    @cached_property
    def operator(self) -> SenseOperator:
        return SenseOperator(self.mask, self.sens_maps)

    def of(self, indices: Tensor | slice) -> "ScanBatch":
        """Some of the scans, in this order."""
        return ScanBatch(*(getattr(self, key)[indices] for key in self.__dataclass_fields__))

    def to(self, device) -> "ScanBatch":
        """On a GPU before the copies have arrived there: what is computed on them waits for them."""
        return ScanBatch(*(send(getattr(self, key), device) for key in self.__dataclass_fields__))


def collate(scans: Sequence[Scan]) -> ScanBatch:
    """Stack scans of one matrix size."""
    coils = max(scan.kspace.shape[0] for scan in scans)

    def fill(tensor):
        return torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, coils - tensor.shape[-3]))

    return ScanBatch(
        kspace=torch.stack([fill(scan.kspace) for scan in scans]),
        mask=torch.stack([scan.mask[None] for scan in scans]),
        sens_maps=torch.stack([fill(scan.sens_maps) for scan in scans]),
        density=torch.stack([scan.density[None] for scan in scans]),
        sigma0=torch.tensor([scan.noise_std for scan in scans], dtype=torch.float32),
    )


def kept_lines(mask: Tensor, density: Tensor, delta: Tensor, generator: torch.Generator) -> Tensor:
    """M~ of MATH 5: drop every sampled line with p < 1 with probability delta. Shapes (batch, 1, H, W); delta (batch,).

    Line masks drop whole columns; point masks drop single points.
    """
    batch, _, height, width = mask.shape
    lines = (mask == mask[:, :, :1]).flatten(1).all(1)
    draw = torch.rand(batch, 1, height, width, generator=generator, device=generator.device).to(mask.device)
    draw = torch.where(lines[:, None, None, None], draw[:, :, :1], draw)
    dropped = (draw < delta.to(mask)[:, None, None, None]) & (density < 0.999)
    return mask * ~dropped


@dataclass(frozen=True)
class PreparedVolume:
    """What one prepared file holds, as NumPy arrays; shapes in the module's docstring. Checked on construction."""

    kspace: np.ndarray
    mask: np.ndarray
    sens_maps: np.ndarray
    sampling_density: np.ndarray
    noise_std: float
    scale: float
    acquisition: str = ""
    patient_hash: str = ""
    source: str = ""
    source_sha256: str = ""
    seed: int = 0
    parameters: dict = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    noise: dict = field(default_factory=dict)
    ismrmrd_header: str | None = None
    target: np.ndarray | None = None
    geometry: Geometry | None = None

    def __post_init__(self):
        slices, coils, height, width = self.kspace.shape
        if self.geometry is not None and not self.geometry.fits(slices):
            raise ValueError(f"positions of {len(self.geometry.positions)} slices for kspace {self.kspace.shape}")
        if (self.sens_maps.shape[0], *self.sens_maps.shape[-3:]) != self.kspace.shape or self.sens_maps.ndim > 5:
            raise ValueError(f"sens_maps {self.sens_maps.shape} differ from kspace {self.kspace.shape}")
        if self.mask.shape not in ((width,), (height, width)) or self.sampling_density.shape != self.mask.shape:
            raise ValueError(f"mask {self.mask.shape} and density {self.sampling_density.shape} do not fit kspace")

    def scan(self, index: int, name: str = "") -> Scan:
        """Slice `index` as tensors."""
        shape = self.kspace.shape[-2:]

        def plane(array):
            return torch.from_numpy(np.broadcast_to(array.astype(np.float32), shape).copy())

        return Scan(
            kspace=torch.from_numpy(self.kspace[index]),
            mask=plane(self.mask),
            sens_maps=torch.from_numpy(self.sens_maps[index]),
            density=plane(self.sampling_density),
            noise_std=self.noise_std,
            scale=self.scale,
            name=name,
            target=None if self.target is None else torch.from_numpy(self.target[index]),
        )


_TEXT = ("acquisition", "patient_hash", "source", "source_sha256")


class PreparedWriter:
    """A prepared file in the making, slice by slice, so that no more than a slice need be in memory::

        with prepared_writer(path, slices) as writer:
            writer.put(0, kspace=..., sens_maps=...)
            writer.finish(mask=..., noise_std=..., ...)

    K-space of a line mask is stored by lines, and lines never sampled take no room; that of other masks is compressed.
    """

    def __init__(self, file: h5py.File, slices: int, mask: np.ndarray):
        self._file, self._slices, self._mask = file, slices, np.asarray(mask) > 0
        file["mask"] = self._mask.astype(np.uint8)

    def put(self, index: int, **arrays: np.ndarray | None) -> None:
        """Write one slice of `kspace` (coils, H, W), `sens_maps` ([sets,] coils, H, W), `target` (H, W); any order."""
        for key, array in arrays.items():
            if array is None:
                continue
            if key not in self._file:
                self._create(key, array.shape)
            if key == "kspace" and self._by_lines:
                lines = np.flatnonzero(self._mask)
                chunks = array[:, :, lines].transpose(2, 0, 1).astype(np.complex64)
                for line, chunk in zip(lines, chunks, strict=True):  # past HDF5's selections, which are slow
                    self._file[key].id.write_direct_chunk((index, 0, 0, line), chunk.tobytes())
            else:
                self._file[key][index] = array
            if key == "target":
                self.put(index, reconstruction_rss=np.abs(array))

    def finish(self, facts: Mapping) -> None:
        """Write what concerns the whole volume: the fields of PreparedVolume that are no arrays of slices."""
        self._file["sampling_density"] = facts["sampling_density"].astype(np.float32)
        if facts["ismrmrd_header"] is not None:
            self._file["ismrmrd_header"] = facts["ismrmrd_header"]
        write_geometry(self._file, facts["geometry"])
        record = {key: facts[key] for key in _TEXT}
        record |= {"noise_std": float(facts["noise_std"]), "scale": float(facts["scale"]), "seed": int(facts["seed"])}
        record |= {key: json.dumps(facts[key], sort_keys=True) for key in ("parameters", "warnings", "noise")}
        record |= {"schema_version": SCHEMA_VERSION, "version": mrigsure.__version__}
        for key, value in record.items():
            self._file.attrs[key] = value

    @property
    def _by_lines(self):
        return self._mask.ndim == 1 and not self._mask.all()

    def _create(self, key, shape):
        chunks, options = (1, *shape), {}
        if key == "kspace":
            chunks = (1, *shape[:-1], 1) if self._by_lines else chunks
            options = {} if self._mask.ndim == 1 else {"compression": "gzip", "compression_opts": 1}
        kind = np.float32 if key == "reconstruction_rss" else np.complex64
        self._file.create_dataset(key, (self._slices, *shape), kind, chunks=chunks, **options)


@contextmanager
def prepared_writer(path, slices: int, mask: np.ndarray) -> Iterator[PreparedWriter]:
    """Open a PreparedWriter; the file appears at `path` when all is written, or not at all."""
    with atomic(path) as partial, h5py.File(partial, "w") as file:
        yield PreparedWriter(file, slices, mask)


def write_prepared(path, volume: PreparedVolume) -> None:
    """Write a prepared file, whole or not at all; the same volume gives the same bytes."""
    with prepared_writer(path, len(volume.kspace), volume.mask) as writer:
        for index in range(len(volume.kspace)):
            target = None if volume.target is None else volume.target[index]
            writer.put(index, kspace=volume.kspace[index], sens_maps=volume.sens_maps[index], target=target)
        writer.finish(vars(volume))


def read_prepared(path, slices: slice | Sequence[int] = slice(None), target: bool = False) -> PreparedVolume:
    """Read (some slices of) a prepared file. `target` asks for the truth too; training never does.

    Raises InputError for a missing, truncated, foreign, malformed or non-finite file.
    """
    with open_hdf5(path) as file:
        missing = [key for key in ("kspace", "mask", "sens_maps", "sampling_density") if key not in file]
        if missing or "schema_version" not in file.attrs:
            found = f"no {', '.join(missing)}" if missing else "no schema_version"
            raise InputError(path, found, "a prepared scan; make one with `mrigsure prepare`")
        version = int(file.attrs["schema_version"])
        if version != SCHEMA_VERSION:
            raise InputError(
                path, f"schema version {version}", f"version {SCHEMA_VERSION}; run `mrigsure prepare` on the raw file"
            )
        try:
            kspace, sens_maps = file["kspace"][slices], file["sens_maps"][slices]
            header = file["ismrmrd_header"][()].decode() if "ismrmrd_header" in file else None
            geometry = read_geometry(file)
            volume = PreparedVolume(
                kspace=kspace,
                mask=file["mask"][()],
                sens_maps=sens_maps,
                sampling_density=file["sampling_density"][()],
                noise_std=float(file.attrs["noise_std"]),
                scale=float(file.attrs["scale"]),
                seed=int(file.attrs["seed"]),
                parameters=json.loads(file.attrs["parameters"]),
                warnings=tuple(json.loads(file.attrs.get("warnings", "[]"))),
                noise=json.loads(file.attrs.get("noise", "{}")),
                ismrmrd_header=header,
                geometry=None if geometry is None else geometry.part(slices),
                target=file["target"][slices] if target and "target" in file else None,
                **{key: str(file.attrs[key]) for key in _TEXT},
            )
        except (KeyError, ValueError, OSError) as error:
            raise InputError(path, str(error).strip("'\""), "a complete prepared scan") from error
    for key in ("kspace", "sens_maps"):
        if not np.isfinite(getattr(volume, key)).all():
            raise InputError(path, f"NaN or infinity in {key}", "finite numbers")
    return volume


def open_hdf5(path) -> h5py.File:
    """Open for reading; InputError where the file is missing, truncated or not HDF5."""
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "no such file", "an existing file")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(path, "a truncated or non-HDF5 file", "a complete HDF5 file") from error


@dataclass(frozen=True)
class VolumeFacts:
    """What can be said of a prepared file without reading its k-space: kspace_shape is (slices, coils, H, W)."""

    path: Path
    kspace_shape: tuple[int, int, int, int]
    mask: np.ndarray
    noise_std: float
    map_sets: int = 1
    geometry: Geometry | None = None
    patient_hash: str = ""

    @property
    def acceleration(self) -> float:
        """Samples in the matrix over samples taken."""
        return 1 / float(np.mean(self.mask))


def volume_facts(path) -> VolumeFacts:
    """Look into a prepared file. Raises InputError where it is not one."""
    with open_hdf5(path) as file:
        if not {"kspace", "sens_maps", "mask"} <= set(file) or "noise_std" not in file.attrs:
            raise InputError(path, "no prepared scan", "one made by `mrigsure prepare`")
        return VolumeFacts(
            Path(path),
            tuple(file["kspace"].shape),
            file["mask"][()] > 0,
            float(file.attrs["noise_std"]),
            file["sens_maps"].shape[1] if file["sens_maps"].ndim == 5 else 1,
            read_geometry(file),
            str(file.attrs.get("patient_hash", "")),
        )


class ScanSet(Sequence):
    """Every slice of many prepared files, read when asked for; an archive of at most `kept` bytes stays in memory once
    read.

    paths    files, or folders that are searched for *.h5
    targets  read the truth too, where a file has it
    """

    def __init__(self, paths: Sequence, targets: bool = False, kept: float = _KEPT_BYTES):
        self.volumes = [volume_facts(path) for path in prepared_files(paths)]
        self.targets = targets
        self._index = [(v.path, number) for v in self.volumes for number in range(v.kspace_shape[0])]
        self.shapes = [v.kspace_shape[-2:] for v in self.volumes for _ in range(v.kspace_shape[0])]
        size = 2 * 8 * sum(math.prod(v.kspace_shape) for v in self.volumes)  # k-space and maps, complex64
        self._read = cache(self._read) if size <= kept else self._read

    def __len__(self):
        return len(self._index)

    def __getitem__(self, index: int) -> Scan:
        return self._read(index)

    def _read(self, index):
        path, number = self._index[index]
        return read_prepared(path, slice(number, number + 1), target=self.targets).scan(0, self.name(index))

    @property
    def most_samples(self) -> int:
        """Points of k-space of the largest slice, over all coils."""
        return max(math.prod(volume.kspace_shape[1:]) for volume in self.volumes)

    def sens_maps(self, index: int) -> Tensor:
        """The sensitivity maps of scan `index` alone, complex64 ([set,] coil, H, W)."""
        path, number = self._index[index]
        with open_hdf5(path) as file:
            return torch.from_numpy(file["sens_maps"][number])

    def name(self, index: int) -> str:
        """File stem and slice number of scan `index`."""
        path, number = self._index[index]
        return f"{path.stem}#{number}"

    def file_of(self, index: int) -> Path:
        return self._index[index][0]


def prepared_files(paths: Sequence) -> list[Path]:
    """The .h5 files among `paths` and inside the folders among them, sorted within each folder."""
    files = []
    for path in map(Path, paths):
        found = sorted(p for p in path.glob("*.h5") if not p.name.startswith(".")) if path.is_dir() else [path]
        if not found:
            raise InputError(path, "no .h5 file in this folder", "prepared scans")
        files += found
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise InputError(missing[0], "no such file", "an existing file")
    return files
