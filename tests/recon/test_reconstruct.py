"""`reconstruct` undoes the scale, repeats with its seed, resumes, and leaves nothing behind where it fails."""

import json

import h5py
import numpy as np
import pytest
import torch

from mrigsure.errors import InputError
from mrigsure.scan import ScanSet
from mrigsure.settings import ReconstructSettings
from recon.baselines import zero_filled
from recon.reconstruct import reconstruct, reconstruct_scans
from recon.reconstruction import read_reconstruction


@pytest.fixture(autouse=True)
def _shipped_prior_is_gaussian(monkeypatch, gaussian_prior):
    monkeypatch.setattr("recon.reconstruct.load_prior", lambda path, device: gaussian_prior)


@pytest.fixture
def scans(tmp_path, make_scan, write_scan):
    """Two prepared files of two slices, in a folder."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    for index in range(2):
        write_scan(folder / f"scan{index}.h5", make_scan(seed=index), slices=2, scale=4.0, target=True)
    return folder


def _settings(scans, out, **changes):
    return ReconstructSettings([str(scans)], str(out), **{"samples": 3, "levels": 4, "batch": 4} | changes)


def test_zero_filled_is_the_adjoint_in_raw_units(scans, tmp_path):
    outputs = reconstruct(_settings(scans, tmp_path / "out", method="zero-filled"))
    with h5py.File(outputs[0]) as file:
        for index, scan in enumerate(ScanSet([scans / "scan0.h5"])):
            expected = (zero_filled(scan) / 4.0).numpy()
            np.testing.assert_allclose(file["reconstruction_complex"][index], expected, rtol=1e-6)
            np.testing.assert_allclose(file["reconstruction"][index], np.abs(expected), rtol=1e-6)
        assert file["reconstruction"].dtype == np.float32
        assert file.attrs["method"] == "zero-filled"


@pytest.mark.parametrize("method", ["posterior", "cg-sense", "l1-wavelet"])
def test_raw_data_a_thousand_times_brighter_gives_images_a_thousand_times_brighter(
    tmp_path, make_scan, write_scan, method
):
    images = []
    for scale in (1.0, 1e-3):  # prepare's scale falls as the raw data grow; the prepared scan stays the same
        path = write_scan(tmp_path / f"{scale}" / "scan.h5", make_scan(), scale=scale)
        (output,) = reconstruct(_settings(path, tmp_path / f"out{scale}", method=method))
        images.append(read_reconstruction(output))
    np.testing.assert_allclose(images[1].image, 1000 * images[0].image, rtol=1e-5)
    if method == "posterior":
        np.testing.assert_allclose(images[1].std, 1000 * images[0].std, rtol=1e-4)


def test_mean_and_spread_are_those_of_the_draws(scans, tmp_path):
    outputs = reconstruct(_settings(scans, tmp_path / "out", keep_samples=True))
    result = read_reconstruction(outputs[1])
    assert result.samples.shape == (2, 3, 48, 40)
    np.testing.assert_allclose(result.image, result.samples.mean(1), atol=1e-6)
    deviation = np.sqrt((np.abs(result.samples - result.samples.mean(1, keepdims=True)) ** 2).sum(1) / 2)
    np.testing.assert_allclose(result.std, deviation, rtol=1e-4)
    assert result.std.min() > 0
    record = result.record
    assert (record["prior"], record["prior_sha256"]) == ("gaussian", "0" * 64)
    assert (record["samples"], record["levels"]) == (3, 4)
    assert record["nfe"] == 8  # two network evaluations a level
    assert record["scan"] == "scan1.h5"


def test_the_posterior_of_a_gaussian_prior_is_the_regularised_solve(make_scan, gaussian_prior):
    scan = make_scan(noise_std=0.05)
    result = reconstruct_scans([scan], "posterior", gaussian_prior, samples=16, levels=16)
    batch = scan.batch()
    shift = torch.tensor([scan.noise_std**2 / 0.5**2])
    exact = batch.operator.solve(batch.operator.adjoint(batch.kspace), shift)[0].numpy()
    spread = result.std[0]
    error = np.abs(result.image[0] - exact) ** 2
    assert 0.7 < error.sum() / (spread**2 / 16).sum() < 1.4  # nothing but the Monte-Carlo error of 16 draws


def test_the_same_seed_gives_the_same_bytes(scans, tmp_path):
    contents = []
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        outputs = reconstruct(_settings(scans, tmp_path / out, seed=seed))
        contents.append([path.with_suffix(end).read_bytes() for path in outputs for end in (".h5", ".png")])
    assert contents[0] == contents[1]
    assert all(one != other for one, other in zip(contents[0], contents[2], strict=True))


def test_resuming_makes_only_what_is_missing_or_was_made_otherwise(scans, tmp_path):
    first, second = reconstruct(_settings(scans, tmp_path / "out"))
    whole = second.read_bytes()
    stamps = [first.stat().st_mtime_ns, second.stat().st_mtime_ns]
    second.unlink()
    reconstruct(_settings(scans, tmp_path / "out"))
    assert first.stat().st_mtime_ns == stamps[0]
    assert second.read_bytes() == whole
    reconstruct(_settings(scans, tmp_path / "out", levels=5))
    assert json.loads(read_reconstruction(first).record["parameters"])["levels"] == 5
    again = first.stat().st_mtime_ns
    reconstruct(_settings(scans, tmp_path / "out", levels=5, overwrite=True))
    assert first.stat().st_mtime_ns > again


def test_a_changed_scan_is_reconstructed_again(scans, tmp_path, make_scan, write_scan):
    output, _ = reconstruct(_settings(scans, tmp_path / "out", method="zero-filled"))
    before = output.read_bytes()
    write_scan(scans / "scan0.h5", make_scan(seed=9), slices=2)
    reconstruct(_settings(scans, tmp_path / "out", method="zero-filled"))
    assert output.read_bytes() != before


def test_lambda_and_its_choice_are_recorded(scans, tmp_path):
    output, _ = reconstruct(_settings(scans, tmp_path / "out", method="cg-sense"))
    record = read_reconstruction(output).record
    assert record["lambda_chosen_by"] == "held-out lines"
    search = json.loads(record["lambda_search"])
    assert search["grid"][0] < record["lambda"] < search["grid"][-1]
    assert len(search["scores"]) == len(search["grid"])


@pytest.mark.parametrize("damage", ["truncated", "nan", "not prepared"])
def test_a_bad_scan_is_named_and_leaves_nothing(tmp_path, make_scan, write_scan, damage):
    path = write_scan(tmp_path / "scan.h5", make_scan())
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    else:
        with h5py.File(path, "r+") as file:
            if damage == "nan":
                file["kspace"][0, 0, 0, 0] = np.nan
            else:
                del file["sens_maps"]
    with pytest.raises(InputError, match=r"scan\.h5"):
        reconstruct(_settings(path, tmp_path / "out"))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_the_scans_own_folder_is_refused(scans):
    before = (scans / "scan0.h5").read_bytes()
    with pytest.raises(InputError, match="another output folder"):
        reconstruct(_settings(scans, scans, overwrite=True))
    assert (scans / "scan0.h5").read_bytes() == before


def test_progress_ends_at_all(make_scan, gaussian_prior):
    shares = []
    reconstruct_scans(
        [make_scan()] * 3, "posterior", gaussian_prior, samples=2, levels=3, batch=4, progress=shares.append
    )
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_files_draw_different_random_numbers(make_scan, gaussian_prior):
    one, other = (
        reconstruct_scans([make_scan()], "posterior", gaussian_prior, samples=1, levels=3, name=name)
        for name in ("one", "other")
    )
    assert not np.array_equal(one.image, other.image)
    assert one.std is None  # a single draw has no spread
