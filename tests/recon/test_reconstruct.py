"""`reconstruct` undoes the scale, repeats with its seed, resumes, and leaves nothing behind where it fails."""

import json
import warnings
from dataclasses import replace
from typing import get_args, get_type_hints

import h5py
import numpy as np
import pytest
import torch

from mrigsure.cli import main
from mrigsure.errors import InputError, PartialFailure, ScanWarning
from mrigsure.scan import ScanSet
from mrigsure.seeds import complex_noise, generator
from mrigsure.settings import ReconstructSettings
from recon import posterior_volume
from recon.baselines import zero_filled
from recon.drawing import Drawing
from recon.reconstruct import reconstruct, reconstruct_scans
from recon.reconstruction import read_reconstruction
from recon.samplers import SAMPLERS
from recon.spread_scale import SAMPLES, SpreadScale, without_lines


@pytest.fixture(autouse=True)
def _shipped_prior_is_gaussian(monkeypatch, gaussian_prior):
    monkeypatch.setattr("recon.reconstruct.load_prior", lambda *which: gaussian_prior)


@pytest.fixture
def scans(tmp_path, make_scan, write_scan):
    """Two prepared files of two slices, in a folder."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    for index in range(2):
        write_scan(folder / f"scan{index}.h5", make_scan(seed=index), slices=2, scale=4.0, target=True)
    return folder


def _settings(scans, out, **changes):
    return ReconstructSettings([str(scans)], str(out), **{"samples": 3, "nfe": 8, "batch": 4} | changes)


def test_zero_filled_is_the_adjoint_in_raw_units(scans, tmp_path):
    outputs = reconstruct(_settings(scans, tmp_path / "out", method="zero-filled"))
    with h5py.File(outputs[0]) as file:
        for index, scan in enumerate(ScanSet([scans / "scan0.h5"])):
            expected = (zero_filled(scan) / 4.0).numpy()
            np.testing.assert_allclose(file["reconstruction_complex"][index], expected, rtol=1e-6)
            np.testing.assert_allclose(file["reconstruction"][index], np.abs(expected), rtol=1e-6)
        assert file["reconstruction"].dtype == np.float32
        assert file.attrs["method"] == "zero-filled"


@pytest.mark.parametrize("method", ["posterior", "cg-sense", "l1-wavelet", "tv"])
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


def test_mean_and_spread_are_those_of_the_draws(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(posterior_volume, "spread_scale", lambda held_out: SpreadScale(1.3, 0.1))
    outputs = reconstruct(_settings(scans, tmp_path / "out", keep_samples=True))
    result = read_reconstruction(outputs[1])
    assert result.samples.shape == (2, 3, 48, 40)
    np.testing.assert_allclose(result.image, result.samples.mean(1), atol=1e-6)
    deviation = np.sqrt((np.abs(result.samples - result.samples.mean(1, keepdims=True)) ** 2).sum(1) / 2)
    record = result.record
    assert (record["spread_scale"], record["spread_scale_error"]) == (1.3, 0.1)
    np.testing.assert_allclose(result.std, 1.3 * deviation, rtol=1e-4)
    assert result.std.min() > 0
    assert (record["prior"], record["prior_sha256"]) == ("gaussian", "0" * 64)
    assert (record["samples"], record["nfe"], record["sampler"]) == (3, 8, "default")
    assert record["scan"] == "scan1.h5"


def test_intervals_are_written_with_their_level_and_grow_with_it(scans, tmp_path):
    widths = []
    for level in (0.5, 0.9):
        out = tmp_path / f"out{level}"
        outputs = reconstruct(_settings(scans, out, interval=level, calibrate_scan=False))
        with h5py.File(outputs[0]) as file:
            lower, upper = file["lower"][()], file["upper"][()]
            assert lower.dtype == upper.dtype == np.float32
            assert lower.shape == (2, 48, 40) and lower.min() >= 0
            assert file.attrs["interval"] == level and "spread_scale" not in file.attrs
        widths.append(upper - lower)
    assert (widths[1] > widths[0]).mean() > 0.95 and widths[0].min() > 0


def test_a_volume_is_looked_at_in_three_slices_and_draws_what_it_would_without(make_scan, gaussian_prior, monkeypatch):
    looked_at = []
    monkeypatch.setattr(
        "recon.posterior_volume.without_lines",
        lambda scan, rng: looked_at.append(scan.name) or without_lines(scan, rng),
    )
    scans = [replace(make_scan((24, 20), seed=index), name=f"slice {index}") for index in range(7)]
    options = {"samples": 2, "nfe": 6, "keep_samples": True}
    with_scale, without = (
        reconstruct_scans(scans, "posterior", gaussian_prior, calibrate_scan=calibrate, **options)
        for calibrate in (True, False)
    )
    assert looked_at == ["slice 1", "slice 3", "slice 5"]
    np.testing.assert_array_equal(with_scale.samples, without.samples)


@pytest.fixture
def typical_scan(make_scan):
    return _typical(make_scan, "random")


def _typical(make_scan, pattern):
    """Of an image that the Gaussian prior expects."""
    scan = make_scan((96, 80), coils=8, pattern=pattern, acceleration=4, noise_std=0.02)
    target = 0.5 * complex_noise(scan.shape, generator(0, "target"))
    kspace = scan.batch().operator.coil_kspace(target[None])[0]
    kspace = scan.mask * (kspace + scan.noise_std * complex_noise(kspace.shape, generator(0, "noise")))
    return replace(scan, kspace=kspace, target=target)


@pytest.mark.parametrize("sampler", ["default", "dps"])
def test_a_spread_that_a_scan_finds_too_narrow_is_widened_where_it_is(typical_scan, gaussian_prior, sampler):
    narrow = gaussian_prior.with_spread([1.0] * 4 + [0.1] * 4)
    spreads = {}
    for calibrate in (True, False):
        options = {"samples": 4, "nfe": 12, "sampler": sampler, "calibrate_scan": calibrate}
        made = reconstruct_scans([typical_scan], "posterior", narrow, keep_samples=True, **options)
        spreads[calibrate] = made.samples[0].var(0).mean()
        if calibrate:
            widened = json.loads(made.record["spread_widened"])
    if sampler == "default":
        assert 1.5 < min(widened[5:]) > 1.1 * max(widened[:3])  # few of the low bands' points are held out
        assert spreads[True] > 1.1 * spreads[False]
    else:  # has no R
        assert widened == [1.0] * 8
        assert spreads[True] == spreads[False]


def test_the_scorecard_judges_the_priors_spread_and_the_scale_is_what_is_left(
    typical_scan, gaussian_prior, monkeypatch
):
    narrow = gaussian_prior.with_spread([1.0] * 4 + [0.1] * 4)
    judged, left = [], []
    for steps in ((), (0.5,), (0.5, 0.5)):
        monkeypatch.setattr(posterior_volume, "_STEPS_OF_LINES", steps)
        record = reconstruct_scans([typical_scan], "posterior", narrow, samples=2, nfe=12).record
        judged.append(json.loads(record["scorecard"])["z2"]["value"])
        left.append(record["spread_scale"])
    assert judged[0] == judged[1] == judged[2] > 1.4
    assert left[0] > left[1] + 0.02 > left[2] + 0.04


@pytest.mark.parametrize(("pattern", "further"), [("points", True), ("random", False)])
def test_points_get_all_the_spread_that_they_ask_for(make_scan, gaussian_prior, monkeypatch, pattern, further):
    scan, narrow = _typical(make_scan, pattern), gaussian_prior.with_spread([0.2] * 8)
    widened, left = [], []
    for _ in range(2):
        record = reconstruct_scans([scan], "posterior", narrow, samples=2, nfe=12).record
        widened.append(np.log(json.loads(record["spread_widened"])).mean())
        left.append(record["spread_scale"])
        monkeypatch.setattr(posterior_volume, "_STEPS_OF_POINTS", posterior_volume._STEPS_OF_LINES)
    assert (widened[0] > widened[1] + 0.1) == further
    assert (left[0] < left[1] - 0.02) == further


def test_a_spread_that_is_right_stays(typical_scan, gaussian_prior):
    made = reconstruct_scans([typical_scan], "posterior", gaussian_prior, samples=4, nfe=12)
    assert json.loads(made.record["spread_widened"]) == [1.0] * 8


def test_the_posterior_of_a_gaussian_prior_is_the_regularised_solve(make_scan, gaussian_prior):
    scan = make_scan(noise_std=0.05)
    independent, paired = (
        reconstruct_scans([scan], "posterior", gaussian_prior, samples=samples, nfe=32, calibrate_scan=False)
        for samples in (15, 16)
    )
    batch = scan.batch()
    shift = torch.tensor([scan.noise_std**2 / 0.5**2])
    exact = batch.operator.solve(batch.operator.adjoint(batch.kspace), shift)[0].numpy()
    variance = [np.sum(made.std[0] ** 2) for made in (independent, paired)]
    error = [np.sum(np.abs(made.image[0] - exact) ** 2) for made in (independent, paired)]
    assert 0.7 < error[0] / (variance[0] / 15) < 1.4  # nothing but the Monte-Carlo error of 15 draws
    assert error[1] < 0.1 * error[0]  # pairs have hardly any
    assert variance[1] == pytest.approx(variance[0], rel=0.1)
    assert independent.record["scatter"] == pytest.approx(1 / 15) and not independent.record["pairs"]
    assert paired.record["scatter"] < 0.1 / 16 and paired.record["pairs"]


def test_lines_held_out_are_predicted_by_independent_draws(make_scan, gaussian_prior, monkeypatch):
    """The scale and the scorecard take two draws' variance as such."""
    seen, of = [], Drawing.of
    monkeypatch.setattr(Drawing, "of", lambda self, *rest: seen.append((self.samples, self.pairs)) or of(self, *rest))
    reconstruct_scans([make_scan()], "posterior", gaussian_prior, samples=4, nfe=6)
    assert seen == [(SAMPLES, False), (4, True)]


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
    reconstruct(_settings(scans, tmp_path / "out", nfe=10))
    assert json.loads(read_reconstruction(first).record["parameters"])["nfe"] == 10
    again = first.stat().st_mtime_ns
    reconstruct(_settings(scans, tmp_path / "out", nfe=10, overwrite=True))
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


