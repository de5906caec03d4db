import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from distributed import LocalCluster

import data_prep.pipeline
import mrigsure
from data_prep.ensemble import sampling_of
from data_prep.prepare import prepare, prepare_volume
from data_prep.readers import RawScan, raw_files, read_raw
from mrigsure.errors import InputError, PartialFailure, ScanWarning
from mrigsure.fastmri_files import make_header, write_fastmri
from mrigsure.fourier import fft2c
from mrigsure.masks import make_mask, sampling_density
from mrigsure.scan import SIGMA_DATA, read_prepared
from mrigsure.settings import PrepareSettings


def _settings(**options):
    return PrepareSettings(**({"raw": [], "out": ""} | options))


def _scan(kspace, name="scan.h5", **options):
    return RawScan(kspace=kspace.astype(np.complex64), source=Path(name), **options)


def _digests(folder):
    """Of every file below the folder but what a killed run may leave."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".partial")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _parts(path):
    """Every dataset and attribute of an HDF5 file, to say what of it differs where its bytes do."""
    with h5py.File(path) as file:
        return {key: file[key][()] for key in file} | {f"@{key}": value for key, value in file.attrs.items()}


def _differences(one, two):
    """Names of the parts in which two HDF5 files differ, with the largest difference of those that are numbers."""
    parts, others = _parts(one), _parts(two)
    found = {key: "in one alone" for key in parts.keys() ^ others.keys()}
    for key in parts.keys() & others.keys():
        if not np.array_equal(parts[key], others[key]):
            numbers = np.issubdtype(np.asarray(parts[key]).dtype, np.number)
            found[key] = float(abs(parts[key] - others[key]).max()) if numbers else (parts[key], others[key])
    return found


def _inodes(folder):
    return {path.name: path.stat().st_ino for path in folder.glob("*.h5")}


@pytest.fixture
def archive(tmp_path, make_kspace):
    """Six undersampled fastMRI files."""
    folder = tmp_path / "raw"
    for number in range(6):
        mask = make_mask("random", (64, 56), 2.5, 0.2, seed=number)
        kspace, patient = make_kspace(slices=2, seed=number) * mask, {"patient_id": f"patient {number // 2}"}
        write_fastmri(folder / f"{number}.h5", kspace, mask=mask, attributes=patient)
    return folder


def test_prepared_scan_undoes_to_the_raw_data_and_its_noise(tmp_path, make_kspace):
    noise_std, gain = 0.1, 1e-5
    raw = gain * make_kspace((96, 96), slices=2, noise_std=noise_std)
    volume = prepare_volume(_scan(raw), _settings(keep_target=True))
    assert volume.noise_std / volume.scale == pytest.approx(gain * noise_std, rel=0.05)
    clean = gain * make_kspace((96, 96), slices=2, noise_std=0)
    error = np.abs(volume.kspace / volume.scale - clean)
    assert np.sqrt((error**2).mean() / 2) == pytest.approx(gain * noise_std, rel=0.2)
    assert volume.mask.all() and (volume.sampling_density == 1).all()


def test_scale_brings_the_body_to_sigma_data(make_kspace):
    volume = prepare_volume(_scan(7e3 * make_kspace((96, 96))), _settings(keep_target=True))
    body = np.abs(make_kspace((96, 96), noise_std=0)[0].sum(0)) >= 0  # all pixels; the body is where the target is
    target = np.abs(volume.target[0])[body.reshape(96, 96)]
    inside = target > 0.3 * np.percentile(target, 99)
    assert np.sqrt((target[inside] ** 2).mean() / 2) == pytest.approx(SIGMA_DATA, rel=0.12)


def test_target_is_the_combination_of_the_full_data_with_the_stored_maps(make_kspace):
    settings = _settings(pattern="random", acceleration=3, center_fraction=0.2, keep_target=True)
    volume = prepare_volume(_scan(make_kspace()), settings)
    data = fft2c(torch.from_numpy(volume.sens_maps[0] * volume.target[0])).numpy()  # F S S^H F^H y, nearly y
    full = volume.scale * make_kspace()[0]
    sampled = volume.kspace[0]
    assert not sampled[..., ~volume.mask].any()
    assert np.linalg.norm((data - sampled)[..., volume.mask]) < 0.2 * np.linalg.norm(sampled)
    energy = [np.linalg.norm(kspace[..., ~volume.mask]) for kspace in (data, full)]
    assert energy[0] == pytest.approx(energy[1], rel=0.3)  # part of the noise lies outside the maps' range
    assert np.array_equal(volume.sampling_density, sampling_density("random", (64, 56), 3, 0.2))


def test_maps_and_scale_see_only_the_sampled_data(make_kspace):
    settings = _settings(pattern="random", acceleration=3, center_fraction=0.2)
    full = make_kspace()
    volume = prepare_volume(_scan(full), settings)
    mask = volume.mask
    stated = prepare_volume(_scan(full * mask, mask=mask), _settings())
    assert np.abs((stated.sens_maps.conj() * volume.sens_maps).sum(1)).mean() > 0.99
    assert stated.scale == pytest.approx(volume.scale, rel=0.05)


def test_file_round_trip_records_where_it_came_from(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("MRIGSURE_SITE_KEY", "key of the site")
    (output, *others) = prepare(_settings(raw=[str(archive)], out=str(tmp_path / "out"), seed=3))
    volume = read_prepared(output)
    assert volume.source == "0.h5"
    assert volume.source_sha256 == hashlib.sha256((archive / "0.h5").read_bytes()).hexdigest()
    assert volume.seed == 3 and volume.parameters["seed"] == 3
    assert not {"raw", "out", "mask"} & set(volume.parameters)
    assert str(archive) not in json.dumps(volume.parameters)
    hashes = [read_prepared(path).patient_hash for path in (output, *others)]
    assert len(volume.patient_hash) == 64 and hashes[0::2] == hashes[1::2] and len(set(hashes)) == 3
    with h5py.File(archive / "0.h5") as file:
        assert np.array_equal(volume.mask, file["mask"][()])
    monkeypatch.delenv("MRIGSURE_SITE_KEY")
    prepare(_settings(raw=[str(archive)], out=str(tmp_path / "out"), seed=3))
    assert read_prepared(output).patient_hash == ""


def test_density_is_that_of_the_ensemble(archive, tmp_path):
    outputs = prepare(_settings(raw=[str(archive)], out=str(tmp_path / "out")))
    density = read_prepared(outputs[0]).sampling_density
    assert all(np.array_equal(read_prepared(path).sampling_density, density) for path in outputs)
    assert (density[23:34] == 1).all() and density[:16].max() < 1
    truth = sampling_density("random", (64, 56), 2.5, 0.2)
    assert density.mean() == pytest.approx(truth.mean(), abs=0.05)


def test_finished_outputs_are_kept_and_changed_ones_made_again(archive, tmp_path):
    settings = _settings(raw=[str(archive)], out=str(tmp_path / "out"))
    prepare(settings)
    first = _inodes(tmp_path / "out")
    prepare(settings)
    assert _inodes(tmp_path / "out") == first
    with h5py.File(archive / "3.h5", "r+") as file:
        file["kspace"][0, 0, 32, 28] *= 2
    prepare(settings)
    second = _inodes(tmp_path / "out")
    assert {name for name in first if first[name] != second[name]} == {"3.h5"}
    prepare(_settings(raw=[str(archive)], out=str(tmp_path / "out"), calibration=(10, 10)))
    third = _inodes(tmp_path / "out")
    assert all(second[name] != third[name] for name in first)


def test_killed_run_resumes_to_identical_bytes(archive, tmp_path):
    prepare(_settings(raw=[str(archive)], out=str(tmp_path / "whole")))
    out = tmp_path / "killed"
    code = (
        "from data_prep.prepare import prepare; from mrigsure.settings import PrepareSettings; "
        f"prepare(PrepareSettings(raw=[{str(archive)!r}], out={str(out)!r}))"
    )
    home = str(Path(mrigsure.__file__).resolve().parents[1])
    command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": home}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(out.glob("[0-9].h5"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_ino for path in out.glob("[0-9].h5")}
    assert 2 <= len(done) < 6
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=120)
    assert all((out / name).stat().st_ino == inode for name, inode in done.items())
    assert _digests(out) == _digests(tmp_path / "whole")


def test_bad_files_are_named_and_skipped_and_the_others_done(archive, tmp_path):
    content = np.ones((1, 2, 8, 8), np.complex64)
    content[0, 0, 0, 0] = np.nan
    write_fastmri(archive / "8.h5", content, mask=np.ones(8))
    write_fastmri(archive / "9.h5", content)
    (archive / "9.h5").write_bytes((archive / "9.h5").read_bytes()[:700])
    out = tmp_path / "out"
    with pytest.warns(ScanWarning) as heard, pytest.raises(PartialFailure, match="2 of 8 files could not be prepared"):
        prepare(_settings(raw=[str(archive)], out=str(out)))
    nan, truncated = sorted(str(one.message) for one in heard if str(one.message).endswith("skipped"))
    assert nan.endswith("8.h5: found NaN or infinity in 1 samples of kspace; expected finite numbers; skipped")
    assert truncated.endswith("9.h5: found a truncated or non-HDF5 file; expected a complete HDF5 file; skipped")
    assert sorted(path.stem for path in out.glob("*.h5")) == list("012345") and not list(out.glob(".*"))
    entries = {entry["source"]: entry for entry in json.loads((out / "manifest.json").read_text())["files"]}
    assert entries["9.h5"]["status"] == "failed"
    assert entries["9.h5"]["error"] == "9.h5: found a truncated or non-HDF5 file; expected a complete HDF5 file"
    assert entries["0.h5"]["status"] == "done" and entries["0.h5"]["error"] == ""


def test_a_single_bad_file_is_bad_input(archive, tmp_path):
    bad = archive / "9.h5"
    bad.write_bytes((archive / "0.h5").read_bytes()[:700])
    with pytest.raises(InputError, match="9.h5: found a truncated or non-HDF5 file"):
        prepare(_settings(raw=[str(bad)], out=str(tmp_path / "out")))
    with pytest.raises(InputError, match="none.h5: found no such file"):
        prepare(_settings(raw=[str(archive / "none.h5")], out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_bug_in_one_file_does_not_stop_the_others(archive, tmp_path, monkeypatch):
    real = data_prep.pipeline.estimate_noise

    def breaks(raw, mask):
        if raw.source.stem == "2":
            raise ZeroDivisionError("division by zero")
        return real(raw, mask)

    monkeypatch.setattr(data_prep.pipeline, "estimate_noise", breaks)
    expected = pytest.warns(ScanWarning, match="2.h5: internal error: ZeroDivisionError: division by zero; skipped")
    with expected, pytest.raises(PartialFailure, match="1 of 6"):
        prepare(_settings(raw=[str(archive)], out=str(tmp_path / "out")))
    assert not (tmp_path / "out" / "2.h5").exists() and (tmp_path / "out" / "3.h5").exists()


@pytest.mark.parametrize("how", ["workers", "scheduler"])
def test_two_workers_write_the_same_bytes_as_one(archive, tmp_path, how):
    """Prepared files, densities and the manifest; a bad file too."""
    (archive / "9.h5").write_bytes(b"no HDF5")
    for name, options in (("one", {}), ("two", {"workers": 2})):
        settings = {"raw": [str(archive)], "out": str(tmp_path / name)}
        with warnings.catch_warnings(), pytest.raises(PartialFailure):
            warnings.simplefilter("ignore", ScanWarning)
            if how == "workers" or name == "one":
                prepare(_settings(**settings, **options))
            else:
                with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
                    prepare(_settings(**settings, scheduler=cluster.scheduler_address))
    one, two = (_digests(tmp_path / name) for name in ("one", "two"))
    assert len([name for name in one if name.endswith(".h5")]) == 6 and "manifest.json" in one
    unlike = {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)}
    files = {name for name in unlike if name.endswith(".h5")}
    assert not unlike, {name: _differences(tmp_path / "one" / name, tmp_path / "two" / name) for name in files}


def test_manifest_says_what_became_of_every_file_and_names_no_folder(tmp_path, make_kspace):
    folder = tmp_path / "DOE^JANE_19700101"
    mask = make_mask("random", (64, 56), 2.5, 0.2, seed=0)
    write_fastmri(folder / "a.h5", make_kspace(slices=2, noise_std=3.0) * mask, mask=mask)
    write_fastmri(folder / "b.h5", make_kspace((96, 64), noise_std=0.1))
    with pytest.warns(ScanWarning, match="above the signal"):
        prepare(_settings(raw=[str(folder)], out=str(tmp_path / "out"), seed=4))
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert "DOE" not in text and str(tmp_path) not in text
    manifest = json.loads(text)
    assert manifest["done"] == 2 and manifest["failed"] == 0 and manifest["parameters"]["seed"] == 4
    noisy, full = manifest["files"]
    assert noisy["sha256"] == hashlib.sha256((folder / "a.h5").read_bytes()).hexdigest()
    assert noisy["warnings"] and noisy["warnings"][0].startswith("a.h5: noise")
    assert (noisy["coils"], noisy["slices"], noisy["matrix"], noisy["output"]) == (4, 2, [64, 56], "a.h5")
    assert noisy["acceleration"] == pytest.approx(56 / mask.sum(), abs=1e-3)
    assert full["noise_std"] / full["scale"] == pytest.approx(0.1, rel=0.1) and full["warnings"] == []
    assert [(one["matrix"], one["files"]) for one in manifest["ensembles"]] == [([64, 56], 1), ([96, 64], 1)]


def test_blind_modes_are_said_after_preparing(tmp_path, make_kspace, capsys):
    mask = np.arange(56) % 2 == 0
    mask[24:32] = True
    for name in "ab":
        write_fastmri(tmp_path / "raw" / f"{name}.h5", make_kspace(coils=1) * mask, mask=mask)
    prepare(_settings(raw=[str(tmp_path / "raw")], out=str(tmp_path / "out")))
    blind = (27 - mask[1:55].reshape(27, 2)[:, 0].sum()) / 55  # of the 55 lines of the support
    assert f"{blind:.1%} of the modes are seen by no scan" in capsys.readouterr().out


def test_dry_run_says_what_and_how_long_and_writes_nothing(archive, tmp_path, capsys):
    settings = {"raw": [str(archive)], "out": str(tmp_path / "out")}
    prepare(_settings(**settings, dry_run=True))
    said = capsys.readouterr().out
    for expected in ("would prepare 6 of 6 files", "4 coils, 64 x 56, R 2"):
        assert expected in said
    assert re.search(r"about \d+ s with 1 worker", said)
    assert not (tmp_path / "out").exists()
    prepare(_settings(**settings))
    (tmp_path / "out" / "4.h5").unlink()
    before = _digests(tmp_path / "out")
    prepare(_settings(**settings, dry_run=True, workers=2))
    assert "would prepare 1 of 6 files" in capsys.readouterr().out
    assert _digests(tmp_path / "out") == before


def test_no_kspace_but_one_slice_is_read_to_find_masks(archive, tmp_path, monkeypatch, make_kspace):
    write_fastmri(archive / "7.h5", make_kspace(slices=9, noise_std=0.1) * (np.arange(56) % 3 > 0))
    read = []
    real = h5py.Dataset.__getitem__

    def counting(dataset, key, **options):
        found = real(dataset, key, **options)
        if dataset.name == "/kspace":
            read.append(len(found))
        return found

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counting)
    sizes = [sampling_of(str(path), _settings())[0] for path in sorted(archive.iterdir())]
    assert sizes == [(64, 56)] * 7 and read == [1]


def test_outputs_never_collide_and_never_replace_what_is_no_prepared_scan(archive, tmp_path, make_kspace):
    np.save(tmp_path / "0.npy", make_kspace())
    with pytest.raises(InputError, match="0.npy: found the name of .*0.h5 again"):
        prepare(_settings(raw=[str(archive), str(tmp_path / "0.npy")], out=str(tmp_path / "out")))
    with pytest.raises(InputError, match="found the raw file 0.h5 where its output would go"):
        prepare(_settings(raw=[str(archive)], out=str(archive)))
    (tmp_path / "out").mkdir()
    write_fastmri(tmp_path / "out" / "1.h5", make_kspace())
    before = (tmp_path / "out" / "1.h5").read_bytes()
    with pytest.raises(InputError, match="1.h5: found a file that is no prepared scan"):
        prepare(_settings(raw=[str(archive / "1.h5")], out=str(tmp_path / "out")))
    assert (tmp_path / "out" / "1.h5").read_bytes() == before


def test_unusual_scans_warn_with_figures(make_kspace):
    with pytest.warns(ScanWarning, match="noise .* above the signal"):
        prepare_volume(_scan(make_kspace(noise_std=3.0)), _settings())
    mask = np.arange(56) % 2 == 1
    with pytest.warns(ScanWarning, match="acquired undersampled, so there is no target"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*calibration region")
        volume = prepare_volume(_scan(make_kspace() * mask), _settings(keep_target=True))
    assert volume.target is None
    with pytest.raises(InputError, match="found a fully sampled centre of 64 x 56; expected at least"):
        prepare_volume(_scan(make_kspace()), _settings(calibration=(70, 20)))


def test_single_coil_scans_are_prepared_with_density_0_outside_the_support(make_kspace):
    mask = make_mask("random", (64, 56), 2.5, 0.2, seed=0)
    mask[:6] = mask[50:] = False
    volume = prepare_volume(_scan(make_kspace(coils=1) * mask), _settings())
    assert np.array_equal(volume.sens_maps, np.ones((1, 1, 64, 56)))
    first, last = np.flatnonzero(mask)[[0, -1]]
    assert not volume.sampling_density[:first].any() and not volume.sampling_density[last + 1 :].any()
    assert (volume.sampling_density[first : last + 1] > 0).all()


def test_readout_oversampling_that_the_header_states_is_cropped(make_kspace):
    header = make_header((32, 56), (2.0, 2.0, 4.0), encoded_matrix=(64, 56))
    volume = prepare_volume(_scan(make_kspace(noise_std=0.3), header=header), _settings())
    assert volume.kspace.shape == (1, 4, 32, 56)
    assert volume.noise_std / volume.scale == pytest.approx(0.3, rel=0.1)


def test_every_real_file_is_prepared(shared_data, tmp_path):
    raw = shared_data / "raw"
    for path, output in zip(raw_files([raw]), prepare(_settings(raw=[str(raw)], out=str(tmp_path))), strict=True):
        volume = read_prepared(output)
        assert volume.kspace.shape == read_raw(path).kspace.shape
        assert 0.001 < volume.noise_std < 0.1
        assert np.abs((np.abs(volume.sens_maps) ** 2).sum(1) - 1).max() < 1e-4
    full = read_prepared(tmp_path / "brain_8ch_full.h5")
    assert full.noise_std / full.scale == pytest.approx(1.7 / np.sqrt(2), rel=0.05)  # 1.7 of the complex sample


def test_scans_that_ship_are_prepared(root, tmp_path):
    settings = _settings(raw=[str(root / "mrigsure" / "data" / "scans")], out=str(tmp_path))
    full, undersampled = (read_prepared(path) for path in prepare(settings))
    assert full.mask.all() and full.kspace.shape == (1, 16, 128, 128)
    assert undersampled.mask.shape == (230, 180) and undersampled.mask.mean() == pytest.approx(0.124, abs=1e-3)
    assert (undersampled.sampling_density > 0.999).sum() == 24 * 24
