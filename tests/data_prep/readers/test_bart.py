import numpy as np
import pytest
from raw_formats import write_cfl

from data_prep.readers import raw_files, read_raw
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


def test_truncated_data_missing_header_and_volumes_are_refused(tmp_path):
    data = np.ones((4, 5, 1, 2), np.complex64)
    write_cfl(tmp_path / "cut", data, data.shape)
    (tmp_path / "cut.cfl").write_bytes((tmp_path / "cut.cfl").read_bytes()[:-8])
    with pytest.raises(InputError, match="cut.cfl: found 39 samples; expected 40"):
        read_raw(tmp_path / "cut.cfl")
    write_cfl(tmp_path / "alone", data, data.shape)
    (tmp_path / "alone.hdr").unlink()
    with pytest.raises(InputError, match="alone.hdr: found no such file"):
        read_raw(tmp_path / "alone.cfl")
    write_cfl(tmp_path / "volume", np.ones((4, 5, 6, 2)), (4, 5, 6, 2))
    with pytest.raises(InputError, match="volume.cfl: found dimensions"):
        read_raw(tmp_path / "volume.cfl")
