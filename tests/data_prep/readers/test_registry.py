import numpy as np
import pytest

from data_prep.readers import raw_files, read_raw
from mrigsure.errors import InputError


def test_folders_are_expanded_in_order_and_hidden_and_foreign_files_left_out(tmp_path):
    for name in ("b.npy", "a.h5", ".hidden.npy", "notes.txt", "c.dat"):
        (tmp_path / name).touch()
    assert [path.name for path in raw_files([tmp_path, tmp_path / "a.h5"])] == ["a.h5", "b.npy", "c.dat"]


def test_missing_and_empty_and_foreign_are_named(tmp_path):
    with pytest.raises(InputError, match="none.h5: found no such file"):
        raw_files([tmp_path / "none.h5"])
    with pytest.raises(InputError, match="found no raw file in this folder"):
        raw_files([tmp_path])
    with pytest.raises(InputError, match="scan.nii: found suffix '.nii'; expected one of .h5, .mrd, .dat, .cfl, .npy"):
        read_raw(tmp_path / "scan.nii")
    with pytest.raises(InputError, match="none.npy: found no such file"):
        read_raw(tmp_path / "none.npy")


def test_every_real_file_is_read(shared_data):
    shapes = {path.name: read_raw(path).kspace.shape for path in raw_files([shared_data / "raw"])}
    assert shapes == {
        "brain_16ch_flash_xa61.dat": (1, 16, 128, 128),
        "brain_2ch_bodycoil_xa61.dat": (1, 2, 128, 128),
        "brain_8ch_full.cfl": (1, 8, 230, 180),
        "brain_8ch_poisson.npy": (1, 8, 230, 180),
        "phantom_32ch_ve11.dat": (1, 32, 64, 64),
    }
    twix = read_raw(shared_data / "raw" / "brain_16ch_flash_xa61.dat")
    assert twix.geometry.voxel_mm == (2.0, 2.0, 3.0)
    power = (np.abs(twix.kspace[0]) ** 2).sum(axis=0)
    assert np.abs(np.subtract(np.unravel_index(power.argmax(), power.shape), 64)).max() <= 2
