import numpy as np
import pytest
import twixtools
from raw_formats import line, lines, measurement, write_vb

from data_prep.readers import read_raw
from data_prep.readers.twix import read_twix, twix_patient
from data_prep.readers.twix_lines import without_oversampling
from data_prep.readout import readout_image
from data_prep.undersample import acquired_samples
from mrigsure.errors import InputError, ScanWarning


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
    assert raw.geometry.voxel_mm == (8.0, 8.0, 3.0)
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
    [({"Eco": 1}, "2 echoes"), ({"Set": 1}, "2 sets"), ({"flags": ("REFLECT",)}, "EPI")],
)
def test_what_is_no_single_2d_image_is_refused(write, make_kspace, options, found):
    kspace = make_kspace((32, 24), coils=2)
    path = write(measurement(lines(kspace) + lines(kspace, **options)))
    with pytest.raises(InputError, match=f"scan.dat: found .*{found}"):
        read_raw(path)


@pytest.mark.parametrize(
    ("protocol", "found"),
    [
        ("sKSpace.ucTrajectory = 2\n", "not Cartesian"),
        ("sSliceAcceleration.lMultiBandFactor = 3\n", "3 slices"),
    ],
)
def test_protocols_of_other_encodings_are_refused(write, make_kspace, protocol, found):
    path = write(measurement(lines(make_kspace((32, 24), coils=2)), more=protocol))
    with pytest.raises(InputError, match=f"scan.dat: found .*{found}"):
        read_raw(path)


def test_slices_excited_out_of_order_come_in_spatial_order(write, make_kspace):
    kspace = make_kspace((32, 24), coils=2, slices=5)
    excited = [0, 2, 4, 1, 3]  # interleaved: the counter counts excitations
    blocks = lines(kspace[excited])
    for block in blocks:
        place = excited[block.cSlc]
        block.mdh.SliceData.SlicePos.Cor = 3.0 + place
        block.mdh.SliceData.SlicePos.Tra = -10.0 + 4 * place
        block.mdh.SliceData.Quaternion[0] = 1.0
    assert np.array_equal(read_raw(write(measurement(blocks))).kspace, kspace)
    for block in blocks:
        block.mdh.SliceData.SlicePos.Tra *= -1
        block.mdh.SliceData.SlicePos.Cor = 3.0
    assert np.array_equal(read_raw(write(measurement(blocks))).kspace, kspace[::-1])
    for block in blocks:
        block.mdh.SliceData.SlicePos.Tra = block.mdh.SliceData.SlicePos.Cor = 0.0
    assert np.array_equal(read_raw(write(measurement(blocks))).kspace, kspace[excited])


def test_repetitions_are_further_slices_or_averaged_with_their_noise(write, make_kspace):
    kspace = make_kspace((32, 24), coils=2, slices=2)
    noise = make_kspace((2, 128), coils=2)[0, :, 0]
    path = write(
        measurement([line(noise, flags=("NOISEADJSCAN",))]), measurement(lines(kspace) + lines(3 * kspace, Rep=1))
    )
    separate, averaged = read_twix(path), read_twix(path, repetitions="average")
    assert np.array_equal(separate.kspace, np.concatenate([kspace, 3 * kspace]))
    assert np.allclose(separate.noise, noise)
    assert np.allclose(averaged.kspace, 2 * kspace, rtol=1e-6)
    assert np.allclose(averaged.noise, noise / np.sqrt(2), rtol=1e-5)


def test_lines_averaged_unequally_are_said(write, make_kspace):
    kspace = make_kspace((32, 24), coils=2)
    path = write(measurement(lines(kspace) + lines(kspace, range(10, 14), average=1)))
    with pytest.warns(ScanWarning, match="lines averaged 1 to 2 times"):
        assert np.allclose(read_raw(path).kspace, kspace)


def test_the_mask_is_that_of_the_counters(write, make_kspace):
    kspace = make_kspace((32, 24), coils=2)
    kspace[..., 7] = 0  # measured, and zero in this simulation
    raw = read_raw(write(measurement(lines(kspace, range(1, 24, 2), center=12))))
    assert np.flatnonzero(raw.mask).tolist() == list(range(1, 24, 2))
    partial = read_raw(write(measurement(lines(kspace[..., 6:], center=6))))
    assert np.flatnonzero(partial.mask).tolist() == list(range(6, 24))


def test_asymmetric_echo_is_placed_about_its_centre_and_its_cut_excluded(write, make_kspace):
    kspace = make_kspace((32, 24), coils=2)
    blocks = lines(kspace[:, :, 10:])
    for block in blocks:
        block.mdh.CenterCol = 6
    raw = read_raw(write(measurement(blocks)))
    assert np.array_equal(raw.kspace[:, :, 10:], kspace[:, :, 10:]) and not raw.kspace[:, :, :10].any()
    assert np.array_equal(raw.mask, np.broadcast_to(np.arange(32)[:, None] >= 10, (32, 24)))
    assert np.array_equal(acquired_samples(raw).mask, raw.mask)
    filled = lines(kspace)
    for block in filled:
        block.mdh.CutOff.Pre = 10  # the scanner's own zeros, or what it left there
    same = read_raw(write(measurement(filled)))
    assert np.array_equal(same.kspace, raw.kspace) and np.array_equal(same.mask, raw.mask)


