import hashlib
import json
import os
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

import mrigsure
from data_prep.prepare import prepare, prepare_volume
from data_prep.readers import RawScan, raw_files, read_raw
from mrigsure.errors import InputError, ScanWarning
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
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def archive(tmp_path, make_kspace):
    """Six undersampled fastMRI files."""
    folder = tmp_path / "raw"
    for number in range(6):
        mask = make_mask("random", (64, 56), 2.5, 0.2, seed=number)
        write_fastmri(folder / f"{number}.h5", make_kspace(slices=2, seed=number) * mask, mask=mask)
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
    (output, *_) = prepare(_settings(raw=[str(archive)], out=str(tmp_path / "out"), seed=3))
    volume = read_prepared(output)
    assert volume.source == "0.h5"
    assert volume.source_sha256 == hashlib.sha256((archive / "0.h5").read_bytes()).hexdigest()
    assert volume.seed == 3 and volume.parameters["seed"] == 3
    assert not {"raw", "out", "mask"} & set(volume.parameters)
    assert str(archive) not in json.dumps(volume.parameters)
    assert len(volume.patient_hash) == 64
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
    first = {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}
    prepare(settings)
    assert {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()} == first
    with h5py.File(archive / "3.h5", "r+") as file:
        file["kspace"][0, 0, 32, 28] *= 2
    prepare(settings)
    second = {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}
    assert {name for name in first if first[name] != second[name]} == {"3.h5"}
    prepare(_settings(raw=[str(archive)], out=str(tmp_path / "out"), calibration=(10, 10)))
    third = {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}
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
    left = {name: digest for name, digest in _digests(out).items() if not name.startswith(".partial")}
    assert left == _digests(tmp_path / "whole")


def test_bad_file_stops_with_its_name_and_leaves_no_partial_output(archive, tmp_path):
    bad = archive / "9.h5"
    content = np.ones((1, 2, 8, 8), np.complex64)
    content[0, 0, 0, 0] = np.nan
    write_fastmri(bad, content)
    with pytest.raises(InputError, match="9.h5: found NaN or infinity in 1 samples of kspace; expected finite"):
        prepare(_settings(raw=[str(archive)], out=str(tmp_path / "out")))
    bad.write_bytes(bad.read_bytes()[:700])
    with pytest.raises(InputError, match="9.h5: found a truncated or non-HDF5 file; expected a complete"):
        prepare(_settings(raw=[str(archive)], out=str(tmp_path / "out")))
    with pytest.raises(InputError, match="none.h5: found no such file"):
        prepare(_settings(raw=[str(archive / "none.h5")], out=str(tmp_path / "out")))
    left = list((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else []
    assert not left


def test_outputs_never_collide_and_never_replace_what_is_no_prepared_scan(archive, tmp_path, make_kspace):
    np.save(tmp_path / "0.npy", make_kspace())
    with pytest.raises(InputError, match="0.npy: found the name of .*0.h5 again"):
        prepare(_settings(raw=[str(archive), str(tmp_path / "0.npy")], out=str(tmp_path / "out")))
    with pytest.raises(InputError, match="found the raw file 0.h5 where its output would go"):
        prepare(_settings(raw=[str(archive)], out=str(archive)))
    (tmp_path / "out").mkdir()
    write_fastmri(tmp_path / "out" / "1.h5", make_kspace())
    before = _digests(tmp_path / "out")
    with pytest.raises(InputError, match="1.h5: found a file that is no prepared scan"):
        prepare(_settings(raw=[str(archive / "1.h5")], out=str(tmp_path / "out")))
    assert _digests(tmp_path / "out") == before


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
