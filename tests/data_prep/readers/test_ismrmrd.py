import h5py
import numpy as np
import pytest
from raw_formats import mrd_encoding, mrd_header, mrd_line, mrd_lines, write_mrd

from data_prep.prepare import prepare_volume
from data_prep.readers import read_raw, read_sampling
from data_prep.readers.acquisitions import Lines
from data_prep.readers.raw import header_space
from mrigsure.errors import InputError, ScanWarning
from mrigsure.settings import PrepareSettings

SHAPE = (32, 24)
ENCODING = mrd_encoding((32, 24, 1), limits={1: (0, 23, 12)})


@pytest.fixture
def write(tmp_path):
    """Write lines under a header of encodings; further keywords are the header's."""

    def write(acquisitions, *encodings, name="scan.mrd", **header):
        (tmp_path / name).unlink(missing_ok=True)
        return write_mrd(tmp_path / name, mrd_header(*(encodings or [ENCODING]), **header), acquisitions)

    return write


@pytest.fixture
def kspace(make_kspace):
    return make_kspace(SHAPE, coils=3, slices=2)


def random(shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def inverse(array, axis):
    shifted = np.fft.ifftshift(array, axes=axis)
    return np.fft.fftshift(np.fft.ifft(shifted, axis=axis, norm="ortho"), axes=axis)


def volume_lines(volume, sampled, **options):
    """Lines of (coils, x, y, z) where sampled (y, z)."""
    return [mrd_line(volume[:, :, y, z], y, z, **options) for y, z in np.argwhere(sampled)]


@pytest.mark.parametrize("name", ["scan.h5", "scan.mrd"])
def test_lines_and_slices_come_back_to_the_bit(write, kspace, name):
    path = write(mrd_lines(kspace)[::-1], name=name)
    raw = read_raw(path)
    assert np.array_equal(raw.kspace, kspace)
    assert raw.mask.all() and raw.mask.shape == (24,) and raw.support is None
    assert raw.geometry.voxel_mm == (8.0, 8.0, 5.0)


def test_sampling_is_told_without_reading_a_line(write, kspace, monkeypatch):
    path = write(mrd_lines(kspace, range(0, 24, 2)))
    monkeypatch.setattr(Lines, "read", None)
    mask, shape = read_sampling(path)
    assert np.flatnonzero(mask).tolist() == list(range(0, 24, 2)) and shape == SHAPE


def test_slices_are_in_spatial_order(write, kspace):
    places = {0: 10.0, 1: -10.0}  # slice 1 lies before slice 0
    lines = [
        mrd_line(kspace[s, :, :, n], n, slice=s, position=(0, 0, z), slice_dir=(0, 0, 1))
        for s, z in places.items()
        for n in range(24)
    ]
    assert np.array_equal(read_raw(write(lines)).kspace, kspace[::-1])


def test_nothing_about_the_patient_but_the_identifier_is_kept(write, kspace):
    raw = read_raw(write(mrd_lines(kspace)))
    assert raw.patient == "P-17" and raw.acquisition == "flash"
    kept = {key: value for key, value in vars(raw).items() if key not in ("kspace", "patient")}
    assert "Doe" not in repr(kept) and "P-17" not in repr(kept) and "P-17" not in repr(raw)


def test_averages_are_averaged_and_their_noise_scan_scaled(write, kspace):
    noise = random((3, 256))
    lines = [mrd_line(noise, flags=["IS_NOISE_MEASUREMENT"], sample_time_us=5.0)]
    lines += mrd_lines(kspace, sample_time_us=10.0) + mrd_lines(3 * kspace, average=1, sample_time_us=10.0)
    raw = read_raw(write(lines, bandwidth=0.8))
    assert np.allclose(raw.kspace, 2 * kspace, rtol=1e-6)
    assert np.allclose(raw.noise, noise * np.sqrt(5 / 10 / 0.8 / 2), rtol=1e-5)


def test_uneven_averages_are_said_aloud(write, kspace):
    lines = [*mrd_lines(kspace), mrd_line(kspace[0, :, :, 12], 12, average=1)]
    with pytest.warns(ScanWarning, match="lines averaged 1 to 2 times"):
        assert np.allclose(read_raw(write(lines)).kspace, kspace, rtol=1e-6)


def test_repetitions_are_more_slices_or_averaged(write, kspace):
    noise = random((3, 64))
    lines = [mrd_line(noise, flags=["IS_NOISE_MEASUREMENT"])]
    path = write([*lines, *mrd_lines(3 * kspace, repetition=1), *mrd_lines(kspace)])
    separate = read_raw(path)
    assert np.array_equal(separate.kspace, np.concatenate([kspace, 3 * kspace]))
    assert np.array_equal(separate.noise, noise)
    average = read_raw(path, repetitions="average")
    assert np.allclose(average.kspace, 2 * kspace, rtol=1e-6)
    assert np.allclose(average.noise, noise / np.sqrt(2), rtol=1e-6)


def test_repetitions_of_other_lines_are_refused_unless_averaged(write, kspace):
    path = write(mrd_lines(kspace, range(0, 24, 2)) + mrd_lines(kspace, range(1, 24, 2), repetition=1))
    with pytest.raises(InputError, match="slice 0, repetition 0 without 12 lines .*--repetitions average"):
        read_raw(path)
    assert np.array_equal(read_raw(path, repetitions="average").kspace, kspace)


def test_partial_fourier_and_padding_lie_outside_the_support(write, kspace):
    encoding = mrd_encoding((32, 28, 1), limits={1: (0, 17, 6)})  # lines 8 to 25 of 28, of which every other
    path = write(mrd_lines(kspace, range(0, 18, 2)), encoding)
    raw = read_raw(path)
    assert raw.kspace.shape[-1] == 28 and np.array_equal(raw.kspace[..., 8:26:2], kspace[..., 0:18:2])
    assert np.flatnonzero(raw.mask).tolist() == list(range(8, 26, 2))
    assert np.flatnonzero(raw.support).tolist() == list(range(8, 26))
    mask, shape = read_sampling(path)
    assert np.array_equal(mask, raw.mask) and shape == (32, 28)


def test_center_not_stated_is_the_middle_and_a_tight_matrix_grows(write, kspace):
    assert np.array_equal(read_raw(write(mrd_lines(kspace), mrd_encoding((32, 24, 1)))).kspace, kspace)
    assert np.array_equal(read_raw(write(mrd_lines(kspace, center=0))).kspace, kspace)
    raw = read_raw(write(mrd_lines(kspace), mrd_encoding((32, 20, 1), limits={1: (0, 23, 12)})))
    assert np.array_equal(raw.kspace, kspace)
    assert raw.geometry.voxel_mm == (8.0, 8.0, 5.0) and header_space(raw.header, "encodedSpace")[0][:2] == SHAPE


def test_asymmetric_echo_and_discarded_samples_are_out_of_the_mask(write, kspace):
    part = kspace[:, :, 10:]  # k = 0, at 16, is sample 6; two more on each side are to be discarded
    raw = read_raw(write(mrd_lines(part, center=6, discard_pre=2, discard_post=1)))
    assert raw.mask.shape == SHAPE
    assert np.array_equal(raw.mask.all(axis=1), raw.mask.any(axis=1))
    assert np.flatnonzero(raw.mask[:, 0]).tolist() == list(range(12, 31))
    assert np.array_equal(raw.kspace[:, :, 12:31], kspace[:, :, 12:31]) and not raw.kspace[:, :, :12].any()


def test_separate_calibration_becomes_the_reference(write, kspace):
    other = mrd_encoding((32, 12, 1), limits={1: (0, 11, 6)}, fov=(256.0, 192.0, 5.0))
    lines = mrd_lines(kspace, range(0, 24, 2))
    lines += mrd_lines(5 * kspace[..., 6:18], encoding_space_ref=1, flags=["IS_PARALLEL_CALIBRATION"])
    raw = read_raw(write(lines, ENCODING, other))
    assert np.array_equal(raw.kspace[..., ::2], kspace[..., ::2]) and not raw.kspace[..., 1::2].any()
    assert np.array_equal(raw.reference, 5 * kspace[..., 6:18])
    assert raw.header.count("<encodedSpace>") == 1
    lines += mrd_lines(kspace, range(0, 24, 2), repetition=1)
    repeated = read_raw(write(lines, ENCODING, other))  # one reference serves all repetitions
    assert np.array_equal(repeated.reference, np.concatenate([raw.reference, raw.reference]))


def test_embedded_calibration_completes_kspace_and_is_the_reference_too(write, kspace):
    both, alone = ["IS_PARALLEL_CALIBRATION_AND_IMAGING"], ["IS_PARALLEL_CALIBRATION"]
    lines = mrd_lines(kspace, [*range(0, 10, 2), *range(16, 24, 2)]) + mrd_lines(kspace, (10, 12, 14), flags=both)
    lines += mrd_lines(kspace, (11, 13), flags=alone)
    encoding = mrd_encoding((32, 24, 1), limits={1: (0, 23, 12)}, calibration="embedded")
    raw = read_raw(write(lines, encoding))
    assert np.flatnonzero(raw.mask).tolist() == sorted({*range(0, 24, 2), 11, 13})
    assert np.array_equal(raw.kspace[..., raw.mask], kspace[..., raw.mask])
    assert np.array_equal(raw.reference, kspace[..., 10:15])
    separate = read_raw(write(lines, mrd_encoding((32, 24, 1), limits={1: (0, 23, 12)}, calibration="separate")))
    assert np.flatnonzero(separate.mask).tolist() == list(range(0, 24, 2))


def test_reference_of_another_field_of_view_is_left_out_aloud(write, kspace):
    other = mrd_encoding((32, 12, 1), limits={1: (0, 11, 6)}, fov=(300.0, 192.0, 5.0))
    lines = mrd_lines(kspace)
    lines += mrd_lines(kspace[..., 6:18], encoding_space_ref=1, flags=["IS_PARALLEL_CALIBRATION"])
    with pytest.warns(ScanWarning, match="calibration lines left out"):
        assert read_raw(write(lines, ENCODING, other)).reference is None


def test_what_is_no_imaging_is_left_out(write, kspace):
    lines = mrd_lines(kspace)
    for flag in ("IS_NAVIGATION_DATA", "IS_PHASECORR_DATA", "IS_DUMMYSCAN_DATA", "IS_PHASE_STABILIZATION"):
        lines.append(mrd_line(random((3, 8)), 3, flags=[flag]))
    lines.append(mrd_line(random((1, 8)), flags=["IS_NOISE_MEASUREMENT"]))
    with pytest.warns(ScanWarning, match="noise scan has other coils"):
        raw = read_raw(write(lines))
    assert np.array_equal(raw.kspace, kspace) and raw.noise is None


def test_encoding_is_found_by_what_it_holds_or_asked_for(write, kspace):
    spiral = mrd_encoding((64, 64, 1), trajectory="spiral")
    lines = [*mrd_lines(random((1, 3, 64, 4)), encoding_space_ref=0), *mrd_lines(kspace, encoding_space_ref=1)]
    path = write(lines, spiral, ENCODING)
    assert np.array_equal(read_raw(path).kspace, kspace)
    with pytest.raises(InputError, match="trajectory of the kind spiral"):
        read_raw(path, encoding=0)

    path = write([*mrd_lines(kspace), *mrd_lines(2 * kspace, encoding_space_ref=1)], ENCODING, ENCODING)
    message = r"encodings 0 \(48 lines, cartesian, matrix 32 x 24 x 1\), 1 \(.*chosen with --encoding 0 or --encoding 1"
    with pytest.raises(InputError, match=message):
        read_raw(path)
    assert np.array_equal(read_raw(path, encoding=1).kspace, 2 * kspace)
    with pytest.raises(InputError, match="no imaging lines in encoding 2"):
        read_raw(path, encoding=2)


@pytest.mark.parametrize("whole", ["z", "y", "x"])
def test_3d_scan_is_cut_along_its_whole_axis(write, whole):
    volume = random((2, 12, 10, 8))  # coils, x, y, z
    sampled = np.ones((10, 8), bool)
    if whole == "z":
        sampled[1::2] = False
    elif whole == "y":
        sampled[:, 1::2] = False
    else:
        sampled = np.random.default_rng(1).uniform(size=(10, 8)) < 0.5
    encoding = mrd_encoding((12, 10, 8), fov=(120.0, 110.0, 96.0), limits={1: (0, 9, 5), 2: (0, 7, 4)})
    path = write(volume_lines(volume, sampled), encoding)
    raw = read_raw(path)
    volume = volume * sampled
    order = {"z": (3, 0, 1, 2), "y": (2, 0, 1, 3), "x": (1, 0, 2, 3)}[whole]
    expected = inverse(volume, order[0]).transpose(order)
    assert np.allclose(raw.kspace, expected, atol=1e-6)
    mask = {"z": sampled[:, 0], "y": sampled[0], "x": sampled}[whole]
    assert np.array_equal(raw.mask, mask)
    assert raw.geometry.voxel_mm == {"z": (10, 11, 12), "y": (10, 12, 11), "x": (11, 12, 10)}[whole]
    matrix, lengths = header_space(raw.header, "encodedSpace")
    assert matrix[:2] == expected.shape[-2:] and np.allclose(np.divide(lengths, matrix), raw.geometry.voxel_mm)
    assert header_space(raw.header, "reconSpace")[0][:2] == expected.shape[-2:]
    stated, shape = read_sampling(path)
    assert np.array_equal(stated, mask) and shape == expected.shape[-2:]


def test_slices_outside_the_image_and_padded_partitions_are_left_out(write):
    volume = random((2, 12, 10, 8))
    encoding = mrd_encoding(
        (12, 10, 12),  # 8 partitions of 12 measured
        fov=(120.0, 110.0, 96.0),
        asked=(6, 10, 6),
        asked_fov=(60.0, 110.0, 48.0),
        limits={1: (0, 9, 5), 2: (0, 7, 4)},
    )
    raw = read_raw(write(volume_lines(volume, np.ones((10, 8), bool)), encoding))
    assert np.allclose(raw.kspace, inverse(volume, 3).transpose(3, 0, 1, 2)[2:6], atol=1e-6)
    assert raw.geometry.voxel_mm == (10, 11, 12)
    assert header_space(raw.header, "reconSpace")[0][:2] == (6, 10)

    sampled = np.random.default_rng(1).uniform(size=(10, 8)) < 0.5
    planes = read_raw(write(volume_lines(volume, sampled), encoding))
    assert planes.kspace.shape == (6, 2, 10, 12)  # of 12 readout positions; phase encoding is never cropped
    assert header_space(planes.header, "reconSpace")[0][:2] == (10, 12)


def test_reference_of_a_3d_scan_is_cut_alike(write):
    volume = random((2, 12, 10, 8))
    sampled = np.random.default_rng(1).uniform(size=(10, 8)) < 0.5
    limits = {1: (0, 9, 5), 2: (0, 7, 4)}
    encoding = mrd_encoding((12, 10, 8), limits=limits)
    other = mrd_encoding((8, 4, 4), limits={1: (0, 3, 2), 2: (0, 3, 2)})
    center = volume[:, 2:10, 3:7, 2:6]
    lines = volume_lines(volume, sampled)
    calibration = {"encoding_space_ref": 1, "flags": ["IS_PARALLEL_CALIBRATION"]}
    lines += volume_lines(center, np.ones((4, 4), bool), **calibration)
    padded = np.zeros((2, 12, 4, 4), complex)
    padded[:, 2:10] = center
    raw = read_raw(write(lines, encoding, other))
    assert np.allclose(raw.reference, inverse(padded, 1).transpose(1, 0, 2, 3), atol=1e-6)


def test_3d_scan_without_a_whole_axis_is_refused(write):
    sampled = np.random.default_rng(1).uniform(size=(10, 8)) < 0.5
    encoding = mrd_encoding((12, 10, 8), limits={1: (0, 9, 5), 2: (0, 7, 4)})
    path = write(volume_lines(random((2, 8, 10, 8)), sampled, center=2), encoding)
    with pytest.raises(InputError, match="no axis whole; expected a 3-D scan that is fully sampled along one axis"):
        read_raw(path)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"flags": ["IS_REVERSE"]}, "EPI"),
        ({"contrast": 1}, "2 echoes"),
        ({"set": 1}, "2 sets"),
        ({"phase": 1}, "2 cardiac phases"),
        ({"center": 3}, "readouts of several kinds"),
    ],
)
def test_what_is_no_single_cartesian_image_is_refused(write, kspace, fields, found):
    with pytest.raises(InputError, match=f"scan.mrd: found .*{found}"):
        read_raw(write(mrd_lines(kspace) + mrd_lines(kspace, **fields)))


