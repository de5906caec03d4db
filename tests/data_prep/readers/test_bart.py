import numpy as np
import pytest
from raw_formats import write_cfl

from data_prep.readers import raw_files, read_raw, read_sampling
from mrigsure.errors import InputError


@pytest.mark.parametrize("suffix", [".cfl", ".hdr"])
def test_plane_of_a_3d_scan_has_both_phase_axes(tmp_path, make_kspace, suffix):
    kspace = make_kspace()[0]
    write_cfl(tmp_path / "scan", kspace.transpose(1, 2, 0)[None], (1, 64, 56, 4, 1))
    assert np.array_equal(read_raw((tmp_path / "scan").with_suffix(suffix)).kspace, kspace[None])


def test_slices_lie_in_dimension_13(tmp_path, make_kspace):
    kspace = make_kspace(slices=3)
    dims = (64, 56, 1, 4, *[1] * 9, 3, 1, 1)
    write_cfl(tmp_path / "scan", kspace.transpose(2, 3, 1, 0), dims)
    assert np.array_equal(read_raw(tmp_path / "scan.cfl").kspace, kspace)


def test_a_pair_counts_once(tmp_path, make_kspace):
    write_cfl(tmp_path / "scan", make_kspace()[0].transpose(1, 2, 0)[None], (1, 64, 56, 4))
    assert raw_files([tmp_path, tmp_path / "scan.hdr"]) == [tmp_path / "scan.cfl"]


def test_truncated_data_missing_header_and_more_dimensions_are_refused(tmp_path):
    data = np.ones((4, 5, 1, 2), np.complex64)
    write_cfl(tmp_path / "cut", data, data.shape)
    (tmp_path / "cut.cfl").write_bytes((tmp_path / "cut.cfl").read_bytes()[:-8])
    with pytest.raises(InputError, match="cut.cfl: found 39 samples; expected 40"):
        read_raw(tmp_path / "cut.cfl")
    write_cfl(tmp_path / "alone", data, data.shape)
    (tmp_path / "alone.hdr").unlink()
    with pytest.raises(InputError, match="alone.hdr: found no such file"):
        read_raw(tmp_path / "alone.cfl")
    for axis, name in ((4, "3 maps"), (10, "3 time"), (14, "3 averages")):
        dims = [4, 5, 1, 2] + [3 if number == axis else 1 for number in range(4, 16)]
        write_cfl(tmp_path / "more", np.ones(dims), dims)
        with pytest.raises(InputError, match=rf"more.cfl: found {name} \(dimension {axis}\); expected k-space of one"):
            read_raw(tmp_path / "more.cfl")
    write_cfl(tmp_path / "line", np.ones((4, 1, 1, 2)), (4, 1, 1, 2))
    with pytest.raises(InputError, match="line.cfl: found dimensions"):
        read_raw(tmp_path / "line.cfl")


def test_3d_scan_is_cut_along_its_whole_axis(tmp_path):
    rng = np.random.default_rng(0)
    volume = rng.standard_normal((6, 8, 5, 2)) + 1j * rng.standard_normal((6, 8, 5, 2))
    volume[:, ::2] = 0  # lines of y, whole along z
    write_cfl(tmp_path / "scan", volume, volume.shape)
    raw = read_raw(tmp_path / "scan.cfl")
    shifted = np.fft.ifftshift(volume, axes=2)
    slices = np.fft.fftshift(np.fft.ifft(shifted, axis=2, norm="ortho"), axes=2)
    assert np.allclose(raw.kspace, slices.transpose(2, 3, 0, 1), atol=1e-6)
    assert np.array_equal(raw.mask, np.arange(8) % 2 == 1)
    mask, shape = read_sampling(tmp_path / "scan.cfl")
    assert np.array_equal(mask, raw.mask) and shape == (6, 8)


def test_shape_of_a_2d_scan_is_told_by_its_header_alone(tmp_path, make_kspace):
    write_cfl(tmp_path / "scan", make_kspace()[0].transpose(1, 2, 0)[None], (1, 64, 56, 4))
    (tmp_path / "scan.cfl").write_bytes(b"")
    assert read_sampling(tmp_path / "scan.cfl") == (None, (64, 56))
