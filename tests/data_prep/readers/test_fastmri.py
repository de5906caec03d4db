import h5py
import numpy as np
import pytest

from data_prep.readers import read_raw, read_sampling
from mrigsure.errors import InputError
from mrigsure.fastmri_files import make_header, write_fastmri


def test_multicoil_file_reads_back_identical(tmp_path, make_kspace):
    kspace, mask = make_kspace(slices=2), np.arange(56) % 3 == 0
    path = tmp_path / "scan.h5"
    write_fastmri(path, kspace * mask, mask=mask, header=make_header((64, 56), (2.0, 2.5, 4.0)))
    raw = read_raw(path)
    assert np.array_equal(raw.kspace, kspace * mask)
    assert np.array_equal(raw.mask, mask)
    assert raw.voxel_mm == pytest.approx((2.0, 2.5, 4.0))
    stated, shape = read_sampling(path)
    assert np.array_equal(stated, mask) and shape == (64, 56)


def test_single_coil_file_gets_a_coil_axis(tmp_path, make_kspace):
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = make_kspace(slices=3)[:, 0]
    assert np.array_equal(read_raw(path).kspace, make_kspace(slices=3)[:, :1])


def test_padding_of_challenge_files_becomes_the_support(tmp_path, make_kspace):
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = make_kspace()
        file.attrs["padding_left"], file.attrs["padding_right"] = 5, 50
    assert np.flatnonzero(~read_raw(path).support).tolist() == [*range(5), *range(50, 56)]


def test_nothing_about_the_patient_is_read(tmp_path, make_kspace):
    header = make_header((64, 56), (2.0, 2.0, 4.0)).replace(
        "<acquisitionSystemInformation>",
        "<subjectInformation><patientName>Doe</patientName></subjectInformation>"
        "<studyInformation><studyDate>2020-01-02</studyDate></studyInformation>"
        "<acquisitionSystemInformation><institutionName>Doe</institutionName>",
    )
    path = tmp_path / "scan.h5"
    write_fastmri(path, make_kspace(), header=header, attributes={"patient_id": "Doe", "patient_name": "Doe"})
    raw = read_raw(path)
    assert "Doe" not in repr({key: value for key, value in vars(raw).items() if key != "kspace"})
    assert "2020" not in raw.header
    assert raw.voxel_mm == pytest.approx((2.0, 2.0, 4.0))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"image": np.zeros((2, 2))}, "no kspace among image"),
        ({"kspace": np.zeros((4, 4), np.complex64)}, r"shape \(4, 4\)"),
        ({"kspace": np.zeros((1, 2, 4, 4), np.float32)}, "float32"),
        ({"kspace": np.full((1, 2, 4, 4), np.nan + 0j)}, "NaN or infinity in 32 samples"),
        ({"kspace": np.ones((1, 2, 4, 4), complex), "mask": np.ones(5)}, r"mask of shape \(5,\)"),
    ],
)
def test_unsuitable_content_is_named(tmp_path, content, found):
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            file[key] = value
    with pytest.raises(InputError, match=f"scan.h5: found .*{found}.*; expected "):
        read_raw(path)


def test_truncated_file_is_named(tmp_path, make_kspace):
    path = tmp_path / "scan.h5"
    write_fastmri(path, make_kspace())
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="scan.h5: found a truncated .*; expected "):
        read_raw(path)