@pytest.mark.parametrize("trajectory", ["epi", "radial", "spiral"])
def test_other_trajectories_are_refused(write, kspace, trajectory):
    path = write(mrd_lines(kspace), mrd_encoding((32, 24, 1), trajectory=trajectory))
    with pytest.raises(InputError, match=f"found a trajectory of the kind {trajectory}; expected cartesian"):
        read_raw(path)


def test_group_with_imaging_lines_is_found_and_several_are_refused(write, tmp_path, kspace):
    path = write([mrd_line(random((3, 8)), flags=["IS_NOISE_MEASUREMENT"])])
    with pytest.raises(InputError, match="scan.mrd: found no imaging lines"):
        read_raw(path)
    write_mrd(path, mrd_header(ENCODING), mrd_lines(kspace), group="dataset_2")
    assert np.array_equal(read_raw(path).kspace, kspace)
    write_mrd(path, mrd_header(ENCODING), mrd_lines(kspace), group="dataset_3")
    with pytest.raises(InputError, match="imaging lines in the groups dataset_2, dataset_3"):
        read_raw(path)


def test_foreign_truncated_and_damaged_files_are_refused(write, kspace, tmp_path):
    path = write(mrd_lines(kspace))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="scan.mrd: found a truncated"):
        read_raw(path)
    path.write_bytes(b"yardl")
    with pytest.raises(InputError, match="scan.mrd: found a truncated or non-HDF5 file"):
        read_raw(path)
    path = write(mrd_lines(kspace))
    with h5py.File(path, "r+") as file:
        row = file["dataset/data"][5]
        row["data"] = row["data"][:-2]
        file["dataset/data"][5] = row
    with pytest.raises(InputError, match="found 190 numbers in acquisition 5; expected 3 coils of 32"):
        read_raw(path)
    path = write(mrd_lines(kspace))
    with h5py.File(path, "r+") as file:
        file["dataset/xml"][0] = "<ismrmrdHeader xmlns='http://www.ismrm.org/ISMRMRD'></ismrmrdHeader>"
    with pytest.raises(InputError, match="found a header outside the ISMRMRD schema"):
        read_raw(path)


def test_noise_scan_and_oversampling_reach_the_prepared_scan(write, make_kspace):
    kspace = make_kspace((64, 32), coils=3, noise_std=0.05)
    noise = 0.1 * random((3, 4096))  # twice as loud, at four times the bandwidth
    lines = [mrd_line(noise, flags=["IS_NOISE_MEASUREMENT"], sample_time_us=2.5)]
    lines += mrd_lines(kspace, range(0, 32, 2), sample_time_us=10.0) + mrd_lines(kspace, (15, 17), sample_time_us=10.0)
    encoding = mrd_encoding(
        (64, 32, 1), fov=(512.0, 256.0, 5.0), asked=(32, 32, 1), asked_fov=(256.0, 256.0, 5.0), limits={1: (0, 31, 16)}
    )
    volume = prepare_volume(read_raw(write(lines, encoding)), PrepareSettings(raw=[], out=""))
    assert volume.kspace.shape == (1, 3, 32, 32)
    assert np.flatnonzero(volume.mask).tolist() == sorted({*range(0, 32, 2), 15, 17})
    assert volume.noise_std / volume.scale == pytest.approx(0.05, rel=0.03)
    assert "Doe" not in repr(volume) and "P-17" not in repr(volume)
