"""`export` writes what other programs read: the same values at the same places in the patient, and nothing invented."""

import warnings

import matplotlib.image
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import MRImageStorage, SecondaryCaptureImageStorage
from scipy.spatial.transform import Rotation

from mrigsure.cli import main
from mrigsure.errors import InputError, ScanWarning
from mrigsure.geometry import Geometry
from mrigsure.settings import ExportSettings
from recon.export import export
from recon.reconstruction import Reconstruction, write_reconstruction
from recon.sheet import letter

SHAPE = (3, 10, 7)
VOXEL = (1.25, 2.0, 4.0)
MARKER = (2, 6, 1)
ALONG = (0.0, 5.0, 10.0)  # mm: 4 mm slices, gaps of 1 mm
PATIENT = "ab" * 32
TO_RAS = np.array([-1, -1, 1])


def oblique(along=ALONG, shift=(0.0, 0.0, 0.0)):
    """Parallel slices; `shift` staggers each against the one before."""
    axes = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
    number = np.arange(len(along))[:, None]
    positions = [12.0, -30.0, 7.5] + np.asarray(along)[:, None] * axes[2] + number * np.asarray(shift)
    return Geometry(VOXEL, positions, np.repeat(axes[None], len(along), 0))


def images(slices=SHAPE[0], scale=3e-6):
    rng = np.random.default_rng(0)
    shape = (slices, *SHAPE[1:])
    image = scale * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    image[MARKER[0] % slices, MARKER[1], MARKER[2]] = 20 * scale
    return image.astype(np.complex64)


@pytest.fixture
def written(tmp_path):
    """Write a reconstruction's file."""

    def write(geometry, name="scan", slices=SHAPE[0], std=True, patient=PATIENT):
        image = images(slices)
        deviation = np.abs(image) / 10 if std else None
        record = {"method": "posterior", "prior": "shipped", "samples": 4, "scan_sha256": "0" * 64}
        record |= {"patient_hash": patient}
        path = tmp_path / f"{name}.h5"
        write_reconstruction(path, Reconstruction(image, deviation, None, record, geometry))
        return path

    return write


def exported(path, out, *formats, image=("magnitude",)):
    return export(ExportSettings([str(path)], str(out), formats, image))


def series(folder):
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def values(data):
    return data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)


def place(data, row, column):
    """DICOM PS3.3 C.7.6.2.1.1, mm, LPS."""
    along_row, along_column = np.reshape(data.ImageOrientationPatient, (2, 3)).astype(float)
    down, right = map(float, data.PixelSpacing)
    return np.array(data.ImagePositionPatient, float) + right * column * along_row + down * row * along_column


def center_out(geometry, number, row, column):
    """The definition in mrigsure/geometry.py, mm, LPS."""
    steps = (row - SHAPE[1] // 2) * VOXEL[0], (column - SHAPE[2] // 2) * VOXEL[1]
    rows, columns, _ = geometry.directions[number]
    return geometry.positions[number] + steps[0] * rows + steps[1] * columns


@pytest.mark.parametrize("along", [ALONG, (10.0, 5.0, 0.0), (0.0, 10.0, 5.0), (5.0, 0.0, 10.0)])
def test_the_marker_lies_at_one_place_in_the_patient_in_both_formats(written, tmp_path, along):
    geometry = oblique(along)
    nifti, dicom = exported(written(geometry), tmp_path / "out", "nifti", "dicom")
    image = nibabel.load(nifti)
    brightest = np.unravel_index(np.argmax(image.get_fdata()), image.shape)
    expected = center_out(geometry, *MARKER)
    assert np.allclose(image.affine @ [*brightest, 1], [*(TO_RAS * expected), 1], atol=1e-4)
    assert image.header["sform_code"] == image.header["qform_code"] == 1
    assert np.allclose(image.header.get_qform(), image.affine, atol=1e-4)
    assert np.allclose(image.header.get_zooms(), [VOXEL[1], VOXEL[0], 5.0]) and image.header.get_xyzt_units()[0] == "mm"
    data = series(dicom)[MARKER[0]]
    assert np.unravel_index(np.argmax(data.pixel_array), SHAPE[1:]) == MARKER[1:]
    assert np.allclose(place(data, *MARKER[1:]), expected, atol=1e-4)
    assert float(data.SliceThickness) == 4.0


def test_staggered_slices_are_placed_by_the_affine_alone(written, tmp_path):
    geometry = oblique(shift=(3.0, 0.0, 0.0))
    (nifti,) = exported(written(geometry), tmp_path / "out", "nifti")
    image = nibabel.load(nifti)
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 0)
    expected = TO_RAS * center_out(geometry, *MARKER)
    assert np.allclose((image.affine @ [MARKER[2], MARKER[1], MARKER[0], 1])[:3], expected, atol=1e-4)


