import numpy as np
import pytest
import twixtools
from raw_formats import line, lines, measurement

from data_prep.readers import read_raw
from data_prep.readout import readout_image
from mrigsure.errors import InputError


@pytest.fixture
def write(tmp_path):
    def write(*measurements):
        path = tmp_path / "scan.dat"
        path.unlink(missing_ok=True)
        twixtools.write_twix(list(measurements), str(path))
        return path

    return write


def test_lines_and_slices_land_where_their_counters_say(write, make_kspace):
    kspace = make_kspace((32, 24), coils=3, slices=2)
    raw = read_raw(write(measurement(lines(kspace))))
    assert np.array_equal(raw.kspace, kspace)
    assert raw.voxel_mm == (8.0, 8.0, 3.0)
    assert raw.acquisition == "flash"
    assert "Doe" not in repr(raw.header) + raw.acquisition


def test_averages_are_averaged_and_lines_not_acquired_stay_zero(write, make_kspace):
    kspace = make_kspace((32, 24), coils=2)
    blocks = lines(kspace, range(0, 24, 2), center=12) + lines(3 * kspace, range(0, 24, 2), center=12, average=1)
    raw = read_raw(write(measurement(blocks)))
    assert raw.kspace.shape == kspace.shape
    assert np.allclose(raw.kspace[..., ::2], 2 * kspace[..., ::2], rtol=1e-6)
    assert not raw.kspace[..., 1::2].any()


def test_partial_fourier_keeps_its_centre(write, make_kspace):
    kspace = make_kspace((32, 24), coils=2)
    raw = read_raw(write(measurement(lines(kspace[..., 6:], center=6))))
    assert np.array_equal(raw.kspace[..., 6:], kspace[..., 6:])
    assert raw.kspace.shape[-1] == 24 and not raw.kspace[..., :6].any()


def test_readout_oversampling_is_cropped_in_the_image(write, make_kspace):
    kspace = make_kspace((64, 24), coils=2)
    raw = read_raw(write(measurement(lines(kspace), oversampling=2)))
    assert np.allclose(readout_image(raw.kspace), readout_image(kspace)[..., 16:48, :], atol=1e-4)


def test_integrated_reference_lines_complete_the_centre(write, make_kspace):
    kspace = make_kspace((32, 24), coils=2)
    imaging = lines(kspace, range(0, 24, 2), center=12)
    reference = lines(kspace, (9, 11, 13), center=12, flags=("PATREFSCAN",))
    raw = read_raw(write(measurement(imaging + reference, reference=2)))
    assert sorted(np.flatnonzero(np.abs(raw.kspace).sum((0, 1, 2)))) == sorted({*range(0, 24, 2), 9, 11, 13})


def test_noise_scan_is_scaled_to_bandwidth_and_averages(write, make_kspace):
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal((2, 256)) + 1j * rng.standard_normal((2, 256))).astype(np.complex64)
    before = measurement([line(noise, flags=("NOISEADJSCAN",))], dwell=5000)
    kspace = make_kspace((32, 24), coils=2)
    raw = read_raw(write(before, measurement(lines(kspace) + lines(kspace, average=1), dwell=10000)))
    assert np.array_equal(raw.kspace, kspace)
    assert np.allclose(raw.noise, noise * np.sqrt(5000 / 10000 / 2), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "found"),
    [({"Eco": 1}, "2 echoes"), ({"Rep": 1}, "2 repetitions"), ({"flags": ("REFLECT",)}, "EPI")],
)
def test_what_is_no_single_2d_image_is_refused(write, make_kspace, options, found):
    kspace = make_kspace((32, 24), coils=2)
    path = write(measurement(lines(kspace) + lines(kspace, **options)))
    with pytest.raises(InputError, match=f"scan.dat: found .*{found}"):
        read_raw(path)


def test_truncated_and_foreign_files_are_refused(write, make_kspace):
    path = write(measurement(lines(make_kspace((32, 24), coils=2))))
    content = path.read_bytes()
    for size in (len(content) // 2, 11000, 100, 0):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match="scan.dat: found .*truncated.*; expected .*Siemens twix"):
            read_raw(path)
    path.write_bytes(bytes(range(256)) * 100)
    with pytest.raises(InputError, match="scan.dat: found .*; expected .*Siemens twix"):
        read_raw(path)
