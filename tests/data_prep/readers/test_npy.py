import numpy as np
import pytest

from data_prep.readers import read_raw
from mrigsure.errors import InputError


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_missing_axes_are_added_in_front(tmp_path, make_kspace, axes):
    kspace = make_kspace(slices=2)
    part = kspace[(0,) * (4 - axes)]
    np.save(tmp_path / "scan.npy", part)
    raw = read_raw(tmp_path / "scan.npy")
    assert raw.kspace.shape == (1,) * (4 - axes) + part.shape
    assert np.array_equal(raw.kspace.reshape(part.shape), part)


def test_mask_file_states_the_sampling(tmp_path, make_kspace):
    mask = np.arange(56) % 2
    np.save(tmp_path / "scan.npy", make_kspace())
    np.save(tmp_path / "mask.npy", mask)
    assert np.array_equal(read_raw(tmp_path / "scan.npy", tmp_path / "mask.npy").mask, mask == 1)


@pytest.mark.parametrize("mask", [np.arange(56), np.ones(55), np.ones((1, 2, 3)), np.ones(56, complex)])
def test_unsuitable_mask_is_refused(tmp_path, make_kspace, mask):
    np.save(tmp_path / "scan.npy", make_kspace())
    np.save(tmp_path / "mask.npy", mask)
    with pytest.raises(InputError, match="found .*; expected a mask"):
        read_raw(tmp_path / "scan.npy", tmp_path / "mask.npy")


def test_real_truncated_pickled_and_infinite_arrays_are_refused(tmp_path, make_kspace):
    path = tmp_path / "scan.npy"
    np.save(path, np.ones((3, 8, 8)))
    with pytest.raises(InputError, match="scan.npy: found float64"):
        read_raw(path)
    np.save(path, make_kspace())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="scan.npy: found a truncated"):
        read_raw(path)
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="scan.npy: found a truncated or foreign"):
        read_raw(path)
    kspace = make_kspace()
    kspace[0, 1, 2, 3] = np.inf
    np.save(path, kspace)
    with pytest.raises(InputError, match="scan.npy: found NaN or infinity in 1 samples"):
        read_raw(path)