@pytest.fixture
def one_of_three_is_bad(scans, make_scan, write_scan):
    """The folder with a scan between the two that holds a NaN."""
    with h5py.File(write_scan(scans / "scan00.h5", make_scan()), "r+") as file:
        file["kspace"][0, 0, 0, 0] = np.nan
    return scans


def test_a_bad_scan_among_others_is_skipped_reported_and_gives_status_1(one_of_three_is_bad, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["reconstruct", str(one_of_three_is_bad), "--out", str(out), "--samples", "2", "--nfe", "6"]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "scan00.h5: found NaN or infinity in kspace; expected finite numbers; skipped" in error
    assert "1 of 3 files could not be reconstructed" in error
    assert sorted(path.name for path in out.glob("*.h5")) == ["scan0.h5", "scan1.h5"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["done"], manifest["failed"]) == (2, 1)
    assert [entry["status"] for entry in manifest["files"]] == ["done", "failed", "done"]
    assert "finite numbers" in manifest["files"][1]["error"] and str(tmp_path) not in json.dumps(manifest)
    assert manifest["files"][0] | {"slices": 2, "samples": 2, "nfe": 6, "matrix": [48, 40]} == manifest["files"][0]


def test_an_internal_error_of_one_file_stops_no_other(scans, tmp_path, monkeypatch):
    def broken(scan, prior):
        if scan.name.startswith("scan0"):
            raise ZeroDivisionError("by zero")

    monkeypatch.setattr("recon.volume.warn_if_unlike_training", broken)
    with warnings.catch_warnings(), pytest.raises(PartialFailure, match="1 of 2"):
        warnings.simplefilter("ignore")
        reconstruct(_settings(scans, tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").glob("*.h5")] == ["scan1.h5"]


def test_a_missing_prior_stops_at_once_with_status_2(scans, tmp_path, monkeypatch, capsys):
    monkeypatch.undo()  # the shipped prior's stand-in
    words = ["reconstruct", str(scans), "--out", str(tmp_path / "out"), "--prior", str(tmp_path / "none")]
    assert main(words) == 2
    assert "none: found no config.json and no model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_warnings_are_kept_in_the_file_and_the_manifest_and_said_again_to_the_user(tmp_path, make_scan, write_scan):
    path = write_scan(tmp_path / "scan.h5", make_scan(noise_std=0.3))
    with pytest.warns(ScanWarning, match="noise 0.3"):
        (output,) = reconstruct(_settings(path, tmp_path / "out"))
    texts = json.loads(read_reconstruction(output).record["warnings"])
    (entry,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["files"]
    assert entry["warnings"] == texts and texts[0].startswith("scan#0: noise 0.3")


def test_the_manifest_is_the_same_after_a_resumed_run(scans, tmp_path):
    _, second = reconstruct(_settings(scans, tmp_path / "out"))
    whole = (tmp_path / "out" / "manifest.json").read_bytes()
    second.unlink()
    reconstruct(_settings(scans, tmp_path / "out"))
    assert (tmp_path / "out" / "manifest.json").read_bytes() == whole


def test_the_samplers_that_can_be_asked_for_are_those_there_are(make_scan, gaussian_prior):
    asked = get_args(get_type_hints(ReconstructSettings)["sampler"])
    assert asked == tuple(SAMPLERS)
    options = {"model": gaussian_prior, "samples": 1, "nfe": 6}
    images = [reconstruct_scans([make_scan()], sampler=name, **options).image for name in asked[:3]]
    assert not np.allclose(images[0], images[1]) and not np.allclose(images[1], images[2])


def test_the_scans_own_folder_is_refused(scans):
    before = (scans / "scan0.h5").read_bytes()
    with pytest.raises(InputError, match="another output folder"):
        reconstruct(_settings(scans, scans, overwrite=True))
    assert (scans / "scan0.h5").read_bytes() == before


def test_progress_ends_at_all(make_scan, gaussian_prior):
    shares = []
    reconstruct_scans([make_scan()] * 3, "posterior", gaussian_prior, samples=2, nfe=6, batch=4, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_files_draw_different_random_numbers(make_scan, gaussian_prior):
    one, other = (
        reconstruct_scans([make_scan()], "posterior", gaussian_prior, samples=1, nfe=6, name=name)
        for name in ("one", "other")
    )
    assert not np.array_equal(one.image, other.image)
    assert one.std is None  # a single draw has no spread