def test_asymmetric_echo_loses_its_oversampling_without_false_samples(write):
    y = np.linspace(-1, 1, 128)[:, None]
    image = (np.abs(y) < 0.42) * (1 + 0.3 * np.sin(9 * y)) * np.exp(2j * y) * np.ones((2, 128, 6))
    wide = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, axes=-2), axis=-2, norm="ortho"), axes=-2)
    wide = wide[None].astype(np.complex64)
    whole = read_raw(write(measurement(lines(wide), oversampling=2)))
    blocks = lines(wide[:, :, 32:])
    for block in blocks:
        block.mdh.CenterCol = 32
    raw = read_raw(write(measurement(blocks, oversampling=2)))
    rows = raw.mask[:, 0]
    assert raw.mask.shape == (64, 6) and not rows[:16].any() and rows[20:62].all()
    assert not raw.kspace[:, :, ~rows].any()
    error = np.abs(raw.kspace - whole.kspace)[:, :, rows]
    assert error.max() < 0.1 * np.median(np.abs(whole.kspace[:, :, rows]))


def test_fit_of_asymmetric_echoes_keeps_the_noise_level():
    rng = np.random.default_rng(0)
    rows = np.arange(128) >= 32
    noise = (rng.standard_normal((128, 2000, 2)) @ [1, 1j] * rows[:, None]).astype(np.complex64)
    fitted, kept = without_oversampling(noise, rows, 64)
    level = np.sqrt((np.abs(fitted[kept]) ** 2).mean(axis=1) / 2)
    assert np.median(level) == pytest.approx(1, rel=0.03) and level.max() < 1.15


def _volume(lines_of=24, partitions=8, coils=2, height=16):
    rng = np.random.default_rng(0)
    shape = (coils, height, partitions, lines_of)
    return (rng.standard_normal((*shape, 2)) @ [1, 1j]).astype(np.complex64)


def _volume_lines(volume, sampled, **options):
    return [
        line(volume[:, :, par, lin], lin, Par=par, center=volume.shape[3] // 2, **options)
        for par, lin in zip(*np.nonzero(sampled), strict=True)
    ]


def _transformed(array, axis):
    return np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(array, axes=axis), axis=axis, norm="ortho"), axes=axis)


def test_3d_scan_is_cut_along_partitions_where_these_are_full(write):
    volume = _volume()
    sampled = np.zeros((8, 24), bool)
    sampled[:, ::2] = True
    raw = read_raw(write(measurement(_volume_lines(volume, sampled))))
    expected = _transformed(volume, 2).transpose(2, 0, 1, 3) * sampled[0]
    assert np.allclose(raw.kspace, expected, atol=1e-5)
    assert np.array_equal(raw.mask, sampled[0])
    assert raw.geometry.voxel_mm == (256 / 16, 8.0, 3.0 / 8)


def test_3d_scan_is_cut_along_lines_or_readout_where_partitions_are_not_full(write):
    volume = _volume()
    sampled = np.zeros((8, 24), bool)
    sampled[1::2] = sampled[4] = True
    by_line = read_raw(write(measurement(_volume_lines(volume, sampled))))
    expected = _transformed(volume * sampled[None, None], 3).transpose(3, 0, 1, 2)
    assert np.allclose(by_line.kspace, expected, atol=1e-5)
    assert np.array_equal(by_line.mask, sampled[:, 0])
    sampled = np.random.default_rng(1).random((8, 24)) < 0.5
    sampled[4, 12] = sampled[-1, -1] = True
    by_row = read_raw(write(measurement(_volume_lines(volume, sampled))))
    expected = (_transformed(volume, 1).transpose(1, 0, 2, 3) * sampled).swapaxes(2, 3)
    assert np.allclose(by_row.kspace, expected, atol=1e-5)
    assert np.array_equal(by_row.mask, sampled.T)


def test_slice_oversampling_of_3d_scans_is_cut_off(write):
    volume = _volume()
    full = np.ones((8, 24), bool)
    path = write(measurement(_volume_lines(volume, full), more="sKSpace.dSliceOversamplingForDialog = 0.3333333\n"))
    raw = read_raw(path)
    assert np.allclose(raw.kspace, _transformed(volume, 2).transpose(2, 0, 1, 3)[1:7], atol=1e-5)
    assert raw.geometry.voxel_mm[2] == pytest.approx(0.5)


