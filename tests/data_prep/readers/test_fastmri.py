import h5py
import numpy as np
import pytest
from raw_formats import mrd_encoding, mrd_header

from data_prep.prepare import prepare_volume
from data_prep.readers import read_raw, read_sampling
from mrigsure.errors import InputError
from mrigsure.fastmri_files import make_header, write_fastmri
from mrigsure.settings import PrepareSettings


def test_multicoil_file_reads_back_identical(tmp_path, make_kspace):
    kspace, mask = make_kspace(slices=2), np.arange(56) % 3 == 0
    path = tmp_path / "scan.h5"
    write_fastmri(path, kspace * mask, mask=mask, header=make_header((64, 56), (2.0, 2.5, 4.0)))
    raw = read_raw(path)
    assert np.array_equal(raw.kspace, kspace * mask)
    assert np.array_equal(raw.mask, mask)
    assert raw.geometry.voxel_mm == pytest.approx((2.0, 2.5, 4.0))
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


def fastmri_header(limits):
    """As fastMRI's files have it: the readout oversampled, and (maximum, center) of the lines."""
    encoding = mrd_encoding(
        (64, 56, 1),
        fov=(128.0, 112.0, 4.0),
        asked=(32, 32, 1),
        asked_fov=(64.0, 64.0, 4.0),
        limits={1: (0, *limits)},
    )
    return mrd_header(encoding, protocol="")


@pytest.mark.parametrize("anatomy", ["brain", "knee"])
@pytest.mark.parametrize("coils", [4, 1])
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_variety_of_the_data_set_is_read(tmp_path, make_kspace, anatomy, coils, split):
    """kspace, header and attributes as in the released files: single-coil ones have no coil axis, those of test and
    challenge have a mask and no reconstruction."""
    kspace = make_kspace(slices=2)[:, :coils]
    kspace[..., :3] = kspace[..., 51:] = 0  # zero-padded lines
    mask = (np.arange(56) % 4 == 0) | (np.abs(np.arange(56) - 28) < 4)
    if split == "test":
        kspace = kspace * mask
    path = tmp_path / f"file_{anatomy}.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace if coils > 1 else kspace[:, 0]
        file["ismrmrd_header"] = fastmri_header((47, 25))
        file.attrs["acquisition"] = {"brain": "AXT2", "knee": "CORPD_FBK"}[anatomy]
        file.attrs["patient_id"] = "1a2b"
        if split == "train":
            for name in ("reconstruction_rss",) if coils > 1 else ("reconstruction_esc", "reconstruction_rss"):
                file[name] = np.ones((2, 32, 32), np.float32)
            file.attrs["max"], file.attrs["norm"] = 1.0, 2.0
        else:
            file["mask"] = mask.astype(np.float32) if anatomy == "brain" else mask[None, :, None]
            file.attrs["acceleration"], file.attrs["num_low_frequency"] = 4, 7
    raw = read_raw(path)
    assert np.array_equal(raw.kspace, kspace)
    assert raw.acquisition == {"brain": "AXT2", "knee": "CORPD_FBK"}[anatomy]
    assert raw.patient == "1a2b" and "1a2b" not in repr(raw)
    assert np.flatnonzero(raw.support).tolist() == list(range(3, 51))
    assert raw.geometry.voxel_mm == (2.0, 2.0, 4.0)
    stated, shape = read_sampling(path)
    assert shape == (64, 56)
    assert (stated is None and raw.mask is None) if split == "train" else np.array_equal(stated, mask)
    if split == "test":
        assert np.array_equal(raw.mask, mask)


@pytest.mark.parametrize("limits", [(47, 20), (55, 28), (99, 25)])
def test_padding_of_the_header_that_kspace_contradicts_is_not_believed(tmp_path, make_kspace, limits):
    path = tmp_path / "scan.h5"
    write_fastmri(path, make_kspace(), header=fastmri_header(limits))
    assert read_raw(path).support is None


def test_oversampled_readout_of_a_challenge_file_is_removed_when_prepared(tmp_path, make_kspace):
    kspace, mask = make_kspace(slices=2), np.arange(56) % 2 == 0
    mask[24:33] = True
    path = tmp_path / "scan.h5"
    write_fastmri(path, kspace * mask, mask=mask, header=fastmri_header((55, 28)))
    volume = prepare_volume(read_raw(path), PrepareSettings(raw=[], out=""))
    assert volume.kspace.shape == (2, 4, 32, 56)
    assert np.array_equal(volume.mask, mask)


def test_nothing_about_the_patient_but_the_identifier_is_read(tmp_path, make_kspace):
    header = make_header((64, 56), (2.0, 2.0, 4.0)).replace(
        "<acquisitionSystemInformation>",
        "<subjectInformation><patientName>Doe</patientName></subjectInformation>"
        "<studyInformation><studyDate>2020-01-02</studyDate></studyInformation>"
        "<acquisitionSystemInformation><institutionName>Doe</institutionName>",
    )
    header = header.replace(
        "</trajectory>",
        "</trajectory><trajectoryDescription><comment>Doe</comment></trajectoryDescription><!-- Doe -->",
    )
    path = tmp_path / "scan.h5"
    write_fastmri(path, make_kspace(), header=header, attributes={"patient_id": "P-17", "patient_name": "Doe"})
    raw = read_raw(path)
    kept = repr({key: value for key, value in vars(raw).items() if key not in ("kspace", "patient")})
    assert "Doe" not in kept and "P-17" not in kept
    assert raw.patient == "P-17" and "P-17" not in repr(raw)
    assert "2020" not in raw.header
    assert raw.geometry.voxel_mm == pytest.approx((2.0, 2.0, 4.0))


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
