import numpy as np
import pytest

from data_prep.readers import read_raw, read_sampling
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


def test_shape_is_told_without_kspace(tmp_path, make_kspace):
    np.save(tmp_path / "scan.npy", make_kspace())
    assert read_sampling(tmp_path / "scan.npy") == (None, (64, 56))
    np.savez(tmp_path / "scan.npz", kspace=make_kspace(), mask=np.arange(56) % 2)
    mask, shape = read_sampling(tmp_path / "scan.npz")
    assert np.array_equal(mask, np.arange(56) % 2 == 1) and shape == (64, 56)


def test_npz_holds_mask_noise_and_reference_beside_kspace(tmp_path, make_kspace):
    kspace, noise = make_kspace(slices=2), np.ones((4, 9), np.complex64) * 1j
    mask = np.arange(56) % 2 == 0
    arrays = {"kspace": kspace * mask, "mask": mask, "noise": noise, "reference": kspace[..., 20:40]}
    np.savez_compressed(tmp_path / "scan.npz", **arrays, patient=np.array("Doe"))
    raw = read_raw(tmp_path / "scan.npz")
    assert np.array_equal(raw.kspace, kspace * mask) and np.array_equal(raw.mask, mask)
    assert np.array_equal(raw.noise, noise) and np.array_equal(raw.reference, kspace[..., 20:40])
    assert "Doe" not in repr({key: value for key, value in vars(raw).items() if key != "kspace"})
    other = np.arange(56) % 4 == 0
    np.save(tmp_path / "mask.npy", other)
    assert np.array_equal(read_raw(tmp_path / "scan.npz", tmp_path / "mask.npy").mask, other)


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"image": np.ones((4, 8, 8), complex)}, "no array `kspace`"),
        ({"kspace": np.ones((4, 8, 8))}, "float64 of shape"),
        ({"noise": np.ones((3, 9), complex)}, r"noise complex128 of shape \(3, 9\)"),
        ({"noise": np.ones((4, 9))}, "noise float64"),
        ({"reference": np.ones((3, 8, 8), complex)}, r"a reference of shape \(1, 3, 8, 8\)"),
        ({"mask": np.arange(8)}, "int64 of shape"),
        ({"mask": np.ones(7)}, r"a mask of shape \(7,\)"),
        ({"kspace": np.array([{}], object)}, "a truncated or foreign"),
    ],
)
def test_unsuitable_arrays_in_npz_are_refused(tmp_path, arrays, found):
    path = tmp_path / "scan.npz"
    np.savez(path, **({} if "image" in arrays else {"kspace": np.ones((4, 8, 8), complex)}) | arrays)
    with pytest.raises(InputError, match=f"scan.npz: found {found}"):
        read_raw(path)


def test_truncated_and_foreign_npz_is_refused(tmp_path, make_kspace):
    path = tmp_path / "scan.npz"
    np.savez(path, kspace=make_kspace())
    for content in (path.read_bytes()[:-40], b"", b"foreign" * 100):
        path.write_bytes(content)
        for read in (read_raw, read_sampling):
            with pytest.raises(InputError, match="scan.npz: found a truncated or foreign"):
                read(path)
    with open(path, "wb") as file:
        np.save(file, make_kspace())  # .npy under another name
    with pytest.raises(InputError, match="scan.npz: found a truncated or foreign"):
        read_raw(path)