def test_separate_reference_lines_become_the_reference(write, make_kspace):
    kspace = make_kspace((32, 24), coils=2, slices=2)
    calibration = make_kspace((32, 24), coils=2, slices=2, seed=1)[..., 6:18]
    blocks = lines(calibration, flags=("PATREFSCAN",), center=6) + lines(kspace, range(0, 24, 2), center=12)
    raw = read_raw(write(measurement(blocks, reference=4)))
    assert np.array_equal(raw.reference, calibration)
    assert np.flatnonzero(raw.mask).tolist() == list(range(0, 24, 2))
    assert np.array_equal(raw.kspace[..., ::2], kspace[..., ::2])


def test_lines_that_serve_both_purposes_are_in_both(write, make_kspace):
    kspace = make_kspace((32, 24), coils=2)
    both = lines(kspace, (10, 12, 14), center=12, flags=("PATREFSCAN", "PATREFANDIMASCAN"))
    only = lines(kspace, (9, 11, 13), center=12, flags=("PATREFSCAN",))
    others = lines(kspace, (0, 2, 4, 6, 8, 16, 18, 20, 22), center=12)
    raw = read_raw(write(measurement(both + only + others, reference=4)))
    assert np.flatnonzero(raw.mask).tolist() == list(range(0, 24, 2))
    assert np.array_equal(raw.reference, kspace[..., 9:15])
    alone = read_raw(write(measurement(both + others, reference=4)))
    assert alone.reference is None and np.flatnonzero(alone.mask).tolist() == list(range(0, 24, 2))


def test_reference_of_a_3d_scan_is_cut_like_the_scan(write):
    volume, small = _volume(), _volume(8, 4)
    sampled = np.zeros((8, 24), bool)
    sampled[:, ::2] = True
    blocks = _volume_lines(volume, sampled) + _volume_lines(small, np.ones((4, 8), bool), flags=("PATREFSCAN",))
    raw = read_raw(write(measurement(blocks, reference=4)))
    padded = np.pad(small, [(0, 0), (0, 0), (2, 2), (0, 0)])
    assert raw.reference.shape == (8, 2, 16, 8)
    assert np.allclose(raw.reference, _transformed(padded, 2).transpose(2, 0, 1, 3), atol=1e-5)


def test_vb_files_are_read_with_the_noise_of_their_own_measurement(tmp_path, make_kspace):
    kspace = make_kspace((32, 24), coils=3, slices=2)
    noise = make_kspace((2, 256), coils=3)[0, :, 0]
    blocks = [line(noise, flags=("NOISEADJSCAN",), vb=True), *lines(kspace, vb=True)]
    write_vb(tmp_path / "scan.dat", measurement(blocks, dwell=10000, patient="P-17"))
    raw = read_raw(tmp_path / "scan.dat")
    assert np.array_equal(raw.kspace, kspace)
    assert np.allclose(raw.noise, noise * np.sqrt(1e9 / 130 / 256 / 10000), rtol=1e-5)  # 130 Hz a pixel
    assert raw.patient == "P-17"


def test_noise_lines_of_a_ve_imaging_measurement_have_their_own_bandwidth(write, make_kspace):
    noise = make_kspace((2, 256), coils=2)[0, :, 0]
    blocks = [line(noise, flags=("NOISEADJSCAN",)), *lines(make_kspace((32, 24), coils=2))]
    raw = read_raw(write(measurement(blocks, dwell=10000)))
    assert np.allclose(raw.noise, noise * np.sqrt(3), rtol=1e-5)  # 7.68 ms: 30 us a sample


def test_the_last_of_several_measurements_is_the_scan(write, make_kspace):
    first, last = make_kspace((32, 24), coils=2), make_kspace((32, 16), coils=2, seed=1)
    raw = read_raw(write(measurement(lines(first)), measurement(lines(last))))
    assert np.array_equal(raw.kspace, last) and raw.noise is None


def test_the_patients_identifier_stays_out_of_print(write, make_kspace):
    path = write(measurement(lines(make_kspace((32, 24), coils=2)), patient="4711-X"))
    raw = read_raw(path)
    assert raw.patient == twix_patient(path) == "4711-X"
    assert "4711-X" not in repr(raw)  # k-space may print 4711 too
    blanked = write(measurement(lines(make_kspace((32, 24), coils=2)), patient="xxxxxx"))
    assert read_raw(blanked).patient == twix_patient(blanked) == ""


def test_real_files_are_read(shared_data):
    shapes = {
        "brain_16ch_flash_xa61": (1, 16, 128, 128),
        "brain_2ch_bodycoil_xa61": (1, 2, 128, 128),
        "phantom_32ch_ve11": (1, 32, 64, 64),
    }
    for name, shape in shapes.items():
        raw = read_raw(shared_data / "raw" / f"{name}.dat")
        assert raw.kspace.shape == shape and raw.mask.all() and raw.mask.shape == shape[-1:]
        peak = np.unravel_index(np.abs(raw.kspace).sum((0, 1)).argmax(), shape[-2:])
        assert max(abs(peak[0] - shape[2] // 2), abs(peak[1] - shape[3] // 2)) <= 2
        assert raw.patient == "" and raw.reference is None


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
