"""Build what ships in mrigsure/data/anatomy from the source volumes; run once, kept so that it can be redone.

    pip install '.[anatomy]'
    python examples/build_anatomy.py HEADS_FOLDER mrigsure/data/anatomy

HEADS_FOLDER holds the NIfTI files named in `SOURCES`; the MNI ICBM-152 maps come from nilearn's wheel. Every head
becomes one .npz: uint8 channels of one shape, axes (superior -> inferior, anterior -> posterior, right -> left), at
`VOXEL_MM` isotropic, cropped to the head. The axis order was read off pictures of the middle slices, because the
headers of these files cannot be trusted: every file has (left -> right, posterior -> anterior, inferior -> superior)
in storage, as far as an eye can tell left from right.
"""

import argparse
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from mrigsure.files import atomic

VOXEL_MM = 1.15
_MCGILL = "McGill notice (see LICENSES.md)"


@dataclass(frozen=True)
class Source:
    """channels  name -> file
    brain     how `brain_mask` finds the brain: band of intensities relative to the local mean, and erosion in voxels,
              chosen by looking at the outlines; None where the skull is missing, so that all tissue is brain
    """

    channels: dict[str, str]
    origin: str
    licence: str
    brain: tuple[float, float, int] | None = None


SOURCES = {
    "lesion": Source(
        {"t1": "t1_lesion.nii.gz"},
        "neurolabusc/VolumeRenderingData (NITRC), t1_lesion",
        "MIT, Copyright (c) 2020 Chris Rorden",
        brain=(0.7, 1.8, 3),
    ),
    "stroke": Source(
        {"t1": "stroke_t1.nii.gz", "t2": "stroke_t2.nii.gz", "flair": "stroke_flair.nii.gz"},
        "neurolabusc/VolumeRenderingData (NITRC), one stroke patient",
        "MIT, Copyright (c) 2020 Chris Rorden",
    ),
    "child": Source(
        {"t1": "t1_child.nii.gz"},
        "FNNDSC/SAG-anon",
        "MIT, Copyright (c) 2018 Rudolph Pienaar",
        brain=(0.75, 1.7, 4),
    ),
    "colin27": Source(
        {"t1": "t1_colin27.nii.gz"},
        "Colin 27 average brain, as packaged in Debian's mricron-data",
        f"{_MCGILL}; BSD-3-Clause (mricron-data)",
        brain=(0.7, 1.7, 5),
    ),
    "mni152": Source(
        {tissue: f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz" for tissue in ("t1", "gm", "wm")},
        "MNI ICBM-152 nonlinear symmetric 2009a, as packaged in nilearn",
        _MCGILL,
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("heads", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    mni = Path(importlib.util.find_spec("nilearn").origin).parent / "datasets" / "data"
    for name, source in SOURCES.items():
        folder = mni if name == "mni152" else arguments.heads
        channels = {key: read(folder / file) for key, file in source.channels.items()}
        channels["brain"] = brain_mask(channels["t1"], *source.brain) if source.brain else support(channels)
        channels = crop(channels)
        about = {
            "voxel_mm": VOXEL_MM,
            "stripped": source.brain is None,
            "source": source.origin,
            "licence": source.licence,
        }
        with atomic(arguments.out / f"{name}.npz") as partial:
            np.savez_compressed(partial, about=json.dumps(about, sort_keys=True), **channels)
        size = (arguments.out / f"{name}.npz").stat().st_size / 1e6
        print(f"{name}: {', '.join(channels)} {channels['t1'].shape}, {size:.2f} MB")


def read(path) -> np.ndarray:
    """Volume at VOXEL_MM, uint8, axes (superior -> inferior, anterior -> posterior, right -> left)."""
    image = nibabel.load(path)
    volume = np.asarray(image.dataobj, np.float32).transpose(2, 1, 0)[::-1, ::-1, ::-1]
    zoom = [size / VOXEL_MM for size in reversed(image.header.get_zooms()[:3])]
    blurred = ndimage.gaussian_filter(volume, [0.35 * max(0.0, 1 / factor - 0.5) for factor in zoom])
    return np.clip(ndimage.zoom(blurred, zoom, order=3, prefilter=True), 0, 255).round().astype(np.uint8)


def brain_mask(t1: np.ndarray, low: float, high: float, erosion: int) -> np.ndarray:
    """The brain with the fluid around it, soft-edged, uint8.

    With the slow brightness of the coils divided out, brain tissue lies in one band of intensities, above fluid and
    bone and below fat. Eroded, the band's largest component is the brain; it grows back and is closed over sulci and
    ventricles.
    """
    head = (t1 > 12).astype(np.float32)
    capped = np.minimum(t1, 1.5 * np.median(t1[t1 > 12])) * head
    mean = ndimage.gaussian_filter(capped, 14) / np.maximum(ndimage.gaussian_filter(head, 14), 0.05)
    flat = ndimage.gaussian_filter(t1.astype(np.float32), 0.5) / np.maximum(mean, 1)
    ball = ndimage.generate_binary_structure(3, 1)
    labels, _ = ndimage.label(ndimage.binary_erosion((flat > low) & (flat < high), ball, iterations=erosion))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    grown = ndimage.binary_dilation(labels == sizes.argmax(), ball, iterations=erosion + 1)
    smooth = ndimage.binary_opening(close(grown, 14), ball, iterations=4)
    return (ndimage.gaussian_filter(smooth.astype(np.float32), 0.7) * 255).round().astype(np.uint8)


def support(channels: dict) -> np.ndarray:
    """Where a stripped head has tissue or fluid, 0 or 255."""
    return close(np.any([volume > 8 for volume in channels.values()], axis=0), 4).astype(np.uint8) * 255


def close(mask: np.ndarray, iterations: int) -> np.ndarray:
    """Morphological closing that does not end at the volume's faces, and filling of what is enclosed."""
    closed = ndimage.binary_closing(np.pad(mask, iterations + 2), iterations=iterations)
    inner = (slice(iterations + 2, -iterations - 2),) * 3
    return ndimage.binary_fill_holes(closed[inner])


def crop(channels: dict) -> dict:
    """The box of the head, with air set to 0: what is not the largest object, such as ghosts beside the face."""
    tissue = np.max([ndimage.gaussian_filter(volume.astype(np.float32), 1) for volume in channels.values()], axis=0)
    labels, _ = ndimage.label(ndimage.binary_opening(tissue > 12, iterations=2))
    number = np.bincount(labels.ravel())[1:].argmax() + 1
    head = ndimage.binary_dilation(labels == number, iterations=3)
    box = ndimage.find_objects(head.astype(int))[0]
    return {key: np.ascontiguousarray((volume * head)[box]) for key, volume in channels.items()}


if __name__ == "__main__":
    main()
