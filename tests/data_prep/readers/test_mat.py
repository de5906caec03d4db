import h5py
import numpy as np
import pytest
import scipy.io

from data_prep.prepare import prepare_volume
from data_prep.readers import RawScan, read_raw, read_sampling
from mrigsure.errors import InputError
from mrigsure.settings import PrepareSettings

COMPLEX = np.dtype([("real", "<f8"), ("imag", "<f8")])


def write_v5(path, arrays):
    scipy.io.savemat(path, arrays)


def write_v4(path, arrays):
    scipy.io.savemat(path, arrays, format="4")


def write_v73(path, arrays):
    """As MATLAB does: a user block of 512 bytes, axes reversed, complex numbers as a compound of real and imag."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            stored = np.atleast_2d(array).T
            if np.iscomplexobj(stored):
                compound = np.empty(stored.shape, COMPLEX)
                compound["real"], compound["imag"] = stored.real, stored.imag
                stored = compound
            file.create_dataset(name, data=stored, compression="gzip")
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(128))


WRITERS = pytest.mark.parametrize("write", [write_v5, write_v73])


def matlab(kspace):
    """(slices, coils, H, W) -> MATLAB's [H, W, coils, slices]."""
    return kspace.transpose(2, 3, 1, 0)


@WRITERS
@pytest.mark.parametrize("axes", [2, 3, 4])
def test_matlab_axes_come_back_to_the_bit(tmp_path, make_kspace, write, axes):
    kspace = make_kspace(slices=3)
    array = matlab(kspace)[(..., *[0] * (4 - axes))]
    write(tmp_path / "scan.mat", {"kspace": array, "other": np.ones((3, 4, 5), complex), "age": 40})
    raw = read_raw(tmp_path / "scan.mat")
    expected = {4: kspace, 3: kspace[:1], 2: kspace[:1, :1]}[axes]
    assert np.array_equal(raw.kspace, expected) and raw.mask is None
    assert read_sampling(tmp_path / "scan.mat") == (None, (64, 56))


@WRITERS
def test_mask_noise_and_reference_are_read_and_nothing_else(tmp_path, make_kspace, write):
    kspace, mask = make_kspace(slices=2), np.arange(56) % 2
    noise = np.arange(36).reshape(4, 9) * (1 + 2j)
    arrays = {
        "data": matlab(kspace * mask),  # the only complex array of its size
        "mask": mask[None].astype(float),
        "noise": noise.T,
        "reference": matlab(kspace)[:, 20:40],
    }
    path = tmp_path / "scan.mat"
    write(path, arrays | {"weights": np.ones((4, 5, 6))})
    raw = read_raw(path)
    assert np.array_equal(raw.kspace, kspace * mask) and np.array_equal(raw.mask, mask == 1)
    assert np.array_equal(raw.noise, noise.astype(np.complex64))
    assert np.array_equal(raw.reference, kspace[..., 20:40])
    stated, shape = read_sampling(path)
    assert np.array_equal(stated, mask == 1) and shape == (64, 56)
    points = np.zeros((64, 56))
    points[::2, ::3] = 1
    write(path, arrays | {"mask": points})
    assert np.array_equal(read_raw(path).mask, points == 1)


@WRITERS
@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"a": np.ones((8, 8, 2), complex), "b": np.ones((8, 8, 2), complex)}, "several complex arrays, a, b"),
        ({"a": np.ones((8, 8, 2)), "b": np.ones((8, 8), complex)}, "no complex array of 3 or 4 axes"),
        ({"kspace": np.ones((2, 8, 8), complex)}, r"k-space of MATLAB's shape \(2, 8, 8\), an order of axes"),
        ({"kspace": np.ones((8, 8, 2))}, "float64 of shape"),
        ({"kspace": np.ones((8, 8, 2), complex), "mask": np.ones((1, 7))}, r"a mask of shape \(7,\)"),
        ({"kspace": np.ones((8, 8, 2), complex), "noise": np.ones((9, 3), complex)}, r"noise .* of shape \(3, 9\)"),
    ],
)
def test_unclear_content_is_refused(tmp_path, write, arrays, found):
    write(tmp_path / "scan.mat", arrays)
    with pytest.raises(InputError, match=f"scan.mat: found {found}"):
        read_raw(tmp_path / "scan.mat")


@WRITERS
def test_truncated_and_foreign_files_are_refused(tmp_path, make_kspace, write):
    path = tmp_path / "scan.mat"
    write(path, {"kspace": matlab(make_kspace())})
    for content in (path.read_bytes()[:-3000], b"", b"foreign" * 100):
        path.write_bytes(content)
        with pytest.raises(InputError, match="scan.mat: found a truncated or foreign file"):
            read_raw(path)


def test_version_4_is_read_too(tmp_path, make_kspace):
    kspace = make_kspace(coils=1)
    write_v4(tmp_path / "scan.mat", {"kspace": kspace[0, 0]})
    assert np.array_equal(read_raw(tmp_path / "scan.mat").kspace, kspace)


def test_undersampled_mat_file_becomes_a_prepared_scan(tmp_path, make_kspace):
    mask = np.arange(56) % 3 == 0
    mask[24:33] = True
    kspace = make_kspace(slices=2) * mask
    write_v73(tmp_path / "scan.mat", {"kspace": matlab(kspace)})
    volume = prepare_volume(read_raw(tmp_path / "scan.mat"), PrepareSettings(raw=[], out=""))
    expected = prepare_volume(RawScan(kspace, tmp_path / "scan.mat"), PrepareSettings(raw=[], out=""))
    assert np.array_equal(volume.mask, mask) and np.array_equal(volume.kspace, expected.kspace)