def test_repetitions_are_a_fourth_axis_and_temporal_positions(written, tmp_path):
    geometry = oblique((0.0, 5.0, 5.0, 0.0))
    nifti, dicom = exported(written(geometry, slices=4), tmp_path / "out", "nifti", "dicom")
    data = nibabel.load(nifti).get_fdata()
    magnitude = np.abs(images(4)).transpose(2, 1, 0)
    assert data.shape == (7, 10, 2, 2)
    assert np.allclose(data[..., 0], magnitude[..., [0, 1]]) and np.allclose(data[..., 1], magnitude[..., [3, 2]])
    assert [file.TemporalPositionIdentifier for file in series(dicom)] == [1, 1, 2, 2]


def test_uneven_slices_are_refused_as_nifti_and_are_dicom(written, tmp_path):
    path = written(oblique((0.0, 5.0, 12.0)))
    with pytest.raises(InputError, match="slices that are not evenly spaced; expected .*DICOM"):
        exported(path, tmp_path / "out", "nifti")
    (dicom,) = exported(path, tmp_path / "out", "dicom")
    assert np.allclose(place(series(dicom)[2], *MARKER[1:]), center_out(oblique((0.0, 5.0, 12.0)), *MARKER), atol=1e-4)


@pytest.mark.parametrize("kind", ["magnitude", "phase", "std"])
def test_values_are_those_of_the_reconstruction(written, tmp_path, kind):
    image = images()
    expected = {"magnitude": np.abs(image), "phase": np.angle(image), "std": np.abs(image) / 10}[kind]
    nifti, dicom = exported(written(oblique()), tmp_path / "out", "nifti", "dicom", image=(kind,))
    stored = nibabel.load(nifti)
    assert stored.get_data_dtype() == np.float32
    assert np.array_equal(stored.get_fdata().astype(np.float32), expected.astype(np.float32).transpose(2, 1, 0))
    files = series(dicom)
    step = float(files[0].RescaleSlope)
    for data, plane in zip(files, expected, strict=True):
        assert np.abs(values(data) - plane).max() <= 0.5001 * step
    assert step < np.ptp(expected) / 60000  # sixteen bits are used


def test_dicom_says_what_it_is_and_of_whom_only_the_hash(written, tmp_path):
    (dicom,) = exported(written(oblique()), tmp_path / "out", "dicom")
    files = series(dicom)
    for number, data in enumerate(files):
        assert data.file_meta.MediaStorageSOPClassUID == data.SOPClassUID == MRImageStorage
        assert list(data.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        assert "NOT FOR DIAGNOSIS" in data.ImageComments and "NOT FOR DIAGNOSIS" in data.SeriesDescription
        assert data.BurnedInAnnotation == "NO" and data.PatientName == data.PatientID == PATIENT
        assert (data.BitsAllocated, data.PixelRepresentation, data.InstanceNumber) == (16, 0, number + 1)
        assert (data.StudyDate, data.PatientBirthDate, str(data.ReferringPhysicianName)) == ("", "", "")
    assert len({data.SOPInstanceUID for data in files}) == len(files)
    for key in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "RescaleSlope"):
        assert len({data[key].value for data in files}) == 1


@pytest.mark.parametrize("geometry", [oblique(), None])
@pytest.mark.filterwarnings("ignore:.*the source states")
def test_dicom_has_what_its_modules_demand(written, tmp_path, geometry):
    """Attributes of type 2, which may be empty and must be there: dciodvfy of dicom3tools finds no error with these."""
    (dicom,) = exported(written(geometry), tmp_path / "out", "dicom")
    data = series(dicom)[0]
    demanded = "PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber Laterality"
    demanded += " ReferringPhysicianName"
    if geometry is not None:
        demanded += " ScanOptions MRAcquisitionType RepetitionTime EchoTime EchoTrainLength PositionReferenceIndicator"
        demanded += " PatientPosition"
    assert [name for name in demanded.split() if name not in data] == []


def test_without_a_key_the_patient_is_anonymous(written, tmp_path):
    (dicom,) = exported(written(oblique(), patient=""), tmp_path / "out", "dicom")
    assert {str(data.PatientName) for data in series(dicom)} == {"ANONYMOUS"}


def test_reconstructions_of_a_scan_share_its_study_and_nothing_else(written, tmp_path):
    one, other = written(oblique()), written(oblique(), "other", std=False)
    folders = [
        *exported(one, tmp_path / "out", "dicom", image=("magnitude", "std")),
        *exported(other, tmp_path / "out", "dicom"),
    ]
    first = [series(folder)[0] for folder in folders]
    assert len({data.StudyInstanceUID for data in first}) == 1
    assert len({data.SeriesInstanceUID for data in first}) == len({data.SOPInstanceUID for data in first}) == 3


