"""Build the scans that ship in mrigsure/data/scans from their sources, with mrigsure's own readers and writer.

    python examples/build_example_scans.py RAW_FOLDER mrigsure/data/scans

RAW_FOLDER holds the files named below; sources and licences stand in mrigsure/data/scans/LICENSES.md.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from data_prep.readers import RawScan, read_raw
from data_prep.undersample import find_mask
from mrigsure.fastmri_files import make_header, write_fastmri
from mrigsure.fourier import ifft2c


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="folder with the source files")
    parser.add_argument("out", type=Path, help="folder for the fastMRI files")
    folders = parser.parse_args()
    build_full(folders.raw / "brain_16ch_flash_xa61.dat", folders.out / "brain_16ch.h5")
    build_undersampled(folders.raw / "brain_8ch_poisson.npy", folders.out / "brain_8ch_poisson.h5")


def build_full(source: Path, output: Path) -> None:
    """The in-vivo 16-coil brain, fully sampled, with its root sum of squares for fastMRI's own tools."""
    raw = read_raw(source)
    write_fastmri(
        output,
        raw.kspace,
        header=raw.header,
        reconstruction_rss=_root_sum_of_squares(raw),
        attributes={"acquisition": "in-vivo brain, 2-D FLASH, 3 T, 16 coils"},
    )


def build_undersampled(source: Path, output: Path) -> None:
    """The 8-coil brain acquired undersampled, its mask from the zeros. Voxels of 1 mm stand for a size not stated."""
    raw = read_raw(source)
    slices, coils, height, width = raw.kspace.shape
    write_fastmri(
        output,
        raw.kspace,
        mask=find_mask(raw.kspace, source),
        header=make_header((height, width), (1.0, 1.0, 1.0), coils=coils, slices=slices),
        attributes={"acquisition": "axial brain, one slice of a 3-D scan, Poisson disc, 8 coils"},
    )


def _root_sum_of_squares(raw: RawScan) -> np.ndarray:
    images = ifft2c(torch.from_numpy(raw.kspace)).numpy()
    return np.sqrt((np.abs(images) ** 2).sum(axis=1))


if __name__ == "__main__":
    main()
