"""`evaluate` matches truth by name, works in raw units, and says what is missing."""

import json

import h5py
import numpy as np
import pytest

from mrigsure.errors import InputError
from mrigsure.files import sha256
from mrigsure.settings import EvaluateSettings
from recon.evaluate import evaluate
from recon.metrics import psnr
from recon.reconstruction import Reconstruction, write_reconstruction


@pytest.fixture
def case(tmp_path, make_scan, write_scan):
    """A prepared file of two slices with its target, at scale 4, and a function that writes a reconstruction."""
    scan = make_scan()
    truth = write_scan(tmp_path / "truth" / "scan.h5", scan, slices=2, scale=4.0, target=True)
    target = np.stack([scan.target.numpy(), 1.1 * scan.target.numpy()]) / np.float32(4)

    def write(image, std=None, method="cg-sense", ends=(None, None), **record):
        path = tmp_path / method / "scan.h5"
        record = {"method": method, "scan_sha256": sha256(truth), "samples": 4} | record
        write_reconstruction(path, Reconstruction(image.astype(np.complex64), std, None, record, None, *ends))
        return path

    return target, write, truth


def test_figures_are_those_of_the_magnitudes_in_raw_units(case, tmp_path):
    target, write, truth = case
    noisy = target + np.random.default_rng(0).normal(scale=0.01, size=target.shape)
    report = evaluate(EvaluateSettings([str(write(noisy))], str(truth.parent), str(tmp_path / "out.json")))
    expected = [psnr(np.abs(image), np.abs(clean)) for image, clean in zip(noisy, target, strict=True)]
    (row,) = report["files"]
    assert [figures["psnr"] for figures in row["slices"]] == pytest.approx(expected, rel=1e-4)
    assert row["psnr"] == pytest.approx(np.mean(expected), rel=1e-4)
    (summary,) = report["summary"]
    assert summary["psnr"]["std"] == pytest.approx(np.std(expected, ddof=1), rel=1e-3)
    assert json.loads((tmp_path / "out.json").read_text()) == report


def test_a_perfect_reconstruction_gives_valid_json(case, tmp_path, capsys):
    target, write, truth = case
    out = tmp_path / "out.json"
    evaluate(EvaluateSettings([str(write(target))], str(truth), str(out)))
    (row,) = json.loads(out.read_text(), parse_constant=pytest.fail)["files"]
    assert row["psnr"] is None
    assert row["ssim"] == pytest.approx(1)
    assert row["nmse"] == pytest.approx(0, abs=1e-12)
    assert "inf" in capsys.readouterr().out


def test_uncertainty_is_judged_on_complex_values_only_against_the_scans_own_target(case):
    target, write, truth = case
    rotated = target * np.exp(0.5j)  # another phase convention: no error of the magnitude
    std = np.full(target.shape, 0.01, np.float32)
    for scan, kind in ((sha256(truth), "complex"), ("another", "magnitude")):
        path = write(rotated, std, "posterior", scan_sha256=scan)
        figures = evaluate(EvaluateSettings([str(path)], str(truth)))["files"][0]["slices"][0]
        assert figures["z2_of"] == kind
        assert (figures["z2"] > 10) == (kind == "complex")


@pytest.mark.parametrize(("record", "scatter"), [({"scatter": 0.02}, 0.02), ({}, 1 / 4)])
def test_z_squared_knows_how_much_the_mean_scatters(case, record, scatter):
    """From the file; files of before there were pairs had independent draws."""
    target, write, truth = case
    std = np.full(target.shape, 0.01, np.float32)
    path = write(target + 0.01, std, "posterior", **record)
    figures = evaluate(EvaluateSettings([str(path)], str(truth)))["files"][0]["slices"][0]
    assert figures["z2"] == pytest.approx(1 / (1 + scatter), rel=1e-3)


def test_coverage_is_that_of_the_body_and_a_broken_scorecard_is_said(case, capsys):
    target, write, truth = case
    clean = np.abs(target)
    upper = np.where(np.arange(clean.shape[-1]) < clean.shape[-1] // 2, 1.1, 0.9) * clean  # half of it does not reach
    card = json.dumps({"data_fit": {"value": 9.0, "least": 0.6, "most": 1.5, "holds": False}})
    path = write(target, 0.1 * clean, "posterior", ends=(0.5 * clean, upper), interval=0.9, scorecard=card)
    (row,) = evaluate(EvaluateSettings([str(path)], str(truth)))["files"]
    assert row["coverage"] == pytest.approx(0.5, abs=0.1)
    assert row["scorecard"]["data_fit"]["holds"] is False
    printed = capsys.readouterr().out
    assert f"{row['coverage']:.1%}" in printed and "90% intervals" in printed
    assert "speak against its uncertainty (data_fit)" in printed


def test_each_method_has_its_summary(case):
    target, write, truth = case
    paths = [str(write(0.9 * target)), str(write(0.8 * target, method="l1-wavelet"))]
    summary = evaluate(EvaluateSettings(paths, str(truth.parent)))["summary"]
    assert [entry["method"] for entry in summary] == ["cg-sense", "l1-wavelet"]
    assert summary[0]["psnr"]["mean"] > summary[1]["psnr"]["mean"]


def test_root_sum_of_squares_is_a_truth_in_raw_units(case, tmp_path):
    target, write, _ = case
    truth = tmp_path / "rss" / "scan.h5"
    truth.parent.mkdir()
    with h5py.File(truth, "w") as file:
        file["reconstruction_rss"] = np.abs(target)
    row = evaluate(EvaluateSettings([str(write(0.9 * target))], str(truth.parent)))["files"][0]
    assert row["nmse"] == pytest.approx(0.01, rel=1e-3)


def test_missing_truth_is_named(case, tmp_path):
    target, write, _ = case
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="the truth of scan.h5"):
        evaluate(EvaluateSettings([str(write(target))], str(tmp_path / "empty")))


def test_a_truth_of_another_shape_or_without_images_is_refused(case):
    target, write, truth = case
    with pytest.raises(InputError, match="the truth's shape"):
        evaluate(EvaluateSettings([str(write(target[:, 1:]))], str(truth)))
    with h5py.File(truth, "r+") as file:
        del file["target"], file["reconstruction_rss"]
    with pytest.raises(InputError, match="no target"):
        evaluate(EvaluateSettings([str(write(target))], str(truth)))


def test_a_prepared_scan_is_no_reconstruction(case):
    _, _, truth = case
    with pytest.raises(InputError, match="made by `mrigsure reconstruct`"):
        evaluate(EvaluateSettings([str(truth)], str(truth)))