@pytest.mark.parametrize(
    ("geometry", "unknown"), [(None, "neither voxel sizes nor"), (Geometry(VOXEL), "no orientation")]
)
def test_what_the_source_does_not_state_is_said_and_not_invented(written, tmp_path, geometry, unknown):
    with pytest.warns(ScanWarning, match=unknown):
        nifti, dicom, _ = exported(written(geometry), tmp_path / "out", "nifti", "dicom", "png")
    header = nibabel.load(nifti).header
    assert header["sform_code"] == header["qform_code"] == 0
    data = series(dicom)[0]
    assert data.SOPClassUID == SecondaryCaptureImageStorage and data.ConversionType == "WSD"
    assert "ImagePositionPatient" not in data and unknown in data.ImageComments
    if geometry is None:
        assert header.get_xyzt_units()[0] == "unknown" and header.get_zooms() == (1, 1, 1)
        assert "PixelSpacing" not in data and "SliceThickness" not in data
    else:
        assert header.get_xyzt_units()[0] == "mm" and np.allclose(header.get_zooms(), [2.0, 1.25, 4.0])
        assert list(data.PixelSpacing) == [1.25, 2.0] and data.SliceThickness == 4.0


def test_again_gives_the_same_bytes(written, tmp_path):
    contents = []
    for out in ("a", "b", "a"):
        exported(written(oblique()), tmp_path / out, "nifti", "dicom", "png", image=("magnitude", "phase"))
        files = sorted(path for path in (tmp_path / out).rglob("*") if path.is_file())
        contents.append({str(path.relative_to(tmp_path / out)): path.read_bytes() for path in files})
    assert contents[0] == contents[1] == contents[2]
    assert len(contents[0]) == 2 * (1 + 3 + 1)


def test_a_series_replaces_the_one_before_and_no_other_files(written, tmp_path):
    (folder,) = exported(written(oblique()), tmp_path / "out", "dicom")
    (folder / "0007.dcm").write_bytes(b"of a longer series")
    exported(written(oblique()), tmp_path / "out", "dicom")
    assert sorted(path.name for path in folder.iterdir()) == ["0001.dcm", "0002.dcm", "0003.dcm"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="notes.txt"):
        exported(written(oblique()), tmp_path / "out", "dicom")
    assert (folder / "notes.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scan_magnitude"]


def longest_run(shown):
    """Of True along the last axis."""
    padded = np.pad(shown.astype(np.int8), ((0, 0), (1, 1)))
    changes = np.diff(padded, axis=1)
    return int((np.argwhere(changes < 0)[:, 1] - np.argwhere(changes > 0)[:, 1]).max())


def test_pixels_of_the_sheet_have_the_voxels_proportions(written, tmp_path):
    geometry = oblique(ALONG[:1])
    (sheet,) = exported(written(geometry, slices=1), tmp_path / "out", "png", image=("phase",))
    picture = matplotlib.image.imread(sheet)[..., :3]
    drawn = np.abs(picture - picture[0, 0]).max(axis=-1) > 0.08
    height, width = longest_run(drawn.T), longest_run(drawn)
    assert height > 100 and height / width == pytest.approx(10 * 1.25 / (7 * 2.0), rel=0.02)


def test_letters_name_the_patients_sides():
    sides = {"L": (0.9, 0.3, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0.2, -0.9, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
    assert {name: letter(np.array(side)) for name, side in sides.items()} == {name: name for name in sides}


def test_a_blank_image_is_exported(tmp_path):
    path = tmp_path / "blank.h5"
    write_reconstruction(path, Reconstruction(np.zeros((1, 8, 8), np.complex64), None, None, {"method": "cg-sense"}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScanWarning)
        _, dicom, _ = exported(path, tmp_path / "out", "nifti", "dicom", "png")
    assert not values(series(dicom)[0]).any()


def test_a_user_goes_from_a_prepared_scan_to_other_programs(tmp_path, make_scan, write_scan, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_scan(tmp_path / "scan.h5", make_scan((48, 40)), slices=2, scale=4.0, geometry=oblique((0.0, 5.0)))
    assert main(["reconstruct", "scan.h5", "--out", "recons", "--method", "zero-filled"]) == 0
    assert (
        main(["export", "recons", "--out", "out", "--format", "nifti", "dicom", "--image", "magnitude", "phase"]) == 0
    )
    said = capsys.readouterr()
    assert "not for diagnosis" in said.out + said.err and "warning" not in said.err
    assert np.allclose(nibabel.load("out/scan_magnitude.nii.gz").header.get_zooms(), [2.0, 1.25, 5.0])
    assert len(list((tmp_path / "out" / "scan_phase").glob("*.dcm"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("export scan.h5 --out out --format nifti", "no reconstruction_complex"),
        ("export scan.h5 --out out --format tiff", "tiff"),
        ("export scan.h5 --out out", "--format"),
        ("export plain.h5 --out out --format nifti --image std", "no std"),
        ("export plain.h5 other/plain.h5 --out out --format png", "the name of plain.h5 again"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_status_2(
    written, tmp_path, make_scan, write_scan, capsys, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    write_scan(tmp_path / "scan.h5", make_scan())
    path = written(oblique(), "plain", std=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "plain.h5").write_bytes(path.read_bytes())
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
