"""The whole path on the command line: simulate -> prepare -> reconstruct -> evaluate, for every input format."""

import json

import h5py
import numpy as np
import pytest
import twixtools
from raw_formats import lines, measurement, write_cfl

from mrigsure.cli import main

SIMULATE = ["--matrix", "64", "--volumes", "1", "--slices", "1", "--coils", "4", "4", "--noise", "0.05", "0.05"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A fully sampled fastMRI file and the clean image behind it."""
    folder = tmp_path_factory.mktemp("simulated")
    options = [*SIMULATE, "--pattern", "full", "--truth", str(folder / "truth")]
    assert main(["simulate", str(folder / "raw"), *options]) == 0
    with h5py.File(folder / "raw" / "sim_00000.h5") as file:
        return file["kspace"][()], folder


def write(suffix, kspace, path):
    if suffix == ".npy":
        np.save(path.with_suffix(suffix), kspace)
    elif suffix == ".cfl":
        write_cfl(path, kspace.transpose(2, 3, 1, 0), (*kspace.shape[2:], 1, kspace.shape[1], *[1] * 9, 1, 1, 1))
    elif suffix == ".dat":
        twixtools.write_twix([measurement(lines(kspace))], str(path.with_suffix(suffix)))
    else:
        with h5py.File(path.with_suffix(suffix), "w") as file:
            file["kspace"] = kspace
    return str(path.with_suffix(suffix))


def reconstruct(raw, folder, *method):
    prepared, out = str(folder / "prepared"), str(folder / "out")
    options = ["--pattern", "random", "--acceleration", "3", "--center-fraction", "0.15", "--keep-target"]
    assert main(["prepare", raw, prepared, *options]) == 0
    assert main(["reconstruct", prepared, "--out", out, *method]) == 0
    assert main(["evaluate", out, "--truth", prepared, "--out", str(folder / "figures.json")]) == 0
    with h5py.File(folder / "out" / "sim_00000.h5") as file:
        return file["reconstruction"][()], json.loads((folder / "figures.json").read_text())


@pytest.mark.parametrize("suffix", [".h5", ".npy", ".cfl", ".dat"])
def test_every_format_gives_the_same_reconstruction_near_the_truth(simulated, tmp_path, suffix):
    kspace, folder = simulated
    raw = write(suffix, kspace, tmp_path / "sim_00000")
    image, figures = reconstruct(raw, tmp_path, "--method", "cg-sense")
    expected, _ = reconstruct(str(folder / "raw" / "sim_00000.h5"), tmp_path / "reference", "--method", "cg-sense")
    assert np.abs(image - expected).max() < 1e-3 * expected.max()
    with h5py.File(folder / "truth" / "sim_00000.h5") as file:
        truth = file["reconstruction_rss"][()]
    gain = (image * truth).sum() / (truth**2).sum()
    assert gain == pytest.approx(1, abs=0.2), "in raw units again; what is missing is shrinkage"
    assert np.linalg.norm(image - gain * truth) < 0.4 * np.linalg.norm(truth)
    assert figures


def test_the_shipped_prior_reconstructs_with_an_uncertainty(simulated, tmp_path):
    kspace, folder = simulated
    raw = str(folder / "raw" / "sim_00000.h5")
    image, _ = reconstruct(raw, tmp_path, "--samples", "2", "--nfe", "12")
    with h5py.File(tmp_path / "out" / "sim_00000.h5") as file:
        assert file["std"].shape == image.shape and (file["std"][()] > 0).all()
        assert len(file.attrs["prior_sha256"]) == 64
    assert (tmp_path / "out" / "sim_00000.png").stat().st_size > 1000


def test_inspect_and_sample_show_what_there_is(simulated, tmp_path, capsys):
    _, folder = simulated
    for path in (folder / "raw" / "sim_00000.h5", folder / "truth" / "sim_00000.h5"):
        assert main(["inspect", str(path)]) == 0
    assert "64 x 64" in capsys.readouterr().out
    options = ["--count", "1", "--matrix", "32", "--levels", "4", "--out", str(tmp_path / "drawn")]
    assert main(["sample", "shipped", *options]) == 0
    assert (tmp_path / "drawn.png").exists()
    assert main(["inspect", str(tmp_path / "drawn.h5")]) == 0
    assert "samples of a prior" in capsys.readouterr().out


def test_errors_are_one_line_with_status_2_and_leave_nothing(tmp_path, capsys):
    for command in (
        ["prepare", "missing.h5", "out"],
        ["train", "missing.h5", "--out", "out"],
        ["inspect", "missing.h5"],
    ):
        assert main([word if word != "out" else str(tmp_path / "out") for word in command]) == 2
        error = capsys.readouterr().err.strip()
        assert error.count("\n") == 0 and "missing.h5" in error and "found" in error and "expected" in error
    assert not list(tmp_path.rglob("*.h5"))
