import json

import h5py
import numpy as np
import pytest
import scipy.io
from raw_formats import mrd_encoding, mrd_header, mrd_line, mrd_lines, write_mrd

from data_prep.inspect import describe_sampling, inspect
from data_prep.prepare import prepare
from mrigsure.errors import InputError
from mrigsure.fastmri_files import make_header, write_fastmri
from mrigsure.masks import make_mask
from mrigsure.settings import InspectSettings, PrepareSettings


@pytest.fixture
def report(capsys):
    def report(path, **options):
        inspect(InspectSettings(str(path), **options))
        return capsys.readouterr().out

    return report


@pytest.fixture
def raw(tmp_path, make_kspace):
    path = tmp_path / "scan.h5"
    mask = make_mask("equispaced", (64, 56), 3, 0.2, seed=0)
    attributes = {"patient_id": "Doe", "acquisition": "FLAIR"}
    write_fastmri(path, make_kspace(slices=2) * mask, mask=mask, header=make_header((64, 56), (2.0, 2.0, 4.0)),
                  attributes=attributes)  # fmt: skip
    return path


def test_raw_file_shows_its_sampling_noise_and_header_and_no_patient(raw, report):
    text = report(raw)
    for fact in (
        "complex64 (2, 4, 64, 56)",
        "FLAIR",
        "evenly spaced",
        "calibration region",
        "matrix 64 x 56 x 1",
        "per real part",
        "SNR",
    ):
        assert fact in text
    assert "Doe" not in text and "patient" not in text


@pytest.mark.parametrize("name", ["scan.h5", "scan.mrd"])
def test_ismrmrd_file_shows_noise_and_reference_scans_and_no_patient(tmp_path, make_kspace, report, name):
    kspace = make_kspace((32, 24))
    lines = mrd_lines(kspace) + mrd_lines(kspace, range(8, 16), flags=["IS_PARALLEL_CALIBRATION"])
    lines.append(mrd_line(0.1 * kspace[0, :, :, 0], flags=["IS_NOISE_MEASUREMENT"]))
    encoding = mrd_encoding((32, 24, 1), limits={1: (0, 23, 12)})
    path = write_mrd(tmp_path / name, mrd_header(encoding, encoding), lines)
    text = report(path)
    for fact in (
        "ISMRMRD",
        "complex64 (1, 4, 32, 24)",
        "complex64 (1, 4, 32, 8)",
        "complex64 (4, 32)",
        "fully sampled",
    ):
        assert fact in text
    assert "flash" in text and "Doe" not in text and "P-17" not in text
    write_mrd(path, mrd_header(encoding, encoding), mrd_lines(kspace, encoding_space_ref=1))
    with pytest.raises(InputError, match="--encoding 0 or --encoding 1"):
        report(path)
    assert "ISMRMRD" in report(path, encoding=1)


def test_npz_and_mat_are_recognised(tmp_path, make_kspace, report):
    np.savez(tmp_path / "scan.npz", kspace=make_kspace())
    scipy.io.savemat(tmp_path / "scan.mat", {"kspace": make_kspace()[0].transpose(1, 2, 0)})
    assert "raw k-space (NumPy)" in report(tmp_path / "scan.npz")
    assert "raw k-space (MATLAB)" in report(tmp_path / "scan.mat")


def test_prepared_scan_shows_scale_noise_and_schema(raw, tmp_path, report):
    (output,) = prepare(PrepareSettings(raw=[str(raw)], out=str(tmp_path / "out")))
    text = report(output)
    for fact in ("prepared scan", "noise", "scale x raw", "schema_version", "parameters", "scan.h5  sha256"):
        assert fact in text


def test_reconstruction_prior_mask_and_npy_are_recognised(tmp_path, make_kspace, report):
    with h5py.File(tmp_path / "recon.h5", "w") as file:
        file["reconstruction"] = np.ones((2, 8, 8), np.float32)
        file.attrs["method"], file.attrs["patient_name"] = "cg-sense", "Doe"
    text = report(tmp_path / "recon.h5")
    assert "reconstruction" in text and "cg-sense" in text and "Doe" not in text
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "config.json").write_text(json.dumps({"sigma_max": 20.0}))
    (tmp_path / "prior" / "training.json").write_text(json.dumps({"scans": 100}))
    text = report(tmp_path / "prior")
    assert "sigma_max" in text and "scans" in text
    np.save(tmp_path / "mask.npy", np.arange(56) % 2 == 0)
    assert "evenly spaced, one in 2" in report(tmp_path / "mask.npy")
    np.save(tmp_path / "scan.npy", make_kspace())
    assert "fully sampled" in report(tmp_path / "scan.npy")


@pytest.mark.parametrize(
    ("pattern", "guess"),
    [
        ("full", "fully sampled"),
        ("random", "irregular distances"),
        ("equispaced", "evenly spaced"),
        ("poisson", "points along both axes"),
    ],
)
def test_pattern_is_guessed(pattern, guess):
    mask = make_mask(pattern, (96, 96), 4, 0.1, seed=1)
    assert guess in dict(describe_sampling(mask, (96, 96)))["sampling"]


def test_partial_fourier_is_guessed():
    mask = make_mask("full", (96, 96), 1, 0.1, seed=0, partial_fourier=0.75)
    assert "partial Fourier" in dict(describe_sampling(mask, (96, 96)))["sampling"]


def test_unknown_things_are_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.ones(3)
    for path, found in (
        (tmp_path / "notes.txt", "suffix '.txt'"),
        (tmp_path / "none.h5", "no such file"),
        (tmp_path / "other.h5", "datasets data"),
        (tmp_path, "a folder without config.json"),
    ):
        with pytest.raises(InputError, match=f"found {found}"):
            inspect(InspectSettings(str(path)))
